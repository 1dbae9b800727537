#include "gemm/scoring.h"

#include <algorithm>
#include <limits>
#include <set>

#include "gemm/kernel_text.h"

namespace volley::gemm {
namespace {

constexpr int kMaxStages = 24;
// Of keys on their way to one CTA from pages all over the memory: more make the memory slower
// (docs/gemm.md).
constexpr int kMaxPagedBytes = 72 << 10;
constexpr int kMaxNextN = 1 << 16;

Status check_pointer(const char* name, cuda::DevicePtr pointer, uint64_t alignment) {
  if (pointer != 0 && pointer % alignment == 0) return {};
  return invalid("scoring: {} is {:#x}, expected device memory aligned to {} bytes", name, pointer,
                 alignment);
}

Status check_optional(const char* name, cuda::DevicePtr pointer) {
  return pointer == 0 ? Status() : check_pointer(name, pointer, 4);
}

Status check_stride(const char* name, int64_t stride, int64_t least, int64_t multiple) {
  if (stride >= least && stride % multiple == 0 && stride < int64_t{1} << 32) return {};
  return invalid("scoring: {} is {}, expected a multiple of {} from {}", name, stride, multiple,
                 least);
}

int key_bytes(const ScoringShape& s) {
  return s.keys == KeyKind::kMxFp4 ? s.head_dim / 2 : s.head_dim;
}

// Fills in the defaults of `args` and checks every rule of scoring.h that can be checked.
Status complete(ScoringArgs& args) {
  const ScoringShape& s = args.shape;
  VOLLEY_TRY_STATUS(validate(s));
  const int64_t pages = ceil_div(s.num_keys, kKeyTile);
  if (args.q_stride == 0) args.q_stride = int64_t{s.heads} * s.head_dim;
  if (args.weights_stride == 0) args.weights_stride = s.heads;
  if (args.key_stride == 0) args.key_stride = key_bytes(s);
  if (args.page_stride == 0) args.page_stride = scoring_page_bytes(s.keys, s.head_dim);
  if (args.table_stride == 0) args.table_stride = pages;
  if (args.logits_stride == 0) args.logits_stride = s.num_keys;
  if (s.num_rows == 0 || s.num_keys == 0) return {};
  VOLLEY_TRY_STATUS(check_stride("q_stride", args.q_stride, int64_t{s.heads} * s.head_dim, 16));
  VOLLEY_TRY_STATUS(check_stride("weights_stride", args.weights_stride, s.heads, 4));
  VOLLEY_TRY_STATUS(check_stride("logits_stride", args.logits_stride, s.num_keys, 1));
  VOLLEY_TRY_STATUS(check_pointer("q", args.q, 16));
  VOLLEY_TRY_STATUS(check_pointer("weights", args.weights, 16));
  VOLLEY_TRY_STATUS(check_pointer("keys", args.keys, 16));
  VOLLEY_TRY_STATUS(check_pointer("logits", args.logits, 4));
  if (!s.paged) {
    VOLLEY_TRY_STATUS(check_stride("key_stride", args.key_stride, key_bytes(s), 16));
    if (s.keys == KeyKind::kMxFp4 && args.key_stride != key_bytes(s)) {
      return invalid("scoring: key_stride is {}, expected FP4 keys packed, {} bytes each",
                     args.key_stride, key_bytes(s));
    }
    VOLLEY_TRY_STATUS(check_pointer("key_scales", args.key_scales, 16));
    VOLLEY_TRY_STATUS(check_optional("starts", args.starts));
    return check_optional("ends", args.ends);
  }
  VOLLEY_TRY_STATUS(
      check_stride("page_stride", args.page_stride, scoring_page_bytes(s.keys, s.head_dim), 16));
  VOLLEY_TRY_STATUS(check_stride("table_stride", args.table_stride, pages, 1));
  if (args.num_pages < 1 || args.num_pages > std::numeric_limits<int32_t>::max()) {
    return invalid("scoring: num_pages is {}, expected at least 1", args.num_pages);
  }
  VOLLEY_TRY_STATUS(check_pointer("block_table", args.block_table, 4));
  VOLLEY_TRY_STATUS(check_pointer("context_lens", args.context_lens, 4));
  if (args.query_starts == 0 && int64_t{s.num_sequences} * s.next_n != s.num_rows) {
    return invalid("scoring: {} sequences of {} rows, expected num_rows, {}, in all",
                   s.num_sequences, s.next_n, s.num_rows);
  }
  return check_optional("query_starts", args.query_starts);
}

Status check_config(const ScoringConfig& config, const ScoringShape& shape,
                    const DeviceSpec& device) {
  if (config.keys == shape.keys && config.paged == shape.paged && config.heads == shape.heads &&
      config.head_dim == shape.head_dim && config.valid() &&
      scoring_smem(config).total_bytes <= device.max_smem_bytes) {
    return {};
  }
  return invalid("scoring: configuration {} does not compute this shape", config_name(config));
}

int max_queries(int heads) {
  return std::clamp(kMaxScoreCols / heads, 1, kMaxQueries);
}

// Rows of a query tile when sequences (paged) or the call have `rows`: equal tiles, as few as can
// be.
int queries_for(int heads, bool paged, int rows) {
  const int most = max_queries(heads);
  if (rows <= most) return std::max(rows, 1);
  return paged ? ceil_div(rows, ceil_div(rows, most)) : most;
}

Status encode_maps(const cuda::Driver& driver, const ScoringArgs& args, ScoringCall& call) {
  using enum cuda::MapDType;
  const ScoringShape& s = args.shape;
  const ScoringConfig& c = call.config;
  VOLLEY_TRY(call.q_map, cuda::encode(driver, {.address = args.q,
                                               .dtype = kU8,
                                               .dims = {s.head_dim, s.heads, s.num_rows},
                                               .strides = {s.head_dim, args.q_stride},
                                               .box = {kStageRowBytes, s.heads, c.queries},
                                               .swizzle = cuda::MapSwizzle::k128B}));
  // Keys [page][key][bytes]; not paged, one page of them all.
  if (!c.fp4()) {
    VOLLEY_TRY(
        call.key_map,
        cuda::encode(
            driver,
            {.address = args.keys,
             .dtype = kU8,
             .dims = {s.head_dim, s.paged ? kKeyTile : s.num_keys, s.paged ? args.num_pages : 1},
             .strides = {s.paged ? s.head_dim : args.key_stride, s.paged ? args.page_stride : 16},
             .box = {kStageRowBytes, kKeyTile, 1},
             .swizzle = cuda::MapSwizzle::k128B}));
  }
  // Scales [page][elements of its keys].
  const int per_key = c.fp4() ? c.scale_bytes() : 1;
  VOLLEY_TRY(
      call.scale_map,
      cuda::encode(driver,
                   {.address = s.paged ? args.keys + static_cast<uint64_t>(kKeyTile * c.key_bytes())
                                       : args.key_scales,
                    .dtype = c.fp4() ? kU8 : kF32,
                    .dims = {int64_t{per_key} * (s.paged ? kKeyTile : s.num_keys),
                             s.paged ? args.num_pages : 1, 1},
                    .strides = {s.paged ? args.page_stride : 16, 16},
                    .box = {per_key * kKeyTile, 1, 1}}));
  return {};
}

std::string initializer(const ScoringConfig& c) {
  return fmt::format("KeyKind({}), {}, {}, {}, {}, {}", static_cast<int>(c.keys), c.paged, c.heads,
                     c.head_dim, c.queries, c.num_stages);
}

}  // namespace

Status validate(const ScoringShape& s) {
  if (s.heads < 16 || s.heads > 128 || s.heads % 16 != 0) {
    return invalid("scoring: heads is {}, expected a multiple of 16 up to 128", s.heads);
  }
  if (s.head_dim != 64 && s.head_dim != 128) {
    return invalid("scoring: head_dim is {}, expected 64 or 128", s.head_dim);
  }
  if (s.num_rows < 0 || s.num_keys < 0 || s.num_keys > kMaxScoringKeys) {
    return invalid("scoring: {} rows by {} keys, expected none below 0 and at most 2^28 keys",
                   s.num_rows, s.num_keys);
  }
  if (int64_t{s.num_rows} * ceil_div(s.num_keys, kKeyTile) > std::numeric_limits<int32_t>::max()) {
    return invalid("scoring: {} rows by {} keys, expected below 2^31 pairs of a row and 64 keys",
                   s.num_rows, s.num_keys);
  }
  if (s.paged && (s.num_sequences < 0 || s.next_n < 1 || s.next_n > kMaxNextN)) {
    return invalid("scoring: {} sequences of next_n {}, expected next_n from 1 to {}",
                   s.num_sequences, s.next_n, kMaxNextN);
  }
  return {};
}

int scoring_page_bytes(KeyKind keys, int head_dim) {
  const ScoringConfig c = {.keys = keys, .head_dim = head_dim};
  return kKeyTile * (c.key_bytes() + c.scale_bytes());
}

ScoringConfig scoring_config(KeyKind keys, bool paged, int heads, int head_dim, int queries,
                             const DeviceSpec& device) {
  ScoringConfig config = {.keys = keys,
                          .paged = paged,
                          .heads = heads,
                          .head_dim = head_dim,
                          .queries = queries,
                          .num_stages = kMaxStages};
  const int stage_bytes = config.tile_bytes() + config.tile_scale_bytes();
  while (config.num_stages > 4 && (scoring_smem(config).total_bytes > device.max_smem_bytes ||
                                   (paged && config.num_stages * stage_bytes > kMaxPagedBytes))) {
    config.num_stages -= 2;
  }
  return config;
}

Result<ScoringConfig> choose_scoring_config(const ScoringShape& shape, const DeviceSpec& device) {
  VOLLEY_TRY_STATUS(validate(shape));
  const int rows = shape.paged ? shape.next_n : shape.num_rows;
  return scoring_config(shape.keys, shape.paged, shape.heads, shape.head_dim,
                        queries_for(shape.heads, shape.paged, rows), device);
}

std::string config_name(const ScoringConfig& c) {
  return fmt::format("score-{}{}-h{}-d{}-q{}-s{}", c.fp4() ? "mxfp4" : "fp8",
                     c.paged ? "-paged" : "", c.heads, c.head_dim, c.queries, c.num_stages);
}

jit::KernelSource kernel_source(const ScoringConfig& config) {
  jit::KernelSource source;
  source.name = config_name(config);
  source.entry = kKernelEntry;
  source.text = fmt::format(
      R"(#include "gemm/device/sm90/scoring_kernel.h"
namespace volley::gemm {{
extern "C" __global__ void __launch_bounds__({}, 1)
{}(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap key_map,
            const __grid_constant__ TensorMap scale_map,
            const __grid_constant__ ScoringParams params) {{
  run_scoring<ScoringConfig{{{}}}>(q_map, key_map, scale_map, params);
}}
}}  // namespace volley::gemm
)",
      kScoringThreads, kKernelEntry, initializer(config));
  // One instruction for each width; they are told apart by their accumulators.
  const int first = config.part_queries(0) * config.heads;
  const int last = config.part_queries(config.parts() - 1) * config.heads;
  source.headers.push_back(
      {"gemm/device/sm90/wgmma_instruction.h",
       wgmma_header(MmaKind::kFp8, first) +
           (last == first ? std::string() : wgmma_header(MmaKind::kFp8, last))});
  add_device_headers(source);
  return source;
}

