#pragma once

#include <string>

#include "base/result.h"

namespace volley::gemm {

// Times the quantisers, bf16 to FP8 and FP4, the packing of FP4 weights and scales to their layout,
// beside the time that their bytes take at what a memset writes: `gemm_bench --quantizers`. Their
// results are the test's matter (quantizer_test.cc). `json`: file to write, or empty.
Status run_quantizer_bench(const std::string& json);

}  // namespace volley::gemm
