#pragma once

// The target: a dense decoder of the Qwen3, Qwen2.5 or Llama 3 family. They differ in optional
// pieces (q/k norm, biases, rotary scaling, sliding windows), all told by the configuration.

#include <memory>
#include <vector>

#include "model/decoder_layer.h"
#include "model/rows.h"
#include "ops/ops.h"
#include "weights/model_files.h"

namespace volley {

// Where the tapped layers' outputs go: those of rows[i] of the pass to row i of `out`
// [rows.size(), num_taps * hidden_size]. No rows: nothing is tapped.
struct TapRows {
  std::span<const int32_t> rows;
  TensorView out;
};

class TargetModel {
 public:
  // Packs the weights for `ops`, which outlives the model, and allocates every workspace. `weights`
  // may go away afterwards.
  static Result<std::unique_ptr<TargetModel>> create(const TargetConfig& config,
                                                     const TargetWeights& weights,
                                                     const ModelLimits& limits, Ops& ops);

  // Layer ids (0-based block outputs) whose outputs forward() hands out.
  void set_taps(std::vector<int> layer_ids) { taps_ = std::move(layer_ids); }

  // Runs `rows` through the model: their keys and values enter `kv`. Returns the final normed
  // hidden states [output_rows.size(), hidden_size] of the named rows, valid until the next call.
  TensorView forward(const RowBatch& rows, std::span<const int32_t> output_rows, KvCache& kv,
                     const TapRows& taps);

  // logits [m, vocab_size] of hidden states [m, hidden_size] that forward() returned.
  void logits(const TensorView& hidden, const TensorView& out) {
    ops_.matmul(hidden, *lm_head_, nullptr, out);
  }
  void argmax(const TensorView& hidden, std::span<int32_t> token_ids) {
    ops_.matmul_argmax(hidden, *lm_head_, token_ids);
  }

  KvShape kv_shape(int num_pages, int page_size) const;
  const TargetConfig& config() const { return config_; }
  // Bytes of weights that one pass reads, the head included, the embedding table not.
  int64_t num_weight_bytes() const;

  // What a drafter without its own borrows.
  const Tensor& embedding() const { return embed_tokens_; }
  const PackedMatrix& lm_head() const { return *lm_head_; }

 private:
  TargetModel(const TargetConfig& config, Ops& ops);
  KeyRanges causal_ranges(const RowBatch& rows, int window);
  bool is_tapped(int layer_idx) const;
  void copy_taps(int layer_idx, const TensorView& x, const TapRows& taps);

  TargetConfig config_;
  DecoderDims dims_;
  Ops& ops_;
  std::vector<int> taps_;

  Tensor embed_tokens_;  // [vocab_size, hidden_size]
  Tensor final_norm_;    // [1, hidden_size]
  Tensor rope_;          // [max_positions, head_dim]
  std::unique_ptr<PackedMatrix> lm_head_;
  std::vector<DecoderLayer> layers_;

  DecoderWorkspace workspace_;
  Tensor out_;  // [max_output_rows, hidden_size]
  std::vector<int32_t> key_begin_;
  std::vector<int32_t> key_end_;
};

}  // namespace volley
