#pragma once

// The DFlash drafter (arXiv 2602.06036): a few Qwen3-style layers that fill a whole block of tokens
// in one pass. Its attention reads two kinds of keys: the context's, made from the target's tapped
// hidden states (H_ctx = hidden_norm(fc(target_hidden)), the same for all layers, projected by each
// layer's k_proj and v_proj), and the block's own.

#include <memory>
#include <vector>

#include "model/decoder_layer.h"
#include "model/rows.h"
#include "model/target.h"
#include "ops/ops.h"
#include "weights/model_files.h"

namespace volley {

class DflashDrafter {
 public:
  // `target` lends its embedding and head where the checkpoint has none; it and `ops` outlive the
  // drafter.
  static Result<std::unique_ptr<DflashDrafter>> create(const DrafterConfig& config,
                                                       const DrafterWeights& weights,
                                                       const TargetModel& target,
                                                       const ModelLimits& limits, Ops& ops);

  // Adds context: projects target_hidden [rows.num_rows(), num_taps * hidden_size] to keys and
  // values of every layer, stored in `kv` at the rows' positions. Token ids are not read.
  void inject(const RowBatch& rows, const TensorView& target_hidden, KvCache& kv);

  // Fills blocks: each sequence of `rows` is one block, its anchor first, masks after it, whose
  // context lies in `kv` before the anchor's position. The block's own keys go to `kv` at its
  // positions, where the next inject() overwrites them. Returns the final normed hidden states
  // [output_rows.size(), hidden_size] of the named rows, valid until the next call.
  TensorView draft(const RowBatch& rows, std::span<const int32_t> output_rows, KvCache& kv);

  // Logits over the draft vocabulary [m, draft_vocab_size] of what draft() returned.
  void logits(const TensorView& hidden, const TensorView& out) {
    ops_.matmul(hidden, *lm_head_, nullptr, out);
  }
  // Most likely tokens, as ids of the target's vocabulary.
  void argmax(const TensorView& hidden, std::span<int32_t> token_ids);
  // The most likely tokens of the drafter's own vocabulary, as Ops::top_candidates() of its logits.
  void candidates(const TensorView& hidden, std::span<int32_t> token_ids,
                  std::span<float> probabilities) {
    ops_.matmul_candidates(hidden, *lm_head_, token_ids, probabilities);
  }

  // The target's id of each token of the draft vocabulary; empty where they are the same.
  std::span<const int32_t> target_ids() const { return target_ids_; }

  KvShape kv_shape(int num_pages, int page_size) const;
  const DrafterConfig& config() const { return config_; }
  // Bytes of weights that one draft pass reads, the head included; and one inject().
  int64_t num_weight_bytes() const;
  // Of the weights that a row of a draft pass meets, the share that all rows of a block meet. The
  // rest, the last layer after its keys and the head, only rows meet that are asked for.
  double body_share() const;
  int64_t num_inject_bytes() const;

 private:
  DflashDrafter(const DrafterConfig& config, Ops& ops);
  KeyRanges block_ranges(const RowBatch& rows, const DraftLayerAttention& attention);

  DrafterConfig config_;
  DecoderDims dims_;
  Ops& ops_;

  const Tensor* embed_tokens_ = nullptr;  // the target's, or own_embed_tokens_
  const PackedMatrix* lm_head_ = nullptr;
  Tensor own_embed_tokens_;
  std::unique_ptr<PackedMatrix> own_lm_head_;
  std::vector<int32_t> target_ids_;

  std::unique_ptr<PackedMatrix> fc_;  // [hidden_size, num_taps * hidden_size]
  Tensor hidden_norm_;                // [1, hidden_size]
  Tensor final_norm_;                 // [1, hidden_size]
  Tensor rope_;                       // [max_positions, head_dim]
  std::vector<DecoderLayer> layers_;
  // Each layer's k_proj and v_proj again, and their biases: what the context goes through.
  std::vector<std::unique_ptr<PackedMatrix>> context_kv_;
  std::vector<Tensor> context_kv_bias_;

  DecoderWorkspace workspace_;
  Tensor context_;  // [max_rows, hidden_size] H_ctx
  Tensor kv_rows_;  // [max_rows, 2 num_kv_heads * head_dim]
  Tensor out_;      // [max_output_rows, hidden_size]
  std::vector<int32_t> key_begin_;
  std::vector<int32_t> key_end_;
};

}  // namespace volley
