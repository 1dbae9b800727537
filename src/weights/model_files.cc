#include "weights/model_files.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string>
#include <utility>

namespace volley {
namespace {

// Tensors that some writers leave in and that no forward pass reads.
bool is_ignorable(std::string_view name) {
  constexpr std::string_view kInvFreq = "rotary_emb.inv_freq";
  return name.ends_with(kInvFreq);
}

// Tensors by which other drafters are known, so that the error says whose they are.
struct ForeignTensor {
  std::string_view part;
  std::string_view what;
};
constexpr std::array<ForeignTensor, 11> kForeignTensors = {{
    {"candidate_selector.", "DFlash2"},
    {"attention_conv.", "DFlash2"},
    {"mlp_conv.", "DFlash2"},
    {"markov_head.", "DSpark"},
    {"logit_head.", "DSpark"},
    {"confidence_head.", "DSpark"},
    {"prefix_gru.", "Domino"},
    {"embed_proj.", "Domino"},
    {"fusion_weights", "a drafter with learned layer fusion"},
    {"mask_embedding", "a drafter with a mask embedding of its own"},
    {"attention_sink_bias", "a drafter with attention sinks"},
}};

std::string list_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  const size_t shown = std::min(names.size(), kShown);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + shown, ", "));
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

// Takes tensors out of a checkpoint by name. Absent ones and the first wrong one are remembered, so
// that a table of fields reads as a table; finish() turns them into one error.
class TensorTaker {
 public:
  explicit TensorTaker(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  bool has(const std::string& name) const { return checkpoint_.find(name) != nullptr; }

  // A norm weight or a bias.
  HostTensor vector(const std::string& name, int64_t size) {
    const HostTensor* tensor = take(name, {size});
    if (tensor == nullptr) return {};
    if (!is_plain_float(tensor->dtype)) {
      fail(ErrorKind::kUnsupported, "tensor {}: expected f32, f16 or bf16, got {}", name,
           dtype_name(tensor->dtype));
      return {};
    }
    return *tensor;
  }

  HostTensor vector_if(bool wanted, const std::string& name, int64_t size) {
    return wanted ? vector(name, size) : HostTensor{};
  }

  // "NAME.weight", and "NAME.weight_scale_inv" when it is fp8.
  HostMatrix matrix(const std::string& name, int64_t rows, int64_t cols) {
    HostMatrix matrix;
    const HostTensor* weight = take(name + ".weight", {rows, cols});
    if (weight == nullptr) return {};
    matrix.weight = *weight;
    if (weight->dtype == DType::kF8E4M3) {
      matrix.scale_inv = scales(name + ".weight_scale_inv", rows, cols);
    } else if (!is_plain_float(weight->dtype)) {
      fail(ErrorKind::kUnsupported, "tensor {}.weight: expected f32, f16, bf16 or f8_e4m3, got {}",
           name, dtype_name(weight->dtype));
    }
    return matrix;
  }

  HostMatrix matrix_if(bool wanted, const std::string& name, int64_t rows, int64_t cols) {
    return wanted ? matrix(name, rows, cols) : HostMatrix{};
  }

  const HostTensor* take(const std::string& name, std::initializer_list<int64_t> shape) {
    taken_.insert(name);
    const HostTensor* tensor = checkpoint_.find(name);
    if (tensor == nullptr) {
      missing_.push_back(name);
      return nullptr;
    }
    if (!tensor->has_shape(shape)) {
      fail(ErrorKind::kInvalidInput, "tensor {}: config.json calls for shape [{}], the file has {}",
           name, fmt::join(shape, ", "), tensor->shape_string());
      return nullptr;
    }
    return tensor;
  }

  // A tensor that may be there and is not read.
  void ignore(const std::string& name) { taken_.insert(name); }

  template <class... Args>
  void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
    if (!error_) {
      error_ = Error{kind, checkpoint_.folder().string() + ": " +
                               fmt::format(format, std::forward<Args>(args)...)};
    }
  }

  Status finish() {
    if (error_) return tl::unexpected<Error>(std::move(*error_));
    std::vector<std::string> extra;
    for (const std::string_view name : checkpoint_.names()) {
      if (!taken_.contains(name) && !is_ignorable(name)) extra.emplace_back(name);
    }
    for (const std::string& name : extra) {
      for (const ForeignTensor& foreign : kForeignTensors) {
        if (name.find(foreign.part) != std::string::npos) {
          return make_error(ErrorKind::kUnsupported,
                            "{}: tensor {} belongs to {}; only DFlash v1 is supported",
                            checkpoint_.folder().string(), name, foreign.what);
        }
      }
    }
    if (!missing_.empty()) {
      return invalid("{}: {} tensors are missing: {}", checkpoint_.folder().string(),
                     missing_.size(), list_names(missing_));
    }
    if (!extra.empty()) {
      return invalid("{}: {} tensors that config.json does not call for: {}",
                     checkpoint_.folder().string(), extra.size(), list_names(extra));
    }
    return {};
  }

