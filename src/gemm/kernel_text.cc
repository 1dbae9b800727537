#include "gemm/kernel_text.h"

#include <utility>

namespace volley::gemm {

// The headers under gemm/device/, by name (embedded by CMakeLists.txt).
const std::pair<std::string_view, std::string_view>* device_headers_begin();
const std::pair<std::string_view, std::string_view>* device_headers_end();

namespace {

// The kernel's header, what it calls, and with which of the entry's parameters.
struct KernelBody {
  const char* header;
  const char* function;
  const char* arguments;
};

KernelBody body_of(const GemmConfig& config) {
  if (config.decodes_to_smem()) {
    return {"fp4_wide_kernel.h", "run_fp4_wide_gemm", "a_map, scale_map, d_map, params"};
  }
  if (config.fp4()) return {"fp4_kernel.h", "run_fp4_gemm", "a_map, scale_map, params"};
  return {"gemm_kernel.h", "run_gemm", "a_map, b_map, scale_map, b_scale_map, d_map, params"};
}

std::string initializer(const GemmConfig& c) {
  return fmt::format(
      "MmaKind({}), OutKind({}), Grouping({}), {}, {}, {}, {}, {}, {}, {}, {}, {}, {}",
      static_cast<int>(c.mma), static_cast<int>(c.out), static_cast<int>(c.grouping), c.swap_ab,
      c.tile_m, c.tile_n, c.num_stages, c.segments, c.split_k, c.multicast, c.raster,
      c.store_chunks, c.ctas_per_sm);
}

}  // namespace

std::string wgmma_header(MmaKind mma, int n) {
  const int registers = n / 2;
  std::string names, operands;
  for (int i = 0; i < registers; ++i) {
    names += fmt::format("{}%{}", i > 0 ? ", " : "", i);
    operands += fmt::format("{}\"+f\"(d[{}])", i > 0 ? ", " : "", i);
  }
  const bool fp8 = has_fp8_tokens(mma);
  std::string text = fmt::format(
      R"(#pragma once
#include "gemm/device/portable.h"
namespace volley::gemm {{
// d = a b^T (+ d when `accumulate`): 64 x {} floats over a warpgroup.
__device__ __forceinline__ void wgmma(float (&d)[{}], u64 a, u64 b, int accumulate) {{
  asm volatile(
      "{{\n.reg .pred p;\nsetp.ne.b32 p, %{}, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n{}k{}.f32.{} {{{}}}, %{}, %{}, p, 1, 1{};\n}}\n"
      : {}
      : "l"(a), "l"(b), "r"(accumulate));
}}
)",
      n, registers, registers + 2, n, fp8 ? 32 : 16, fp8 ? "e4m3.e4m3" : "bf16.bf16", names,
      registers, registers + 1, fp8 ? "" : ", 0, 0", operands);
  if (fp8) {
    text += fmt::format(
        R"(// The same with a in registers.
__device__ __forceinline__ void wgmma_a_in_registers(float (&d)[{}], const u32 (&a)[4], u64 b,
                                                     int accumulate) {{
  asm volatile(
      "{{\n.reg .pred p;\nsetp.ne.b32 p, %{}, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n{}k32.f32.e4m3.e4m3 {{{}}}, {{%{}, %{}, %{}, %{}}}, %{}, p, 1, "
      "1;\n}}\n"
      : {}
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
}}
)",
        registers, registers + 5, n, names, registers, registers + 1, registers + 2, registers + 3,
        registers + 4, operands);
  }
  return text + "}  // namespace volley::gemm\n";
}

void add_device_headers(jit::KernelSource& source) {
  for (auto header = device_headers_begin(); header != device_headers_end(); ++header) {
    source.headers.push_back({std::string(header->first), std::string(header->second)});
  }
  // An include of a name that is nowhere is for the compile to report.
  if (auto closure = jit::include_closure(source)) source.headers = std::move(*closure);
}

jit::KernelSource kernel_source(const GemmConfig& config) {
  jit::KernelSource source;
  source.name = config_name(config);
  source.entry = kKernelEntry;
  const KernelBody body = body_of(config);
  source.text = fmt::format(
      R"(#include "gemm/device/sm90/{}"
namespace volley::gemm {{
extern "C" __global__ void __launch_bounds__({}, {})
{}(const __grid_constant__ TensorMap a_map, const __grid_constant__ TensorMap b_map,
            const __grid_constant__ TensorMap scale_map, const __grid_constant__ TensorMap b_scale_map,
            const __grid_constant__ TensorMap d_map, const __grid_constant__ GemmParams params) {{
  {}<GemmConfig{{{}}}>({});
}}
}}  // namespace volley::gemm
)",
      body.header, config.num_threads(), config.ctas_per_sm, kKernelEntry, body.function,
      initializer(config), body.arguments);
  source.headers.push_back(
      {"gemm/device/sm90/wgmma_instruction.h", wgmma_header(config.mma, config.mma_n())});
  add_device_headers(source);
  return source;
}

}  // namespace volley::gemm
