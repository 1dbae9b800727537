#include "gemm/emulated/kernels.h"

#include <array>
#include <utility>

#include "gemm/device/sm90/fp4_wide_kernel.h"

namespace volley::gemm {

unsigned char dynamic_smem[1];

namespace emulated {
namespace {

using enum MmaKind;
using enum Grouping;
constexpr OutKind kOutBf16 = OutKind::kBf16, kOutF32 = OutKind::kF32;
constexpr MmaKind kMmaBf16 = MmaKind::kBf16;

// mma, out, grouping, swap, tile_m, tile_n, stages, segments, split, multicast, raster, chunks,
// ctas/SM. Few stages, so that the ring turns over within a tile.
constexpr std::array kConfigs = {
    GemmConfig{kFp8, kOutBf16, kDense, false, 128, 128, 3, 1, false, 1, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 128, 128, 3, 1, false, 2, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 256, 128, 2, 1, false, 2, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 128, 192, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutF32, kRowIndex, false, 64, 192, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kPrefixSum, false, 128, 192, 2, 1, false, 2, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 128, 256, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 128, 256, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kRowIndex, false, 128, 256, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kMasked, false, 128, 256, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kPrefixSum, false, 128, 256, 3, 1, false, 2, 4, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kRowIndex, false, 64, 128, 3, 1, false, 2, 4, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 64, 16, 4, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 64, 32, 4, 1, false, 2, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, false, 128, 16, 4, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, false, 64, 64, 4, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 8, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 24, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 8, 128, 3, 1, false, 1, 2, 1, 2},
    GemmConfig{kFp8, kOutBf16, kDense, true, 64, 128, 3, 1, false, 2, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 128, 64, 3, 1, false, 1, 2, 1, 1},
    // One weight plan of four segments, in one CTA and over a cluster.
    GemmConfig{kFp8, kOutBf16, kDense, false, 128, 128, 3, 4, false, 2, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 16, 64, 3, 4, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 8, 64, 3, 4, true, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 48, 128, 3, 4, true, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kDense, true, 64, 64, 3, 2, true, 1, 2, 1, 2},
    GemmConfig{kFp8, kOutF32, kDense, false, 128, 64, 3, 2, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutF32, kDense, true, 32, 64, 3, 2, true, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kRowIndex, false, 128, 128, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kRowIndex, true, 32, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kPrefixSum, false, 64, 128, 3, 1, false, 1, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kPrefixSum, true, 16, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8, kOutBf16, kMasked, false, 128, 128, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kFp8, kOutBf16, kMasked, true, 32, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, false, 128, 256, 2, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, false, 128, 128, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, false, 256, 128, 2, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, true, 16, 64, 4, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, false, 128, 64, 3, 4, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kDense, true, 24, 128, 3, 4, true, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutF32, kDense, false, 64, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutF32, kDense, true, 24, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutF32, kDense, false, 64, 32, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutF32, kAlongK, false, 128, 128, 3, 1, false, 2, 2, 2, 1},
    GemmConfig{kFp8Rows, kOutF32, kDense, false, 128, 128, 3, 1, false, 1, 2, 4, 1},
    GemmConfig{kFp8Rows, kOutF32, kDense, false, 256, 128, 2, 1, false, 2, 2, 1, 1},
    GemmConfig{kFp8Rows, kOutF32, kDense, false, 64, 32, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8Rows, kOutBf16, kDense, false, 64, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8Rows, kOutF32, kAlongK, false, 64, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kFp8Rows, kOutF32, kAlongK, false, 128, 128, 3, 1, false, 1, 2, 2, 1},
    GemmConfig{kFp8Rows, kOutF32, kAlongK, false, 64, 128, 3, 1, false, 2, 4, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kMasked, true, 32, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMmaBf16, kOutBf16, kPrefixSum, false, 64, 192, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutBf16, kDense, true, 8, 64, 3, 1, false, 1, 2, 1, 2},
    GemmConfig{kMxFp4, kOutBf16, kDense, true, 24, 128, 3, 1, false, 1, 2, 1, 2},
    GemmConfig{kMxFp4, kOutBf16, kDense, true, 128, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutBf16, kDense, true, 16, 64, 3, 4, true, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutBf16, kDense, true, 48, 128, 3, 4, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutF32, kDense, true, 32, 64, 3, 2, true, 1, 2, 1, 3},
    GemmConfig{kMxFp4, kOutBf16, kRowIndex, true, 32, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutBf16, kPrefixSum, true, 16, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutBf16, kMasked, true, 32, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutBf16, kDense, false, 256, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kMxFp4, kOutF32, kRowIndex, false, 256, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kNvFp4, kOutBf16, kDense, false, 256, 128, 3, 1, false, 1, 2, 2, 1},
    GemmConfig{kNvFp4, kOutBf16, kDense, true, 8, 128, 3, 1, false, 1, 2, 1, 2},
    GemmConfig{kNvFp4, kOutBf16, kDense, true, 64, 64, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kNvFp4, kOutBf16, kDense, true, 128, 128, 3, 1, false, 1, 2, 1, 1},
    GemmConfig{kNvFp4, kOutBf16, kDense, true, 16, 64, 3, 4, true, 1, 2, 1, 1},
    GemmConfig{kNvFp4, kOutBf16, kDense, true, 96, 128, 3, 4, false, 1, 2, 1, 1},
    GemmConfig{kNvFp4, kOutF32, kDense, true, 24, 64, 3, 2, false, 1, 2, 1, 1},
    GemmConfig{kNvFp4, kOutBf16, kMasked, true, 32, 64, 3, 1, false, 1, 2, 1, 1},
};

TensorMap kernel_map(const cuda::TensorMap& map) {
  TensorMap copy;
  std::memcpy(copy.opaque, map.opaque, sizeof(copy.opaque));
  return copy;
}

template <size_t kIndex>
Status run_one(const GemmCall& call, uint64_t seed) {
  const TensorMap a = kernel_map(call.a_map), b = kernel_map(call.b_map),
                  scale = kernel_map(call.scale_map), b_scale = kernel_map(call.b_scale_map),
                  d = kernel_map(call.d_map);
  return run_grid({.num_ctas = static_cast<int>(call.dims.num_ctas),
                   .cluster_size = static_cast<int>(call.dims.cluster_size),
                   .num_threads = static_cast<int>(call.dims.num_threads),
                   .smem_bytes = static_cast<int>(call.dims.smem_bytes) + 1024,
                   .ctas_per_sm = call.config.ctas_per_sm,
                   .mma = call.config.mma,
                   .seed = seed},
                  [&] {
                    constexpr GemmConfig kConfig = kConfigs[kIndex];
                    if constexpr (kConfig.decodes_to_smem()) {
                      run_fp4_wide_gemm<kConfig>(a, scale, d, call.params);
                    } else if constexpr (kConfig.fp4()) {
                      run_fp4_gemm<kConfig>(a, scale, call.params);
                    } else {
                      run_gemm<kConfig>(a, b, scale, b_scale, d, call.params);
                    }
                  });
}

template <size_t... kIndices>
Status dispatch(const GemmCall& call, uint64_t seed, std::index_sequence<kIndices...>) {
  Status status = make_error(ErrorKind::kUnsupported, "{} is not compiled for the CPU",
                             config_name(call.config));
  ((kConfigs[kIndices] == call.config ? void(status = run_one<kIndices>(call, seed)) : void()),
   ...);
  return status;
}

}  // namespace

Status run_call(const GemmCall& call, uint64_t seed) {
  return dispatch(call, seed, std::make_index_sequence<kConfigs.size()>());
}

std::span<const GemmConfig> configs() {
  return kConfigs;
}

}  // namespace emulated
}  // namespace volley::gemm
