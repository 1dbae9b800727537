#include "gemm/gemm.h"

#include <algorithm>
#include <set>

#include "gemm/kernel_text.h"

namespace volley::gemm {
namespace {

constexpr size_t kMaxChoices = 256;

int element_bytes(MmaKind mma) {
  return has_fp8_tokens(mma) ? 1 : 2;
}
int out_bytes(OutKind out) {
  return out == OutKind::kBf16 ? 2 : 4;
}

// Weights along B's outermost dimension.
int num_weights(const GemmShape& shape) {
  return shape.grouping == Grouping::kAlongK ? 1 : shape.num_groups;
}
bool adds_c(Grouping grouping) {
  return grouping == Grouping::kDense || grouping == Grouping::kAlongK;
}

Status check_pointer(const char* name, cuda::DevicePtr pointer) {
  if (pointer != 0 && pointer % 16 == 0) return {};
  return invalid("gemm: {} is {:#x}, expected device memory aligned to 16 bytes", name, pointer);
}

Status check_stride(const char* name, int64_t stride, int64_t least, int64_t bytes) {
  if (stride >= least && stride * bytes % 16 == 0 && stride < int64_t{1} << 32) return {};
  return invalid("gemm: {} is {}, expected at least {} with rows a multiple of 16 bytes apart",
                 name, stride, least);
}

// Fills in the defaults of `args` and checks every rule of gemm.h that can be checked.
Status complete(GemmArgs& args) {
  const GemmShape& shape = args.shape;
  VOLLEY_TRY_STATUS(validate(shape));
  if (args.a_stride == 0) args.a_stride = shape.k;
  if (args.a_scale_stride == 0) args.a_scale_stride = round_up(shape.m, 4);
  if (args.b_scale_stride == 0) args.b_scale_stride = shape.n;
  if (args.d_stride == 0) args.d_stride = shape.n;
  if (args.c_stride == 0) args.c_stride = args.d_stride;
  VOLLEY_TRY_STATUS(check_stride("a_stride", args.a_stride, shape.k, element_bytes(shape.mma)));
  VOLLEY_TRY_STATUS(check_stride("d_stride", args.d_stride, shape.n, out_bytes(shape.out)));
  VOLLEY_TRY_STATUS(check_pointer("b", args.b));
  if (args.c != 0) {
    if (shape.out != OutKind::kF32 || !adds_c(shape.grouping)) {
      return invalid("gemm: c is given, expected float output of a dense product or one along k");
    }
    VOLLEY_TRY_STATUS(check_pointer("c", args.c));
    VOLLEY_TRY_STATUS(check_stride("c_stride", args.c_stride, shape.n, 4));
    if (args.c == args.d && args.c_stride != args.d_stride) {
      return invalid("gemm: c is d, but c_stride is {} and d_stride {}", args.c_stride,
                     args.d_stride);
    }
  }
  if (shape.m == 0) return {};
  VOLLEY_TRY_STATUS(check_pointer("a", args.a));
  VOLLEY_TRY_STATUS(check_pointer("d", args.d));
  if (has_fp8_tokens(shape.mma)) {
    VOLLEY_TRY_STATUS(check_stride("a_scale_stride", args.a_scale_stride, shape.m, 4));
    VOLLEY_TRY_STATUS(check_pointer("a_scale", args.a_scale));
    VOLLEY_TRY_STATUS(check_pointer("b_scale", args.b_scale));
  }
  if (shape.mma == MmaKind::kFp8Rows) {
    VOLLEY_TRY_STATUS(check_stride("b_scale_stride", args.b_scale_stride, shape.n, 4));
  }
  if (shape.grouping != Grouping::kDense && (args.groups == 0 || args.groups % 4 != 0)) {
    return invalid("gemm: groups is {:#x}, expected device memory aligned to 4 bytes", args.groups);
  }
  return {};
}

Status check_config(const GemmConfig& config, const GemmShape& shape, const DeviceSpec& device) {
  const bool same = config.mma == shape.mma && config.out == shape.out &&
                    config.grouping == shape.grouping && config.segments == segments_of(shape);
  const bool aligned =
      (shape.grouping != Grouping::kRowIndex && shape.grouping != Grouping::kPrefixSum) ||
      shape.group_align % config.tile_m == 0;
  if (same && aligned && config.valid() &&
      smem_layout(config).total_bytes <= device.max_smem_bytes) {
    return {};
  }
  return invalid("gemm: configuration {} does not compute this shape", config_name(config));
}

Status encode_maps(const cuda::Driver& driver, const GemmArgs& args, GemmCall& call) {
  const GemmShape& shape = args.shape;
  const GemmConfig& config = call.config;
  const bool fp8 = has_fp8_tokens(shape.mma);
  const int bytes = element_bytes(shape.mma);
  const int slabs = shape.grouping == Grouping::kMasked ? shape.num_groups : 1;
  const int weights = num_weights(shape);
  const cuda::MapDType element = fp8 ? cuda::MapDType::kU8 : cuda::MapDType::kBF16;
  VOLLEY_TRY(
      call.a_map,
      cuda::encode(driver, {.address = args.a,
                            .dtype = element,
                            .dims = {shape.k, shape.m, slabs},
                            .strides = {args.a_stride * bytes, args.a_stride * bytes * shape.m},
                            .box = {config.k_per_stage(), config.a_box_rows(), 1},
                            .swizzle = cuda::MapSwizzle::k128B}));
  const int64_t b_row = int64_t{shape.k} * bytes;
  if (!config.fp4()) {
    VOLLEY_TRY(call.b_map,
               cuda::encode(driver, {.address = args.b,
                                     .dtype = element,
                                     .dims = {shape.k, shape.n, weights},
                                     .strides = {b_row, b_row * shape.n},
                                     .box = {config.k_per_stage(), config.b_box_rows(), 1},
                                     .swizzle = cuda::MapSwizzle::k128B}));
  }
  if (fp8) {
    const int64_t row = args.a_scale_stride * 4;
    VOLLEY_TRY(call.scale_map,
               cuda::encode(driver, {.address = args.a_scale,
                                     .dtype = cuda::MapDType::kF32,
                                     .dims = {shape.m, shape.k / kQuantGroup, slabs},
                                     .strides = {row, row * (shape.k / kQuantGroup)},
                                     .box = {config.tile_m, 1, 1}}));
  }
  if (shape.mma == MmaKind::kFp8Rows) {
    const int64_t row = args.b_scale_stride * 4;
    VOLLEY_TRY(call.b_scale_map,
               cuda::encode(driver, {.address = args.b_scale,
                                     .dtype = cuda::MapDType::kF32,
                                     .dims = {shape.n, shape.k / kQuantGroup, 1},
                                     .strides = {row, row * (shape.k / kQuantGroup)},
                                     .box = {config.tile_n, 1, 1}}));
  }
  if (config.stores_boxes()) {
    const int64_t row = args.d_stride * out_bytes(shape.out);
    const bool f32 = shape.out == OutKind::kF32;
    const int d_slabs = has_slabs(shape.grouping) ? shape.num_groups : 1;
    VOLLEY_TRY(call.d_map,
               cuda::encode(driver, {.address = args.d,
                                     .dtype = f32 ? cuda::MapDType::kF32 : cuda::MapDType::kBF16,
                                     .dims = {shape.n, shape.m, d_slabs},
                                     .strides = {row, row * shape.m},
                                     .box = {config.store_cols(), kMmaRows, 1},
                                     .swizzle = cuda::MapSwizzle::k128B}));
  }
  return {};
}

// Clusters the schedule can use at most: one a unit. Of groups on the device only a bound is known.
int64_t max_units(const GemmShape& shape, const GemmConfig& config) {
  const int slabs = has_slabs(shape.grouping) ? shape.num_groups : 1;
  const bool along_m = config.shares_b();
  const int n_units = ceil_div(ceil_div(shape.n, config.tile_n), along_m ? 1 : config.multicast);
  const int m_units = ceil_div(ceil_div(shape.m, config.tile_m), along_m ? config.multicast : 1);
  return int64_t{m_units} * slabs * n_units;
}

}  // namespace

Result<DeviceSpec> device_spec(const cuda::Context& context, std::string_view library) {
  const cuda::DeviceInfo& info = context.info();
  if (info.compute_major != 9 || info.compute_minor != 0) {
    return make_error(ErrorKind::kUnsupported,
                      "{}: {} has compute capability {}.{}, expected 9.0 (Hopper)", library,
                      info.name, info.compute_major, info.compute_minor);
  }
  DeviceSpec device;
  device.num_sms = info.num_sms;
  device.max_smem_bytes = static_cast<int>(info.max_smem_bytes);
  return device;
}

Result<std::unique_ptr<Gemm>> Gemm::create(const cuda::Context& context,
                                           jit::KernelLibrary& kernels) {
  VOLLEY_TRY(const DeviceSpec device, device_spec(context, "gemm"));
  return std::unique_ptr<Gemm>(new Gemm(context, kernels, device));
}

Result<const Gemm::Loaded*> Gemm::load(const GemmConfig& config) {
  const std::string name = config_name(config);
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = loaded_.find(name); found != loaded_.end()) return &found->second;
  }
  // Compiling may take long: not under the lock. Two threads may both load; the first one's stays.
  VOLLEY_TRY(const std::string* cubin, kernels_.cubin(kernel_source(config)));
  Loaded loaded;
  VOLLEY_TRY(loaded.module, cuda::Module::load(context_, *cubin));
  const int smem_bytes = smem_layout(config).total_bytes;
  VOLLEY_TRY(loaded.kernel, loaded.module.kernel(kKernelEntry, smem_bytes));
  const cuda::LaunchDims one_cluster = {.num_ctas = static_cast<uint32_t>(config.cluster()),
                                        .num_threads = static_cast<uint32_t>(config.num_threads()),
                                        .cluster_size = static_cast<uint32_t>(config.cluster()),
                                        .smem_bytes = static_cast<uint32_t>(smem_bytes)};
  VOLLEY_TRY(loaded.max_clusters,
             cuda::max_active_clusters(context_.driver(), loaded.kernel.function, one_cluster));
  if (loaded.max_clusters < 1) {
    return make_error(ErrorKind::kUnsupported, "gemm: the device cannot run {}", name);
  }
  const std::lock_guard lock(mutex_);
  return &loaded_.try_emplace(name, std::move(loaded)).first->second;
}

