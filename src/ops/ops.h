#pragma once

// The op set every model is written in. A backend (ref, cpu, cuda) implements all of it; a model
// names ops and nothing else.
//
// Law 1, the contract of every op: what is computed for one row does not depend on how many other
// rows the call has, where the row stands among them, or how its sequence was cut into calls. The
// order of a reduction over K is fixed by the weight's shape, that of a reduction over keys by
// absolute positions.
//
// Shapes are row-major. Activations are f32 unless said otherwise. Ops run in order; on the CPU
// they are complete when they return. Shapes are checked with CHECK: a wrong one is a bug of the
// model code, since checkpoints were validated when they were read. No op allocates.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "tensor/host_tensor.h"
#include "tensor/tensor.h"

namespace volley {

// A weight matrix [n, k] in the backend's own layout.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  // Bytes that one pass over the matrix reads.
  virtual int64_t num_bytes() const = 0;

 protected:
  PackedMatrix(int64_t n, int64_t k) : n_(n), k_(k) {}

 private:
  int64_t n_;
  int64_t k_;
};

// Keys and values of all layers in pages of `page_size` absolute positions.
struct KvShape {
  int num_layers = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_pages = 0;
  int page_size = 0;  // a multiple of 32
};

class KvCache {
 public:
  virtual ~KvCache() = default;
  const KvShape& shape() const { return shape_; }
  virtual int64_t num_bytes() const = 0;

 protected:
  explicit KvCache(const KvShape& shape) : shape_(shape) {}

 private:
  KvShape shape_;
};

// Where the rows of one call stand. Position p of sequence s lies in page
// `page_tables[s][p / page_size]`, slot `p % page_size`.
struct RowPlaces {
  std::span<const int32_t> positions;           // [num_rows] absolute
  std::span<const int32_t> sequences;           // [num_rows] index into page_tables
  std::span<const int32_t* const> page_tables;  // [num_sequences]
};

// Keys that each row attends to: absolute positions [begin, end) of its own sequence, never empty.
// Causal, sliding-window and in-block bidirectional attention are all such ranges.
struct KeyRanges {
  std::span<const int32_t> begin;  // [num_rows]
  std::span<const int32_t> end;    // [num_rows]
};

// The column layout of a fused projection: num_heads query heads, then num_kv_heads key heads, then
// num_kv_heads value heads, each head_dim wide. num_heads = 0 where only keys and values are made.
struct QkvLayout {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int64_t cols() const { return int64_t{num_heads + 2 * num_kv_heads} * head_dim; }
};

class Ops {
 public:
  virtual ~Ops() = default;

  // "ref", "cpu/avx2", "cpu/avx512", "cpu/amx-bf16".
  virtual std::string_view name() const = 0;

  // ---- Memory and weights. Called while loading, never in a step.

  // Zeroed memory of [rows, cols], 64-byte aligned, row_stride = cols.
  virtual Result<Tensor> allocate(int64_t rows, int64_t cols, DType dtype) = 0;

  // The matrices of `parts` ([n_i, k] each) stacked along n. bf16, f16, f32, or FP8 with block
  // scales. Reads `parts` once; they may go away afterwards.
  virtual Result<std::unique_ptr<PackedMatrix>> pack_matrix(std::span<const HostMatrix> parts) = 0;

  // gate and up ([n, k] each) for swiglu().
  virtual Result<std::unique_ptr<PackedMatrix>> pack_gate_up(const HostMatrix& gate,
                                                             const HostMatrix& up) = 0;

  // A norm weight or bias as [1, n] f32; `parts` are concatenated.
  virtual Result<Tensor> pack_vector(std::span<const HostTensor> parts) = 0;

  // An embedding table [vocab, hidden].
  virtual Result<Tensor> pack_embedding(const HostMatrix& table) = 0;

  virtual Result<std::unique_ptr<KvCache>> create_kv(const KvShape& shape) = 0;

  // ---- Steps.

  // out[i] = table[token_ids[i]].
  virtual void embed(const TensorView& table, std::span<const int32_t> token_ids,
                     const TensorView& out) = 0;

  // out = x / sqrt(mean(x^2) + eps) * weight, row by row. out may be x.
  virtual void rms_norm(const TensorView& x, const TensorView& weight, float eps,
                        const TensorView& out) = 0;

