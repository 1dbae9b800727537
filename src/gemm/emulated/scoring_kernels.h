#pragma once

// The scoring kernels compiled for the CPU and run on the emulated machine (machine.h).

#include <span>

#include "gemm/scoring.h"

namespace volley::gemm::emulated {

// Runs what `call` would launch; its pointers are host memory and its maps come from the stand-in
// driver. kUnsupported when its configuration is not among scoring_configs().
Status run_call(const ScoringCall& call, uint64_t seed);

std::span<const ScoringConfig> scoring_configs();

}  // namespace volley::gemm::emulated
