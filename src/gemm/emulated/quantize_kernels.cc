#include "gemm/emulated/quantize_kernels.h"

#include "gemm/device/sm90/quantize_kernel.h"

namespace volley::gemm::emulated {

Status run_quantizer(std::string_view entry, int64_t num_ctas, const void* arguments,
                     uint64_t seed) {
  const LaunchSpec spec = {.num_ctas = static_cast<int>(num_ctas),
                           .num_threads = kQuantizeThreads,
                           .smem_bytes = kQuantizeSmemBytes + 1024,
                           .seed = seed};
  const auto run = [&](auto&& kernel) { return run_grid(spec, kernel); };
  const u32 smem = smem_base();
  if (entry.starts_with("volley_pack")) {
    const auto& params = *static_cast<const PackFp4Params*>(arguments);
    if (entry == "volley_pack_mxfp4") return run([&] { pack_fp4<false>(params); });
    if (entry == "volley_pack_nvfp4") return run([&] { pack_fp4<true>(params); });
  }
  const auto& params = *static_cast<const QuantizeParams*>(arguments);
  if (entry == "volley_quantize_rows") return run([&] { quantize_rows(params); });
  if (entry == "volley_quantize_columns") return run([&] { quantize_columns(params, smem); });
  if (entry == "volley_quantize_blocks") return run([&] { quantize_blocks(params, smem); });
  if (entry == "volley_quantize_mxfp4") return run([&] { quantize_mxfp4(params); });
  if (entry == "volley_quantize_nvfp4") return run([&] { quantize_nvfp4(params); });
  if (entry == "volley_slab_amax") return run([&] { slab_amax(params); });
  if (entry == "volley_finish_tensor_scales") return run([&] { finish_tensor_scales(params); });
  if (entry == "volley_transpose_scales") return run([&] { transpose_scales(params, smem); });
  return make_error(ErrorKind::kUnsupported, "{} is not compiled for the CPU", entry);
}

}  // namespace volley::gemm::emulated