Result<GemmConfig> Gemm::choose(const GemmShape& shape) {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [known, config] : choices_) {
      if (known == shape) return config;
    }
  }
  VOLLEY_TRY(const GemmConfig config, choose_config(shape, device_));
  const std::lock_guard lock(mutex_);
  if (choices_.size() < kMaxChoices) {
    choices_.emplace_back(shape, config);
  } else {
    choices_[next_choice_++ % kMaxChoices] = {shape, config};
  }
  return config;
}

Result<GemmCall> Gemm::prepare(const GemmArgs& arguments) {
  GemmArgs args = arguments;
  VOLLEY_TRY_STATUS(complete(args));
  const GemmShape& shape = args.shape;
  GemmCall call;
  if (shape.m == 0) return call;
  if (args.config) {
    VOLLEY_TRY_STATUS(check_config(*args.config, shape, device_));
    call.config = *args.config;
  } else {
    VOLLEY_TRY(call.config, choose(shape));
  }
  VOLLEY_TRY(const Loaded* loaded, load(call.config));
  VOLLEY_TRY_STATUS(encode_maps(context_.driver(), args, call));
  call.kernel = loaded->kernel.function;
  const int cluster = call.config.cluster();
  // What the device holds may be more than the configuration means to run on an SM.
  const int64_t planned = device_.num_sms * call.config.ctas_per_sm / cluster;
  const int64_t clusters =
      std::min({int64_t{loaded->max_clusters}, planned, max_units(shape, call.config)});
  call.dims = {.num_ctas = static_cast<uint32_t>(clusters * cluster),
               .num_threads = static_cast<uint32_t>(call.config.num_threads()),
               .cluster_size = static_cast<uint32_t>(cluster),
               .smem_bytes = static_cast<uint32_t>(smem_layout(call.config).total_bytes),
               .overlaps = args.overlap != Overlap::kNone};
  call.params = {.m = shape.m,
                 .n = shape.n,
                 .k = shape.k,
                 .num_groups = shape.num_groups,
                 .b = reinterpret_cast<const unsigned char*>(args.b),
                 .b_scale = reinterpret_cast<const float*>(args.b_scale),
                 .d = reinterpret_cast<void*>(args.d),
                 .d_stride = args.d_stride,
                 .c = reinterpret_cast<const float*>(args.c),
                 .c_stride = args.c_stride,
                 .groups = reinterpret_cast<const int*>(args.groups),
                 .group_align = shape.group_align,
                 .weights_ready = args.overlap == Overlap::kWeights};
  return call;
}

