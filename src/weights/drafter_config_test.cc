#include "weights/drafter_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

namespace volley {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Qwen3-8B-DFlash-b16 in the z-lab layout.
constexpr std::string_view kZLab = R"({
  "architectures": ["DFlashDraftModel"], "attention_bias": false, "block_size": 16,
  "dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]},
  "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
  "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention",
                  "full_attention"],
  "max_position_embeddings": 40960, "max_window_layers": 5, "model_type": "qwen3",
  "num_attention_heads": 32, "num_hidden_layers": 5, "num_key_value_heads": 8,
  "num_target_layers": 36, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
  "sliding_window": null, "tie_word_embeddings": false, "use_sliding_window": false,
  "vocab_size": 151936})";

constexpr std::string_view kSpeculators = R"({
  "architectures": ["DFlashSpeculator"], "speculators_model_type": "dflash",
  "aux_hidden_state_layer_ids": [2, 10, 18, 26, 34], "block_size": 8, "draft_vocab_size": 32000,
  "mask_token_id": 151669, "sample_from_anchor": false, "sliding_window_non_causal": false,
  "target_hidden_size": null,
  "speculators_config": {"algorithm": "dflash", "default_proposal_method": "greedy",
    "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 7}],
    "verifier": {"architectures": ["Qwen3ForCausalLM"], "name_or_path": "Qwen/Qwen3-8B"}},
  "transformer_layer_config": {"model_type": "qwen3", "attention_bias": false, "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 12288,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 40960, "num_attention_heads": 32, "num_hidden_layers": 3,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "sliding_window": 2048,
    "use_sliding_window": true, "vocab_size": 151936,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}})";

constexpr DraftLayerAttention kFull = {.window = 0, .causal_in_block = false};

std::string with(std::string_view base, std::string_view changes) {
  Json json = Json::parse(base);
  json.merge_patch(Json::parse(changes));
  return json.dump();
}

DrafterConfig parsed(std::string_view base, std::string_view changes = "{}") {
  auto config = parse_drafter_config(with(base, changes));
  EXPECT_TRUE(config) << changes << ": " << config.error().message;
  return config ? *config : DrafterConfig{};
}

std::string error_of(std::string_view base, std::string_view changes) {
  const auto config = parse_drafter_config(with(base, changes));
  return config ? "accepted" : config.error().message;
}

TEST(DrafterConfig, ReadsZLab) {
  const DrafterConfig config = parsed(kZLab);
  EXPECT_EQ(config.layout, DrafterLayout::kZLab);
  EXPECT_EQ(config.block_size, 16);
  EXPECT_EQ(config.mask_token_id, 151669);
  EXPECT_THAT(config.taps, ElementsAre(1, 9, 17, 25, 33));
  EXPECT_EQ(config.num_layers, 5);
  EXPECT_EQ(config.num_target_layers, 36);
  EXPECT_EQ(config.target_hidden_size, 4096);
  EXPECT_FALSE(config.has_reduced_vocab());
  EXPECT_EQ(config.rope.theta, 1e6);
  EXPECT_THAT(config.attention, Each(kFull));
}

TEST(DrafterConfig, ReadsSpeculators) {
  const DrafterConfig config = parsed(kSpeculators);
  EXPECT_EQ(config.layout, DrafterLayout::kSpeculators);
  EXPECT_EQ(config.block_size, 8);
  EXPECT_THAT(config.taps, ElementsAre(1, 9, 17, 25, 33)) << "its ids count the embedding";
  EXPECT_EQ(config.draft_vocab_size, 32000);
  EXPECT_EQ(config.vocab_size, 151936);
  EXPECT_EQ(config.verifier, "Qwen/Qwen3-8B");
  const DraftLayerAttention sliding = {.window = 2048, .causal_in_block = true};
  EXPECT_THAT(config.attention, ElementsAre(sliding, sliding, kFull));
  const DraftLayerAttention symmetric = {.window = 2048, .causal_in_block = false};
  EXPECT_THAT(parsed(kSpeculators, R"({"sliding_window_non_causal": true})").attention,
              ElementsAre(symmetric, symmetric, kFull));
}

TEST(DrafterConfig, BlockSizeHasTwoHomes) {
  EXPECT_EQ(
      parsed(kZLab, R"({"block_size": null, "dflash_config": {"block_size": 10}})").block_size, 10);
  EXPECT_EQ(parsed(kZLab, R"({"dflash_config": {"block_size": 16}})").block_size, 16);
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"block_size": 8}})"),
              HasSubstr("block_size is 16 at the top and 8"));
  EXPECT_THAT(error_of(kZLab, R"({"block_size": null})"), HasSubstr("block_size is missing"));
}

