#pragma once

// Volley's matrix products on Hopper: D[m, n] = A[m, k] B[n, k]^T (+ C), FP8, BF16, or FP8 tokens
// by FP4 weights, alone or grouped by rows (one weight for each group of tokens) or along k (one
// weight's gradient for each group of tokens).
//
// Layouts, to the byte. All matrices are row-major; k is contiguous in A and B, n in D.
//
//   A        FP8 e4m3 (e4m3fn; also with FP4 weights) or bf16. Row r begins at element
//            r * a_stride of a; a_stride >= k, rows are a multiple of 16 bytes apart; 16-byte
//            aligned.
//              dense, row index, prefix sum, along k: m rows.
//              masked: num_groups slabs of m rows, slab g begins at row g * m.
//   a_scale  not bf16: float, one for each row and 128 columns of A, "m-major": the scale of row r,
//            columns 128b..128b+127 is a_scale[b * a_scale_stride + r]; a_scale_stride >= m, a
//            multiple of 4; 16-byte aligned. Masked: slab g begins at a_scale + g * (k/128) *
//            a_scale_stride.
//   B        [num_groups, n, k], along k [n, k], packed, the type of A, 16-byte aligned. FP4: the
//            tiles that pack_fp4() (fp4.h) makes, [num_groups, ceil(n/64), k/128] of 4352 (MX) or
//            4608 (NV) bytes, laid out as device/fp4_format.h says.
//   b_scale  FP8: float [num_groups, ceil(n/128), k/128], packed: one for each 128x128. FP8 rows:
//            one for each row and 128 columns, as a_scale, in b_scale_stride; 16-byte aligned. FP4:
//            the row scales of pack_fp4(), float [num_groups, n rounded up to 64].
//   D        bf16 or float; along k float. Row r begins at element r * d_stride of d;
//            d_stride >= n, rows a multiple of 16 bytes apart; 16-byte aligned. Masked, along k:
//            num_groups slabs of m rows.
//   C        none, or float, laid out as D in c_stride; may be D itself (D += the product), may not
//            overlap it otherwise. Dense and along k, with float D. Not with bf16: a sum that is
//            kept in bf16 between calls loses what it is kept for (1 + 1/256 is 1), and nothing in
//            a forward pass adds a product to a tensor that is not float.
//   groups   int32 on the device, read when the kernel runs, so a captured graph follows it:
//              row index: [m], the group of each row, -1 for padding. All rows of an aligned run of
//                group_align rows are of one group or padding after it; the run's first row
//                decides.
//              prefix sum: [num_groups], e[g] = the end row of group g. Group 0 begins at 0,
//                group g at e[g-1] rounded up to group_align. Values are clamped to [previous end,
//                m].
//              masked: [num_groups], how many rows of each slab count, clamped to [0, m].
//              along k: [num_groups], e[g] = the end column of group g in A and B, clamped to
//                [previous end, k]. Group 0 begins at 0, group g at e[g-1] rounded up to 128; the
//                columns from e[g] to the next multiple of 128 count too: one side has zeros there.
//                D of a group without columns is C, or 0.
//
// value(D[r, c]) = sum over b of a_scale[r, b] * b_scale[c/128, b] * sum over the block of A * B;
// the scales' product is rounded to float, then multiplied and added in one rounding. FP4: the same
// without b_scale, B decoded to "value times group scale" relative to its row, and the row's scale
// multiplied once, to the sum of all segments. FP8 rows: b_scale[c, b]. C is added last, rounded
// once. Which blocks are added in which order: reduction_order() in gemm/shape.h. For one weight
// and plan, a row's result has the same bits at every m, in every place, grouped or not, C in place
// or apart (law 1).
//
// Rows of D that are padding, or beyond a slab's count, may be written, with values of no meaning;
// rows beyond m and columns beyond n are never written. D must not overlap A, B and their scales.
//
// Errors are returned by prepare(); launch() fails only when the driver does. NaN and infinity pass
// through as IEEE arithmetic has them (e4m3 has NaN alone).

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "cuda/device.h"
#include "cuda/tensor_map.h"
#include "gemm/shape.h"
#include "jit/kernel_library.h"

