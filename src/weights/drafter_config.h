#pragma once

// What a DFlash v1 drafter's config.json says, in the z-lab and in the speculators layout, and
// whether the drafter fits a target. DFlash: arXiv 2602.06036.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "weights/config.h"

namespace volley {

enum class DrafterLayout { kZLab, kSpeculators };
std::string_view drafter_layout_name(DrafterLayout layout);  // "z-lab"

// How one draft layer attends. A query of the draft block at absolute position q sees key k, of the
// context or of the block, when q - k < window (window 0: no such limit), and, within the block,
//   causal_in_block:  k <= q
//   otherwise:        any k of the block, with a window k - q < window too (it is symmetric).
struct DraftLayerAttention {
  int window = 0;
  bool causal_in_block = false;

  bool operator==(const DraftLayerAttention&) const = default;
};

struct DrafterConfig {
  DrafterLayout layout = DrafterLayout::kZLab;
  int hidden_size = 0;
  int target_hidden_size = 0;  // width of one tap; hidden_size unless the config says otherwise
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int vocab_size = 0;        // of the target, and of the drafter's own embedding
  int draft_vocab_size = 0;  // of the drafter's own head; below vocab_size, d2t maps its ids
  int max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool attention_bias = false;  // biases on q, k, v and o
  bool fp8 = false;
  RopeConfig rope;
  int block_size = 0;  // anchor plus block_size - 1 drafted tokens
  std::vector<int>
      short_block_sizes;  // rising; shorter blocks that the drafter was trained on, too
  int mask_token_id = 0;  // stands at every position of the block but the anchor's
  std::vector<int> taps;  // 0-based target layers whose outputs feed fc, increasing
  std::optional<int> num_target_layers;
  std::vector<DraftLayerAttention> attention;  // [num_layers]
  std::string verifier;                        // the target's name, where the config gives it

  bool has_reduced_vocab() const { return draft_vocab_size != vocab_size; }

  // Fields agree with each other and with kConfigLimits.
  Status validate() const;
};

// DFlash2, DSpark, Domino, EAGLE and other speculators are kUnsupported errors that name them.
Result<DrafterConfig> parse_drafter_config(std::string_view config_json);
Result<DrafterConfig> read_drafter_config(const std::filesystem::path& folder);

// The taps of a config that names none (z-lab, build_target_layer_ids): one per draft layer, spread
// evenly from layer 1 to layer num_target_layers - 3, halves rounded to even; a single one in the
// middle. num_target_layers must be at least 4.
std::vector<int> default_taps(int num_target_layers, int num_draft_layers);

// One question about a pair, for `volley inspect`.
struct FitCheck {
  std::string name;  // "hidden size"
  bool ok = true;
  std::string why;  // both values, and what they mean; also for checks that passed
};

struct DrafterFit {
  std::vector<FitCheck> checks;
  bool ok() const;
};

DrafterFit drafter_fit(const TargetConfig& target, const DrafterConfig& drafter);
// The first failed check as an error.
Status check_drafter_fits(const TargetConfig& target, const DrafterConfig& drafter);

}  // namespace volley
