#include "gemm/emulated/scoring_kernels.h"

#include <array>
#include <utility>

#include "gemm/device/sm90/scoring_kernel.h"

namespace volley::gemm::emulated {
namespace {

using enum KeyKind;

// keys, paged, heads, head_dim, queries, stages, turns. Few stages, so that the ring turns over.
constexpr std::array kConfigs = {
    ScoringConfig{kFp8, false, 64, 128, 4, 4},   ScoringConfig{kFp8, false, 64, 128, 1, 6},
    ScoringConfig{kFp8, false, 64, 128, 3, 6},   ScoringConfig{kFp8, false, 32, 128, 8, 4},
    ScoringConfig{kFp8, false, 32, 64, 5, 4},    ScoringConfig{kFp8, false, 128, 128, 2, 4},
    ScoringConfig{kFp8, false, 16, 64, 7, 4},    ScoringConfig{kFp8, false, 48, 128, 5, 4},
    ScoringConfig{kFp8, true, 64, 128, 1, 4},    ScoringConfig{kFp8, true, 64, 128, 2, 4},
    ScoringConfig{kFp8, true, 64, 128, 4, 4},    ScoringConfig{kFp8, true, 32, 64, 3, 4},
    ScoringConfig{kFp8, true, 32, 128, 8, 4},    ScoringConfig{kMxFp4, false, 64, 128, 4, 4},
    ScoringConfig{kMxFp4, false, 64, 128, 1, 4}, ScoringConfig{kMxFp4, false, 32, 64, 6, 4},
    ScoringConfig{kMxFp4, true, 64, 128, 2, 4},  ScoringConfig{kMxFp4, true, 64, 128, 3, 4},
    ScoringConfig{kMxFp4, true, 32, 64, 1, 4},
};

TensorMap kernel_map(const cuda::TensorMap& map) {
  TensorMap copy;
  std::memcpy(copy.opaque, map.opaque, sizeof(copy.opaque));
  return copy;
}

template <size_t kIndex>
Status run_one(const ScoringCall& call, uint64_t seed) {
  const TensorMap q = kernel_map(call.q_map), keys = kernel_map(call.key_map),
                  scales = kernel_map(call.scale_map);
  return run_grid({.num_ctas = static_cast<int>(call.dims.num_ctas),
                   .num_threads = static_cast<int>(call.dims.num_threads),
                   .smem_bytes = static_cast<int>(call.dims.smem_bytes) + 1024,
                   .seed = seed},
                  [&] { run_scoring<kConfigs[kIndex]>(q, keys, scales, call.params); });
}

template <size_t... kIndices>
Status dispatch(const ScoringCall& call, uint64_t seed, std::index_sequence<kIndices...>) {
  Status status = make_error(ErrorKind::kUnsupported, "{} is not compiled for the CPU",
                             config_name(call.config));
  ((kConfigs[kIndices] == call.config ? void(status = run_one<kIndices>(call, seed)) : void()),
   ...);
  return status;
}

}  // namespace

Status run_call(const ScoringCall& call, uint64_t seed) {
  return dispatch(call, seed, std::make_index_sequence<kConfigs.size()>());
}

std::span<const ScoringConfig> scoring_configs() {
  return kConfigs;
}

}  // namespace volley::gemm::emulated
