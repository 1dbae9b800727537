#include "weights/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "weights/test_files.h"

namespace volley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Entry {
  DType dtype;
  std::vector<int64_t> shape;
  std::string bytes;  // empty: zeros
};
using Entries = std::map<std::string, Entry>;

constexpr std::string_view kTarget = R"({"architectures": ["Qwen3ForCausalLM"], "hidden_size": 16,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "intermediate_size": 24, "vocab_size": 20, "max_position_embeddings": 64,
  "tie_word_embeddings": true})";

constexpr std::string_view kDrafter = R"({"architectures": ["DFlashDraftModel"], "hidden_size": 16,
  "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "intermediate_size": 24, "vocab_size": 20, "max_position_embeddings": 64, "block_size": 4,
  "dflash_config": {"mask_token_id": 3, "target_layer_ids": [0, 1]}})";

constexpr std::string_view kSpeculators = R"({"speculators_model_type": "dflash",
  "block_size": 4, "mask_token_id": 3, "aux_hidden_state_layer_ids": [1, 2], "draft_vocab_size": 3,
  "transformer_layer_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24, "vocab_size": 20,
  "max_position_embeddings": 64}})";

std::string with(std::string_view base, std::string_view changes) {
  Json json = Json::parse(base);
  json.merge_patch(Json::parse(changes));
  return json.dump();
}

void add_layer(Entries& entries, const std::string& prefix, DType dtype) {
  const auto add = [&](const char* name, std::vector<int64_t> shape) {
    entries[prefix + name] = {dtype, std::move(shape), ""};
  };
  add("input_layernorm.weight", {16});
  add("post_attention_layernorm.weight", {16});
  add("self_attn.q_proj.weight", {32, 16});
  add("self_attn.k_proj.weight", {16, 16});
  add("self_attn.v_proj.weight", {16, 16});
  add("self_attn.o_proj.weight", {16, 32});
  add("self_attn.q_norm.weight", {8});
  add("self_attn.k_norm.weight", {8});
  add("mlp.gate_proj.weight", {24, 16});
  add("mlp.up_proj.weight", {24, 16});
  add("mlp.down_proj.weight", {16, 24});
}

Entries target_entries(DType dtype = DType::kBF16) {
  Entries entries;
  entries["model.embed_tokens.weight"] = {dtype, {20, 16}, ""};
  entries["model.norm.weight"] = {dtype, {16}, ""};
  add_layer(entries, "model.layers.0.", dtype);
  add_layer(entries, "model.layers.1.", dtype);
  return entries;
}

Entries drafter_entries() {
  Entries entries;
  entries["fc.weight"] = {DType::kBF16, {16, 32}, ""};
  entries["hidden_norm.weight"] = {DType::kBF16, {16}, ""};
  entries["norm.weight"] = {DType::kBF16, {16}, ""};
  add_layer(entries, "layers.0.", DType::kBF16);
  return entries;
}

Entries speculators_entries() {
  Entries entries = drafter_entries();
  entries["embed_tokens.weight"] = {DType::kBF16, {20, 16}, ""};
  entries["lm_head.weight"] = {DType::kBF16, {3, 16}, ""};
  entries["d2t"] = {DType::kI64, {3}, bytes_of<int64_t>({2, 4, 17})};  // ids 2, 5, 19
  std::string t2d(20, '\0');
  t2d[2] = t2d[5] = t2d[19] = 1;
  entries["t2d"] = {DType::kBool, {20}, t2d};
  return entries;
}

class ModelFiles : public ::testing::Test {
 protected:
  void write(std::string_view config, const Entries& entries) {
    folder_.write("config.json", config);
    SafetensorsBuilder builder;
    for (const auto& [name, entry] : entries) {
      builder.add(name, entry.dtype, entry.shape, entry.bytes);
    }
    folder_.write("model.safetensors", builder.bytes());
  }
  std::string target_error(std::string_view config, const Entries& entries) {
    write(config, entries);
    const auto files = open_target(folder_.path());
    return files ? "accepted" : files.error().message;
  }
  std::string drafter_error(std::string_view config, const Entries& entries) {
    write(config, entries);
    const auto files = open_drafter(folder_.path());
    return files ? "accepted" : files.error().message;
  }
  TemporaryFolder folder_;
};

