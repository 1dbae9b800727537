#pragma once

// The kernels' source compiled for the CPU, in the configurations listed in kernels.cc.

#include <span>

#include "gemm/gemm.h"

namespace volley::gemm::emulated {

// Runs a call prepared with the stand-in driver; pointers are host memory. kUnsupported for a
// configuration that is not in the list.
Status run_call(const GemmCall& call, uint64_t seed);

std::span<const GemmConfig> configs();

}  // namespace volley::gemm::emulated
