#include "weights/config.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/file.h"

namespace volley {
namespace {

struct ArchitectureNames {
  Architecture architecture;
  std::string_view name;
  std::string_view class_name;  // "architectures" of config.json
  std::string_view model_type;
};

constexpr std::array<ArchitectureNames, 3> kArchitectures = {{
    {Architecture::kQwen3, "Qwen3", "Qwen3ForCausalLM", "qwen3"},
    {Architecture::kQwen2, "Qwen2", "Qwen2ForCausalLM", "qwen2"},
    {Architecture::kLlama, "Llama", "LlamaForCausalLM", "llama"},
}};

Architecture read_architecture(ConfigReader& reader) {
  const auto classes = reader.strings("architectures", 16);
  const std::string model_type = reader.string("model_type");
  const std::string class_name = classes && !classes->empty() ? classes->front() : "";
  for (const ArchitectureNames& names : kArchitectures) {
    if (class_name.empty() ? model_type == names.model_type : class_name == names.class_name) {
      return names.architecture;
    }
  }
  reader.fail(ErrorKind::kUnsupported,
              "architecture '{}' is not supported; targets are Qwen3ForCausalLM, Qwen2ForCausalLM "
              "and LlamaForCausalLM",
              class_name.empty() ? model_type : class_name);
  return Architecture::kQwen3;
}

// generation_config.json over config.json.
void read_generation(ConfigReader& reader, TargetConfig& config) {
  const int max_id = kConfigLimits.max_vocab_size;
  if (reader.has("eos_token_id")) {
    config.eos_token_ids =
        reader.integer_or_list("eos_token_id", kConfigLimits.max_eos_ids, 0, max_id);
  }
  config.generation.do_sample = reader.optional_boolean("do_sample");
  config.generation.temperature = reader.optional_number("temperature", 0.0, 1e6);
  config.generation.top_k = reader.optional_integer("top_k", -1, max_id);
  config.generation.top_p = reader.optional_number("top_p", 0.0, 1.0);
  config.generation.min_p = reader.optional_number("min_p", 0.0, 1.0);
  config.generation.repetition_penalty = reader.optional_number("repetition_penalty", 1e-6, 1e6);
}

TargetConfig read_target(ConfigReader& reader) {
  constexpr ConfigLimits kLimits = kConfigLimits;
  TargetConfig config;
  config.architecture = read_architecture(reader);
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
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", false);

  const bool attention_bias = reader.boolean("attention_bias", false);
  const bool is_qwen2 = config.architecture == Architecture::kQwen2;
  config.qkv_bias = is_qwen2 || attention_bias;
  config.o_bias = !is_qwen2 && attention_bias;
  config.qk_norm = config.architecture == Architecture::kQwen3;
  if (reader.boolean("mlp_bias", false)) {
    reader.fail(ErrorKind::kUnsupported, "mlp_bias: biases in the MLP are not supported");
  }
  require_silu(reader);
  config.rope = read_rope(reader);
  config.fp8 = read_fp8(reader);

  config.layer_window.assign(static_cast<size_t>(config.num_layers), 0);
  if (config.architecture != Architecture::kLlama) {
    const std::vector<bool> sliding = read_sliding_layers(reader, config.num_layers);
    if (std::find(sliding.begin(), sliding.end(), true) != sliding.end()) {
      const int window = reader.required_integer("sliding_window", 1, kLimits.max_positions);
      for (size_t i = 0; i < sliding.size(); ++i) config.layer_window[i] = sliding[i] ? window : 0;
    }
  }
  config.eos_token_ids =
      reader.integer_or_list("eos_token_id", kLimits.max_eos_ids, 0, kLimits.max_vocab_size);
  return config;
}

}  // namespace

std::string_view architecture_name(Architecture architecture) {
  for (const ArchitectureNames& names : kArchitectures) {
    if (names.architecture == architecture) return names.name;
  }
  return "unknown";
}

std::string_view rope_type_name(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return "default";
    case RopeType::kLinear:
      return "linear";
    case RopeType::kLlama3:
      return "llama3";
  }
  return "unknown";
}

