#include "ops/ref/ref_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "ops/op_checks.h"
#include "ops/pack_checks.h"

namespace volley {
namespace {

// Stored [k, n], so that the loop over n is innermost and the compiler can vectorise it without
// touching the order of the sum over k.
class RefMatrix final : public PackedMatrix {
 public:
  RefMatrix(int64_t n, int64_t k) : PackedMatrix(n, k), columns(static_cast<size_t>(n * k)) {}
  int64_t num_bytes() const override { return n() * k() * 4; }

  // Puts `part` into columns [first_col, first_col + part.rows()).
  void put(const HostMatrix& part, int64_t first_col, int64_t total_cols) {
    std::vector<float> row(static_cast<size_t>(k()));
    for (int64_t r = 0; r < part.rows(); ++r) {
      part.dequantize_row(r, row.data());
      for (int64_t i = 0; i < k(); ++i) columns[i * total_cols + first_col + r] = row[i];
    }
  }

  std::vector<float> columns;  // [k, n]; [k, 2n] with gate first for pack_gate_up
};

class RefKv final : public KvCache {
 public:
  explicit RefKv(const KvShape& shape)
      : KvCache(shape), keys_(num_floats(shape)), values_(num_floats(shape)) {}
  int64_t num_bytes() const override {
    return static_cast<int64_t>(keys_.size() + values_.size()) * 4;
  }

  float* key(int layer_idx, int32_t page, int slot, int head) {
    return keys_.data() + offset(layer_idx, page, slot, head);
  }
  float* value(int layer_idx, int32_t page, int slot, int head) {
    return values_.data() + offset(layer_idx, page, slot, head);
  }
  const float* key(int layer_idx, int32_t page, int slot, int head) const {
    return keys_.data() + offset(layer_idx, page, slot, head);
  }
  const float* value(int layer_idx, int32_t page, int slot, int head) const {
    return values_.data() + offset(layer_idx, page, slot, head);
  }

 private:
  static size_t num_floats(const KvShape& s) {
    return size_t(s.num_layers) * s.num_pages * s.page_size * s.num_kv_heads * s.head_dim;
  }
  size_t offset(int layer_idx, int32_t page, int slot, int head) const {
    const KvShape& s = shape();
    const size_t token = (size_t(layer_idx) * s.num_pages + page) * s.page_size + slot;
    return (token * s.num_kv_heads + head) * s.head_dim;
  }

  std::vector<float> keys_;    // [num_layers, num_pages, page_size, num_kv_heads, head_dim]
  std::vector<float> values_;  // likewise
};

// out[cols] = a[k] columns[k, cols].
void row_times_matrix(const float* a, const float* columns, int64_t k, int64_t cols, float* out) {
  std::fill(out, out + cols, 0.0f);
  for (int64_t i = 0; i < k; ++i) {
    const float factor = a[i];
    const float* w = columns + i * cols;
    for (int64_t c = 0; c < cols; ++c) out[c] += factor * w[c];
  }
}

void norm_row(const float* x, const float* weight, int64_t cols, float eps, float* out) {
  float sum = 0.0f;
  for (int64_t c = 0; c < cols; ++c) sum += x[c] * x[c];
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(cols) + eps);
  for (int64_t c = 0; c < cols; ++c) out[c] = x[c] * scale * weight[c];
}

// Rotates (x[i], x[i + half]) by the angle whose cos and sin are angles[i], angles[i + half].
void rotate(float* x, const float* angles, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float first = x[i];
    const float second = x[i + half];
    x[i] = first * angles[i] - second * angles[i + half];
    x[i + half] = second * angles[i] + first * angles[i + half];
  }
}

float silu(float x) {
  return x / (1.0f + std::exp(-x));
}

int32_t argmax(std::span<const float> logits) {
  int32_t best = -1;
  for (int32_t i = 0; i < static_cast<int32_t>(logits.size()); ++i) {
    if (std::isnan(logits[i])) continue;
    if (best < 0 || logits[i] > logits[best]) best = i;
  }
  return std::max(best, 0);
}

TensorView view_of(std::vector<float>& values, int64_t rows, int64_t cols) {
  return {values.data(), DType::kF32, rows, cols, cols};
}

// The k most likely of one row, and their softmax.
void top_candidates_of(std::vector<float> left, int k, int32_t* token_ids, float* probabilities) {
  const float top = left[argmax(left)];
  double sum = 0;
  for (const float logit : left) {
    if (!std::isnan(logit)) sum += std::exp(static_cast<double>(logit) - top);
  }
  for (int i = 0; i < k; ++i) {
    const int32_t id = argmax(left);
    const bool is_there = std::isfinite(top) && std::isfinite(left[id]);
    token_ids[i] = is_there ? id : 0;
    probabilities[i] =
        is_there ? static_cast<float>(std::exp(static_cast<double>(left[id]) - top) / sum) : 0;
    left[id] = -std::numeric_limits<float>::infinity();
  }
}

