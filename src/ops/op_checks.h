#pragma once

// The shape rules of ops.h as CHECKs, shared by every backend. A failure is a bug of model code.

#include "base/check.h"
#include "ops/ops.h"

namespace volley::op_checks {

inline void f32_rows(const TensorView& x, int64_t cols) {
  CHECK(x.dtype == DType::kF32);
  CHECK_EQ(x.cols, cols);
  CHECK_GE(x.row_stride, x.cols);
}

inline void vector(const TensorView& x, int64_t cols) {
  CHECK_EQ(x.rows, 1);
  f32_rows(x, cols);
}

inline void same_shape(const TensorView& x, const TensorView& out) {
  f32_rows(x, out.cols);
  f32_rows(out, x.cols);
  CHECK_EQ(x.rows, out.rows);
}

inline void embed(const TensorView& table, std::span<const int32_t> token_ids,
                  const TensorView& out) {
  CHECK_EQ(table.cols, out.cols);
  CHECK_EQ(static_cast<int64_t>(token_ids.size()), out.rows);
  for (int32_t token_id : token_ids) CHECK(token_id >= 0 && token_id < table.rows);
}

inline void rms_norm(const TensorView& x, const TensorView& weight, const TensorView& out) {
  same_shape(x, out);
  vector(weight, x.cols);
}

inline void matmul(const TensorView& a, const PackedMatrix& w, const TensorView* bias,
                   const TensorView& out) {
  f32_rows(a, w.k());
  f32_rows(out, w.n());
  CHECK_EQ(a.rows, out.rows);
  if (bias != nullptr) vector(*bias, w.n());
}

inline void feed_forward(const TensorView& x, const TensorView& norm, const PackedMatrix& gate_up,
                         const PackedMatrix& down) {
  vector(norm, x.cols);
  f32_rows(x, gate_up.k());
  CHECK_EQ(down.n(), x.cols);
  CHECK_EQ(down.k(), gate_up.n());
}

inline void row_places(const RowPlaces& rows, int64_t num_rows, const KvShape& kv) {
  CHECK_EQ(static_cast<int64_t>(rows.positions.size()), num_rows);
  CHECK_EQ(static_cast<int64_t>(rows.sequences.size()), num_rows);
  for (int64_t row = 0; row < num_rows; ++row) {
    const int32_t sequence = rows.sequences[row];
    CHECK(sequence >= 0 && sequence < static_cast<int32_t>(rows.page_tables.size()));
    CHECK_GE(rows.positions[row], 0);
    const int32_t page = rows.page_tables[sequence][rows.positions[row] / kv.page_size];
    CHECK(page >= 0 && page < kv.num_pages);
  }
}

inline void kv_layout(const QkvLayout& layout, const KvShape& kv, int layer_idx) {
  CHECK_EQ(layout.num_kv_heads, kv.num_kv_heads);
  CHECK_EQ(layout.head_dim, kv.head_dim);
  CHECK(layer_idx >= 0 && layer_idx < kv.num_layers);
}

inline void rope_and_store(const TensorView& qkv, const QkvLayout& layout, const TensorView* q_norm,
                           const TensorView* k_norm, const TensorView& rope, const RowPlaces& rows,
                           const KvShape& kv, int layer_idx) {
  f32_rows(qkv, layout.cols());
  if (q_norm != nullptr) vector(*q_norm, layout.head_dim);
  if (k_norm != nullptr) vector(*k_norm, layout.head_dim);
  f32_rows(rope, layout.head_dim);
  kv_layout(layout, kv, layer_idx);
  row_places(rows, qkv.rows, kv);
  for (int32_t position : rows.positions) CHECK_LT(position, rope.rows);
}

inline void attention(const TensorView& qkv, const QkvLayout& layout, const RowPlaces& rows,
                      const KeyRanges& keys, const KvShape& kv, int layer_idx,
                      const TensorView& out) {
  f32_rows(qkv, qkv.cols);
  CHECK_GE(qkv.cols, int64_t{layout.num_heads} * layout.head_dim);
  f32_rows(out, int64_t{layout.num_heads} * layout.head_dim);
  CHECK_EQ(qkv.rows, out.rows);
  kv_layout(layout, kv, layer_idx);
  CHECK_GT(layout.num_heads, 0);
  CHECK_EQ(layout.num_heads % layout.num_kv_heads, 0);
  CHECK_EQ(static_cast<int64_t>(rows.sequences.size()), qkv.rows);
  CHECK_EQ(static_cast<int64_t>(keys.begin.size()), qkv.rows);
  CHECK_EQ(static_cast<int64_t>(keys.end.size()), qkv.rows);
  for (int64_t row = 0; row < qkv.rows; ++row) {
    const int32_t sequence = rows.sequences[row];
    CHECK(sequence >= 0 && sequence < static_cast<int32_t>(rows.page_tables.size()));
    CHECK(keys.begin[row] >= 0 && keys.begin[row] < keys.end[row]);
    const int32_t last = (keys.end[row] - 1) / kv.page_size;
    for (int32_t index = keys.begin[row] / kv.page_size; index <= last; ++index) {
      const int32_t page = rows.page_tables[sequence][index];
      CHECK(page >= 0 && page < kv.num_pages);
    }
  }
}

inline void copy_page(const KvCache& kv, int32_t from, int32_t to, int num_positions) {
  CHECK(num_positions >= 0 && num_positions <= kv.shape().page_size);
  CHECK(from >= 0 && from < kv.shape().num_pages);
  CHECK(to >= 0 && to < kv.shape().num_pages);
}

inline void add_bias(const TensorView& x, const TensorView& bias) {
  f32_rows(x, bias.cols);
  vector(bias, x.cols);
}

inline void gather_rows(const TensorView& x, std::span<const int32_t> row_ids,
                        const TensorView& out) {
  f32_rows(x, out.cols);
  f32_rows(out, x.cols);
  CHECK_EQ(static_cast<int64_t>(row_ids.size()), out.rows);
  for (int32_t row_id : row_ids) CHECK(row_id >= 0 && row_id < x.rows);
}

// -> k
inline int top_candidates(int64_t num_rows, std::span<int32_t> token_ids,
                          std::span<float> probabilities) {
  CHECK_EQ(token_ids.size(), probabilities.size());
  if (num_rows == 0) return 0;
  const auto count = static_cast<int64_t>(token_ids.size());
  CHECK_EQ(count % num_rows, 0);
  const int64_t k = count / num_rows;
  CHECK(k >= 1 && k <= Ops::kMaxCandidates);
  return static_cast<int>(k);
}

inline void matmul_argmax(const TensorView& a, const PackedMatrix& w,
                          std::span<int32_t> token_ids) {
  f32_rows(a, w.k());
  CHECK_EQ(static_cast<int64_t>(token_ids.size()), a.rows);
}

}  // namespace volley::op_checks