 private:
  static bool is_plain_float(DType dtype) { return is_float(dtype) && dtype != DType::kF8E4M3; }

  HostTensor scales(const std::string& name, int64_t rows, int64_t cols) {
    constexpr int64_t kGroup = HostMatrix::kQuantGroup;
    const int64_t row_groups = (rows + kGroup - 1) / kGroup;
    const int64_t col_groups = (cols + kGroup - 1) / kGroup;
    const HostTensor* tensor = take(name, {row_groups, col_groups});
    if (tensor == nullptr) return {};
    if (!is_plain_float(tensor->dtype)) {
      fail(ErrorKind::kUnsupported, "tensor {}: expected f32, f16 or bf16, got {}", name,
           dtype_name(tensor->dtype));
      return {};
    }
    for (int64_t i = 0; i < tensor->num_elements(); ++i) {
      if (!std::isfinite(tensor->float_at(i))) {
        fail(ErrorKind::kInvalidInput, "tensor {}: scale {} is not finite", name, i);
        return {};
      }
    }
    return *tensor;
  }

  const Checkpoint& checkpoint_;
  std::set<std::string, std::less<>> taken_;
  std::vector<std::string> missing_;
  std::optional<Error> error_;
};

// What a layer's table needs to know, of a target or of a drafter.
struct LayerShape {
  int64_t hidden_size;
  int64_t q_size;
  int64_t kv_size;
  int64_t head_dim;
  int64_t intermediate_size;
  bool qkv_bias;
  bool o_bias;
  bool qk_norm;
};

LayerWeights take_layer(TensorTaker& take, const LayerShape& shape, const std::string& prefix) {
  const std::string attention = prefix + "self_attn.";
  const std::string mlp = prefix + "mlp.";
  LayerWeights layer;
  layer.input_norm = take.vector(prefix + "input_layernorm.weight", shape.hidden_size);
  layer.q = take.matrix(attention + "q_proj", shape.q_size, shape.hidden_size);
  layer.k = take.matrix(attention + "k_proj", shape.kv_size, shape.hidden_size);
  layer.v = take.matrix(attention + "v_proj", shape.kv_size, shape.hidden_size);
  layer.o = take.matrix(attention + "o_proj", shape.hidden_size, shape.q_size);
  layer.q_bias = take.vector_if(shape.qkv_bias, attention + "q_proj.bias", shape.q_size);
  layer.k_bias = take.vector_if(shape.qkv_bias, attention + "k_proj.bias", shape.kv_size);
  layer.v_bias = take.vector_if(shape.qkv_bias, attention + "v_proj.bias", shape.kv_size);
  layer.o_bias = take.vector_if(shape.o_bias, attention + "o_proj.bias", shape.hidden_size);
  layer.q_norm = take.vector_if(shape.qk_norm, attention + "q_norm.weight", shape.head_dim);
  layer.k_norm = take.vector_if(shape.qk_norm, attention + "k_norm.weight", shape.head_dim);
  layer.post_attention_norm =
      take.vector(prefix + "post_attention_layernorm.weight", shape.hidden_size);
  layer.gate = take.matrix(mlp + "gate_proj", shape.intermediate_size, shape.hidden_size);
  layer.up = take.matrix(mlp + "up_proj", shape.intermediate_size, shape.hidden_size);
  layer.down = take.matrix(mlp + "down_proj", shape.hidden_size, shape.intermediate_size);
  return layer;
}

// d2t holds, for each draft id, the distance to its target id; t2d marks the target ids that have a
// draft id. t2d is redundant: when present it must agree.
void take_vocab_maps(TensorTaker& take, const DrafterConfig& config, DrafterWeights& weights) {
  const HostTensor* d2t = take.take("d2t", {config.draft_vocab_size});
  const HostTensor* t2d = take.has("t2d") ? take.take("t2d", {config.vocab_size}) : nullptr;
  if (d2t == nullptr) return;
  if (is_float(d2t->dtype) || (t2d != nullptr && is_float(t2d->dtype))) {
    take.fail(ErrorKind::kInvalidInput, "d2t and t2d: expected integers");
    return;
  }
  weights.target_to_draft.assign(static_cast<size_t>(config.vocab_size), -1);
  for (int32_t draft_id = 0; draft_id < config.draft_vocab_size; ++draft_id) {
    const int64_t distance = d2t->int_at(draft_id);
    // Compared without adding first: the file may hold INT64_MAX.
    if (distance < -int64_t{draft_id} || distance >= int64_t{config.vocab_size} - draft_id) {
      take.fail(ErrorKind::kInvalidInput,
                "d2t: draft id {} with distance {} lies outside the vocabulary of {}", draft_id,
                distance, config.vocab_size);
      return;
    }
    const auto target_id = static_cast<int32_t>(draft_id + distance);
    if (!weights.draft_to_target.empty() && target_id <= weights.draft_to_target.back()) {
      take.fail(ErrorKind::kInvalidInput,
                "d2t: draft ids {} and {} map to target ids {} and {}, "
                "expected increasing ones",
                draft_id - 1, draft_id, weights.draft_to_target.back(), target_id);
      return;
    }
    weights.draft_to_target.push_back(target_id);
    weights.target_to_draft[static_cast<size_t>(target_id)] = draft_id;
  }
  if (t2d == nullptr) return;
  for (int64_t id = 0; id < config.vocab_size; ++id) {
    const bool mapped = weights.target_to_draft[static_cast<size_t>(id)] >= 0;
    if ((t2d->int_at(id) != 0) != mapped) {
      take.fail(ErrorKind::kInvalidInput, "t2d and d2t disagree about target id {}", id);
      return;
    }
  }
}

}  // namespace