class RefOps final : public Ops {
 public:
  std::string_view name() const override { return "ref"; }

  Result<Tensor> allocate(int64_t rows, int64_t cols, DType dtype) override {
    constexpr auto kAlign = std::align_val_t{64};
    const size_t bytes = std::max<size_t>(static_cast<size_t>(rows * cols * dtype_bytes(dtype)), 1);
    void* data = ::operator new(bytes, kAlign, std::nothrow);
    if (data == nullptr) return make_error(ErrorKind::kIo, "no memory for {} bytes", bytes);
    std::memset(data, 0, bytes);
    return Tensor({data, dtype, rows, cols, cols},
                  {data, [](void* p) { ::operator delete (p, std::align_val_t{64}); }});
  }

  Result<std::unique_ptr<PackedMatrix>> pack_matrix(std::span<const HostMatrix> parts) override {
    VOLLEY_TRY_STATUS(check_parts(parts));
    int64_t n = 0;
    for (const HostMatrix& part : parts) n += part.rows();
    auto matrix = std::make_unique<RefMatrix>(n, parts[0].cols());
    int64_t col = 0;
    for (const HostMatrix& part : parts) {
      matrix->put(part, col, n);
      col += part.rows();
    }
    return matrix;
  }

  Result<std::unique_ptr<PackedMatrix>> pack_gate_up(const HostMatrix& gate,
                                                     const HostMatrix& up) override {
    VOLLEY_TRY_STATUS(check_gate_up(gate, up));
    const int64_t n = gate.rows();
    auto matrix = std::make_unique<RefMatrix>(n, gate.cols());
    matrix->columns.resize(static_cast<size_t>(2 * n * gate.cols()));
    matrix->put(gate, 0, 2 * n);
    matrix->put(up, n, 2 * n);
    return matrix;
  }

  Result<Tensor> pack_vector(std::span<const HostTensor> parts) override {
    std::vector<float> all;
    for (const HostTensor& part : parts) {
      const std::vector<float> floats = part.to_floats();
      all.insert(all.end(), floats.begin(), floats.end());
    }
    VOLLEY_TRY(Tensor tensor, allocate(1, static_cast<int64_t>(all.size()), DType::kF32));
    std::copy(all.begin(), all.end(), tensor.view().row<float>(0));
    return tensor;
  }

  Result<Tensor> pack_embedding(const HostMatrix& table) override {
    VOLLEY_TRY_STATUS(check_parts({&table, 1}));
    VOLLEY_TRY(Tensor tensor, allocate(table.rows(), table.cols(), DType::kF32));
    for (int64_t row = 0; row < table.rows(); ++row)
      table.dequantize_row(row, tensor.view().row<float>(row));
    return tensor;
  }

  Result<std::unique_ptr<KvCache>> create_kv(const KvShape& shape) override {
    VOLLEY_TRY_STATUS(check_kv_shape(shape, 2));
    return std::make_unique<RefKv>(shape);
  }

  void embed(const TensorView& table, std::span<const int32_t> token_ids,
             const TensorView& out) override {
    op_checks::embed(table, token_ids, out);
    for (int64_t row = 0; row < out.rows; ++row)
      std::copy_n(table.row<float>(token_ids[row]), out.cols, out.row<float>(row));
  }

  void rms_norm(const TensorView& x, const TensorView& weight, float eps,
                const TensorView& out) override {
    op_checks::rms_norm(x, weight, out);
    for (int64_t row = 0; row < x.rows; ++row)
      norm_row(x.row<float>(row), weight.row<float>(0), x.cols, eps, out.row<float>(row));
  }

  void matmul(const TensorView& a, const PackedMatrix& w, const TensorView* bias,
              const TensorView& out) override {
    op_checks::matmul(a, w, bias, out);
    const auto& matrix = static_cast<const RefMatrix&>(w);
    for (int64_t row = 0; row < a.rows; ++row) {
      float* y = out.row<float>(row);
      row_times_matrix(a.row<float>(row), matrix.columns.data(), w.k(), w.n(), y);
      if (bias == nullptr) continue;
      for (int64_t c = 0; c < w.n(); ++c) y[c] += bias->row<float>(0)[c];
    }
  }