TEST_F(ModelFiles, ReadsTarget) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    write(kTarget, target_entries(dtype));
    auto files = open_target(folder_.path());
    ASSERT_TRUE(files) << files.error().message;
    const TargetFiles moved = std::move(*files);
    ASSERT_EQ(moved.weights.layers.size(), 2u);
    EXPECT_EQ(moved.weights.layers[1].q.rows(), 32);
    EXPECT_EQ(moved.weights.layers[1].o.at(15, 31), 0.0f);
    EXPECT_EQ(moved.weights.lm_head.weight.data, moved.weights.embed.weight.data) << "tied";
    EXPECT_TRUE(moved.weights.layers[0].q_bias.empty());
    EXPECT_FALSE(moved.weights.layers[0].q_norm.empty());
  }
}

TEST_F(ModelFiles, ReadsUntiedHeadAndBiases) {
  Entries entries = target_entries();
  entries["lm_head.weight"] = {DType::kBF16, {20, 16}, ""};
  for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
    const std::string prefix = std::string(layer) + "self_attn.";
    entries.erase(prefix + "q_norm.weight");
    entries.erase(prefix + "k_norm.weight");
    entries[prefix + "q_proj.bias"] = {DType::kBF16, {32}, ""};
    entries[prefix + "k_proj.bias"] = {DType::kBF16, {16}, ""};
    entries[prefix + "v_proj.bias"] = {DType::kBF16, {16}, ""};
  }
  write(with(kTarget, R"({"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": false})"),
        entries);
  const auto files = open_target(folder_.path());
  ASSERT_TRUE(files) << files.error().message;
  EXPECT_FALSE(files->weights.layers[1].v_bias.empty());
  EXPECT_TRUE(files->weights.layers[1].o_bias.empty());
  EXPECT_NE(files->weights.lm_head.weight.data, files->weights.embed.weight.data);
}

TEST_F(ModelFiles, ReadsFp8WithScales) {
  Entries entries = target_entries();
  entries["model.layers.0.mlp.up_proj.weight"].dtype = DType::kF8E4M3;
  EXPECT_THAT(target_error(kTarget, entries),
              HasSubstr("missing: model.layers.0.mlp.up_proj.weight_scale_inv"));
  Entry& scale = entries["model.layers.0.mlp.up_proj.weight_scale_inv"];
  scale = {DType::kF32, {1, 1}, bytes_of<float>({0.5f})};
  EXPECT_EQ(target_error(kTarget, entries), "accepted");
  scale = {DType::kF32, {1, 2}, ""};
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("calls for shape [1, 1]"));
  scale = {DType::kF32, {1, 1}, bytes_of<float>({std::numeric_limits<float>::infinity()})};
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("not finite"));
  scale = {DType::kU8, {1, 1}, ""};
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("expected f32, f16 or bf16"));
  entries["model.layers.0.mlp.up_proj.weight"].dtype = DType::kBF16;
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("does not call for"));
}

TEST_F(ModelFiles, SkipsTensorsWithoutEffect) {
  Entries entries = target_entries();
  entries["model.layers.0.self_attn.rotary_emb.inv_freq"] = {DType::kF32, {4}, ""};
  entries["lm_head.weight"] = {DType::kBF16, {20, 16}, ""};  // tied: a copy
  EXPECT_EQ(target_error(kTarget, entries), "accepted");
}

TEST_F(ModelFiles, NamesMissingTensors) {
  Entries entries = target_entries();
  entries.erase("model.norm.weight");
  EXPECT_THAT(target_error(kTarget, entries),
              HasSubstr("1 tensors are missing: model.norm.weight"));
  EXPECT_THAT(target_error(with(kTarget, R"({"num_hidden_layers": 3})"), target_entries()),
              HasSubstr("11 tensors are missing: model.layers.2.input_layernorm.weight"));
  EXPECT_THAT(target_error(with(kTarget, R"({"num_hidden_layers": 3})"), target_entries()),
              HasSubstr("and 6 more"));
  EXPECT_THAT(target_error(with(kTarget, R"({"tie_word_embeddings": false})"), target_entries()),
              HasSubstr("lm_head.weight"));
}