  // out[m, n] = a[m, k] w[n, k]^T (+ bias[1, n] when given). out must not overlap a.
  virtual void matmul(const TensorView& a, const PackedMatrix& w, const TensorView* bias,
                      const TensorView& out) = 0;

  // residual[m, n] += a[m, k] w[n, k]^T.
  virtual void matmul_add(const TensorView& a, const PackedMatrix& w,
                          const TensorView& residual) = 0;

  // matmul() of rms_norm(x), equal to the two bit for bit.
  virtual void norm_matmul(const TensorView& x, const TensorView& norm, float eps,
                           const PackedMatrix& w, const TensorView* bias,
                           const TensorView& out) = 0;

  // x[m, n] += swiglu(rms_norm(x)) down^T: equal to rms_norm(), swiglu() and matmul_add() bit for
  // bit, without their intermediate results in memory. gate_up is from pack_gate_up, [i, n], down
  // is [n, i].
  virtual void feed_forward(const TensorView& x, const TensorView& norm, float eps,
                            const PackedMatrix& gate_up, const PackedMatrix& down) = 0;

  // out[m, n] = silu(a gate^T) * (a up^T), with w from pack_gate_up (w.n() = n).
  virtual void swiglu(const TensorView& a, const PackedMatrix& w, const TensorView& out) = 0;

  // For each row of qkv [m, layout.cols()]: the optional per-head norm of q and k (weights
  // [1, head_dim]), rotary embedding of q and k at the row's position (halves rotated, as in
  // Transformers; rope [max_positions, head_dim] f32 holds cos in its first half, sin in its
  // second), q back in place, k and v into `kv` layer `layer_idx` at the row's position.
  virtual void rope_and_store(const TensorView& qkv, const QkvLayout& layout,
                              const TensorView* q_norm, const TensorView* k_norm, float eps,
                              const TensorView& rope, const RowPlaces& rows, KvCache& kv,
                              int layer_idx) = 0;

  // out[m, num_heads * head_dim] = softmax(q k^T * head_dim^-0.5) v over each row's key range. q is
  // the first num_heads * head_dim columns of qkv; more are not looked at. Query head h reads key
  // head h / (num_heads / num_kv_heads). Rows of one sequence stand together in the call.
  virtual void attention(const TensorView& qkv, const QkvLayout& layout, const RowPlaces& rows,
                         const KeyRanges& keys, const KvCache& kv, int layer_idx,
                         const TensorView& out) = 0;

  // All layers' keys and values of the first `num_positions` positions of page `from`, at least,
  // copied to page `to`.
  virtual void copy_page(KvCache& kv, int32_t from, int32_t to, int num_positions) = 0;

  // out = x, element by element, same shape; strides may differ. Used for taps.
  virtual void copy(const TensorView& x, const TensorView& out) = 0;

  // x[i] += bias, with bias [1, x.cols].
  virtual void add_bias(const TensorView& x, const TensorView& bias) = 0;

  // out[i] = x[row_ids[i]].
  virtual void gather_rows(const TensorView& x, std::span<const int32_t> row_ids,
                           const TensorView& out) = 0;

  // The k = token_ids.size() / logits.rows most likely tokens of each row, best first (the lowest
  // id on a tie), and their softmax probabilities: [logits.rows, k] both, k at most
  // kMaxCandidates. A row without a finite maximum gets ids and probabilities of 0.
  static constexpr int kMaxCandidates = 8;
  virtual void top_candidates(const TensorView& logits, std::span<int32_t> token_ids,
                              std::span<float> probabilities) = 0;

  // The same of the logits a w^T, which are not written.
  virtual void matmul_candidates(const TensorView& a, const PackedMatrix& w,
                                 std::span<int32_t> token_ids, std::span<float> probabilities) = 0;

  // token_ids[i] = argmax_n (a[i] w[n]^T), the lowest n on a tie; logits are not written. Equals
  // argmax over matmul(a, w) bit for bit.
  virtual void matmul_argmax(const TensorView& a, const PackedMatrix& w,
                             std::span<int32_t> token_ids) = 0;
};

}  // namespace volley
