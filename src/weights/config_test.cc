#include "weights/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "weights/test_files.h"

namespace volley {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Qwen3-0.6B, as published.
constexpr std::string_view kQwen3 = R"({
  "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
  "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
  "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
  "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
  "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
  "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_cache": true,
  "use_sliding_window": false, "vocab_size": 151936})";

// Llama 3.1 8B, as published.
constexpr std::string_view kLlama = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
  "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
  "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
  "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
  "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": false, "vocab_size": 128256})";

// Qwen2.5-7B, as published.
constexpr std::string_view kQwen25 = R"({
  "architectures": ["Qwen2ForCausalLM"], "eos_token_id": 151645, "hidden_act": "silu",
  "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768,
  "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
  "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
  "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false,
  "use_sliding_window": false, "vocab_size": 152064})";

// `base` with the members of `changes` over it (JSON merge patch: null removes).
std::string with(std::string_view base, std::string_view changes) {
  Json json = Json::parse(base);
  json.merge_patch(Json::parse(changes));
  return json.dump();
}

std::string error_of(std::string_view base, std::string_view changes) {
  const auto config = parse_target_config(with(base, changes));
  return config ? "accepted" : config.error().message;
}

TEST(TargetConfig, ReadsQwen3) {
  const auto config = parse_target_config(kQwen3);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->architecture, Architecture::kQwen3);
  EXPECT_EQ(config->hidden_size, 1024);
  EXPECT_EQ(config->num_layers, 28);
  EXPECT_EQ(config->num_heads, 16);
  EXPECT_EQ(config->num_kv_heads, 8);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->intermediate_size, 3072);
  EXPECT_EQ(config->vocab_size, 151936);
  EXPECT_EQ(config->max_position_embeddings, 40960);
  EXPECT_TRUE(config->tie_word_embeddings);
  EXPECT_TRUE(config->qk_norm);
  EXPECT_FALSE(config->qkv_bias);
  EXPECT_FALSE(config->o_bias);
  EXPECT_EQ(config->rope, (RopeConfig{.theta = 1e6}));
  EXPECT_THAT(config->layer_window, Each(0));
  EXPECT_THAT(config->eos_token_ids, ElementsAre(151645));
}

TEST(TargetConfig, ReadsLlama3) {
  const auto config = parse_target_config(kLlama);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->architecture, Architecture::kLlama);
  EXPECT_EQ(config->head_dim, 128) << "derived";
  EXPECT_FALSE(config->qk_norm);
  EXPECT_EQ(config->rope.type, RopeType::kLlama3);
  EXPECT_EQ(config->rope.theta, 500000.0);
  EXPECT_EQ(config->rope.factor, 8.0);
  EXPECT_EQ(config->rope.original_max_position_embeddings, 8192);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(128001, 128008, 128009));
}

TEST(TargetConfig, ReadsQwen25) {
  const auto config = parse_target_config(kQwen25);
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_TRUE(config->qkv_bias) << "Qwen2 has it without a key that says so";
  EXPECT_FALSE(config->o_bias);
  EXPECT_FALSE(config->qk_norm);
  EXPECT_THAT(config->layer_window, Each(0)) << "use_sliding_window is false";
}

TEST(TargetConfig, BothRopeSpellingsMeanTheSame) {
  const auto old_spelling = parse_target_config(kLlama);
  const auto new_spelling = parse_target_config(with(kLlama, R"({"rope_scaling": null,
    "rope_theta": null, "rope_parameters": {"rope_theta": 500000.0, "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3"}})"));
  ASSERT_TRUE(old_spelling);
  ASSERT_TRUE(new_spelling) << new_spelling.error().message;
  EXPECT_EQ(old_spelling->rope, new_spelling->rope);
  const auto legacy =
      parse_target_config(with(kQwen3, R"({"rope_scaling": {"type": "linear", "factor": 2.0}})"));
  ASSERT_TRUE(legacy) << legacy.error().message;
  EXPECT_EQ(legacy->rope, (RopeConfig{.type = RopeType::kLinear, .theta = 1e6, .factor = 2.0}));
}

TEST(TargetConfig, AttentionBiasMeansAllFourOutsideQwen2) {
  for (const std::string_view base : {kQwen3, kLlama}) {
    const auto config = parse_target_config(with(base, R"({"attention_bias": true})"));
    ASSERT_TRUE(config);
    EXPECT_TRUE(config->qkv_bias && config->o_bias);
  }
}

TEST(TargetConfig, SlidingWindowLayers) {
  const auto upper = parse_target_config(with(
      kQwen25, R"({"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 26})"));
  ASSERT_TRUE(upper) << upper.error().message;
  EXPECT_EQ(upper->layer_window[25], 0);
  EXPECT_EQ(upper->layer_window[26], 4096);
  const auto listed = parse_target_config(
      with(kQwen3, R"({"num_hidden_layers": 2, "use_sliding_window": true, "sliding_window": 64,
                       "layer_types": ["sliding_attention", "full_attention"]})"));
  ASSERT_TRUE(listed) << listed.error().message;
  EXPECT_THAT(listed->layer_window, ElementsAre(64, 0));
}

TEST(TargetConfig, ReadsFp8) {
  const auto config = parse_target_config(with(kQwen3, R"({"quantization_config":
    {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
     "weight_block_size": [128, 128]}})"));
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_TRUE(config->fp8);
}

