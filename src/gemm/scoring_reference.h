#pragma once

// The scores of scoring.h as plain loops in double, on host memory: the oracle of its kernels. Also
// keys quantised on the host, and random problems.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gemm/scoring.h"

namespace volley::gemm {

struct QuantizedKeys {
  std::vector<uint8_t> values;  // [num_keys, head_dim] e4m3, or [num_keys, head_dim/2] e2m1
  std::vector<uint8_t> scales;  // [num_keys] floats, or [num_keys, head_dim/32] UE8M0
};

// x is [num_keys, head_dim]. FP8: a key's scale is amax / 448, amax at least 1e-4. FP4: a group's
// is amax / 6 rounded up to a power of two from 2^-127 to 2^127. Values to nearest, ties to even.
Result<QuantizedKeys> quantize_keys(std::span<const float> x, KeyKind kind, int64_t num_keys,
                                    int head_dim);

// A problem in host memory, laid out as scoring.h says, with every stride packed.
struct HostScoring {
  ScoringShape shape;
  std::vector<uint8_t> q;
  std::vector<float> weights;
  std::vector<uint8_t> keys;  // paged: pages
  std::vector<uint8_t> key_scales;
  int64_t num_pages = 0;
  std::vector<int32_t> block_table;
  std::vector<int32_t> context_lens, query_starts;  // paged; query_starts may be empty
  std::vector<int32_t> starts, ends;                // not paged; may be empty
};

// Which keys of which sequence a row sees; sequence -1: none.
struct RowView {
  int sequence = -1;
  int begin = 0, end = 0;
};
std::vector<RowView> row_views(const HostScoring& problem);

class ScoringReference {
 public:
  // `problem` outlives it.
  explicit ScoringReference(const HostScoring& problem);

  struct Value {
    double value = 0;
    double bound = 0;  // the largest |kernel - value| that rounding explains (docs/gemm.md)
  };
  // Of a row and a key that it sees.
  Value at(int row, int key) const;
  const std::vector<RowView>& rows() const { return rows_; }

 private:
  const HostScoring& problem_;
  std::vector<RowView> rows_;
  std::vector<float> q_;          // [num_rows, heads, head_dim]
  std::vector<double> keys_;      // [keys or pages * 64, head_dim], scaled
  std::vector<double> rounding_;  // of each key: what decoding may change of a value
};

// Random queries, weights of both signs and keys, some of them far larger than others and, FP4,
// with groups of very different scales. Not paged: `first` are the starts (empty: none), `second`
// the ends (empty: none). Paged: `first` are the context lengths, `second` the query starts (empty:
// each sequence has next_n rows); pages lie in random order with unused ones between.
HostScoring random_scoring(const ScoringShape& shape, std::vector<int32_t> first,
                           std::vector<int32_t> second, uint64_t seed);

// A problem without pages: the rows and keys of sequence `sequence` of a paged one.
HostScoring sequence_alone(const HostScoring& paged, int sequence);

// The arguments of `problem`, everything packed; put(bytes, size) returns where they lie on the
// device, or 0 for none.
template <class Put>
ScoringArgs scoring_args(const HostScoring& problem, Put&& put) {
  const auto place = [&](const auto& v) -> cuda::DevicePtr {
    return v.empty() ? 0 : put(v.data(), v.size() * sizeof(v[0]));
  };
  ScoringArgs args;
  args.shape = problem.shape;
  args.q = place(problem.q);
  args.weights = place(problem.weights);
  args.keys = place(problem.keys);
  args.key_scales = place(problem.key_scales);
  args.num_pages = problem.num_pages;
  args.block_table = place(problem.block_table);
  args.context_lens = place(problem.context_lens);
  args.query_starts = place(problem.query_starts);
  args.starts = place(problem.starts);
  args.ends = place(problem.ends);
  return args;
}

// What is wrong with `logits`, whose rows are `stride` floats apart and whose every byte was 0xFF
// before the call: empty, or the worst of it. Looks at every `step`-th key; rows and columns beyond
// the shape's must be untouched.
std::string check_logits(const HostScoring& problem, std::span<const float> logits, int64_t stride,
                         OutsideRange outside, int step);

}  // namespace volley::gemm