TEST_F(ModelFiles, NamesExtraTensors) {
  Entries entries = target_entries();
  entries["model.layers.0.self_attn.q_proj.bias"] = {DType::kBF16, {32}, ""};
  EXPECT_THAT(target_error(kTarget, entries),
              HasSubstr("does not call for: model.layers.0.self_attn.q_proj.bias"));
  EXPECT_THAT(target_error(with(kTarget, R"({"num_hidden_layers": 1})"), target_entries()),
              HasSubstr("11 tensors that config.json does not call for"));
}

TEST_F(ModelFiles, ChecksShapesAndDTypes) {
  EXPECT_THAT(target_error(with(kTarget, R"({"vocab_size": 21})"), target_entries()),
              HasSubstr("calls for shape [21, 16], the file has [20, 16]"));
  Entries entries = target_entries();
  entries["model.norm.weight"].dtype = DType::kI32;
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("got i32"));
  entries = target_entries();
  entries["model.norm.weight"].shape = {16, 1};
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("the file has [16, 1]"));
  entries = target_entries();
  entries["model.embed_tokens.weight"].dtype = DType::kI8;
  EXPECT_THAT(target_error(kTarget, entries), HasSubstr("got i8"));
}

TEST_F(ModelFiles, ReadsZLabDrafter) {
  write(kDrafter, drafter_entries());
  const auto files = open_drafter(folder_.path());
  ASSERT_TRUE(files) << files.error().message;
  EXPECT_EQ(files->weights.fc.cols(), 32);
  EXPECT_TRUE(files->weights.embed.empty());
  EXPECT_TRUE(files->weights.lm_head.empty());
  EXPECT_TRUE(files->weights.draft_to_target.empty());
}

TEST_F(ModelFiles, ReadsDrafterBiases) {
  Entries entries = drafter_entries();
  EXPECT_THAT(drafter_error(with(kDrafter, R"({"attention_bias": true})"), entries),
              HasSubstr("4 tensors are missing: layers.0.self_attn.q_proj.bias"));
}

TEST_F(ModelFiles, ReadsReducedVocabulary) {
  write(kSpeculators, speculators_entries());
  const auto files = open_drafter(folder_.path());
  ASSERT_TRUE(files) << files.error().message;
  EXPECT_THAT(files->weights.draft_to_target, ElementsAre(2, 5, 19));
  EXPECT_EQ(files->weights.target_to_draft[5], 1);
  EXPECT_EQ(files->weights.target_to_draft[6], -1);
  EXPECT_FALSE(files->weights.embed.empty());
  EXPECT_EQ(files->weights.lm_head.rows(), 3);
}

TEST_F(ModelFiles, ChecksVocabularyMaps) {
  Entries entries = speculators_entries();
  entries.erase("t2d");
  EXPECT_EQ(drafter_error(kSpeculators, entries), "accepted") << "t2d is redundant";
  entries.erase("d2t");
  EXPECT_THAT(drafter_error(kSpeculators, entries), HasSubstr("missing: d2t"));
  entries = speculators_entries();
  for (const int64_t far : {int64_t{18}, int64_t{-3}, INT64_MAX, INT64_MIN}) {
    entries["d2t"].bytes = bytes_of<int64_t>({2, 4, far});
    EXPECT_THAT(drafter_error(kSpeculators, entries), HasSubstr("outside the vocabulary")) << far;
  }
  entries["d2t"].bytes = bytes_of<int64_t>({2, 1, 17});
  EXPECT_THAT(drafter_error(kSpeculators, entries), HasSubstr("expected increasing"));
  entries["d2t"].bytes = bytes_of<int64_t>({2, 5, 17});
  EXPECT_THAT(drafter_error(kSpeculators, entries), HasSubstr("disagree about target id 5"));
  entries = speculators_entries();
  entries["d2t"] = {DType::kF32, {3}, ""};
  EXPECT_THAT(drafter_error(kSpeculators, entries), HasSubstr("expected integers"));
  entries = speculators_entries();
  entries.erase("lm_head.weight");
  EXPECT_THAT(drafter_error(kSpeculators, entries), HasSubstr("missing: lm_head.weight"));
}

