#include "weights/drafter_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace volley {
namespace {

constexpr ConfigLimits kLimits = kConfigLimits;

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

std::string lower(std::string text) {
  for (char& c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

// Speculators that are not DFlash v1, by a word in their class name, model type or algorithm. The
// order matters: "dflash2" also contains "dflash".
struct OtherSpeculator {
  std::string_view word;
  std::string_view what;
};
constexpr std::array<OtherSpeculator, 8> kOtherSpeculators = {{
    {"dflash2", "a DFlash2 drafter (candidate selector and local convolutions)"},
    {"dspark", "a DSpark drafter (Markov and confidence heads)"},
    {"domino", "a Domino drafter (GRU prefix projector)"},
    {"dfly", "a DFly drafter"},
    {"eagle", "an EAGLE drafter"},
    {"medusa", "a Medusa drafter"},
    {"mtp", "a multi-token-prediction drafter"},
    {"mlp_speculator", "an MLP speculator"},
}};

void reject_other_speculator(ConfigReader& reader, const std::string& name) {
  const std::string lowered = lower(name);
  for (const OtherSpeculator& other : kOtherSpeculators) {
    if (contains(lowered, other.word)) {
      reader.fail(ErrorKind::kUnsupported, "'{}' is {}; only DFlash v1 is supported", name,
                  other.what);
    }
  }
}

// Fields that change what the drafter computes and that only other variants have.
void reject_variant_fields(ConfigReader& reader) {
  if (reader.has("projector_type")) {
    const std::string projector = reader.string("projector_type");
    reject_other_speculator(reader, projector);
    if (projector != "dflash") {
      reader.fail(ErrorKind::kUnsupported, "projector_type '{}' is not DFlash v1", projector);
    }
  }
  if (reader.boolean("sample_from_anchor", false)) {
    reader.fail(ErrorKind::kUnsupported,
                "sample_from_anchor: a drafter that predicts at the anchor (DSpark) is not "
                "supported");
  }
  if (reader.boolean("shift_label", false)) {
    reader.fail(ErrorKind::kUnsupported, "shift_label: a Domino drafter is not supported");
  }
  for (const std::string_view key : {"markov_rank", "markov_head_type"}) {
    if (reader.has(key)) {
      reader.fail(ErrorKind::kUnsupported, "{}: a Markov head (DSpark) is not supported", key);
    }
  }
  if (reader.boolean("enable_confidence_head", false)) {
    reader.fail(ErrorKind::kUnsupported,
                "enable_confidence_head: a confidence head (DSpark) is not supported");
  }
  for (const std::string_view key : {"conv_kernel_size", "selector_rank"}) {
    if (reader.has(key)) {
      reader.fail(ErrorKind::kUnsupported, "{}: a DFlash2 drafter is not supported", key);
    }
  }
  if (reader.boolean("attention_sink_bias", false) ||
      reader.boolean("add_swa_attention_sink_bias", false)) {
    reader.fail(ErrorKind::kUnsupported, "attention sinks are not supported");
  }
  if (!reader.boolean("use_aux_hidden_state", true)) {
    reader.fail(ErrorKind::kUnsupported,
                "use_aux_hidden_state: a drafter without tapped states is not supported");
  }
  if (!reader.boolean("is_neox_style", true)) {
    reader.fail(ErrorKind::kUnsupported,
                "is_neox_style: interleaved rotary embedding is not supported");
  }
  for (const std::string_view key : {"logit_scale", "output_multiplier"}) {
    if (reader.number(key, 1.0, -1e9, 1e9) != 1.0) {
      reader.fail(ErrorKind::kUnsupported, "{} other than 1 is not supported", key);
    }
  }
  if (reader.number("final_logit_softcapping", 0.0, -1e9, 1e9) != 0.0) {
    reader.fail(ErrorKind::kUnsupported, "final_logit_softcapping is not supported");
  }
}

// The same number may stand at the top or in dflash_config; both are fine when they agree.
std::optional<int> read_from_two_homes(ConfigReader& top, ConfigReader& nested,
                                       std::string_view key, int min, int max) {
  const auto outer = top.optional_integer(key, min, max);
  const auto inner = nested.optional_integer(key, min, max);
  if (outer && inner && *outer != *inner) {
    top.fail(ErrorKind::kInvalidInput, "{} is {} at the top and {} in dflash_config", key, *outer,
             *inner);
  }
  return outer ? outer : inner;
}

// Sizes of the draft transformer: the top level in the z-lab layout, transformer_layer_config in
// that of speculators.
void read_transformer(ConfigReader& reader, DrafterConfig& config) {
  config.hidden_size = reader.required_integer("hidden_size", 1, kLimits.max_hidden_size);
  config.num_layers = reader.required_integer("num_hidden_layers", 1, kLimits.max_layers);
  config.num_heads = reader.required_integer("num_attention_heads", 1, kLimits.max_heads);
  config.num_kv_heads =
      reader.integer("num_key_value_heads", config.num_heads, 1, kLimits.max_heads);
  config.head_dim =
      reader.integer("head_dim", config.hidden_size / config.num_heads, 1, kLimits.max_head_dim);
  config.intermediate_size =
      reader.required_integer("intermediate_size", 1, kLimits.max_intermediate_size);
  config.vocab_size = reader.required_integer("vocab_size", 1, kLimits.max_vocab_size);
  config.max_position_embeddings =
      reader.required_integer("max_position_embeddings", 1, kLimits.max_positions);
  config.rms_norm_eps = reader.number("rms_norm_eps", 1e-6, 1e-12, 1.0);
  config.attention_bias = reader.boolean("attention_bias", false);
  require_silu(reader);
  config.rope = read_rope(reader);
}

// The causality trap. Precedence, as in z-lab and vLLM (_dflash_layer_causal): is_causal, then
// dflash_config.causal, both for every layer; without them a sliding-window layer is causal in the
// block and a full one is bidirectional. speculators adds sliding_window_non_causal, which makes
// sliding layers bidirectional. dflash_config.use_swa turns every layer of an all-full model into a
// sliding one without making it causal.
void read_attention(ConfigReader& top, ConfigReader& dflash, ConfigReader& transformer,
                    DrafterConfig& config) {
  const std::vector<bool> sliding = read_sliding_layers(transformer, config.num_layers);
  const bool any_sliding = std::find(sliding.begin(), sliding.end(), true) != sliding.end();
  const bool all_by_use_swa = dflash.boolean("use_swa", false) && !any_sliding;

  int window = 0;
  if (any_sliding || all_by_use_swa) {
    const auto own = dflash.optional_integer("swa_window_size", 1, kLimits.max_positions);
    window = own ? *own : transformer.integer("sliding_window", 0, 1, kLimits.max_positions);
    if (window == 0) {
      transformer.fail(
          ErrorKind::kInvalidInput,
          "sliding-window layers need sliding_window or dflash_config.swa_window_size");
    }
  }
  std::optional<bool> causal_everywhere = top.optional_boolean("is_causal");
  if (!causal_everywhere) causal_everywhere = dflash.optional_boolean("causal");
  const bool sliding_is_causal = !top.boolean("sliding_window_non_causal", false);

  for (const bool is_sliding : sliding) {
    DraftLayerAttention layer;
    layer.window = is_sliding || all_by_use_swa ? window : 0;
    layer.causal_in_block = causal_everywhere.value_or(is_sliding && sliding_is_causal);
    config.attention.push_back(layer);
  }
}

DrafterConfig read_z_lab(ConfigReader& reader) {
  DrafterConfig config;
  config.layout = DrafterLayout::kZLab;
  ConfigReader dflash = reader.object("dflash_config");
  reject_variant_fields(dflash);
  read_transformer(reader, config);
  config.target_hidden_size =
      reader.integer("target_hidden_size", config.hidden_size, 1, kLimits.max_hidden_size);
  config.draft_vocab_size =
      reader.integer("draft_vocab_size", config.vocab_size, 1, kLimits.max_vocab_size);
  config.fp8 = read_fp8(reader);
  config.num_target_layers = reader.optional_integer("num_target_layers", 1, kLimits.max_layers);
  read_attention(reader, dflash, reader, config);

  const auto block = read_from_two_homes(reader, dflash, "block_size", 2, kLimits.max_draft_block);
  if (!block) {
    reader.fail(ErrorKind::kInvalidInput, "block_size is missing, at the top and in dflash_config");
  }
  config.block_size = block.value_or(2);
  config.short_block_sizes = dflash.integers("short_block_sizes", 16, 2, kLimits.max_draft_block)
                                 .value_or(std::vector<int>{});
  const auto mask = read_from_two_homes(reader, dflash, "mask_token_id", 0, kLimits.max_vocab_size);
  if (!mask) {
    reader.fail(ErrorKind::kInvalidInput,
                "mask_token_id is missing, in dflash_config and at the top");
  }
  config.mask_token_id = mask.value_or(0);

  const auto taps = dflash.integers("target_layer_ids", kLimits.max_taps, 0, kLimits.max_layers);
  if (taps) {
    config.taps = *taps;
  } else if (config.num_target_layers.value_or(0) >= 4) {
    config.taps = default_taps(*config.num_target_layers, config.num_layers);
  } else {
    dflash.fail(
        ErrorKind::kInvalidInput,
        "target_layer_ids is missing, and num_target_layers (at least 4) to derive it from");
  }
  return config;
}

DrafterConfig read_speculators(ConfigReader& reader) {
  DrafterConfig config;
  config.layout = DrafterLayout::kSpeculators;
  ConfigReader spec = reader.object("speculators_config");
  reject_other_speculator(reader, spec.string("algorithm", "dflash"));
  ConfigReader dflash = reader.object("dflash_config");
  ConfigReader transformer = reader.object("transformer_layer_config");
  read_transformer(transformer, config);
  config.target_hidden_size =
      reader.integer("target_hidden_size", config.hidden_size, 1, kLimits.max_hidden_size);
  config.draft_vocab_size =
      reader.integer("draft_vocab_size", config.vocab_size, 1, kLimits.max_vocab_size);
  config.fp8 = read_fp8(reader);
  config.block_size = reader.required_integer("block_size", 2, kLimits.max_draft_block);
  config.mask_token_id = reader.required_integer("mask_token_id", 0, kLimits.max_vocab_size);
  read_attention(reader, dflash, transformer, config);

  // speculators counts hidden states, where 0 is the embedding's output: its id k is the output of
  // our layer k - 1.
  const auto ids =
      reader.integers("aux_hidden_state_layer_ids", kLimits.max_taps, 0, kLimits.max_layers);
  if (!ids) reader.fail(ErrorKind::kInvalidInput, "aux_hidden_state_layer_ids is missing");
  for (const int id : ids.value_or(std::vector<int>{})) {
    if (id == 0) {
      reader.fail(ErrorKind::kUnsupported,
                  "aux_hidden_state_layer_ids: 0, the embedding's output, is not supported");
    }
    config.taps.push_back(id - 1);
  }
  config.verifier = spec.object("verifier").string("name_or_path");
  return config;
}

FitCheck compare(std::string name, int drafter, int target, std::string_view what) {
  return {std::move(name), drafter == target,
          fmt::format("the drafter {} {}, the target has {}", what, drafter, target)};
}

}  // namespace

std::string_view drafter_layout_name(DrafterLayout layout) {
  return layout == DrafterLayout::kZLab ? "z-lab" : "speculators";
}

std::vector<int> default_taps(int num_target_layers, int num_draft_layers) {
  if (num_draft_layers == 1) return {num_target_layers / 2};
  constexpr int kStart = 1;
  const int span = num_target_layers - 3 - kStart;
  std::vector<int> taps;
  for (int i = 0; i < num_draft_layers; ++i) {
    // Python's round(): nearbyint in the default rounding mode rounds halves to even too.
    taps.push_back(static_cast<int>(
        std::nearbyint(kStart + static_cast<double>(i) * span / (num_draft_layers - 1))));
  }
  return taps;
}

Status DrafterConfig::validate() const {
  if (num_heads % num_kv_heads != 0) {
    return invalid("config.json: {} attention heads cannot share {} key/value heads evenly",
                   num_heads, num_kv_heads);
  }
  if (head_dim < 2 || head_dim % 2 != 0) {
    return invalid("config.json: head_dim {} must be even for rotary embedding", head_dim);
  }
  if (draft_vocab_size > vocab_size) {
    return invalid("config.json: draft_vocab_size {} exceeds vocab_size {}", draft_vocab_size,
                   vocab_size);
  }
  if (mask_token_id >= vocab_size) {
    return invalid("config.json: mask_token_id {} lies outside the vocabulary of {}", mask_token_id,
                   vocab_size);
  }
  if (taps.empty()) return invalid("config.json: no target layers to tap");
  for (size_t i = 1; i < taps.size(); ++i) {
    if (taps[i] <= taps[i - 1]) {
      return invalid("config.json: the tapped layers must increase, got {}", fmt::join(taps, ", "));
    }
  }
  for (size_t i = 0; i < short_block_sizes.size(); ++i) {
    const int size = short_block_sizes[i];
    if (size >= block_size || (i > 0 && size <= short_block_sizes[i - 1])) {
      return invalid(
          "config.json: short_block_sizes must increase and stay below block_size {}, got {}",
          block_size, fmt::join(short_block_sizes, ", "));
    }
  }
  if (attention.size() != static_cast<size_t>(num_layers)) {
    return invalid("config.json: {} attention kinds for {} layers", attention.size(), num_layers);
  }
  return {};
}

Result<DrafterConfig> parse_drafter_config(std::string_view config_json) {
  VOLLEY_TRY(const Json json,
             parse_json(config_json, "config.json", {.max_bytes = kLimits.max_json_bytes}));
  ConfigReader reader(json, "config.json");
  const auto classes = reader.strings("architectures", 16);
  const std::string class_name = classes && !classes->empty() ? classes->front() : "";
  const std::string algorithm = reader.string("speculators_model_type");
  reject_other_speculator(reader, class_name);
  reject_other_speculator(reader, algorithm);
  reject_variant_fields(reader);
  VOLLEY_TRY_STATUS(reader.status());

  const bool is_speculators = !algorithm.empty() || reader.has("transformer_layer_config");
  const bool is_z_lab = class_name == "DFlashDraftModel" || reader.has("dflash_config");
  if (is_speculators ? (!algorithm.empty() && algorithm != "dflash") : !is_z_lab) {
    return make_error(ErrorKind::kUnsupported,
                      "config.json: '{}' is no DFlash drafter; expected DFlashDraftModel with "
                      "dflash_config, or speculators_model_type dflash",
                      is_speculators ? algorithm : class_name);
  }
  DrafterConfig config = is_speculators ? read_speculators(reader) : read_z_lab(reader);
  VOLLEY_TRY_STATUS(reader.status());
  VOLLEY_TRY_STATUS(config.validate());
  return config;
}

Result<DrafterConfig> read_drafter_config(const std::filesystem::path& folder) {
  VOLLEY_TRY(const std::string text, read_config_text(folder));
  auto parsed = parse_drafter_config(text);
  if (!parsed) {
    Error error = std::move(parsed.error());
    error.message = folder.string() + "/" + error.message;
    return tl::unexpected<Error>(std::move(error));
  }
  return parsed;
}

bool DrafterFit::ok() const {
  return std::all_of(checks.begin(), checks.end(), [](const FitCheck& check) { return check.ok; });
}

DrafterFit drafter_fit(const TargetConfig& target, const DrafterConfig& drafter) {
  DrafterFit fit;
  fit.checks.push_back(compare("hidden size", drafter.target_hidden_size, target.hidden_size,
                               "reads target states of width"));
  fit.checks.push_back(
      compare("vocabulary", drafter.vocab_size, target.vocab_size, "was made for a vocabulary of"));
  if (drafter.num_target_layers) {
    fit.checks.push_back(compare("target layers", *drafter.num_target_layers, target.num_layers,
                                 "was made for a number of layers of"));
  }
  const int last_tap = drafter.taps.empty() ? 0 : drafter.taps.back();
  fit.checks.push_back({"taps", last_tap < target.num_layers,
                        fmt::format("the drafter taps layers {} of the target's {}{}",
                                    fmt::join(drafter.taps, ", "), target.num_layers,
                                    last_tap == target.num_layers - 1
                                        ? "; of the last one the state before the final norm"
                                        : "")});
  fit.checks.push_back({"mask token", drafter.mask_token_id < target.vocab_size,
                        fmt::format("mask_token_id {} in the target's vocabulary of {}",
                                    drafter.mask_token_id, target.vocab_size)});
  // A drafter of another width must bring its own; read_drafter_weights asks for them.
  const bool shares_width = drafter.hidden_size == target.hidden_size;
  fit.checks.push_back(
      {"embedding and head", true,
       shares_width ? fmt::format("as wide as the target ({}), so it may use the target's",
                                  target.hidden_size)
                    : fmt::format("{} wide, the target {}: it has an embedding and a head of its "
                                  "own",
                                  drafter.hidden_size, target.hidden_size)});
  fit.checks.push_back(
      {"heads", true,
       fmt::format("{} query and {} key/value heads of {}, the target {}, {} and {}; they need not "
                   "agree",
                   drafter.num_heads, drafter.num_kv_heads, drafter.head_dim, target.num_heads,
                   target.num_kv_heads, target.head_dim)});
  fit.checks.push_back(
      {"context", true,
       fmt::format("the drafter was made for {} positions, the target for {}",
                   drafter.max_position_embeddings, target.max_position_embeddings)});
  // The drafter rotates only its own queries and keys, so another base is legal, but a rope that
  // differs from the target's usually means a drafter for another target.
  const bool same_rope = drafter.rope == target.rope;
  fit.checks.push_back(
      {"rope", true,
       same_rope ? fmt::format("the same rotary embedding (theta {})", drafter.rope.theta)
                 : fmt::format("the drafter rotates with {} theta {}, the target with {} theta {}; "
                               "legal, since it rotates only its own heads",
                               rope_type_name(drafter.rope.type), drafter.rope.theta,
                               rope_type_name(target.rope.type), target.rope.theta)});
  return fit;
}

Status check_drafter_fits(const TargetConfig& target, const DrafterConfig& drafter) {
  for (const FitCheck& check : drafter_fit(target, drafter).checks) {
    if (!check.ok) {
      return invalid("the drafter does not fit the target: {}: {}", check.name, check.why);
    }
  }
  return {};
}

}  // namespace volley
