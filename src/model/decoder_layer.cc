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
                                                    Ops& ops) {
  DecoderWorkspace space;
  VOLLEY_TRY(space.x, ops.allocate(max_rows, dims.hidden_size, DType::kF32));
  VOLLEY_TRY(space.normed, ops.allocate(max_rows, dims.hidden_size, DType::kF32));
  VOLLEY_TRY(space.qkv, ops.allocate(max_rows, dims.qkv().cols(), DType::kF32));
  VOLLEY_TRY(space.attn, ops.allocate(max_rows, dims.q_cols(), DType::kF32));
  VOLLEY_TRY(space.act, ops.allocate(max_rows, dims.intermediate_size, DType::kF32));
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

void DecoderLayer::forward(const DecoderPass& pass, const KeyRanges& keys, int layer_idx,
                           Ops& ops) const {
  const auto m = static_cast<int64_t>(pass.rows.positions.size());
  const float eps = pass.dims.rms_norm_eps;
  const QkvLayout layout = pass.dims.qkv();
  const TensorView x = pass.workspace.x.first_rows(m);
  const TensorView normed = pass.workspace.normed.first_rows(m);
  const TensorView qkv = pass.workspace.qkv.first_rows(m);
  const TensorView attn = pass.workspace.attn.first_rows(m);
  const TensorView act = pass.workspace.act.first_rows(m);

  ops.rms_norm(x, input_norm_, eps, normed);
  ops.matmul(normed, *qkv_, if_present(qkv_bias_), qkv);
  ops.rope_and_store(qkv, layout, if_present(q_norm_), if_present(k_norm_), eps, pass.rope,
                     pass.rows, pass.kv, layer_idx);
  ops.attention(qkv, layout, pass.rows, keys, pass.kv, layer_idx, attn);
  ops.matmul_add(attn, *o_, x);
  if (!o_bias_.view().empty()) ops.add_bias(x, o_bias_);

  ops.rms_norm(x, post_attn_norm_, eps, normed);
  ops.swiglu(normed, *gate_up_, act);
  ops.matmul_add(act, *down_, x);
}

int64_t DecoderLayer::num_weight_bytes() const {
  return qkv_->num_bytes() + o_->num_bytes() + gate_up_->num_bytes() + down_->num_bytes();
}

}  // namespace volley