  void matmul_add(const TensorView& a, const PackedMatrix& w, const TensorView& residual) override {
    op_checks::matmul(a, w, nullptr, residual);
    const auto& matrix = static_cast<const RefMatrix&>(w);
    std::vector<float> y(static_cast<size_t>(w.n()));
    for (int64_t row = 0; row < a.rows; ++row) {
      row_times_matrix(a.row<float>(row), matrix.columns.data(), w.k(), w.n(), y.data());
      for (int64_t c = 0; c < w.n(); ++c) residual.row<float>(row)[c] += y[c];
    }
  }

  void norm_matmul(const TensorView& x, const TensorView& norm, float eps, const PackedMatrix& w,
                   const TensorView* bias, const TensorView& out) override {
    std::vector<float> normed(static_cast<size_t>(x.rows * x.cols));
    const TensorView rows = view_of(normed, x.rows, x.cols);
    rms_norm(x, norm, eps, rows);
    matmul(rows, w, bias, out);
  }

  void feed_forward(const TensorView& x, const TensorView& norm, float eps,
                    const PackedMatrix& gate_up, const PackedMatrix& down) override {
    op_checks::feed_forward(x, norm, gate_up, down);
    std::vector<float> normed(static_cast<size_t>(x.rows * x.cols));
    std::vector<float> act(static_cast<size_t>(x.rows * gate_up.n()));
    const TensorView rows = view_of(normed, x.rows, x.cols);
    const TensorView act_rows = view_of(act, x.rows, gate_up.n());
    rms_norm(x, norm, eps, rows);
    swiglu(rows, gate_up, act_rows);
    matmul_add(act_rows, down, x);
  }

  void swiglu(const TensorView& a, const PackedMatrix& w, const TensorView& out) override {
    op_checks::matmul(a, w, nullptr, out);
    const auto& matrix = static_cast<const RefMatrix&>(w);
    CHECK_EQ(static_cast<int64_t>(matrix.columns.size()), 2 * w.n() * w.k());
    std::vector<float> gate_up(static_cast<size_t>(2 * w.n()));
    for (int64_t row = 0; row < a.rows; ++row) {
      row_times_matrix(a.row<float>(row), matrix.columns.data(), w.k(), 2 * w.n(), gate_up.data());
      for (int64_t c = 0; c < w.n(); ++c)
        out.row<float>(row)[c] = silu(gate_up[c]) * gate_up[w.n() + c];
    }
  }

  void rope_and_store(const TensorView& qkv, const QkvLayout& layout, const TensorView* q_norm,
                      const TensorView* k_norm, float eps, const TensorView& rope,
                      const RowPlaces& rows, KvCache& kv, int layer_idx) override {
    op_checks::rope_and_store(qkv, layout, q_norm, k_norm, rope, rows, kv.shape(), layer_idx);
    auto& cache = static_cast<RefKv&>(kv);
    const int d = layout.head_dim;
    for (int64_t row = 0; row < qkv.rows; ++row) {
      const int32_t position = rows.positions[row];
      const int page_size = kv.shape().page_size;
      const int32_t page = rows.page_tables[rows.sequences[row]][position / page_size];
      const float* angles = rope.row<float>(position);
      float* x = qkv.row<float>(row);
      for (int head = 0; head < layout.num_heads; ++head, x += d) {
        if (q_norm != nullptr) norm_row(x, q_norm->row<float>(0), d, eps, x);
        rotate(x, angles, d);
      }
      for (int head = 0; head < layout.num_kv_heads; ++head, x += d) {
        float* key = cache.key(layer_idx, page, position % page_size, head);
        std::copy_n(x, d, key);
        if (k_norm != nullptr) norm_row(key, k_norm->row<float>(0), d, eps, key);
        rotate(key, angles, d);
      }
      for (int head = 0; head < layout.num_kv_heads; ++head, x += d)
        std::copy_n(x, d, cache.value(layer_idx, page, position % page_size, head));
    }
  }

  void attention(const TensorView& qkv, const QkvLayout& layout, const RowPlaces& rows,
                 const KeyRanges& keys, const KvCache& kv, int layer_idx,
                 const TensorView& out) override {
    op_checks::attention(qkv, layout, rows, keys, kv.shape(), layer_idx, out);
    for (int64_t row = 0; row < qkv.rows; ++row) {
      const int32_t* pages = rows.page_tables[rows.sequences[row]];
      for (int head = 0; head < layout.num_heads; ++head) {
        attend(qkv.row<float>(row) + head * layout.head_dim, pages, keys.begin[row], keys.end[row],
               static_cast<const RefKv&>(kv), layer_idx,
               head / (layout.num_heads / layout.num_kv_heads),
               out.row<float>(row) + head * layout.head_dim);
      }
    }
  }

