#pragma once

// cuBLASLt beside our kernels in the benchmark: the baseline that every CUDA install has. Loaded
// when asked for; its types come from the toolkit's header, so this unit is built where the toolkit
// is.

#include <memory>
#include <string>

#include "cuda/device.h"
#include "gemm/shape.h"

namespace volley::gemm {

// D[m, n] = A[m, k] B[n, k]^T by cuBLASLt, bf16 out: FP8 with one scale for each tensor (fast
// accumulation: no promotion of partial sums, unlike ours), or bf16.
class CublasLtPeer {
 public:
  virtual ~CublasLtPeer() = default;
  // Chooses cuBLASLt's first heuristic for the shape; launch() then takes any operands of it.
  virtual Status prepare(const GemmShape& shape) = 0;
  virtual Status launch(cuda::DevicePtr a, cuda::DevicePtr b, cuda::DevicePtr d,
                        cuda::CuStream stream) = 0;
  virtual std::string version() const = 0;
};

// kUnsupported where there is no cuBLASLt, or the program was built without its header.
Result<std::unique_ptr<CublasLtPeer>> load_cublaslt(const cuda::Context& context);

}  // namespace volley::gemm
