#pragma once

// The products of gemm.h as plain loops in double, on host memory: the oracle of every kernel.

#include <cstdint>
#include <span>
#include <vector>

#include "gemm/shape.h"

namespace volley::gemm {

// A problem in host memory, laid out as gemm.h says, strides packed (a_stride = k, d_stride = n).
struct HostProblem {
  GemmShape shape;
  std::vector<uint8_t> a;      // e4m3 or bf16 bytes
  std::vector<float> a_scale;  // FP8: m-major
  int64_t a_scale_stride = 0;
  std::vector<uint8_t> b;
  std::vector<float> b_scale;   // kFp8Rows: n-major, b_scale_stride = n
  std::vector<float> b_values;  // FP4: [num_groups, n, k], what the checkpoint's values stand for
  std::vector<int32_t> groups;
  std::vector<float> c;  // [num_rows, n] or empty

  int num_a_slabs() const { return shape.grouping == Grouping::kMasked ? shape.num_groups : 1; }
  int num_weights() const { return shape.grouping == Grouping::kAlongK ? 1 : shape.num_groups; }
  // Of D, over its slabs.
  int64_t num_rows() const {
    return int64_t{shape.m} * (has_slabs(shape.grouping) ? shape.num_groups : 1);
  }
};

// The weight of each row of D, -1 where the row counts for nothing. [num_rows]
std::vector<int32_t> row_weights(const GemmShape& shape, std::span<const int32_t> groups);

// The columns of A and B that count for each slab of D, of a product along k.
struct Columns {
  int64_t begin = 0;
  int64_t end = 0;
};
std::vector<Columns> group_columns(const GemmShape& shape, std::span<const int32_t> groups);

struct ReferenceValue {
  double value = 0;
  double magnitude = 0;  // the sum of |scaled products|: what rounding errors are measured against
};

// D[row, col] before rounding to the output type, C included; row counts over slabs of D. {0, 0}
// for rows that count for nothing.
ReferenceValue reference_value(const HostProblem& problem, std::span<const int32_t> weights,
                               int64_t row, int64_t col);

// The largest |kernel - reference| that rounding explains, for a value of that reference. Derived
// in docs/gemm.md.
double error_bound(const GemmShape& shape, const ReferenceValue& reference);

// Random operands: normal values with an outlier in a few rows, so that scales differ; k % 128 ==
// 0. `groups` as gemm.h lays it out for the shape's grouping (empty when dense). With or without C.
HostProblem random_problem(const GemmShape& shape, std::vector<int32_t> groups, uint64_t seed,
                           bool with_c = false);

}  // namespace volley::gemm