TEST(DrafterConfig, ShortBlocksRiseBelowTheWholeOne) {
  EXPECT_TRUE(parsed(kZLab).short_block_sizes.empty());
  const DrafterConfig config = parsed(kZLab, R"({"dflash_config": {"short_block_sizes": [4, 8]}})");
  EXPECT_THAT(config.short_block_sizes, ElementsAre(4, 8));
  for (const char* wrong : {"[8, 4]", "[4, 4]", "[4, 16]"}) {
    EXPECT_THAT(
        error_of(kZLab, std::string(R"({"dflash_config": {"short_block_sizes": )") + wrong + "}}"),
        HasSubstr("short_block_sizes must increase"))
        << wrong;
  }
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"short_block_sizes": [1]}})"),
              HasSubstr("short_block_sizes"));
}

TEST(DrafterConfig, DefaultTaps) {
  EXPECT_THAT(default_taps(36, 5), ElementsAre(1, 9, 17, 25, 33));
  EXPECT_THAT(default_taps(28, 5), ElementsAre(1, 7, 13, 19, 25));
  EXPECT_THAT(default_taps(24, 1), ElementsAre(12));
  EXPECT_THAT(default_taps(64, 2), ElementsAre(1, 61));
  EXPECT_THAT(default_taps(9, 3), ElementsAre(1, 4, 6)) << "3.5 rounds to the even 4";
  EXPECT_THAT(default_taps(11, 3), ElementsAre(1, 4, 8)) << "4.5 rounds to the even 4";
  EXPECT_THAT(parsed(kZLab, R"({"dflash_config": {"target_layer_ids": null}})").taps,
              ElementsAre(1, 9, 17, 25, 33));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"target_layer_ids": null},
                                  "num_target_layers": null})"),
              HasSubstr("target_layer_ids is missing"));
}

TEST(DrafterConfig, CausalityTrap) {
  constexpr std::string_view kMixed =
      R"("layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2,
         "sliding_window": 2048, "use_sliding_window": true)";
  const auto attention = [&](std::string_view extra) {
    return parsed(kZLab, fmt::format("{{{}{}}}", kMixed, extra)).attention;
  };
  const DraftLayerAttention causal_window = {.window = 2048, .causal_in_block = true};
  const DraftLayerAttention symmetric = {.window = 2048, .causal_in_block = false};
  const DraftLayerAttention causal = {.window = 0, .causal_in_block = true};
  EXPECT_THAT(attention(""), ElementsAre(causal_window, kFull));
  EXPECT_THAT(attention(R"(, "is_causal": false)"), ElementsAre(symmetric, kFull));
  EXPECT_THAT(attention(R"(, "dflash_config": {"causal": false})"), ElementsAre(symmetric, kFull));
  EXPECT_THAT(attention(R"(, "is_causal": true)"), ElementsAre(causal_window, causal));
  EXPECT_THAT(attention(R"(, "is_causal": false, "dflash_config": {"causal": true})"),
              ElementsAre(symmetric, kFull))
      << "is_causal wins";
  EXPECT_THAT(attention(R"(, "is_causal": null, "dflash_config": {"causal": true})"),
              ElementsAre(causal_window, causal));
}

TEST(DrafterConfig, UseSwaSlidesEveryLayerWithoutCausality) {
  const DrafterConfig config =
      parsed(kZLab, R"({"dflash_config": {"use_swa": true, "swa_window_size": 1024}})");
  EXPECT_THAT(config.attention, Each(DraftLayerAttention{.window = 1024}));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"use_swa": true}})"),
              HasSubstr("swa_window_size"));
}

