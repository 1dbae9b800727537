#include "gemm/cublaslt_peer.h"

#ifndef VOLLEY_HAVE_CUBLASLT

namespace volley::gemm {
Result<std::unique_ptr<CublasLtPeer>> load_cublaslt(const cuda::Context&) {
  return make_error(ErrorKind::kUnsupported, "built without cublasLt.h");
}
}  // namespace volley::gemm

#else

#include <cublasLt.h>
#include <dlfcn.h>

namespace volley::gemm {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

#define VOLLEY_CUBLASLT_CALLS(V)          \
  V(cublasLtCreate)                       \
  V(cublasLtDestroy)                      \
  V(cublasLtGetVersion)                   \
  V(cublasLtMatmulDescCreate)             \
  V(cublasLtMatmulDescSetAttribute)       \
  V(cublasLtMatmulDescDestroy)            \
  V(cublasLtMatrixLayoutCreate)           \
  V(cublasLtMatrixLayoutDestroy)          \
  V(cublasLtMatmulPreferenceCreate)       \
  V(cublasLtMatmulPreferenceSetAttribute) \
  V(cublasLtMatmulPreferenceDestroy) V(cublasLtMatmulAlgoGetHeuristic) V(cublasLtMatmul)

struct Calls {
#define VOLLEY_DECLARE(name) decltype(&::name) name = nullptr;
  VOLLEY_CUBLASLT_CALLS(VOLLEY_DECLARE)
#undef VOLLEY_DECLARE
};

class Peer : public CublasLtPeer {
 public:
  ~Peer() override {
    release_shape();
    if (handle_ != nullptr) lt_.cublasLtDestroy(handle_);
    // The library stays: it has threads and state of its own that do not survive unloading.
  }

  Status open(const cuda::Context& context) {
    void* library = ::dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = ::dlopen("libcublasLt.so.12", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
      return make_error(ErrorKind::kUnsupported, "no cuBLASLt: {}", ::dlerror());
    bool complete = true;
#define VOLLEY_LOAD(name)                                                  \
  lt_.name = reinterpret_cast<decltype(&::name)>(::dlsym(library, #name)); \
  complete = complete && lt_.name != nullptr;
    VOLLEY_CUBLASLT_CALLS(VOLLEY_LOAD)
#undef VOLLEY_LOAD
    if (!complete) return make_error(ErrorKind::kUnsupported, "cuBLASLt lacks calls");
    VOLLEY_TRY_STATUS(check(lt_.cublasLtCreate(&handle_), "cublasLtCreate"));
    VOLLEY_TRY(workspace_, cuda::Buffer::allocate(context, kWorkspaceBytes));
    VOLLEY_TRY(one_, cuda::Buffer::allocate(context, 4));
    const float one = 1;
    return one_.upload(&one, 4);
  }

  // Row-major D = A B^T is column-major D^T[n, m] = B[k, n]^T A[k, m].
  Status prepare(const PeerProblem& problem, int64_t row_elements) override {
    release_shape();
    const GemmShape& shape = problem.shape;
    problem_ = problem;
    const bool fp8 = is_fp8(shape.mma);
    const cudaDataType_t in = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const cudaDataType_t out = shape.out == OutKind::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
    const auto m = static_cast<uint64_t>(shape.m), n = static_cast<uint64_t>(shape.n),
               k = static_cast<uint64_t>(shape.k);
    VOLLEY_TRY_STATUS(check(lt_.cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                            "describing a product"));
    VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
    if (fp8 && problem.block_scales) {
      const cublasLtMatmulMatrixScale_t rows = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
      VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, rows));
      VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, rows));
      VOLLEY_TRY_STATUS(set_scales(one_.get(), one_.get()));
    } else if (fp8) {
      const int8_t fast = 1;
      VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast));
      VOLLEY_TRY_STATUS(set_scales(one_.get(), one_.get()));
    }
    VOLLEY_TRY_STATUS(
        check(lt_.cublasLtMatrixLayoutCreate(&b_, in, k, n, row_elements), "describing B"));
    VOLLEY_TRY_STATUS(
        check(lt_.cublasLtMatrixLayoutCreate(&a_, in, k, m, row_elements), "describing A"));
    VOLLEY_TRY_STATUS(check(lt_.cublasLtMatrixLayoutCreate(&d_, out, n, m, static_cast<int64_t>(n)),
                            "describing D"));
    cublasLtMatmulPreference_t preference = nullptr;
    VOLLEY_TRY_STATUS(check(lt_.cublasLtMatmulPreferenceCreate(&preference), "a preference"));
    lt_.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &kWorkspaceBytes, sizeof(kWorkspaceBytes));
    int found = 0;
    const cublasStatus_t status = lt_.cublasLtMatmulAlgoGetHeuristic(
        handle_, desc_, b_, a_, d_, d_, preference, 1, &heuristic_, &found);
    lt_.cublasLtMatmulPreferenceDestroy(preference);
    VOLLEY_TRY_STATUS(check(status, "choosing an algorithm"));
    if (found == 0) return make_error(ErrorKind::kUnsupported, "cuBLASLt has no algorithm");
    return {};
  }

  Status launch(const PeerOperands& o, cuda::CuStream stream) override {
    const float one = 1, beta = problem_.adds ? 1 : 0;
    auto* out = reinterpret_cast<void*>(o.d);
    if (problem_.block_scales) VOLLEY_TRY_STATUS(set_scales(o.b_scale, o.a_scale));
    return check(lt_.cublasLtMatmul(handle_, desc_, &one, reinterpret_cast<void*>(o.b), b_,
                                    reinterpret_cast<void*>(o.a), a_, &beta, out, d_, out, d_,
                                    &heuristic_.algo, reinterpret_cast<void*>(workspace_.get()),
                                    kWorkspaceBytes, reinterpret_cast<cudaStream_t>(stream)),
                 "cublasLtMatmul");
  }

  std::string version() const override {
    return std::to_string(lt_.cublasLtGetVersion());
  }

 private:
  static Status check(cublasStatus_t status, const char* attempted) {
    if (status == CUBLAS_STATUS_SUCCESS) return {};
    return make_error(ErrorKind::kIo, "{}: cuBLASLt status {}", attempted,
                      static_cast<int>(status));
  }
  template <class T>
  Status set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    return check(lt_.cublasLtMatmulDescSetAttribute(desc_, attribute, &value, sizeof(value)),
                 "describing a product");
  }
  // Of cuBLASLt's A and B.
  Status set_scales(cuda::DevicePtr a, cuda::DevicePtr b) {
    const auto* a_scale = reinterpret_cast<const void*>(a);
    const auto* b_scale = reinterpret_cast<const void*>(b);
    VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a_scale));
    return set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b_scale);
  }
  void release_shape() {
    if (desc_ != nullptr) lt_.cublasLtMatmulDescDestroy(desc_);
    for (cublasLtMatrixLayout_t layout : {a_, b_, d_}) {
      if (layout != nullptr) lt_.cublasLtMatrixLayoutDestroy(layout);
    }
    desc_ = nullptr;
    a_ = b_ = d_ = nullptr;
  }

  Calls lt_;
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t desc_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr, b_ = nullptr, d_ = nullptr;
  cublasLtMatmulHeuristicResult_t heuristic_ = {};
  PeerProblem problem_;
  cuda::Buffer workspace_, one_;
};

}  // namespace

Result<std::unique_ptr<CublasLtPeer>> load_cublaslt(const cuda::Context& context) {
  auto peer = std::make_unique<Peer>();
  VOLLEY_TRY_STATUS(peer->open(context));
  return peer;
}

}  // namespace volley::gemm

#endif
