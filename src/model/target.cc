#include "model/target.h"

#include <algorithm>

#include "model/rope.h"

namespace volley {

TargetModel::TargetModel(const TargetConfig& config, Ops& ops)
    : config_(config),
      dims_{.hidden_size = config.hidden_size,
            .num_heads = config.num_heads,
            .num_kv_heads = config.num_kv_heads,
            .head_dim = config.head_dim,
            .rms_norm_eps = static_cast<float>(config.rms_norm_eps)},
      ops_(ops) {}

Result<std::unique_ptr<TargetModel>> TargetModel::create(const TargetConfig& config,
                                                         const TargetWeights& weights,
                                                         const ModelLimits& limits, Ops& ops) {
  std::unique_ptr<TargetModel> model(new TargetModel(config, ops));
  VOLLEY_TRY(model->embed_tokens_, ops.pack_embedding(weights.embed));
  VOLLEY_TRY(model->lm_head_, ops.pack_matrix({&weights.lm_head, 1}));
  VOLLEY_TRY(model->final_norm_, ops.pack_vector({&weights.norm, 1}));
  VOLLEY_TRY(model->rope_,
             make_rope_table(config.rope, config.head_dim, limits.max_positions, ops));
  for (const LayerWeights& source : weights.layers) {
    VOLLEY_TRY(DecoderLayer layer, DecoderLayer::load(source, ops));
    model->layers_.push_back(std::move(layer));
  }
  VOLLEY_TRY(model->workspace_, DecoderWorkspace::allocate(model->dims_, limits.max_rows,
                                                           limits.max_output_rows, ops));
  VOLLEY_TRY(model->out_, ops.allocate(limits.max_output_rows, config.hidden_size, DType::kF32));
  model->key_begin_.resize(limits.max_rows);
  model->key_end_.resize(limits.max_rows);
  return model;
}

KeyRanges TargetModel::causal_ranges(const RowBatch& rows, int window) {
  const auto positions = rows.positions();
  for (size_t i = 0; i < positions.size(); ++i) {
    key_begin_[i] = window > 0 ? std::max(0, positions[i] - window + 1) : 0;
    key_end_[i] = positions[i] + 1;
  }
  return {std::span(key_begin_).first(positions.size()),
          std::span(key_end_).first(positions.size())};
}

bool TargetModel::is_tapped(int layer_idx) const {
  return std::find(taps_.begin(), taps_.end(), layer_idx) != taps_.end();
}

void TargetModel::copy_taps(int layer_idx, const TensorView& x, const TapRows& taps) {
  for (size_t tap_idx = 0; tap_idx < taps_.size(); ++tap_idx) {
    if (taps_[tap_idx] != layer_idx) continue;
    const auto first_col = static_cast<int64_t>(tap_idx) * config_.hidden_size;
    ops_.gather_rows(x, taps.rows, taps.out.col_range(first_col, config_.hidden_size));
  }
}

TensorView TargetModel::forward(const RowBatch& rows, std::span<const int32_t> output_rows,
                                KvCache& kv, const TapRows& taps) {
  const TensorView x = workspace_.x.first_rows(rows.num_rows());
  const DecoderPass pass{dims_, workspace_, rope_, rows.places(), kv};

  ops_.embed(embed_tokens_, rows.token_ids(), x);
  const TensorView out = out_.first_rows(static_cast<int64_t>(output_rows.size()));
  const int last_layer = config_.num_layers - 1;
  // A tapped layer is needed for more rows.
  const bool needs_all = output_rows.size() == static_cast<size_t>(rows.num_rows()) ||
                         (!taps.rows.empty() && is_tapped(last_layer));
  for (int layer_idx = 0; layer_idx <= last_layer; ++layer_idx) {
    const KeyRanges keys = causal_ranges(rows, config_.layer_window[layer_idx]);
    if (layer_idx == last_layer && !needs_all) {
      layers_[layer_idx].forward_last(pass, keys, layer_idx, output_rows, out, ops_);
      break;
    }
    layers_[layer_idx].forward(pass, keys, layer_idx, ops_);
    if (!taps.rows.empty()) copy_taps(layer_idx, x, taps);
  }
  if (needs_all) ops_.gather_rows(x, output_rows, out);
  ops_.rms_norm(out, final_norm_, dims_.rms_norm_eps, out);
  return out;
}

KvShape TargetModel::kv_shape(int num_pages, int page_size) const {
  return {.num_layers = config_.num_layers,
          .num_kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .num_pages = num_pages,
          .page_size = page_size};
}

int64_t TargetModel::num_weight_bytes() const {
  int64_t bytes = lm_head_->num_bytes();
  for (const DecoderLayer& layer : layers_) bytes += layer.num_weight_bytes();
  return bytes;
}

}  // namespace volley