Result<std::vector<jit::KernelSource>> scoring_kernels_for(std::span<const ScoringShape> shapes,
                                                           const DeviceSpec& device) {
  std::vector<jit::KernelSource> sources;
  std::set<std::string> names;
  for (ScoringShape shape : shapes) {
    VOLLEY_TRY_STATUS(validate(shape));
    // Beyond two query tiles' rows, every number of queries has been met.
    const int rows = std::min(shape.paged ? shape.next_n : shape.num_rows, 2 * kMaxQueries);
    for (int r = 1; r <= rows; ++r) {
      (shape.paged ? shape.next_n : shape.num_rows) = r;
      VOLLEY_TRY(const ScoringConfig config, choose_scoring_config(shape, device));
      if (names.insert(config_name(config)).second) sources.push_back(kernel_source(config));
    }
  }
  return sources;
}

ScoringCost scoring_cost(const ScoringShape& s, double visible, double keys_read) {
  const ScoringConfig c = {.keys = s.keys, .head_dim = s.head_dim};
  return {.flops = 2.0 * visible * s.heads * s.head_dim,
          .bytes = keys_read * (c.key_bytes() + c.scale_bytes()) + visible * 4 +
                   double{1} * s.num_rows * s.heads * (s.head_dim + 4)};
}

Result<std::unique_ptr<Scoring>> Scoring::create(const cuda::Context& context,
                                                 jit::KernelLibrary& kernels) {
  VOLLEY_TRY(const DeviceSpec device, device_spec(context, "scoring"));
  return std::unique_ptr<Scoring>(new Scoring(context, kernels, device));
}

