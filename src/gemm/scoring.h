#pragma once

// Scores of keys for the lightning indexer of DeepSeek-V3.2 (weighted ReLU multi-query logits), on
// Hopper:
//
//   logits[i, j] = k_scale[j] * sum over heads h of weights[i, h] * relu(q[i, h] . k[j])
//
// with FP8 queries and FP8 or FP4 keys, the keys in one run or in pages of 64.
//
// Layouts, to the byte. Pointers are 16-byte aligned unless said.
//
//   q         FP8 e4m3 [num_rows, heads, head_dim]; row i begins at q + i * q_stride bytes, rows a
//             multiple of 16 bytes apart, heads packed. A scale of q belongs into the weights.
//   weights   float [num_rows, heads]; rows weights_stride floats apart, a multiple of 4.
//   keys      kFp8: a key is head_dim bytes of e4m3; its scale is a float.
//             kMxFp4: a key is head_dim/2 bytes of e2m1, the even column in the low nibble; its
//             scales are head_dim/32 bytes of UE8M0, 2^(s - 127) for each 32 columns, 255 a NaN.
//             Not paged: key j begins at keys + j * key_stride bytes, a multiple of 16; FP4 keys
//             are packed. key_scales is [num_keys] floats, or [num_keys, head_dim/32] bytes. Paged:
//             page p begins at keys + p * page_stride bytes, a multiple of 16; first the 64 keys,
//             packed, then their 64 scales: scoring_page_bytes() in all. key_scales is null.
//   which keys a row sees (int32 arrays on the device, 4-byte aligned, read when the kernel runs,
//             so a captured graph follows them; values are clamped to what exists):
//             Not paged: row i sees keys [starts[i], ends[i]); null: from 0, to num_keys.
//             Paged: sequence s has next_n rows, s * next_n and on; or, if query_starts
//             [num_sequences + 1] is given, rows query_starts[s] to query_starts[s + 1], any
//             number, none too. context_lens[s] counts its keys, those of its rows included: the
//             last row sees them all, each row before it one key less. Key j of the sequence is key
//             j % 64 of page block_table[s * table_stride + j / 64]. What a page number out of
//             range reads is not defined, except that it lies in the pages or is zero.
//   logits    float [num_rows, num_keys]; rows logits_stride floats apart, 4-byte aligned; full
//             speed where rows are a multiple of 32 bytes apart. Paged, column j is key j of the
//             row's sequence, and num_keys bounds the context: keys from there on are not scored.
//             Where a row sees no key: kUntouched leaves memory as it is, kNegativeInfinity writes
//             -infinity. Columns from num_keys on and rows from num_rows on are never written.
//
// Arithmetic. A raw dot product of all head_dim is one sum in the tensor core. Then, in float,
// c = 0..3: s_c = fma(weights[h], relu(raw[h]), s_c) over h = 2c, 2c+1, 8+2c, 8+2c+1, 16+2c, ... in
// that order from 0; logit = k_scale * ((s_0 + s_1) + (s_2 + s_3)), each operation rounded. A
// logit's bits are the same for any number of rows, any place, paged or not (law 1). FP4 keys are
// decoded to e4m3 relative to the key's largest scale, which is multiplied as k_scale: exact where
// a group's scale is at least 2^-14 of it, else rounded to a multiple of 2^-15 of it. NaN and
// infinity pass through; relu(NaN) is NaN. Errors against exact arithmetic:
// ScoringReference::at() in scoring_reference.h.
//
// logits must not overlap the inputs. Errors are returned by prepare(); launch() fails only when
// the driver does.

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "cuda/device.h"
#include "cuda/tensor_map.h"
#include "gemm/device/scoring_schedule.h"
#include "gemm/gemm.h"
#include "gemm/shape.h"
#include "jit/kernel_library.h"

namespace volley::gemm {

enum class OutsideRange : int { kUntouched, kNegativeInfinity };

struct ScoringShape {
  KeyKind keys = KeyKind::kFp8;
  bool paged = false;
  int heads = 64;      // a multiple of 16 up to 128
  int head_dim = 128;  // or 64
  int num_rows = 0;
  int num_keys = 0;       // columns of the logits; not paged, the keys there are
  int num_sequences = 0;  // paged
  // Paged: rows of each sequence. With query_starts, the number that is likely: steers speed, never
  // results.
  int next_n = 1;

