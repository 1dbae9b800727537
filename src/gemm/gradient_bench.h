#pragma once

#include "gemm/product_bench.h"

namespace volley::gemm {

// Times products with float output, added to D, dense and grouped along K: `gemm_bench
// --gradients`. FP8 with scales on the rows of both sides (kFp8Rows), beside cuBLASLt with one
// scale a tensor and ("block") with the same scales as ours; or bf16.
Status run_gradient_bench(const ProductBenchOptions& options);

}  // namespace volley::gemm