namespace volley::gemm {

// How much of a product may run beside the end of the kernel in front of it on its stream
// (programmatic dependent launch). Results never depend on it.
enum class Overlap : int {
  kNone,     // nothing
  kLaunch,   // its start: it waits for that kernel's end before it reads or writes device memory
  kWeights,  // kLaunch, and a dense product reads b and b_scale before: both were complete when the
             // kernel in front began
};

struct GemmArgs {
  GemmShape shape;
  cuda::DevicePtr a = 0;
  int64_t a_stride = 0;  // elements; 0 means k
  cuda::DevicePtr a_scale = 0;
  int64_t a_scale_stride = 0;  // floats; 0 means m rounded up to 4
  cuda::DevicePtr b = 0;
  cuda::DevicePtr b_scale = 0;
  int64_t b_scale_stride = 0;  // kFp8Rows: floats; 0 means n
  cuda::DevicePtr d = 0;
  int64_t d_stride = 0;   // elements; 0 means n
  cuda::DevicePtr c = 0;  // 0: nothing is added
  int64_t c_stride = 0;   // elements; 0 means d_stride
  cuda::DevicePtr groups = 0;
  Overlap overlap = Overlap::kLaunch;
  std::optional<GemmConfig> config;  // in place of the heuristic's choice, for tests and tuning
};

// A product that is ready to launch: kernel, tensor maps, grid. A value; copies are independent.
// Valid while the Gemm that made it lives and the pointers of its arguments do.
struct GemmCall {
  GemmConfig config;
  cuda::CuFunction kernel = nullptr;  // null when there is nothing to do (m = 0)
  cuda::LaunchDims dims;
  cuda::TensorMap a_map;
  cuda::TensorMap b_map;
  cuda::TensorMap scale_map;
  cuda::TensorMap b_scale_map;
  cuda::TensorMap d_map;
  GemmParams params = {};
};

// What plans are made for. Errors: it is no Hopper GPU; the message begins with `library`.
Result<DeviceSpec> device_spec(const cuda::Context& context, std::string_view library);

class Gemm {
 public:
  // `context` and `kernels` outlive the Gemm. kUnsupported unless the device is of compute
  // capability 9.0.
  static Result<std::unique_ptr<Gemm>> create(const cuda::Context& context,
                                              jit::KernelLibrary& kernels);

  // Checks `args`, chooses a configuration, loads its kernel (compiling it when `kernels` must; see
  // warm_up) and encodes the tensor maps. Thread-safe; the calling thread's context is current.
  Result<GemmCall> prepare(const GemmArgs& args);

  // Puts a prepared product on `stream`. A few microseconds of host time; allocates nothing; may be
  // captured into a graph.
  Status launch(const GemmCall& call, cuda::CuStream stream) const;

  // Compiles and loads what prepare() will need for `shapes` at every m (masked: expected_m) up to
  // their own, so that nothing compiles afterwards.
  Status warm_up(std::span<const GemmShape> shapes, int num_threads,
                 const jit::KernelLibrary::Progress& progress);

  const DeviceSpec& device() const { return device_; }

 private:
  struct Loaded {
    cuda::Module module;
    cuda::Kernel kernel;
    int max_clusters = 0;
  };

  Gemm(const cuda::Context& context, jit::KernelLibrary& kernels, const DeviceSpec& device)
      : context_(context), kernels_(kernels), device_(device) {}
  Result<const Loaded*> load(const GemmConfig& config);
  Result<GemmConfig> choose(const GemmShape& shape);

  const cuda::Context& context_;
  jit::KernelLibrary& kernels_;
  DeviceSpec device_;
  std::mutex mutex_;
  std::map<std::string, Loaded> loaded_;                   // by config_name
  std::vector<std::pair<GemmShape, GemmConfig>> choices_;  // the last kMaxChoices, a ring
  size_t next_choice_ = 0;
};

// The kernels that `shapes` need at every m up to their own, without duplicates. For warm-ups and
// bundles (to which quantizer_source() of quantizer.h adds the quantisers); needs no device.
Result<std::vector<jit::KernelSource>> kernels_for(std::span<const GemmShape> shapes,
                                                   const DeviceSpec& device);

}  // namespace volley::gemm
