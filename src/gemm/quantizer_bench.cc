#include "gemm/quantizer_bench.h"

#include <algorithm>

#include "gemm/bench_tools.h"
#include "gemm/quantizer.h"

namespace volley::gemm {

Status run_quantizer_bench(const std::string& json) {
  VOLLEY_TRY(const auto bench_gpu, BenchGpu::open());
  BenchGpu& gpu = *bench_gpu;
  auto compiler = jit::load_nvrtc();
  if (!compiler) return tl::unexpected<Error>(compiler.error());
  jit::KernelLibrary kernel_library(jit::KernelLibraryOptions{}, std::nullopt, std::nullopt,
                                    std::move(*compiler));
  VOLLEY_TRY(const auto quantizer, Quantizer::create(gpu.context(), kernel_library));
  const Quantizer& q = *quantizer;
  VOLLEY_TRY(const double memset_gb_s, gpu.memset_gb_s());
  Json out;
  out["device"] = gpu.context().info().name;
  out["driver"] = gpu.driver().version();
  out["memset_gb_s"] = memset_gb_s;
  fmt::print("{:<12} {:>6} {:>6} {:>9} {:>9} {:>9} {:>7} {:>6}\n", "kernel", "rows", "cols",
             "cold us", "rot us", "floor us", "GB/s", "of it");
  out["quantizers"] = Json::array();
  for (const auto& [rows, cols] : {std::pair{64, 7168}, {4096, 7168}, {8192, 8192}}) {
    const double size = double{1} * rows * cols;
    const size_t num_sets = num_operand_sets(gpu.context(), 2 * size, 64);
    std::vector<cuda::Buffer> inputs, values, scales, tensors;
    std::vector<Bf16Matrix> x;
    for (size_t i = 0; i < num_sets; ++i) {
      const auto bytes = static_cast<size_t>(size);
      VOLLEY_TRY(cuda::Buffer input,
                 gpu.random_buffer(2 * bytes, RandomKind::kBf16, static_cast<unsigned>(i)));
      VOLLEY_TRY(cuda::Buffer value, cuda::Buffer::allocate(gpu.context(), 2 * bytes));
      VOLLEY_TRY(cuda::Buffer scale, cuda::Buffer::allocate(gpu.context(), bytes / 16 + 65536));
      VOLLEY_TRY(cuda::Buffer tensor, cuda::Buffer::allocate(gpu.context(), 16));
      x.push_back({.data = input.get(), .rows = rows, .cols = cols});
      inputs.push_back(std::move(input));
      values.push_back(std::move(value));
      scales.push_back(std::move(scale));
      tensors.push_back(std::move(tensor));
    }
    // For the packers: weights that were quantised before.
    struct Weight {
      cuda::Buffer values, scales, tensor_scales, tiles, row_scales;
    };
    std::vector<Weight> weights[2];
    const MmaKind formats[] = {MmaKind::kMxFp4, MmaKind::kNvFp4};
    for (const int nv : {0, 1}) {
      for (const Bf16Matrix& matrix : x) {
        const auto bytes = static_cast<size_t>(size);
        Weight w;
        VOLLEY_TRY(w.values, cuda::Buffer::allocate(gpu.context(), bytes / 2));
        VOLLEY_TRY(w.scales, cuda::Buffer::allocate(gpu.context(), bytes / 16));
        VOLLEY_TRY(w.tensor_scales, cuda::Buffer::allocate(gpu.context(), 16));
        VOLLEY_TRY(w.tiles, cuda::Buffer::allocate(gpu.context(), bytes * 9 / 16));
        VOLLEY_TRY(w.row_scales,
                   cuda::Buffer::allocate(gpu.context(), static_cast<size_t>(rows) * 4));
        VOLLEY_TRY_STATUS(q.quantize_fp4(matrix, formats[nv], w.values.get(), w.scales.get(),
                                         w.tensor_scales.get(), gpu.stream().get()));
        weights[nv].push_back(std::move(w));
      }
    }
    const auto pack = [&](int nv, size_t i) {
      const Weight& w = weights[nv][i];
      return q.pack_fp4(formats[nv], 1, rows, cols, w.values.get(), w.scales.get(),
                        w.tensor_scales.get(), w.tiles.get(), w.row_scales.get(), 0,
                        gpu.stream().get());
    };
    struct Named {
      const char* name;
      double bytes;  // of a value
      std::function<Status(size_t)> launch;
    };
    const cuda::CuStream s = gpu.stream().get();
    const double fp8 = 3 + 4.0 / 128;
    const std::vector<Named> kernels = {
        {"rows", fp8,
         [&](size_t i) {
           return q.quantize_rows(x[i], ScaleKind::kAny, values[i].get(), scales[i].get(), 0, s);
         }},
        {"columns", fp8 * (rows % 128 == 0 ? 1.0 : 128.0 / rows),
         [&](size_t i) {
           return q.quantize_columns(x[i], ScaleKind::kAny, values[i].get(), scales[i].get(), 0, s);
         }},
        {"blocks", 3,
         [&](size_t i) {
           return q.quantize_blocks(x[i], ScaleKind::kAny, values[i].get(), scales[i].get(), s);
         }},
        {"mxfp4", 2.5 + 1.0 / 32,
         [&](size_t i) {
           return q.quantize_fp4(x[i], MmaKind::kMxFp4, values[i].get(), scales[i].get(), 0, s);
         }},
        {"nvfp4", 4.5 + 1.0 / 16,
         [&](size_t i) {
           return q.quantize_fp4(x[i], MmaKind::kNvFp4, values[i].get(), scales[i].get(),
                                 tensors[i].get(), s);
         }},
        {"pack mx", 1 + 1.0 / 16, [&](size_t i) { return pack(0, i); }},
        {"pack nv", 1 + 1.0 / 8, [&](size_t i) { return pack(1, i); }},
        // The scales of a matrix 128 times as wide.
        {"scales", 8, [&](size_t i) {
           return q.scales_to_m_major(inputs[i].get(), 1, rows, cols / 4, values[i].get(), 0, s);
         }}};
    std::vector<Contender> contenders;
    for (const Named& kernel : kernels) {
      contenders.push_back({.launch = kernel.launch, .num_sets = num_sets});
    }
    VOLLEY_TRY_STATUS(gpu.time_contenders(contenders, std::max(5.0, size * 3 / 3e6)));
    for (size_t i = 0; i < kernels.size(); ++i) {
      const Times& t = contenders[i].times;
      const bool is_scales = std::string_view(kernels[i].name) == "scales";
      const double bytes = size * kernels[i].bytes / (is_scales ? 4 : 1);
      const double floor_us = bytes / memset_gb_s / 1e3;
      fmt::print("{:<12} {:>6} {:>6} {:>9.1f} {:>9.1f} {:>9.1f} {:>7.0f} {:>5.0f}%\n",
                 kernels[i].name, rows, is_scales ? cols / 4 : cols, t.cold_us, t.rot_us, floor_us,
                 bytes / t.rot_us / 1e3, 100 * floor_us / t.rot_us);
      out["quantizers"].push_back(Json{{"kernel", kernels[i].name},
                                       {"rows", rows},
                                       {"cols", is_scales ? cols / 4 : cols},
                                       {"cold_us", t.cold_us},
                                       {"rot_us", t.rot_us},
                                       {"floor_us", floor_us}});
    }
  }
  return write_bench_json(json, out);
}

}  // namespace volley::gemm