Status Gemm::launch(const GemmCall& call, cuda::CuStream stream) const {
  if (call.kernel == nullptr) return {};
  // The driver takes pointers to non-const and only reads.
  auto& c = const_cast<GemmCall&>(call);
  void* params[] = {&c.a_map, &c.b_map, &c.scale_map, &c.b_scale_map, &c.d_map, &c.params};
  return cuda::launch(context_.driver(), call.kernel, call.dims, params, stream);
}

Status Gemm::warm_up(std::span<const GemmShape> shapes, int num_threads,
                     const jit::KernelLibrary::Progress& progress) {
  VOLLEY_TRY(const std::vector<jit::KernelSource> sources, kernels_for(shapes, device_));
  VOLLEY_TRY_STATUS(kernels_.warm_up(sources, num_threads, progress));
  for (const GemmShape& shape : shapes) {
    VOLLEY_TRY(const std::vector<GemmConfig> configs, configs_up_to(shape, device_));
    for (const GemmConfig& config : configs) {
      if (const auto loaded = load(config); !loaded) return tl::unexpected<Error>(loaded.error());
    }
  }
  return {};
}

Result<std::vector<jit::KernelSource>> kernels_for(std::span<const GemmShape> shapes,
                                                   const DeviceSpec& device) {
  std::vector<jit::KernelSource> sources;
  std::set<std::string> names;
  for (const GemmShape& shape : shapes) {
    VOLLEY_TRY(const std::vector<GemmConfig> configs, configs_up_to(shape, device));
    for (const GemmConfig& config : configs) {
      if (names.insert(config_name(config)).second) sources.push_back(kernel_source(config));
    }
  }
  return sources;
}

}  // namespace volley::gemm