  void copy(const TensorView& x, const TensorView& out) override {
    op_checks::same_shape(x, out);
    for (int64_t row = 0; row < x.rows; ++row)
      std::copy_n(x.row<float>(row), x.cols, out.row<float>(row));
  }

  void copy_page(KvCache& kv, int32_t from, int32_t to, int num_positions) override {
    op_checks::copy_page(kv, from, to, num_positions);
    auto& pages = static_cast<RefKv&>(kv);
    const KvShape& s = kv.shape();
    const int64_t count = int64_t{s.page_size} * s.num_kv_heads * s.head_dim;
    for (int layer_idx = 0; layer_idx < s.num_layers; ++layer_idx) {
      std::copy_n(pages.key(layer_idx, from, 0, 0), count, pages.key(layer_idx, to, 0, 0));
      std::copy_n(pages.value(layer_idx, from, 0, 0), count, pages.value(layer_idx, to, 0, 0));
    }
  }

  void add_bias(const TensorView& x, const TensorView& bias) override {
    op_checks::add_bias(x, bias);
    for (int64_t row = 0; row < x.rows; ++row) {
      for (int64_t col = 0; col < x.cols; ++col) x.row<float>(row)[col] += bias.row<float>(0)[col];
    }
  }

  void gather_rows(const TensorView& x, std::span<const int32_t> row_ids,
                   const TensorView& out) override {
    op_checks::gather_rows(x, row_ids, out);
    for (int64_t row = 0; row < out.rows; ++row)
      std::copy_n(x.row<float>(row_ids[row]), x.cols, out.row<float>(row));
  }

  void top_candidates(const TensorView& logits, std::span<int32_t> token_ids,
                      std::span<float> probabilities) override {
    const int k = op_checks::top_candidates(logits.rows, token_ids, probabilities);
    for (int64_t row = 0; row < logits.rows; ++row) {
      top_candidates_of({logits.row<float>(row), logits.row<float>(row) + logits.cols}, k,
                        &token_ids[row * k], &probabilities[row * k]);
    }
  }

  void matmul_candidates(const TensorView& a, const PackedMatrix& w, std::span<int32_t> token_ids,
                         std::span<float> probabilities) override {
    const int k = op_checks::top_candidates(a.rows, token_ids, probabilities);
    const auto& matrix = static_cast<const RefMatrix&>(w);
    std::vector<float> logits(static_cast<size_t>(w.n()));
    for (int64_t row = 0; row < a.rows; ++row) {
      row_times_matrix(a.row<float>(row), matrix.columns.data(), w.k(), w.n(), logits.data());
      top_candidates_of(logits, k, &token_ids[row * k], &probabilities[row * k]);
    }
  }

  void matmul_argmax(const TensorView& a, const PackedMatrix& w,
                     std::span<int32_t> token_ids) override {
    op_checks::matmul_argmax(a, w, token_ids);
    const auto& matrix = static_cast<const RefMatrix&>(w);
    std::vector<float> logits(static_cast<size_t>(w.n()));
    for (int64_t row = 0; row < a.rows; ++row) {
      row_times_matrix(a.row<float>(row), matrix.columns.data(), w.k(), w.n(), logits.data());
      token_ids[row] = argmax(logits);
    }
  }

 private:
  // One query head of one row.
  static void attend(const float* q, const int32_t* pages, int32_t begin, int32_t end,
                     const RefKv& kv, int layer_idx, int kv_head, float* out) {
    const int d = kv.shape().head_dim;
    const int page_size = kv.shape().page_size;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    std::vector<float> weights(static_cast<size_t>(end - begin));
    for (int32_t p = begin; p < end; ++p) {
      const float* key = kv.key(layer_idx, pages[p / page_size], p % page_size, kv_head);
      float dot = 0.0f;
      for (int i = 0; i < d; ++i) dot += q[i] * key[i];
      weights[p - begin] = dot * scale;
    }
    const float max_weight = *std::max_element(weights.begin(), weights.end());
    float sum = 0.0f;
    for (float& weight : weights) {
      weight = std::exp(weight - max_weight);
      sum += weight;
    }
    std::fill_n(out, d, 0.0f);
    for (int32_t p = begin; p < end; ++p) {
      const float* value = kv.value(layer_idx, pages[p / page_size], p % page_size, kv_head);
      for (int i = 0; i < d; ++i) out[i] += weights[p - begin] * value[i];
    }
    for (int i = 0; i < d; ++i) out[i] /= sum;
  }
};

}  // namespace

std::unique_ptr<Ops> make_ref_ops() {
  return std::make_unique<RefOps>();
}

}  // namespace volley