Result<const Scoring::Loaded*> Scoring::load(const ScoringConfig& config) {
  const std::string name = config_name(config);
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = loaded_.find(name); found != loaded_.end()) return &found->second;
  }
  // Compiling may take long: not under the lock. Two threads may both load; the first one's stays.
  VOLLEY_TRY(const std::string* cubin, kernels_.cubin(kernel_source(config)));
  Loaded loaded;
  VOLLEY_TRY(loaded.module, cuda::Module::load(context_, *cubin));
  VOLLEY_TRY(loaded.kernel, loaded.module.kernel(kKernelEntry, scoring_smem(config).total_bytes));
  const std::lock_guard lock(mutex_);
  return &loaded_.try_emplace(name, std::move(loaded)).first->second;
}

Result<ScoringCall> Scoring::prepare(const ScoringArgs& arguments) {
  ScoringArgs args = arguments;
  VOLLEY_TRY_STATUS(complete(args));
  const ScoringShape& s = args.shape;
  ScoringCall call;
  if (s.num_rows == 0 || s.num_keys == 0) return call;
  if (args.config) {
    VOLLEY_TRY_STATUS(check_config(*args.config, s, device_));
    call.config = *args.config;
  } else {
    VOLLEY_TRY(call.config, choose_scoring_config(s, device_));
  }
  VOLLEY_TRY(const Loaded* loaded, load(call.config));
  VOLLEY_TRY_STATUS(encode_maps(context_.driver(), args, call));
  call.kernel = loaded->kernel.function;
  // No more CTAs than there can be pairs to share.
  const int64_t pairs = int64_t{s.num_rows} * ceil_div(s.num_keys, kKeyTile);
  call.dims = {.num_ctas = static_cast<uint32_t>(std::min<int64_t>(device_.num_sms, pairs)),
               .num_threads = kScoringThreads,
               .smem_bytes = static_cast<uint32_t>(scoring_smem(call.config).total_bytes),
               .overlaps = args.overlap != Overlap::kNone};
  const auto ints = [](cuda::DevicePtr p) { return reinterpret_cast<const int*>(p); };
  call.params = {
      .work = {.num_rows = s.num_rows,
               .num_keys = s.num_keys,
               .num_runs = s.paged ? s.num_sequences : ceil_div(s.num_rows, call.config.queries),
               .next_n = s.next_n,
               .starts = ints(args.starts),
               .ends = ints(args.ends),
               .context_lens = ints(args.context_lens),
               .query_starts = ints(args.query_starts)},
      .keys = reinterpret_cast<const unsigned char*>(args.keys),
      .page_stride = args.page_stride,
      .num_pages = static_cast<int>(args.num_pages),
      .block_table = ints(args.block_table),
      .table_stride = args.table_stride,
      .weights = reinterpret_cast<const float*>(args.weights),
      .weights_stride = args.weights_stride,
      .logits = reinterpret_cast<float*>(args.logits),
      .logits_stride = args.logits_stride,
      .fill_outside = args.outside == OutsideRange::kNegativeInfinity};
  return call;
}