TEST_F(ModelFiles, NarrowDrafterNeedsItsOwnEmbedding) {
  Entries entries = drafter_entries();
  entries["fc.weight"].shape = {16, 64};
  EXPECT_THAT(drafter_error(with(kDrafter, R"({"target_hidden_size": 32})"), entries),
              HasSubstr("missing: embed_tokens.weight, lm_head.weight"));
}

TEST_F(ModelFiles, NamesForeignDrafters) {
  Entries entries = drafter_entries();
  entries["layers.0.attention_conv.base_kernel"] = {DType::kBF16, {2, 2, 16}, ""};
  EXPECT_THAT(drafter_error(kDrafter, entries), HasSubstr("belongs to DFlash2"));
  entries = drafter_entries();
  entries["markov_head.markov_w1.weight"] = {DType::kBF16, {2, 2}, ""};
  EXPECT_THAT(drafter_error(kDrafter, entries), HasSubstr("belongs to DSpark"));
}

TEST_F(ModelFiles, DrafterForAnotherTarget) {
  write(kTarget, target_entries());
  const auto target = open_target(folder_.path());
  ASSERT_TRUE(target);
  write(with(kDrafter, R"({"num_target_layers": 5})"), drafter_entries());
  const auto drafter = open_drafter(folder_.path());
  ASSERT_TRUE(drafter);
  const Status status = check_drafter_fits(target->config, drafter->config);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("target layers"));
}

// tests/golden: folders that Transformers wrote.
TEST(GoldenCheckpoints, TargetsOpen) {
  const std::filesystem::path golden = "tests/golden";
  for (const char* name : {"qwen3-tied-bf16-sharded", "qwen3-untied-f32", "qwen3-fp8", "llama3-f16",
                           "qwen2-window-bf16"}) {
    const auto files = open_target(golden / name);
    ASSERT_TRUE(files) << files.error().message;
    EXPECT_EQ(files->config.fp8, files->weights.layers[0].q.is_quantized()) << name;
  }
  const auto fp8 = open_target(golden / "qwen3-fp8");
  EXPECT_EQ(fp8->weights.layers[1].down.scale_inv.shape_string(), "[2, 2]");
  const auto window = open_target(golden / "qwen2-window-bf16");
  EXPECT_THAT(window->config.layer_window, ElementsAre(0, 24, 24));
  const auto llama = open_target(golden / "llama3-f16");
  EXPECT_EQ(llama->config.rope.type, RopeType::kLlama3);
  EXPECT_THAT(llama->config.eos_token_ids, ElementsAre(2, 3));
}

TEST(GoldenCheckpoints, DraftersOpenAndFit) {
  const std::filesystem::path golden = "tests/golden";
  const auto target = open_target(golden / "qwen3-tied-bf16-sharded");
  const auto other = open_target(golden / "qwen3-fp8");
  ASSERT_TRUE(target && other);
  for (const char* name : {"drafter-z-lab", "drafter-z-lab-window", "drafter-speculators"}) {
    const auto drafter = open_drafter(golden / name);
    ASSERT_TRUE(drafter) << drafter.error().message;
    EXPECT_TRUE(check_drafter_fits(target->config, drafter->config)) << name;
    EXPECT_FALSE(check_drafter_fits(other->config, drafter->config)) << name;
    EXPECT_FALSE(open_target(golden / name)) << "a drafter is no target";
  }
  const auto speculators = open_drafter(golden / "drafter-speculators");
  EXPECT_EQ(speculators->weights.draft_to_target.size(), 96u);
  EXPECT_THAT(speculators->config.taps, ElementsAre(0, 2));
}

}  // namespace
}  // namespace volley
