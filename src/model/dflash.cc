#include "model/dflash.h"

#include <algorithm>
#include <array>

#include "model/rope.h"

namespace volley {

DflashDrafter::DflashDrafter(const DrafterConfig& config, Ops& ops)
    : config_(config),
      dims_{.hidden_size = config.hidden_size,
            .num_heads = config.num_heads,
            .num_kv_heads = config.num_kv_heads,
            .head_dim = config.head_dim,
            .rms_norm_eps = static_cast<float>(config.rms_norm_eps)},
      ops_(ops) {}

Result<std::unique_ptr<DflashDrafter>> DflashDrafter::create(const DrafterConfig& config,
                                                             const DrafterWeights& weights,
                                                             const TargetModel& target,
                                                             const ModelLimits& limits, Ops& ops) {
  VOLLEY_TRY_STATUS(check_drafter_fits(target.config(), config));
  std::unique_ptr<DflashDrafter> model(new DflashDrafter(config, ops));
  model->embed_tokens_ = &target.embedding();
  if (!weights.embed.empty()) {
    VOLLEY_TRY(model->own_embed_tokens_, ops.pack_embedding(weights.embed));
    model->embed_tokens_ = &model->own_embed_tokens_;
  }
  model->lm_head_ = &target.lm_head();
  if (!weights.lm_head.empty()) {
    VOLLEY_TRY(model->own_lm_head_, ops.pack_matrix({&weights.lm_head, 1}));
    model->lm_head_ = model->own_lm_head_.get();
  }
  model->target_ids_ = weights.draft_to_target;
  VOLLEY_TRY(model->fc_, ops.pack_matrix({&weights.fc, 1}));
  VOLLEY_TRY(model->hidden_norm_, ops.pack_vector({&weights.hidden_norm, 1}));
  VOLLEY_TRY(model->final_norm_, ops.pack_vector({&weights.norm, 1}));
  VOLLEY_TRY(model->rope_,
             make_rope_table(config.rope, config.head_dim, limits.max_positions, ops));
  for (const LayerWeights& source : weights.layers) {
    VOLLEY_TRY(DecoderLayer layer, DecoderLayer::load(source, ops));
    model->layers_.push_back(std::move(layer));
    VOLLEY_TRY(auto context_kv, ops.pack_matrix(std::array{source.k, source.v}));
    model->context_kv_.push_back(std::move(context_kv));
    Tensor bias;
    if (!source.k_bias.empty()) {
      VOLLEY_TRY(bias, ops.pack_vector(std::array{source.k_bias, source.v_bias}));
    }
    model->context_kv_bias_.push_back(std::move(bias));
  }
  const int64_t rows = limits.max_rows;
  const QkvLayout kv_only{0, config.num_kv_heads, config.head_dim};
  VOLLEY_TRY(model->workspace_, DecoderWorkspace::allocate(model->dims_, limits.max_rows,
                                                           limits.max_output_rows, ops));
  VOLLEY_TRY(model->context_, ops.allocate(rows, config.hidden_size, DType::kF32));
  VOLLEY_TRY(model->kv_rows_, ops.allocate(rows, kv_only.cols(), DType::kF32));
  VOLLEY_TRY(model->out_, ops.allocate(limits.max_output_rows, config.hidden_size, DType::kF32));
  model->key_begin_.resize(rows);
  model->key_end_.resize(rows);
  return model;
}

void DflashDrafter::inject(const RowBatch& rows, const TensorView& target_hidden, KvCache& kv) {
  const int m = rows.num_rows();
  const float eps = dims_.rms_norm_eps;
  const QkvLayout layout{0, config_.num_kv_heads, config_.head_dim};
  const TensorView context = context_.first_rows(m);
  const TensorView kv_rows = kv_rows_.first_rows(m);

  ops_.matmul(target_hidden, *fc_, nullptr, context);
  ops_.rms_norm(context, hidden_norm_, eps, context);
  for (int layer_idx = 0; layer_idx < config_.num_layers; ++layer_idx) {
    const Tensor& bias = context_kv_bias_[layer_idx];
    ops_.matmul(context, *context_kv_[layer_idx], bias.view().empty() ? nullptr : &bias.view(),
                kv_rows);
    ops_.rope_and_store(kv_rows, layout, nullptr, &layers_[layer_idx].k_norm().view(), eps, rope_,
                        rows.places(), kv, layer_idx);
  }
}

// Keys before the anchor are context; the block's follow. A window of w reaches w - 1 positions
// back and, where the block is bidirectional, as far forward.
KeyRanges DflashDrafter::block_ranges(const RowBatch& rows, const DraftLayerAttention& attention) {
  const auto positions = rows.positions();
  const auto sequences = rows.sequences();
  const int m = rows.num_rows();
  for (int i = 0, block_end = 0; i < m; ++i) {
    if (i == 0 || sequences[i] != sequences[i - 1]) {
      int last = i;
      while (last + 1 < m && sequences[last + 1] == sequences[i]) ++last;
      block_end = positions[last] + 1;
    }
    const int position = positions[i];
    const bool windowed = attention.window > 0;
    key_begin_[i] = windowed ? std::max(0, position - attention.window + 1) : 0;
    key_end_[i] = attention.causal_in_block ? position + 1
                  : windowed                ? std::min(block_end, position + attention.window)
                                            : block_end;
  }
  return {std::span(key_begin_).first(m), std::span(key_end_).first(m)};
}

TensorView DflashDrafter::draft(const RowBatch& rows, std::span<const int32_t> output_rows,
                                KvCache& kv) {
  const TensorView x = workspace_.x.first_rows(rows.num_rows());
  const DecoderPass pass{dims_, workspace_, rope_, rows.places(), kv};

  ops_.embed(*embed_tokens_, rows.token_ids(), x);
  const TensorView out = out_.first_rows(static_cast<int64_t>(output_rows.size()));
  for (int layer_idx = 0; layer_idx < config_.num_layers; ++layer_idx) {
    const KeyRanges keys = block_ranges(rows, config_.attention[layer_idx]);
    const DecoderLayer& layer = layers_[layer_idx];
    if (layer_idx + 1 < config_.num_layers) {
      layer.forward(pass, keys, layer_idx, ops_);
    } else {
      layer.forward_last(pass, keys, layer_idx, output_rows, out, ops_);
    }
  }
  ops_.rms_norm(out, final_norm_, dims_.rms_norm_eps, out);
  return out;
}

void DflashDrafter::argmax(const TensorView& hidden, std::span<int32_t> token_ids) {
  ops_.matmul_argmax(hidden, *lm_head_, token_ids);
  if (target_ids_.empty()) return;
  for (int32_t& token_id : token_ids) token_id = target_ids_[token_id];
}

KvShape DflashDrafter::kv_shape(int num_pages, int page_size) const {
  return {.num_layers = config_.num_layers,
          .num_kv_heads = config_.num_kv_heads,
          .head_dim = config_.head_dim,
          .num_pages = num_pages,
          .page_size = page_size};
}

int64_t DflashDrafter::num_weight_bytes() const {
  int64_t bytes = lm_head_->num_bytes();
  for (const DecoderLayer& layer : layers_) bytes += layer.num_weight_bytes();
  return bytes;
}

double DflashDrafter::body_share() const {
  int64_t body = layers_.back().num_qkv_bytes();
  for (size_t i = 0; i + 1 < layers_.size(); ++i) body += layers_[i].num_weight_bytes();
  return static_cast<double>(body) / static_cast<double>(num_weight_bytes());
}

int64_t DflashDrafter::num_inject_bytes() const {
  int64_t bytes = fc_->num_bytes();
  for (const auto& context_kv : context_kv_) bytes += context_kv->num_bytes();
  return bytes;
}

}  // namespace volley
