#pragma once

// The quantisers' kernels compiled for the CPU and run on the emulated machine (machine.h).

#include <string_view>

#include "base/result.h"
#include "gemm/device/quantize_params.h"

namespace volley::gemm::emulated {

// Runs the kernel whose entry is `entry` ("volley_quantize_rows") over num_ctas CTAs; `params` is
// what it takes, with pointers to host memory. kUnsupported where there is none of that name.
Status run_quantizer(std::string_view entry, int64_t num_ctas, const void* params, uint64_t seed);

}  // namespace volley::gemm::emulated