RopeConfig read_rope(ConfigReader& reader) {
  // Transformers lets a non-empty rope_scaling win over rope_parameters, and a theta inside the
  // chosen object over the one at the top.
  ConfigReader scaling =
      reader.object(reader.has("rope_scaling") ? "rope_scaling" : "rope_parameters");
  RopeConfig rope;
  rope.theta = reader.number("rope_theta", rope.theta, 1.0, 1e15);
  rope.theta = scaling.number("rope_theta", rope.theta, 1.0, 1e15);
  for (ConfigReader* place : {&reader, &scaling}) {
    if (place->number("partial_rotary_factor", 1.0, 0.0, 1.0) != 1.0) {
      place->fail(ErrorKind::kUnsupported, "partial_rotary_factor below 1 is not supported");
    }
  }
  if (scaling.has("mrope_section")) {
    scaling.fail(ErrorKind::kUnsupported, "mrope_section: multimodal rope is not supported");
  }
  for (const std::string_view layer_type : {"full_attention", "sliding_attention"}) {
    if (scaling.has(layer_type)) {
      scaling.fail(ErrorKind::kUnsupported, "{}: rope per layer type is not supported", layer_type);
    }
  }
  const std::string type = scaling.string("rope_type", scaling.string("type", "default"));
  if (type == "default") return rope;
  if (type != "linear" && type != "llama3") {
    scaling.fail(ErrorKind::kUnsupported,
                 "rope type '{}' is not supported; default, linear and llama3 are", type);
    return rope;
  }
  if (!scaling.has("factor")) scaling.fail(ErrorKind::kInvalidInput, "factor is missing");
  rope.factor = scaling.number("factor", 1.0, 1e-3, 1e6);
  rope.type = RopeType::kLinear;
  if (type == "linear") return rope;
  rope.type = RopeType::kLlama3;
  rope.low_freq_factor = scaling.number("low_freq_factor", rope.low_freq_factor, 1e-3, 1e6);
  rope.high_freq_factor = scaling.number("high_freq_factor", rope.high_freq_factor, 1e-3, 1e6);
  rope.original_max_position_embeddings = scaling.integer(
      "original_max_position_embeddings",
      reader.integer("max_position_embeddings", 8192, 1, kConfigLimits.max_positions), 1,
      kConfigLimits.max_positions);
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    scaling.fail(ErrorKind::kInvalidInput, "high_freq_factor {} must exceed low_freq_factor {}",
                 rope.high_freq_factor, rope.low_freq_factor);
  }
  return rope;
}

bool read_fp8(ConfigReader& reader) {
  if (!reader.has("quantization_config")) return false;
  ConfigReader quantization = reader.object("quantization_config");
  const std::string method = quantization.string("quant_method");
  if (method != "fp8") {
    quantization.fail(ErrorKind::kUnsupported,
                      "quant_method '{}' is not supported; fp8 with 128x128 blocks is", method);
    return false;
  }
  const std::string format = quantization.string("fmt", "e4m3");
  const std::string scheme = quantization.string("activation_scheme", "dynamic");
  const std::string scale_format = quantization.string("scale_fmt", "float");
  if (format != "e4m3" || scheme != "dynamic" || scale_format != "float") {
    quantization.fail(ErrorKind::kUnsupported,
                      "fmt '{}', activation_scheme '{}', scale_fmt '{}': expected e4m3, dynamic, "
                      "float",
                      format, scheme, scale_format);
  }
  const auto block = quantization.integers("weight_block_size", 2, 1, 1 << 20);
  if (block != std::vector<int>{128, 128}) {
    quantization.fail(ErrorKind::kUnsupported, "weight_block_size: expected [128, 128]");
  }
  return true;
}

void require_silu(ConfigReader& reader) {
  const std::string act = reader.string("hidden_act", "silu");
  if (act != "silu") {
    reader.fail(ErrorKind::kUnsupported, "hidden_act '{}' is not supported; silu is", act);
  }
}

std::vector<bool> read_sliding_layers(ConfigReader& reader, int num_layers) {
  std::vector<bool> sliding(static_cast<size_t>(num_layers), false);
  const auto use_sliding_window = reader.optional_boolean("use_sliding_window");
  const auto types = reader.strings("layer_types", kConfigLimits.max_layers);
  if (types) {
    if (types->size() != sliding.size()) {
      reader.fail(ErrorKind::kInvalidInput, "layer_types: {} entries for {} layers", types->size(),
                  num_layers);
      return sliding;
    }
    for (size_t i = 0; i < types->size(); ++i) {
      sliding[i] = (*types)[i] == "sliding_attention";
      if (!sliding[i] && (*types)[i] != "full_attention") {
        reader.fail(ErrorKind::kUnsupported,
                    "layer_types: '{}' is not supported; full_attention and sliding_attention are",
                    (*types)[i]);
      }
      if (sliding[i] && use_sliding_window == false) {
        reader.fail(ErrorKind::kInvalidInput,
                    "layer_types name sliding_attention, but use_sliding_window is false");
      }
    }
    return sliding;
  }
  if (use_sliding_window == true && reader.has("sliding_window")) {
    const int first = reader.integer("max_window_layers", 28, 0, kConfigLimits.max_layers);
    for (int i = first; i < num_layers; ++i) sliding[static_cast<size_t>(i)] = true;
  }
  return sliding;
}