Status Scoring::launch(const ScoringCall& call, cuda::CuStream stream) const {
  if (call.kernel == nullptr) return {};
  // The driver takes pointers to non-const and only reads.
  auto& c = const_cast<ScoringCall&>(call);
  void* params[] = {&c.q_map, &c.key_map, &c.scale_map, &c.params};
  return cuda::launch(context_.driver(), call.kernel, call.dims, params, stream);
}

Status Scoring::warm_up(std::span<const ScoringShape> shapes, int num_threads,
                        const jit::KernelLibrary::Progress& progress) {
  VOLLEY_TRY(const std::vector<jit::KernelSource> sources, scoring_kernels_for(shapes, device_));
  VOLLEY_TRY_STATUS(kernels_.warm_up(sources, num_threads, progress));
  for (ScoringShape shape : shapes) {
    const int rows = std::min(shape.paged ? shape.next_n : shape.num_rows, 2 * kMaxQueries);
    for (int r = 1; r <= rows; ++r) {
      (shape.paged ? shape.next_n : shape.num_rows) = r;
      VOLLEY_TRY(const ScoringConfig config, choose_scoring_config(shape, device_));
      if (const auto loaded = load(config); !loaded) return tl::unexpected<Error>(loaded.error());
    }
  }
  return {};
}

}  // namespace volley::gemm
