#pragma once

// cuBLASLt beside our kernels in the benchmark: the baseline that every CUDA install has. Loaded
// when asked for; its types come from the toolkit's header, so this unit is built where the toolkit
// is.

#include <memory>
#include <string>

#include "cuda/device.h"
#include "gemm/shape.h"

namespace volley::gemm {

struct PeerProblem {
  GemmShape shape;            // m, n, k, the types of A, B and D
  bool adds = false;          // D += the product; else D = it
  bool block_scales = false;  // FP8: a float for each 1x128 of A and B, as kFp8Rows has them
};

struct PeerOperands {
  cuda::DevicePtr a = 0, a_scale = 0, b = 0, b_scale = 0, d = 0;
};

// D[m, n] = A[m, k] B[n, k]^T by cuBLASLt: FP8 with one scale for each tensor (fast accumulation:
// no promotion of partial sums, unlike ours) or for each 1x128, or bf16.
class CublasLtPeer {
 public:
  virtual ~CublasLtPeer() = default;
  // Chooses cuBLASLt's first heuristic; launch() then takes any operands of that shape, rows of A
  // and B `row_elements` apart.
  virtual Status prepare(const PeerProblem& problem, int64_t row_elements) = 0;
  virtual Status launch(const PeerOperands& operands, cuda::CuStream stream) = 0;
  virtual std::string version() const = 0;
};

// kUnsupported where there is no cuBLASLt, or the program was built without its header.
Result<std::unique_ptr<CublasLtPeer>> load_cublaslt(const cuda::Context& context);

}  // namespace volley::gemm