Status TargetConfig::validate() const {
  if (num_heads % num_kv_heads != 0) {
    return invalid("config.json: {} attention heads cannot share {} key/value heads evenly",
                   num_heads, num_kv_heads);
  }
  if (head_dim < 2 || head_dim % 2 != 0) {
    return invalid("config.json: head_dim {} must be even for rotary embedding", head_dim);
  }
  if (layer_window.size() != static_cast<size_t>(num_layers)) {
    return invalid("config.json: {} layer windows for {} layers", layer_window.size(), num_layers);
  }
  for (const int id : eos_token_ids) {
    if (id >= vocab_size) {
      return invalid("config.json: eos_token_id {} lies outside the vocabulary of {}", id,
                     vocab_size);
    }
  }
  return {};
}

Result<TargetConfig> parse_target_config(std::string_view config_json,
                                         std::string_view generation_json) {
  const JsonLimits json_limits{.max_bytes = kConfigLimits.max_json_bytes};
  VOLLEY_TRY(const Json json, parse_json(config_json, "config.json", json_limits));
  if (is_drafter_config(json)) {
    return invalid("config.json: this is a drafter, not a target (give it as --draft)");
  }
  ConfigReader reader(json, "config.json");
  TargetConfig config = read_target(reader);
  VOLLEY_TRY_STATUS(reader.status());
  if (!generation_json.empty()) {
    VOLLEY_TRY(const Json generation,
               parse_json(generation_json, "generation_config.json", json_limits));
    ConfigReader generation_reader(generation, "generation_config.json");
    read_generation(generation_reader, config);
    VOLLEY_TRY_STATUS(generation_reader.status());
  }
  VOLLEY_TRY_STATUS(config.validate());
  return config;
}

Result<TargetConfig> read_target_config(const std::filesystem::path& folder) {
  VOLLEY_TRY(const std::string config, read_config_text(folder));
  std::string generation;
  auto generation_file = read_file(folder / "generation_config.json", kConfigLimits.max_json_bytes);
  if (generation_file) {
    generation = std::move(*generation_file);
  } else if (generation_file.error().kind != ErrorKind::kNotFound) {
    return tl::unexpected<Error>(std::move(generation_file.error()));
  }
  auto parsed = parse_target_config(config, generation);
  if (!parsed) {
    Error error = std::move(parsed.error());
    error.message = folder.string() + "/" + error.message;
    return tl::unexpected<Error>(std::move(error));
  }
  return parsed;
}

bool is_drafter_config(const Json& config) {
  if (!config.is_object()) return false;
  for (const char* key : {"dflash_config", "speculators_model_type", "speculators_config"}) {
    if (config.contains(key)) return true;
  }
  const auto classes = config.find("architectures");
  if (classes == config.end() || !classes->is_array() || classes->empty() ||
      !classes->front().is_string()) {
    return false;
  }
  const std::string name = classes->front().get<std::string>();
  constexpr std::array<std::string_view, 5> kWords = {"DFlash", "DSpark", "Eagle", "Speculator",
                                                      "AssistantModel"};
  return std::any_of(kWords.begin(), kWords.end(),
                     [&](std::string_view word) { return name.find(word) != std::string::npos; });
}

Result<std::string> read_config_text(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(folder, ignored)) {
    return make_error(ErrorKind::kUnsupported,
                      "{}: expected a model folder in Hugging Face format, got a file{}",
                      folder.string(), folder.extension() == ".gguf" ? " (GGUF is not read)" : "");
  }
  if (!std::filesystem::is_directory(folder, ignored)) {
    return make_error(ErrorKind::kNotFound, "{}: no such model folder", folder.string());
  }
  return read_file(folder / "config.json", kConfigLimits.max_json_bytes);
}

Result<bool> is_drafter_folder(const std::filesystem::path& folder) {
  VOLLEY_TRY(const std::string text, read_config_text(folder));
  VOLLEY_TRY(const Json json, parse_json(text, (folder / "config.json").string(),
                                         {.max_bytes = kConfigLimits.max_json_bytes}));
  return is_drafter_config(json);
}

}  // namespace volley