TEST(DrafterConfig, OtherSpeculatorsAreNamed) {
  struct Case {
    std::string_view changes;
    std::string_view message;
  };
  constexpr std::array kZLabCases = {
      Case{R"({"architectures": ["DFlash2DraftModel"]})", "DFlash2"},
      Case{R"({"dflash_config": {"conv_kernel_size": 2}})", "DFlash2"},
      Case{R"({"dflash_config": {"projector_type": "domino"}})", "Domino"},
      Case{R"({"dflash_config": {"projector_type": "dspark"}})", "DSpark"},
      Case{R"({"projector_type": "something"})", "'something'"},
      Case{R"({"dflash_config": {"shift_label": true}})", "Domino"},
      Case{R"({"dflash_config": {"attention_sink_bias": true}})", "sinks"},
      Case{R"({"dflash_config": {"use_aux_hidden_state": false}})", "tapped"},
      Case{R"({"dflash_config": {"final_logit_softcapping": 20}})", "softcapping"},
      Case{R"({"dflash_config": {"output_multiplier": 0.2}})", "output_multiplier"},
      Case{R"({"is_neox_style": false})", "interleaved"},
      Case{R"({"architectures": ["LlamaForCausalLMEagle3"], "dflash_config": null})", "EAGLE"},
      Case{R"({"architectures": ["LlamaForCausalLM"], "dflash_config": null})",
           "no DFlash drafter"},
      Case{R"({"hidden_act": "gelu"})", "hidden_act"},
  };
  for (const Case& c : kZLabCases) {
    const auto config = parse_drafter_config(with(kZLab, c.changes));
    ASSERT_FALSE(config) << c.changes;
    EXPECT_EQ(config.error().kind, ErrorKind::kUnsupported) << c.changes;
    EXPECT_THAT(config.error().message, HasSubstr(c.message));
  }
  constexpr std::array kSpeculatorsCases = {
      Case{R"({"speculators_model_type": "dspark"})", "DSpark"},
      Case{R"({"speculators_model_type": "eagle3"})", "EAGLE"},
      Case{R"({"speculators_model_type": "unheard"})", "'unheard'"},
      Case{R"({"speculators_config": {"algorithm": "dspark"}})", "DSpark"},
      Case{R"({"sample_from_anchor": true})", "sample_from_anchor"},
      Case{R"({"markov_rank": 64})", "markov_rank"},
      Case{R"({"enable_confidence_head": true})", "confidence"},
      Case{R"({"aux_hidden_state_layer_ids": [0, 4]})", "embedding's output"},
  };
  for (const Case& c : kSpeculatorsCases) {
    const auto config = parse_drafter_config(with(kSpeculators, c.changes));
    ASSERT_FALSE(config) << c.changes;
    EXPECT_EQ(config.error().kind, ErrorKind::kUnsupported) << c.changes;
    EXPECT_THAT(config.error().message, HasSubstr(c.message));
  }
}

TEST(DrafterConfig, RefusesWrongValues) {
  EXPECT_THAT(error_of(kZLab, R"({"block_size": 1})"), HasSubstr("block_size"));
  EXPECT_THAT(error_of(kZLab, R"({"block_size": 1000000})"), HasSubstr("block_size"));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"mask_token_id": null}})"),
              HasSubstr("mask_token_id is missing"));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"mask_token_id": 151936}})"),
              HasSubstr("outside the vocabulary"));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"target_layer_ids": [9, 1]}})"),
              HasSubstr("must increase"));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"target_layer_ids": []}})"),
              HasSubstr("no target layers"));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": {"target_layer_ids": [-1]}})"),
              HasSubstr("target_layer_ids"));
  EXPECT_THAT(error_of(kZLab, R"({"dflash_config": 3})"), HasSubstr("expected an object"));
  EXPECT_THAT(error_of(kSpeculators, R"({"draft_vocab_size": 151937})"), HasSubstr("exceeds"));
  EXPECT_THAT(error_of(kSpeculators, R"({"aux_hidden_state_layer_ids": null})"),
              HasSubstr("aux_hidden_state_layer_ids is missing"));
  EXPECT_THAT(error_of(kSpeculators, R"({"transformer_layer_config": null})"),
              HasSubstr("hidden_size is missing"));
  EXPECT_THAT(error_of(kSpeculators, R"({"transformer_layer_config": {"sliding_window": null}})"),
              HasSubstr("sliding_window"));
  EXPECT_FALSE(parse_drafter_config("[]"));
  EXPECT_FALSE(parse_drafter_config(""));
}

TEST(DrafterFit, ChecksThePair) {
  TargetConfig target;
  target.hidden_size = 4096;
  target.num_layers = 36;
  target.vocab_size = 151936;
  target.rope.theta = 1e6;
  const DrafterConfig drafter = parsed(kZLab);
  EXPECT_TRUE(check_drafter_fits(target, drafter));
  const auto why = [&](auto change) {
    TargetConfig other = target;
    change(other);
    const Status status = check_drafter_fits(other, drafter);
    return status ? std::string("fits") : status.error().message;
  };
  EXPECT_THAT(why([](TargetConfig& t) { t.hidden_size = 2560; }), HasSubstr("hidden size"));
  EXPECT_THAT(why([](TargetConfig& t) { t.vocab_size = 128256; }), HasSubstr("vocabulary"));
  EXPECT_THAT(why([](TargetConfig& t) { t.num_layers = 32; }), HasSubstr("target layers"));
  EXPECT_THAT(why([](TargetConfig& t) { t.rope.theta = 5e5; }), HasSubstr("fits"));

  DrafterConfig taps_too_deep = drafter;
  taps_too_deep.num_target_layers.reset();
  taps_too_deep.taps = {1, 36};
  const DrafterFit fit = drafter_fit(target, taps_too_deep);
  EXPECT_FALSE(fit.ok());
  for (const FitCheck& check : fit.checks) {
    EXPECT_EQ(check.ok, check.name != "taps") << check.name << ": " << check.why;
  }
}

}  // namespace
}  // namespace volley
