#pragma once

// Quantisers on the device: bf16 to FP8 and FP4 with the scales that gemm.h's kernels take, and
// scales of other libraries to their layout. To the bit what quantize.h and fp4.h compute on the
// host.
//
// What is not a number: a NaN is 0x7F in e4m3 and 6 times the scale in e2m1, and counts for nothing
// in its group's scale. A group with an infinity has the scale infinity in e4m3 (so all its
// products are NaN or infinite); in e2m1, which has neither, its scale is that of the largest
// float, and the infinity becomes 6 times it. Subnormals are numbers like others.
//
// Every call is asynchronous, allocates nothing, and may be captured into a graph. Pointers are
// 16-byte aligned device memory; outputs must not overlap inputs. kInvalidInput for sizes that do
// not fit.

#include <memory>
#include <optional>

#include "cuda/device.h"
#include "gemm/device/gemm_config.h"
#include "gemm/device/quantize_params.h"
#include "jit/kernel_library.h"

namespace volley::gemm {

// bf16 [num_slabs, rows, cols], rows `stride` elements apart, slabs rows * stride.
struct Bf16Matrix {
  cuda::DevicePtr data = 0;
  int num_slabs = 1;
  int rows = 0;
  int cols = 0;        // a multiple of 128; of quantize_columns(): of 8
  int64_t stride = 0;  // a multiple of 8; 0 means cols
};

// Whether an e4m3 scale is amax / 448 or the power of two from there up (UE8M0).
enum class ScaleKind : int { kAny, kPowerOfTwo };

class Quantizer {
 public:
  // `context` and `kernels` outlive it; compiles one module, or takes it from a bundle.
  static Result<std::unique_ptr<Quantizer>> create(const cuda::Context& context,
                                                   jit::KernelLibrary& kernels);

  // Tokens, or the rows of kFp8Rows: a scale for each 1x128. `values` e4m3 [num_slabs, rows, cols];
  // `scales` float [num_slabs, cols/128, scale_stride], scale_stride >= rows, a multiple of 4 (0:
  // rows rounded up to 4); the padding is not written.
  Status quantize_rows(const Bf16Matrix& x, ScaleKind kind, cuda::DevicePtr values,
                       cuda::DevicePtr scales, int64_t scale_stride, cuda::CuStream stream) const;

  // The same of each slab transposed, for gradients, whose K is tokens: x is [num_slabs, tokens,
  // features], `values` [num_slabs, features, tokens rounded up to 128], zeros behind the last
  // token; `scales` [num_slabs, ceil(tokens/128), scale_stride], scale_stride from features up.
  Status quantize_columns(const Bf16Matrix& x, ScaleKind kind, cuda::DevicePtr values,
                          cuda::DevicePtr scales, int64_t scale_stride,
                          cuda::CuStream stream) const;

  // Weights: a scale for each 128x128 (edge groups have fewer rows). `values` e4m3 [num_slabs,
  // rows, cols], `scales` float [num_slabs, ceil(rows/128), cols/128].
  Status quantize_blocks(const Bf16Matrix& x, ScaleKind kind, cuda::DevicePtr values,
                         cuda::DevicePtr scales, cuda::CuStream stream) const;

  // Weights as checkpoints have them (fp4.h; pack_fp4() makes the kernels' tiles). `values`
  // [num_slabs, rows, cols/2]. kMxFp4: `scales` UE8M0 [num_slabs, rows, cols/32]. kNvFp4: e4m3
  // [num_slabs, rows, cols/16] and `tensor_scales` float [num_slabs]; two passes.
  Status quantize_fp4(const Bf16Matrix& x, MmaKind format, cuda::DevicePtr values,
                      cuda::DevicePtr scales, cuda::DevicePtr tensor_scales,
                      cuda::CuStream stream) const;

  // pack_fp4() of fp4.h: such weights to the tiles and row scales that kMxFp4 and kNvFp4 products
  // read. [num_groups, n, k], k a multiple of 128. `num_rounded`: 0, or a 64-bit count on the
  // device of what PackedFp4::num_rounded counts. Scales must be numbers, which pack_fp4() checks.
  Status pack_fp4(MmaKind format, int num_groups, int n, int k, cuda::DevicePtr values,
                  cuda::DevicePtr scales, cuda::DevicePtr tensor_scales, cuda::DevicePtr tiles,
                  cuda::DevicePtr row_scales, cuda::DevicePtr num_rounded,
                  cuda::CuStream stream) const;

  // Scales float [num_slabs, rows, blocks], packed, to m-major [num_slabs, blocks, out_stride]; the
  // padding is not written.
  Status scales_to_m_major(cuda::DevicePtr scales, int num_slabs, int rows, int blocks,
                           cuda::DevicePtr out, int64_t out_stride, cuda::CuStream stream) const;

 private:
  enum Kernel {
    kRows,
    kColumns,
    kBlocks,
    kMx,
    kNv,
    kAmax,
    kFinish,
    kTranspose,
    kPackMx,
    kPackNv,
    kNumKernels
  };

  explicit Quantizer(const cuda::Context& context) : context_(context) {}
  // `params`: what the kernel takes.
  Status launch(Kernel kernel, int64_t num_ctas, const void* params, cuda::CuStream stream) const;

  const cuda::Context& context_;
  cuda::Module module_;
  cuda::Kernel kernels_[kNumKernels];
};

// The module's source, for warm-ups and bundles.
jit::KernelSource quantizer_source();

}  // namespace volley::gemm
