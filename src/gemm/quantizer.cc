#include "gemm/quantizer.h"

#include "gemm/kernel_text.h"

namespace volley::gemm {
namespace {

constexpr int64_t kMaxCtas = INT32_MAX;

// In the order of Quantizer::Kernel: the functions of quantize_kernel.h, what they take, and
// whether also shared memory.
struct Entry {
  const char* name;
  const char* function;
  const char* params = "QuantizeParams";
  bool takes_smem = false;
};
constexpr Entry kEntries[] = {
    {"quantize_rows", "quantize_rows"},
    {"quantize_columns", "quantize_columns", "QuantizeParams", true},
    {"quantize_blocks", "quantize_blocks", "QuantizeParams", true},
    {"quantize_mxfp4", "quantize_mxfp4"},
    {"quantize_nvfp4", "quantize_nvfp4"},
    {"slab_amax", "slab_amax"},
    {"finish_tensor_scales", "finish_tensor_scales"},
    {"transpose_scales", "transpose_scales", "QuantizeParams", true},
    {"pack_mxfp4", "pack_fp4<false>", "PackFp4Params"},
    {"pack_nvfp4", "pack_fp4<true>", "PackFp4Params"},
};

std::string entry_name(const Entry& entry) {
  return fmt::format("volley_{}", entry.name);
}

Status check_pointer(const char* name, cuda::DevicePtr pointer) {
  if (pointer != 0 && pointer % 16 == 0) return {};
  return invalid("quantise: {} is {:#x}, expected device memory aligned to 16 bytes", name,
                 pointer);
}

Status check_scale_stride(int64_t stride, int64_t least) {
  if (stride >= least && stride % 4 == 0) return {};
  return invalid("quantise: scale_stride is {}, expected a multiple of 4 from {}", stride, least);
}

// What every kernel reads of x.
Result<QuantizeParams> params_of(const Bf16Matrix& x, int cols_multiple, cuda::DevicePtr values,
                                 cuda::DevicePtr scales) {
  const int64_t stride = x.stride == 0 ? x.cols : x.stride;
  if (x.num_slabs < 1 || x.rows < 0 || x.cols < cols_multiple || x.cols % cols_multiple != 0) {
    return invalid("quantise: [{}, {}, {}], expected a multiple of {} columns", x.num_slabs, x.rows,
                   x.cols, cols_multiple);
  }
  if (stride < x.cols || stride % 8 != 0) {
    return invalid("quantise: stride is {}, expected a multiple of 8 from {}", stride, x.cols);
  }
  if (x.rows > 0) {
    VOLLEY_TRY_STATUS(check_pointer("x", x.data));
    VOLLEY_TRY_STATUS(check_pointer("values", values));
    VOLLEY_TRY_STATUS(check_pointer("scales", scales));
  }
  return QuantizeParams{.x = reinterpret_cast<const void*>(x.data),
                        .x_stride = stride,
                        .num_slabs = x.num_slabs,
                        .rows = x.rows,
                        .cols = x.cols,
                        .values = reinterpret_cast<unsigned char*>(values),
                        .scales = reinterpret_cast<void*>(scales)};
}

}  // namespace

jit::KernelSource quantizer_source() {
  jit::KernelSource source;
  source.name = "quantize";
  source.entry = entry_name(kEntries[0]);
  source.text = "#include \"gemm/device/sm90/quantize_kernel.h\"\nnamespace volley::gemm {\n";
  for (const Entry& entry : kEntries) {
    source.text += fmt::format(
        R"(extern "C" __global__ void __launch_bounds__({})
{}(const __grid_constant__ {} params) {{
)",
        kQuantizeThreads, entry_name(entry), entry.params);
    if (entry.takes_smem) {
      source.text += fmt::format(
          "  __shared__ __align__(128) unsigned char smem[{}];\n  {}(params, "
          "smem_address(smem));\n",
          kQuantizeSmemBytes, entry.function);
    } else {
      source.text += fmt::format("  {}(params);\n", entry.function);
    }
    source.text += "}\n";
  }
  source.text += "}  // namespace volley::gemm\n";
  add_device_headers(source);
  return source;
}

Result<std::unique_ptr<Quantizer>> Quantizer::create(const cuda::Context& context,
                                                     jit::KernelLibrary& kernels) {
  VOLLEY_TRY(const std::string* cubin, kernels.cubin(quantizer_source()));
  std::unique_ptr<Quantizer> quantizer(new Quantizer(context));
  VOLLEY_TRY(quantizer->module_, cuda::Module::load(context, *cubin));
  for (size_t i = 0; i < kNumKernels; ++i) {
    VOLLEY_TRY(quantizer->kernels_[i],
               quantizer->module_.kernel(entry_name(kEntries[i]).c_str(), 0));
  }
  return quantizer;
}

Status Quantizer::launch(Kernel kernel, int64_t num_ctas, const void* params,
                         cuda::CuStream stream) const {
  if (num_ctas == 0) return {};
  if (num_ctas > kMaxCtas) {
    return invalid("quantise: {} CTAs, at most {} fit a grid", num_ctas, kMaxCtas);
  }
  void* arguments[] = {const_cast<void*>(params)};  // the driver only reads
  return cuda::launch(
      context_.driver(), kernels_[kernel].function,
      {.num_ctas = static_cast<uint32_t>(num_ctas), .num_threads = kQuantizeThreads}, arguments,
      stream);
}

Status Quantizer::quantize_rows(const Bf16Matrix& x, ScaleKind kind, cuda::DevicePtr values,
                                cuda::DevicePtr scales, int64_t scale_stride,
                                cuda::CuStream stream) const {
  VOLLEY_TRY(QuantizeParams p, params_of(x, 128, values, scales));
  p.power_of_two = kind == ScaleKind::kPowerOfTwo;
  p.scale_stride = scale_stride == 0 ? round_up(x.rows, 4) : scale_stride;
  VOLLEY_TRY_STATUS(check_scale_stride(p.scale_stride, x.rows));
  return launch(kRows, quantize_rows_ctas(p), &p, stream);
}

Status Quantizer::quantize_columns(const Bf16Matrix& x, ScaleKind kind, cuda::DevicePtr values,
                                   cuda::DevicePtr scales, int64_t scale_stride,
                                   cuda::CuStream stream) const {
  VOLLEY_TRY(QuantizeParams p, params_of(x, 8, values, scales));
  p.power_of_two = kind == ScaleKind::kPowerOfTwo;
  p.scale_stride = scale_stride == 0 ? round_up(x.cols, 4) : scale_stride;
  VOLLEY_TRY_STATUS(check_scale_stride(p.scale_stride, x.cols));
  return launch(kColumns, quantize_columns_ctas(p), &p, stream);
}

Status Quantizer::quantize_blocks(const Bf16Matrix& x, ScaleKind kind, cuda::DevicePtr values,
                                  cuda::DevicePtr scales, cuda::CuStream stream) const {
  VOLLEY_TRY(QuantizeParams p, params_of(x, 128, values, scales));
  p.power_of_two = kind == ScaleKind::kPowerOfTwo;
  return launch(kBlocks, quantize_blocks_ctas(p), &p, stream);
}

Status Quantizer::quantize_fp4(const Bf16Matrix& x, MmaKind format, cuda::DevicePtr values,
                               cuda::DevicePtr scales, cuda::DevicePtr tensor_scales,
                               cuda::CuStream stream) const {
  if (!has_fp4_weights(format)) return invalid("quantise: expected an FP4 format");
  VOLLEY_TRY(QuantizeParams p, params_of(x, 128, values, scales));
  if (int64_t{p.rows} * p.cols / 8 > INT32_MAX) {
    return invalid("quantise: [{}, {}] has more than 2^34 values", p.rows, p.cols);
  }
  const int64_t num_ctas = int64_t{p.num_slabs} * quantize_fp4_ctas(p);
  if (format == MmaKind::kMxFp4) return launch(kMx, num_ctas, &p, stream);
  VOLLEY_TRY_STATUS(check_pointer("tensor_scales", tensor_scales));
  p.tensor_scales = reinterpret_cast<float*>(tensor_scales);
  const cuda::Driver& driver = context_.driver();
  VOLLEY_TRY_STATUS(
      driver.check(driver.memset_d8_async(tensor_scales, 0,
                                          static_cast<size_t>(p.num_slabs) * sizeof(float), stream),
                   "clearing the largest magnitudes"));
  VOLLEY_TRY_STATUS(launch(kAmax, num_ctas, &p, stream));
  VOLLEY_TRY_STATUS(launch(kNv, num_ctas, &p, stream));
  return launch(kFinish, ceil_div(p.num_slabs, kQuantizeThreads), &p, stream);
}

Status Quantizer::pack_fp4(MmaKind format, int num_groups, int n, int k, cuda::DevicePtr values,
                           cuda::DevicePtr scales, cuda::DevicePtr tensor_scales,
                           cuda::DevicePtr tiles, cuda::DevicePtr row_scales,
                           cuda::DevicePtr num_rounded, cuda::CuStream stream) const {
  if (!has_fp4_weights(format)) return invalid("quantise: expected an FP4 format");
  if (num_groups < 1 || n < 1 || k < 128 || k % 128 != 0) {
    return invalid("quantise: [{}, {}, {}], expected a multiple of 128 columns", num_groups, n, k);
  }
  const bool nv = format == MmaKind::kNvFp4;
  VOLLEY_TRY_STATUS(check_pointer("values", values));
  VOLLEY_TRY_STATUS(check_pointer("scales", scales));
  if (nv) VOLLEY_TRY_STATUS(check_pointer("tensor_scales", tensor_scales));
  VOLLEY_TRY_STATUS(check_pointer("tiles", tiles));
  VOLLEY_TRY_STATUS(check_pointer("row_scales", row_scales));
  if (num_rounded != 0) {
    const cuda::Driver& driver = context_.driver();
    VOLLEY_TRY_STATUS(check_pointer("num_rounded", num_rounded));
    VOLLEY_TRY_STATUS(
        driver.check(driver.memset_d8_async(num_rounded, 0, 8, stream), "clearing a count"));
  }
  const PackFp4Params p = {.values = reinterpret_cast<const unsigned char*>(values),
                           .scales = reinterpret_cast<const unsigned char*>(scales),
                           .tensor_scales = reinterpret_cast<const float*>(tensor_scales),
                           .num_groups = num_groups,
                           .n = n,
                           .k = k,
                           .tiles = reinterpret_cast<unsigned char*>(tiles),
                           .row_scales = reinterpret_cast<float*>(row_scales),
                           .num_rounded = reinterpret_cast<unsigned long long*>(num_rounded)};
  return launch(nv ? kPackNv : kPackMx, pack_fp4_ctas(p), &p, stream);
}

Status Quantizer::scales_to_m_major(cuda::DevicePtr scales, int num_slabs, int rows, int blocks,
                                    cuda::DevicePtr out, int64_t out_stride,
                                    cuda::CuStream stream) const {
  if (num_slabs < 1 || rows < 0 || blocks < 1) {
    return invalid("quantise: scales [{}, {}, {}]", num_slabs, rows, blocks);
  }
  if (rows > 0) {
    VOLLEY_TRY_STATUS(check_pointer("scales", scales));
    VOLLEY_TRY_STATUS(check_pointer("out", out));
  }
  const QuantizeParams p = {.x = reinterpret_cast<const void*>(scales),
                            .num_slabs = num_slabs,
                            .rows = rows,
                            .cols = blocks,
                            .scales = reinterpret_cast<void*>(out),
                            .scale_stride = out_stride == 0 ? round_up(rows, 4) : out_stride};
  VOLLEY_TRY_STATUS(check_scale_stride(p.scale_stride, rows));
  return launch(kTranspose, transpose_scales_ctas(p), &p, stream);
}

}  // namespace volley::gemm