Result<TargetWeights> read_target_weights(const Checkpoint& checkpoint,
                                          const TargetConfig& config) {
  const LayerShape shape = {
      .hidden_size = config.hidden_size,
      .q_size = int64_t{config.num_heads} * config.head_dim,
      .kv_size = int64_t{config.num_kv_heads} * config.head_dim,
      .head_dim = config.head_dim,
      .intermediate_size = config.intermediate_size,
      .qkv_bias = config.qkv_bias,
      .o_bias = config.o_bias,
      .qk_norm = config.qk_norm,
  };
  TensorTaker take(checkpoint);
  TargetWeights weights;
  weights.embed = take.matrix("model.embed_tokens", config.vocab_size, config.hidden_size);
  for (int i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(take_layer(take, shape, fmt::format("model.layers.{}.", i)));
  }
  weights.norm = take.vector("model.norm.weight", config.hidden_size);
  if (config.tie_word_embeddings) {
    // Some tied checkpoints carry a copy (Qwen3-0.6B); Transformers ties over it.
    take.ignore("lm_head.weight");
    weights.lm_head = weights.embed;
  } else {
    weights.lm_head = take.matrix("lm_head", config.vocab_size, config.hidden_size);
  }
  VOLLEY_TRY_STATUS(take.finish());
  return weights;
}

Result<DrafterWeights> read_drafter_weights(const Checkpoint& checkpoint,
                                            const DrafterConfig& config) {
  const LayerShape shape = {
      .hidden_size = config.hidden_size,
      .q_size = int64_t{config.num_heads} * config.head_dim,
      .kv_size = int64_t{config.num_kv_heads} * config.head_dim,
      .head_dim = config.head_dim,
      .intermediate_size = config.intermediate_size,
      .qkv_bias = config.attention_bias,
      .o_bias = config.attention_bias,
      .qk_norm = true,
  };
  TensorTaker take(checkpoint);
  DrafterWeights weights;
  const int64_t fc_width = static_cast<int64_t>(config.taps.size()) * config.target_hidden_size;
  weights.fc = take.matrix("fc", config.hidden_size, fc_width);
  weights.hidden_norm = take.vector("hidden_norm.weight", config.hidden_size);
  for (int i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(take_layer(take, shape, fmt::format("layers.{}.", i)));
  }
  weights.norm = take.vector("norm.weight", config.hidden_size);

  // Without an embedding or a head of its own, the drafter borrows the target's, which must then be
  // as wide and, for the head, speak the whole vocabulary.
  const bool needs_own = config.hidden_size != config.target_hidden_size;
  weights.embed = take.matrix_if(needs_own || take.has("embed_tokens.weight"), "embed_tokens",
                                 config.vocab_size, config.hidden_size);
  weights.lm_head =
      take.matrix_if(needs_own || config.has_reduced_vocab() || take.has("lm_head.weight"),
                     "lm_head", config.draft_vocab_size, config.hidden_size);
  if (config.has_reduced_vocab()) {
    take_vocab_maps(take, config, weights);
  } else {
    // With one vocabulary the maps are the identity; speculators ignores them as well.
    take.ignore("d2t");
    take.ignore("t2d");
  }
  // Copies of the target's parts that the speculators trainer keeps for its loss.
  take.ignore("verifier_norm.weight");
  take.ignore("verifier_lm_head.weight");
  VOLLEY_TRY_STATUS(take.finish());
  return weights;
}

Result<TargetFiles> open_target(const std::filesystem::path& folder) {
  VOLLEY_TRY(TargetConfig config, read_target_config(folder));
  VOLLEY_TRY(Checkpoint checkpoint, Checkpoint::open(folder));
  VOLLEY_TRY(TargetWeights weights, read_target_weights(checkpoint, config));
  return TargetFiles{std::move(config), std::move(checkpoint), std::move(weights)};
}

Result<DrafterFiles> open_drafter(const std::filesystem::path& folder) {
  VOLLEY_TRY(DrafterConfig config, read_drafter_config(folder));
  VOLLEY_TRY(Checkpoint checkpoint, Checkpoint::open(folder));
  VOLLEY_TRY(DrafterWeights weights, read_drafter_weights(checkpoint, config));
  return DrafterFiles{std::move(config), std::move(checkpoint), std::move(weights)};
}

}  // namespace volley
