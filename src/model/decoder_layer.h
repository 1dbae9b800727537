#pragma once

// One pre-norm Transformer layer, as targets and drafters share it.

#include <memory>
#include <span>
#include <vector>

#include "model/rows.h"
#include "ops/ops.h"
#include "weights/model_files.h"

namespace volley {

struct DecoderDims {
  int hidden_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  float rms_norm_eps = 1e-6f;

  QkvLayout qkv() const { return {num_heads, num_kv_heads, head_dim}; }
  int64_t q_cols() const { return int64_t{num_heads} * head_dim; }
};

// Activations of one pass. first_rows() gives views of the rows in use.
struct DecoderWorkspace {
  Tensor x;     // [max_rows, hidden_size] the residual stream
  Tensor qkv;   // [max_rows, (num_heads + 2 num_kv_heads) * head_dim]
  Tensor attn;  // [max_rows, num_heads * head_dim]
  // Of the rows that a last layer is computed for: their query columns and places.
  Tensor picked_q;  // [max_output_rows, num_heads * head_dim]
  std::vector<int32_t> positions, sequences, key_begin, key_end;

  // max_output_rows: the most rows whose output a pass may ask for.
  static Result<DecoderWorkspace> allocate(const DecoderDims& dims, int max_rows,
                                           int max_output_rows, Ops& ops);
};

// What stays the same for every layer of a pass.
struct DecoderPass {
  const DecoderDims& dims;
  DecoderWorkspace& workspace;
  const TensorView& rope;  // [max_positions, head_dim]
  RowPlaces rows;
  KvCache& kv;
};

class DecoderLayer {
 public:
  static Result<DecoderLayer> load(const LayerWeights& weights, Ops& ops);

  // x += attention(norm(x)); x += mlp(norm(x)), on the first rows of the workspace's x.
  void forward(const DecoderPass& pass, const KeyRanges& keys, int layer_idx, Ops& ops) const;

  // The same as a pass's last layer: keys and values of all rows, but outputs of `output_rows`
  // (ascending) only, into out [output_rows.size(), hidden_size]. Equal to forward() bit for bit.
  void forward_last(const DecoderPass& pass, const KeyRanges& keys, int layer_idx,
                    std::span<const int32_t> output_rows, const TensorView& out, Ops& ops) const;

  const Tensor& k_norm() const { return k_norm_; }
  int64_t num_weight_bytes() const;
  int64_t num_qkv_bytes() const { return qkv_->num_bytes(); }

 private:
  TensorView project(const DecoderPass& pass, int layer_idx, Ops& ops) const;
  void finish(const DecoderPass& pass, const TensorView& attn, const TensorView& x, Ops& ops) const;

  Tensor input_norm_;      // [1, hidden_size]
  Tensor post_attn_norm_;  // [1, hidden_size]
  Tensor q_norm_;          // [1, head_dim], Qwen3
  Tensor k_norm_;          // [1, head_dim], Qwen3
  Tensor qkv_bias_;        // [1, qkv cols], Qwen2.5
  Tensor o_bias_;          // [1, hidden_size], attention_bias of Qwen3 and Llama
  std::unique_ptr<PackedMatrix> qkv_;
  std::unique_ptr<PackedMatrix> o_;
  std::unique_ptr<PackedMatrix> gate_up_;
  std::unique_ptr<PackedMatrix> down_;
};

}  // namespace volley
