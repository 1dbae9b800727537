#include "model/decoder_layer.h"

#include <array>

namespace volley {
namespace {

// A checkpoint's absent tensors stay empty.
Result<Tensor> pack_optional(const HostTensor& tensor, Ops& ops) {
  if (tensor.empty()) return Tensor();
  return ops.pack_vector({&tensor, 1});
}

const TensorView* if_present(const Tensor& tensor) {
  return tensor.view().empty() ? nullptr : &tensor.view();
}

}  // namespace

Result<DecoderWorkspace> DecoderWorkspace::allocate(const DecoderDims& dims, int max_rows,
                                                    int max_output_rows, Ops& ops) {
  DecoderWorkspace space;
  VOLLEY_TRY(space.x, ops.allocate(max_rows, dims.hidden_size, DType::kF32));
  VOLLEY_TRY(space.qkv, ops.allocate(max_rows, dims.qkv().cols(), DType::kF32));
  VOLLEY_TRY(space.attn, ops.allocate(max_rows, dims.q_cols(), DType::kF32));
  VOLLEY_TRY(space.picked_q, ops.allocate(max_output_rows, dims.q_cols(), DType::kF32));
  for (auto* column : {&space.positions, &space.sequences, &space.key_begin, &space.key_end}) {
    column->resize(max_output_rows);
  }
  return space;
}

Result<DecoderLayer> DecoderLayer::load(const LayerWeights& weights, Ops& ops) {
  DecoderLayer layer;
  VOLLEY_TRY(layer.input_norm_, ops.pack_vector({&weights.input_norm, 1}));
  VOLLEY_TRY(layer.post_attn_norm_, ops.pack_vector({&weights.post_attention_norm, 1}));
  VOLLEY_TRY(layer.q_norm_, pack_optional(weights.q_norm, ops));
  VOLLEY_TRY(layer.k_norm_, pack_optional(weights.k_norm, ops));
  VOLLEY_TRY(layer.o_bias_, pack_optional(weights.o_bias, ops));
  if (!weights.q_bias.empty()) {
    VOLLEY_TRY(layer.qkv_bias_,
               ops.pack_vector(std::array{weights.q_bias, weights.k_bias, weights.v_bias}));
  }
  VOLLEY_TRY(layer.qkv_, ops.pack_matrix(std::array{weights.q, weights.k, weights.v}));
  VOLLEY_TRY(layer.o_, ops.pack_matrix({&weights.o, 1}));
  VOLLEY_TRY(layer.gate_up_, ops.pack_gate_up(weights.gate, weights.up));
  VOLLEY_TRY(layer.down_, ops.pack_matrix({&weights.down, 1}));
  return layer;
}

// Normed input to queries, keys and values; keys and values are stored. -> the rows of qkv.
TensorView DecoderLayer::project(const DecoderPass& pass, int layer_idx, Ops& ops) const {
  const auto m = static_cast<int64_t>(pass.rows.positions.size());
  const float eps = pass.dims.rms_norm_eps;
  const TensorView qkv = pass.workspace.qkv.first_rows(m);
  ops.norm_matmul(pass.workspace.x.first_rows(m), input_norm_, eps, *qkv_, if_present(qkv_bias_),
                  qkv);
  ops.rope_and_store(qkv, pass.dims.qkv(), if_present(q_norm_), if_present(k_norm_), eps, pass.rope,
                     pass.rows, pass.kv, layer_idx);
  return qkv;
}

// From attention's output to the layer's, on the rows of x.
void DecoderLayer::finish(const DecoderPass& pass, const TensorView& attn, const TensorView& x,
                          Ops& ops) const {
  ops.matmul_add(attn, *o_, x);
  if (!o_bias_.view().empty()) ops.add_bias(x, o_bias_);
  ops.feed_forward(x, post_attn_norm_, pass.dims.rms_norm_eps, *gate_up_, *down_);
}

void DecoderLayer::forward(const DecoderPass& pass, const KeyRanges& keys, int layer_idx,
                           Ops& ops) const {
  const auto m = static_cast<int64_t>(pass.rows.positions.size());
  const TensorView attn = pass.workspace.attn.first_rows(m);
  const TensorView qkv = project(pass, layer_idx, ops);
  ops.attention(qkv, pass.dims.qkv(), pass.rows, keys, pass.kv, layer_idx, attn);
  finish(pass, attn, pass.workspace.x.first_rows(m), ops);
}

void DecoderLayer::forward_last(const DecoderPass& pass, const KeyRanges& keys, int layer_idx,
                                std::span<const int32_t> output_rows, const TensorView& out,
                                Ops& ops) const {
  DecoderWorkspace& space = pass.workspace;
  const TensorView qkv = project(pass, layer_idx, ops);
  const size_t count = output_rows.size();
  if (count == 0) return;
  for (size_t i = 0; i < count; ++i) {
    const int32_t row = output_rows[i];
    space.positions[i] = pass.rows.positions[row];
    space.sequences[i] = pass.rows.sequences[row];
    space.key_begin[i] = keys.begin[row];
    space.key_end[i] = keys.end[row];
  }
  const auto first = [&](const std::vector<int32_t>& column) {
    return std::span<const int32_t>(column).first(count);
  };
  const RowPlaces places{first(space.positions), first(space.sequences), pass.rows.page_tables};
  const KeyRanges ranges{first(space.key_begin), first(space.key_end)};
  const TensorView attn = space.attn.first_rows(static_cast<int64_t>(count));
  const TensorView q = space.picked_q.first_rows(static_cast<int64_t>(count));
  ops.gather_rows(qkv.col_range(0, pass.dims.q_cols()), output_rows, q);
  ops.gather_rows(space.x.first_rows(qkv.rows), output_rows, out);
  ops.attention(q, pass.dims.qkv(), places, ranges, pass.kv, layer_idx, attn);
  finish(pass, attn, out, ops);
}

int64_t DecoderLayer::num_weight_bytes() const {
  return qkv_->num_bytes() + o_->num_bytes() + gate_up_->num_bytes() + down_->num_bytes();
}

}  // namespace volley
