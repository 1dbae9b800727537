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

#define VOLLEY_CUBLASLT_CALLS(V)                                                                 \
  V(cublasLtCreate)                                                                              \
  V(cublasLtDestroy)                                                                             \
  V(cublasLtGetVersion)                                                                          \
  V(cublasLtMatmulDescCreate)                                                                    \
  V(cublasLtMatmulDescSetAttribute)                                                              \
  V(cublasLtMatmulDescDestroy)                                                                   \
  V(cublasLtMatrixLayoutCreate) V(cublasLtMatrixLayoutDestroy) V(cublasLtMatmulPreferenceCreate) \
      V(cublasLtMatmulPreferenceSetAttribute) V(cublasLtMatmulPreferenceDestroy)                 \
          V(cublasLtMatmulAlgoGetHeuristic) V(cublasLtMatmul)

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
  Status prepare(const GemmShape& shape) override {
    release_shape();
    const bool fp8 = shape.mma == MmaKind::kFp8;
    const cudaDataType_t in = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const auto m = static_cast<uint64_t>(shape.m), n = static_cast<uint64_t>(shape.n),
               k = static_cast<uint64_t>(shape.k);
    VOLLEY_TRY_STATUS(check(lt_.cublasLtMatmulDescCreate(&desc_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
                            "describing a product"));
    VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
    VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N));
    if (fp8) {
      const int8_t fast = 1;
      VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, fast));
      const auto* scale = reinterpret_cast<const void*>(one_.get());
      VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scale));
      VOLLEY_TRY_STATUS(set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scale));
    }
    VOLLEY_TRY_STATUS(check(lt_.cublasLtMatrixLayoutCreate(&b_, in, k, n, static_cast<int64_t>(k)),
                            "describing B"));
    VOLLEY_TRY_STATUS(check(lt_.cublasLtMatrixLayoutCreate(&a_, in, k, m, static_cast<int64_t>(k)),
                            "describing A"));
    VOLLEY_TRY_STATUS(
        check(lt_.cublasLtMatrixLayoutCreate(&d_, CUDA_R_16BF, n, m, static_cast<int64_t>(n)),
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

  Status launch(cuda::DevicePtr a, cuda::DevicePtr b, cuda::DevicePtr d,
                cuda::CuStream stream) override {
    const float one = 1, zero = 0;
    auto* out = reinterpret_cast<void*>(d);
    return check(lt_.cublasLtMatmul(handle_, desc_, &one, reinterpret_cast<void*>(b), b_,
                                    reinterpret_cast<void*>(a), a_, &zero, out, d_, out, d_,
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
