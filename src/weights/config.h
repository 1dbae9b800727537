#pragma once

// What config.json and generation_config.json of a target say, checked and bounded.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "weights/config_reader.h"

namespace volley {

// The largest sizes that a config may name. They keep every product of two sizes inside int64 and
// are far above any published dense model.
struct ConfigLimits {
  size_t max_json_bytes = size_t{1} << 20;
  int max_hidden_size = 1 << 16;
  int max_layers = 1024;
  int max_heads = 4096;
  int max_head_dim = 1024;
  int max_intermediate_size = 1 << 20;
  int max_vocab_size = 1 << 23;
  int max_positions = 1 << 28;
  int max_taps = 64;
  int max_draft_block = 1024;
  int max_eos_ids = 64;
};
inline constexpr ConfigLimits kConfigLimits;

enum class Architecture { kQwen3, kQwen2, kLlama };
std::string_view architecture_name(Architecture architecture);  // "Qwen3"

enum class RopeType { kDefault, kLinear, kLlama3 };
std::string_view rope_type_name(RopeType type);

// Rotary embedding over all of head_dim, halves rotated ("neox" layout). Angles are
// position * inverse_frequency; kLinear divides the frequencies by factor; kLlama3 divides those
// whose wavelength exceeds original_max_position_embeddings / low_freq_factor, keeps those below
// .../ high_freq_factor, and blends between (Transformers, _compute_llama3_parameters).
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  double factor = 1.0;                          // kLinear, kLlama3
  double low_freq_factor = 1.0;                 // kLlama3
  double high_freq_factor = 4.0;                // kLlama3
  int original_max_position_embeddings = 8192;  // kLlama3

  bool operator==(const RopeConfig&) const = default;
};

// What the model's authors recommend (generation_config.json); absent ones are nullopt.
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<double> temperature;
  std::optional<int> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
};

struct TargetConfig {
  Architecture architecture = Architecture::kQwen3;
  int hidden_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;
  int vocab_size = 0;
  int max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // biases on q, k and v
  bool o_bias = false;    // and on o: attention_bias of Qwen3 and Llama means all four
  bool qk_norm = false;   // RMS norm of each query and key head
  bool fp8 = false;       // quantization_config: e4m3 with 128x128 scales
  RopeConfig rope;
  // [num_layers] keys seen by a position, itself included; 0 = all. Key k of query q is seen when
  // 0 <= q - k < window.
  std::vector<int> layer_window;
  std::vector<int> eos_token_ids;  // generation_config.json wins over config.json
  GenerationDefaults generation;

  // Fields agree with each other and with kConfigLimits.
  Status validate() const;
};

// Parses the texts of the two files; `generation_json` may be empty (no such file).
Result<TargetConfig> parse_target_config(std::string_view config_json,
                                         std::string_view generation_json = {});
// Reads folder/config.json and, where there is one, folder/generation_config.json.
Result<TargetConfig> read_target_config(const std::filesystem::path& folder);

// Whether folder/config.json is that of a drafter.
Result<bool> is_drafter_folder(const std::filesystem::path& folder);

// Whether a config is that of a drafter (any speculator, supported or not) rather than a target.
bool is_drafter_config(const Json& config);

// Parts that targets and drafters share.

// Both spellings: rope_theta beside rope_scaling, and rope_parameters of Transformers 5.
RopeConfig read_rope(ConfigReader& reader);
// quantization_config; true for the FP8 that Volley reads, false when absent.
bool read_fp8(ConfigReader& reader);
void require_silu(ConfigReader& reader);
// "Is `layer` a sliding-window layer?" for every layer, from layer_types or, without them, from
// use_sliding_window and max_window_layers as in Transformers.
std::vector<bool> read_sliding_layers(ConfigReader& reader, int num_layers);
// The text of folder/config.json; what lies there instead of a model folder is named.
Result<std::string> read_config_text(const std::filesystem::path& folder);

}  // namespace volley