  bool operator==(const ScoringShape&) const = default;
};

inline constexpr int kMaxScoringKeys = 1 << 28;

Status validate(const ScoringShape& shape);

// Bytes of a page of 64 keys and their scales.
int scoring_page_bytes(KeyKind keys, int head_dim);

// How `shape` is computed: a pure function. As many queries share a read of the keys as fit, or as
// a sequence has.
Result<ScoringConfig> choose_scoring_config(const ScoringShape& shape, const DeviceSpec& device);

// The same, when the number of queries of a tile is given.
ScoringConfig scoring_config(KeyKind keys, bool paged, int heads, int head_dim, int queries,
                             const DeviceSpec& device);

// A short name, unique among configurations: "score-fp8-paged-h64-d128-q2-s16".
std::string config_name(const ScoringConfig& config);

jit::KernelSource kernel_source(const ScoringConfig& config);

// The kernels that `shapes` need at every num_rows, num_keys, num_sequences and, paged, next_n up
// to their own. For warm-ups and bundles; needs no device.
Result<std::vector<jit::KernelSource>> scoring_kernels_for(std::span<const ScoringShape> shapes,
                                                           const DeviceSpec& device);

// What the call must do at least: floating-point operations of the products, bytes to read and
// write once, for rows that see `visible` pairs of a row and a key in all, of `keys_read` keys.
struct ScoringCost {
  double flops = 0;
  double bytes = 0;
};
ScoringCost scoring_cost(const ScoringShape& shape, double visible, double keys_read);

struct ScoringArgs {
  ScoringShape shape;
  cuda::DevicePtr q = 0;
  int64_t q_stride = 0;  // bytes; 0 means heads * head_dim
  cuda::DevicePtr weights = 0;
  int64_t weights_stride = 0;  // floats; 0 means heads
  cuda::DevicePtr keys = 0;
  cuda::DevicePtr key_scales = 0;
  int64_t key_stride = 0;  // bytes; 0 means packed
  // Paged
  int64_t num_pages = 0;
  int64_t page_stride = 0;  // bytes; 0 means scoring_page_bytes()
  cuda::DevicePtr block_table = 0;
  int64_t table_stride = 0;  // entries; 0 means ceil(num_keys / 64), the least
  cuda::DevicePtr context_lens = 0;
  cuda::DevicePtr query_starts = 0;
  // Not paged
  cuda::DevicePtr starts = 0;
  cuda::DevicePtr ends = 0;
  cuda::DevicePtr logits = 0;
  int64_t logits_stride = 0;  // floats; 0 means num_keys
  OutsideRange outside = OutsideRange::kUntouched;
  Overlap overlap = Overlap::kLaunch;   // kWeights means kLaunch: keys are not weights
  std::optional<ScoringConfig> config;  // in place of the choice, for tests and tuning
};

// A call that is ready to launch. A value; valid while the Scoring that made it lives and the
// pointers of its arguments do.
struct ScoringCall {
  ScoringConfig config;
  cuda::CuFunction kernel = nullptr;  // null when there is nothing to do
  cuda::LaunchDims dims;
  cuda::TensorMap q_map;
  cuda::TensorMap key_map;
  cuda::TensorMap scale_map;
  ScoringParams params = {};
};

class Scoring {
 public:
  // `context` and `kernels` outlive the Scoring. kUnsupported unless the device is of compute
  // capability 9.0.
  static Result<std::unique_ptr<Scoring>> create(const cuda::Context& context,
                                                 jit::KernelLibrary& kernels);

  // Checks `args`, loads the kernel (compiling it when `kernels` must) and encodes the tensor maps.
  // Thread-safe; the calling thread's context is current.
  Result<ScoringCall> prepare(const ScoringArgs& args);

  // Puts a prepared call on `stream`: one kernel. Allocates nothing; may be captured into a graph.
  Status launch(const ScoringCall& call, cuda::CuStream stream) const;

  // Compiles and loads what scoring_kernels_for(shapes) lists.
  Status warm_up(std::span<const ScoringShape> shapes, int num_threads,
                 const jit::KernelLibrary::Progress& progress);

  const DeviceSpec& device() const { return device_; }

 private:
  struct Loaded {
    cuda::Module module;
    cuda::Kernel kernel;
  };

  Scoring(const cuda::Context& context, jit::KernelLibrary& kernels, const DeviceSpec& device)
      : context_(context), kernels_(kernels), device_(device) {}
  Result<const Loaded*> load(const ScoringConfig& config);

  const cuda::Context& context_;
  jit::KernelLibrary& kernels_;
  DeviceSpec device_;
  std::mutex mutex_;
  std::map<std::string, Loaded> loaded_;  // by config_name
};

}  // namespace volley::gemm
