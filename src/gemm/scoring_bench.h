#pragma once

#include <string>

#include "base/result.h"

namespace volley::gemm {

struct ScoringBenchOptions {
  std::string json;     // file to write, or empty
  std::string filter;   // texts with commas between; a case has one of them in its name
  bool search = false;  // time other configurations too
  bool skip_peer = false;
};

// Times indexer scoring on the GPU: `gemm_bench --scoring`.
//
// cold, rot: bench_tools.h. floor: the larger of the products' operations at 1979 TFLOP/s (an
// H100 SXM's FP8 data sheet rate) and the bytes that must be read and written once at 3.0 TB/s (a
// device-to-device copy). Two baselines are timed right after ours, shape by shape: cuBLASLt's
// FP8 product of as many operations, m x 4096 x 4096, one scale a tensor; and, not paged, its
// product of all queries' heads with all keys, which leaves the sums over heads to do.
Status run_scoring_bench(const ScoringBenchOptions& options);

}  // namespace volley::gemm