TEST(TargetConfig, GenerationConfigWins) {
  const auto config = parse_target_config(
      kQwen3, R"({"eos_token_id": [151645, 151643], "do_sample": true, "temperature": 0.6,
                  "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"})");
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_THAT(config->eos_token_ids, ElementsAre(151645, 151643));
  EXPECT_EQ(config->generation.temperature, 0.6);
  EXPECT_EQ(config->generation.top_k, 20);
  EXPECT_EQ(config->generation.top_p, 0.95);
  EXPECT_EQ(config->generation.min_p, std::nullopt);
  const auto silent = parse_target_config(kQwen3, "{}");
  ASSERT_TRUE(silent);
  EXPECT_THAT(silent->eos_token_ids, ElementsAre(151645));
}

TEST(TargetConfig, RefusesWrongValues) {
  struct Case {
    std::string_view changes;
    std::string_view message;
  };
  constexpr std::array kCases = {
      Case{R"({"hidden_size": null})", "hidden_size is missing"},
      Case{R"({"hidden_size": -1})", "hidden_size: expected an integer from 1"},
      Case{R"({"hidden_size": 1e30})", "hidden_size: expected an integer"},
      Case{R"({"hidden_size": 1024.0})", "hidden_size: expected an integer"},
      Case{R"({"hidden_size": "1024"})", "hidden_size: expected an integer"},
      Case{R"({"hidden_size": 18446744073709551615})", "hidden_size: expected an integer"},
      Case{R"({"num_hidden_layers": 0})", "num_hidden_layers"},
      Case{R"({"num_attention_heads": 7})", "evenly"},
      Case{R"({"num_key_value_heads": 0})", "num_key_value_heads"},
      Case{R"({"head_dim": 127})", "must be even"},
      Case{R"({"vocab_size": 2147483648})", "vocab_size"},
      Case{R"({"rms_norm_eps": 0})", "rms_norm_eps"},
      Case{R"({"rms_norm_eps": "1e-6"})", "rms_norm_eps: expected a number"},
      Case{R"({"tie_word_embeddings": 1})", "true or false"},
      Case{R"({"mlp_bias": true})", "mlp_bias"},
      Case{R"({"hidden_act": "gelu"})", "hidden_act 'gelu'"},
      Case{R"({"architectures": ["MixtralForCausalLM"]})", "'MixtralForCausalLM'"},
      Case{R"({"architectures": null, "model_type": "gpt2"})", "'gpt2'"},
      Case{R"({"rope_theta": -1})", "rope_theta"},
      Case{R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})", "rope type 'yarn'"},
      Case{R"({"rope_scaling": {"rope_type": "llama3"}})", "factor is missing"},
      Case{R"({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
               "high_freq_factor": 4}})",
           "must exceed"},
      Case{R"({"rope_scaling": 3})", "expected an object"},
      Case{R"({"partial_rotary_factor": 0.5})", "partial_rotary_factor"},
      Case{R"({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})", "per layer type"},
      Case{R"({"layer_types": ["full_attention"]})", "1 entries for 28 layers"},
      Case{R"({"num_hidden_layers": 1, "layer_types": ["linear_attention"]})", "linear_attention"},
      Case{R"({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]})",
           "use_sliding_window is false"},
      Case{R"({"num_hidden_layers": 1, "layer_types": ["sliding_attention"],
               "use_sliding_window": true})",
           "sliding_window is missing"},
      Case{R"({"eos_token_id": 151936})", "outside the vocabulary"},
      Case{R"({"eos_token_id": [1, "2"]})", "eos_token_id"},
      Case{R"({"quantization_config": {"quant_method": "gptq"}})", "quant_method 'gptq'"},
      Case{R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}})",
           "[128, 128]"},
      Case{R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
               "activation_scheme": "static"}})",
           "static"},
      Case{R"({"dflash_config": {}})", "this is a drafter"},
  };
  for (const Case& c : kCases) {
    EXPECT_THAT(error_of(kQwen3, c.changes), HasSubstr(c.message)) << c.changes;
  }
}

TEST(TargetConfig, RefusesWhatIsNoConfig) {
  for (const std::string_view text : {"", "[]", "3", "{", "\"x\"", "{\"a\":}"}) {
    EXPECT_FALSE(parse_target_config(text)) << text;
  }
  EXPECT_FALSE(parse_target_config(std::string(100000, '[')));
  EXPECT_FALSE(parse_target_config(kQwen3, "{\"temperature\": -1}"));
  EXPECT_FALSE(parse_target_config(kQwen3, "[]"));
}

TEST(TargetConfig, NamesWhatIsNoFolder) {
  TemporaryFolder folder;
  folder.write("model.gguf", "GGUF");
  EXPECT_THAT(read_target_config(folder.path() / "model.gguf").error().message,
              HasSubstr("GGUF is not read"));
  EXPECT_EQ(read_target_config(folder.path() / "none").error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(read_target_config(folder.path()).error().message, HasSubstr("config.json"));
  folder.write("config.json", "{\"dflash_config\": {}}");
  EXPECT_TRUE(*is_drafter_folder(folder.path()));
  folder.write("config.json", kLlama);
  EXPECT_FALSE(*is_drafter_folder(folder.path()));
  folder.write("generation_config.json", "{\"top_k\": \"many\"}");
  EXPECT_THAT(read_target_config(folder.path()).error().message,
              HasSubstr("generation_config.json: top_k"));
}

}  // namespace
}  // namespace volley
