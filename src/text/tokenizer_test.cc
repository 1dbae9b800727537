#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "text/tokenizer_testing.h"
#include "text/unicode.h"

namespace volley {
namespace {

using testing_text::add_token;
using testing_text::small_tokenizer;
using Ids = std::vector<int32_t>;

constexpr const char* kData = "tests/data/tokenizer";
constexpr const char* kDemo = "models/demo-target/tokenizer.json";

Result<Tokenizer> from(const Json& json) {
  return Tokenizer::from_json(dump_json(json), "test");
}

// The folder of large real files, which no test needs.
std::filesystem::path shared_folder() {
  const char* named = std::getenv("VOLLEY_SHARED");
  return named ? named : "../shared";
}

TEST(Tokenizer, EqualsTheGoldensOfThePackage) {
  std::ifstream file(std::string(kData) + "/goldens.jsonl");
  ASSERT_TRUE(file) << "run from the source root";
  std::string line;
  std::getline(file, line);
  const auto texts = parse_json(line, "goldens")->at("texts").get<std::vector<std::string>>();
  int num_sets = 0;
  while (std::getline(file, line)) {
    const Json set = *parse_json(line, "goldens");
    const std::string path = set["tokenizer"];
    const bool special = set["special"];
    const auto tokenizer = Tokenizer::load(path);
    ASSERT_TRUE(tokenizer) << tokenizer.error().message;
    ASSERT_EQ(set["ids"].size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      const Ids ids =
          tokenizer->encode(texts[i], {.add_special_tokens = special, .parse_special = special});
      EXPECT_EQ(ids, set["ids"][i].get<Ids>()) << path << ": " << texts[i];
      const Json& decoded = set["decoded"][i];
      EXPECT_EQ(tokenizer->decode(ids, !special),
                decoded.is_null() ? texts[i] : decoded.get<std::string>())
          << path << ": " << texts[i];
    }
    ++num_sets;
  }
  EXPECT_EQ(num_sets, 18);
}

TEST(Tokenizer, Queries) {
  Json json = small_tokenizer();
  add_token(json, "<|end|>", {.special = true});
  add_token(json, "<tool>");
  const auto t = from(json);
  ASSERT_TRUE(t) << t.error().message;
  const int32_t end = *t->id_of("<|end|>");
  EXPECT_EQ(end, 270);
  EXPECT_EQ(t->vocab_size(), 272);
  EXPECT_TRUE(t->is_special(end));
  EXPECT_FALSE(t->is_special(end + 1));
  EXPECT_FALSE(t->is_special(-1));
  EXPECT_FALSE(t->is_special(1 << 30));
  EXPECT_EQ(t->special_ids(), Ids{end});
  EXPECT_TRUE(t->is_token(end + 1));
  EXPECT_FALSE(t->is_token(272));
  EXPECT_EQ(t->token_bytes(' '), " ");
  EXPECT_EQ(t->token_text(' '), "\xC4\xA0");
  EXPECT_EQ(t->id_of("\xC4\xA0the"), 258);
  EXPECT_EQ(t->token_bytes(258), " the");
  EXPECT_EQ(t->token_bytes(-3), "");
  EXPECT_EQ(t->token_bytes(99999), "");
  EXPECT_EQ(t->id_of("nothing"), std::nullopt);
}

TEST(Tokenizer, InvalidUtf8CountsAsReplacementCharacters) {
  const auto t = from(small_tokenizer());
  for (const std::string_view bytes : {"\xFF", "a\xE2\x82z", "\xF0\x9F\x98", "\xC3\xA9\x80"}) {
    EXPECT_EQ(t->encode(bytes), t->encode(replace_invalid_utf8(bytes)));
    EXPECT_EQ(t->decode(t->encode(bytes)), replace_invalid_utf8(bytes));
  }
}

TEST(Tokenizer, SpecialTextStaysTextWhenNotParsed) {
  Json json = small_tokenizer();
  add_token(json, "<|end|>", {.special = true});
  add_token(json, "<|end|>>", {});
  const auto t = from(json);
  EXPECT_EQ(t->encode("<|end|>"), Ids{270});
  const Ids plain = t->encode("<|end|>", {.parse_special = false});
  EXPECT_EQ(plain.size(), 7u);
  EXPECT_EQ(t->decode(plain), "<|end|>");
  EXPECT_EQ(t->encode("<|end|>>", {.parse_special = false}), Ids{271});
}

// Random text in every fixture that drops nothing: decoding gives the (normalized) text back.
TEST(Tokenizer, DecodesWhatItEncoded) {
  std::mt19937 rng(9);
  for (const char* name : {"gpt2", "llama3", "qwen", "o200k"}) {
    const auto t = Tokenizer::load(std::string(kData) + "/" + name + ".json");
    ASSERT_TRUE(t);
    for (int round = 0; round < 3000; ++round) {
      std::string text;
      for (size_t i = 0, n = rng() % 30; i < n; ++i) {
        uint32_t c = rng() % 3 ? rng() % 0x3000 : rng() % 0x110000;
        if (rng() % 2) c = rng() % 128;
        if (c < 0xD800 || c > 0xDFFF) append_utf8(c, text);
      }
      std::string want = text;
      if (std::string_view(name) == "qwen") normalize_nfc(text, want);
      // Added tokens that strip spaces lose them for good; random text does not spell any.
      const Ids ids = t->encode(text, {.add_special_tokens = false, .parse_special = false});
      ASSERT_EQ(t->decode(ids), want) << name;
    }
  }
}

TEST(Tokenizer, MegabytesOfOneCharacterAreQuick) {
  const auto t = Tokenizer::load(kDemo);
  ASSERT_TRUE(t) << t.error().message;
  for (const std::string_view unit : {"a", " ", "\n", "'", "1", "\xE4\xB8\xAD", "<|", "\xCC\x81"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    const auto start = std::chrono::steady_clock::now();
    EXPECT_FALSE(t->encode(text).empty());
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10)) << unit;
  }
}

// The counts are those of the package.
TEST(Tokenizer, TokensThatAreSpacesAndStripSpaces) {
  const auto count = [](testing_text::AddedFlags flags, std::string_view text) {
    Json json = small_tokenizer();
    add_token(json, " ", flags);
    return from(json)->encode(text).size();
  };
  const std::string spaces(500, ' ');
  EXPECT_EQ(count({.lstrip = true, .rstrip = true}, spaces), 1u);
  EXPECT_EQ(count({.lstrip = true, .rstrip = true}, "x   y  x"), 5u);
  EXPECT_EQ(count({.rstrip = true}, spaces), 500u);
  EXPECT_EQ(count({.rstrip = true}, "x   y  x"), 8u);
  EXPECT_EQ(count({.lstrip = true}, "x   y  x"), 8u);
}

TEST(Tokenizer, StrippingTokensTakeNoQuadraticTime) {
  Json json = small_tokenizer();
  add_token(json, " ", {.rstrip = true});
  add_token(json, "xx", {.single_word = true, .lstrip = true});
  const auto t = from(json);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(t->encode(std::string(500'000, ' ')).size(), 500'000u);
  EXPECT_FALSE(t->encode(std::string(500'000, 'x')).empty());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
}

TEST(Tokenizer, EncodesFromManyThreads) {
  const auto t = Tokenizer::load(kDemo);
  ASSERT_TRUE(t);
  const std::string license = *read_file("LICENSE");
  std::vector<std::string> texts;
  for (size_t i = 0; i + 300 < license.size(); i += 211) texts.push_back(license.substr(i, 300));
  std::vector<Ids> want;
  const auto fresh = Tokenizer::load(kDemo);
  for (const std::string& text : texts) want.push_back(fresh->encode(text));
  std::vector<std::thread> threads;
  std::vector<int> num_wrong(4);
  for (size_t k = 0; k < 4; ++k) {
    threads.emplace_back([&, k] {
      for (int round = 0; round < 3; ++round) {
        for (size_t i = 0; i < texts.size(); ++i) num_wrong[k] += t->encode(texts[i]) != want[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(num_wrong, testing::Each(0));
}

struct BadCase {
  const char* path;   // JSON pointer of the value to replace; a trailing /- appends
  const char* value;  // what to put there; null removes
  ErrorKind kind;
  const char* message;  // a part of the error
};

TEST(Tokenizer, RefusesWithAReason) {
  set_log_level(LogLevel::kOff);
  constexpr auto kBad = ErrorKind::kInvalidInput;
  constexpr auto kUnsupported = ErrorKind::kUnsupported;
  const BadCase cases[] = {
      {"/version", R"("2.0")", kUnsupported, "version 2.0"},
      {"/normalizer", R"({"type":"Lowercase"})", kUnsupported, "Lowercase"},
      {"/normalizer", R"({"type":"Sequence","normalizers":[{"type":"NFKC"}]})", kUnsupported,
       "NFKC"},
      {"/normalizer", R"("NFC")", kBad, "normalizer"},
      {"/pre_tokenizer", "null", kUnsupported, "ByteLevel"},
      {"/pre_tokenizer", R"({"type":"Metaspace"})", kUnsupported, "Metaspace"},
      {"/pre_tokenizer/pretokenizers/0/behavior", R"("Sideways")", kUnsupported, "Sideways"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex":"(("})", kBad, "pattern"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex":"\\b"})", kUnsupported, "\\b"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"String":""})", kUnsupported, "empty"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Shape":"x"})", kBad, "Regex or String"},
      {"/pre_tokenizer/pretokenizers/-", R"({"type":"Digits"})", kUnsupported, "after ByteLevel"},
      {"/decoder", "null", kUnsupported, "decoder"},
      {"/decoder", R"({"type":"Metaspace"})", kUnsupported, "decoder Metaspace"},
      {"/model", nullptr, kBad, "model"},
      {"/model/type", R"("Unigram")", kUnsupported, "Unigram"},
      {"/model/dropout", "0.1", kUnsupported, "dropout"},
      {"/model/byte_fallback", "true", kUnsupported, "byte_fallback"},
      {"/model/byte_fallback", "1", kBad, "byte_fallback"},
      {"/model/end_of_word_suffix", R"("</w>")", kUnsupported, "end_of_word_suffix"},
      {"/model/continuing_subword_prefix", R"("##")", kUnsupported, "continuing_subword_prefix"},
      {"/model/vocab", "[]", kBad, "model.vocab"},
      {"/model/vocab/the", "-1", kBad, "token id"},
      {"/model/vocab/the", "3.5", kBad, "token id"},
      {"/model/vocab/the", "4194304", kBad, "4194304"},
      {"/model/vocab/the", "5", kBad, "two tokens have the id 5"},
      {"/model/vocab/the", nullptr, kBad, "not all three"},
      {"/model/merges", nullptr, kBad, "merges"},
      {"/model/merges/-", R"("a b c")", kBad, "one space"},
      {"/model/merges/-", R"(["a"])", kBad, "pair"},
      {"/model/merges/-", R"(["zz","a"])", kBad, "not all three"},
      {"/model/merges/-", R"(["","a"])", kBad, "model.merges"},
      {"/model/merges/-", "7", kBad, "model.merges"},
      {"/added_tokens/-", R"({"id":1})", kBad, "content"},
      {"/added_tokens/-", R"({"content":"x"})", kBad, "no field id"},
      {"/added_tokens/-", R"({"content":"x","id":-1})", kBad, "id"},
      {"/post_processor", R"({"type":"BertProcessing"})", kUnsupported, "BertProcessing"},
      {"/post_processor", R"({"type":"TemplateProcessing","single":[]})", kUnsupported, "sequence"},
      {"/post_processor",
       R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},{"Sequence":{"id":"A"}}],
           "special_tokens":{}})",
       kBad, "no field x"},
      {"/post_processor",
       R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},{"Sequence":{"id":"A"}}],
           "special_tokens":{"x":{"ids":[9999]}}})",
       kBad, "9999"},
      {"/post_processor", R"({"type":"TemplateProcessing","single":[{"Sequence":{"id":"B"}}]})",
       kUnsupported, "sequence A"},
  };
  for (const BadCase& c : cases) {
    nlohmann::json document = nlohmann::json::parse(dump_json(small_tokenizer()));
    nlohmann::json step = {{"op", c.value ? "add" : "remove"}, {"path", c.path}};
    if (c.value) step["value"] = nlohmann::json::parse(c.value);
    document.patch_inplace(nlohmann::json::array({step}));
    const auto made = Tokenizer::from_json(document.dump(), "test");
    ASSERT_FALSE(made) << c.path << " " << (c.value ? c.value : "removed");
    EXPECT_EQ(made.error().kind, c.kind) << made.error().message;
    EXPECT_THAT(made.error().message, testing::HasSubstr(c.message));
    EXPECT_THAT(made.error().message, testing::HasSubstr("test"));
  }
  set_log_level(LogLevel::kInfo);
}

TEST(Tokenizer, BoundsItsFile) {
  EXPECT_FALSE(Tokenizer::from_json("", "empty"));
  EXPECT_FALSE(Tokenizer::from_json("[]", "list"));
  EXPECT_FALSE(Tokenizer::from_json("{\"model\":", "cut"));
  EXPECT_FALSE(Tokenizer::from_json(std::string(2'000'000, '['), "deep"));
  EXPECT_EQ(Tokenizer::load("/nonexistent").error().kind, ErrorKind::kNotFound);
  Json json = small_tokenizer();
  json["model"]["vocab"][std::string(70'000, 'x')] = 300;
  EXPECT_FALSE(from(json));
  json = small_tokenizer();
  add_token(json, std::string(600, '<'));
  EXPECT_FALSE(from(json));
  json = small_tokenizer();
  Json nested = {{"type", "NFC"}};
  for (int i = 0; i < 20; ++i) nested = {{"type", "Sequence"}, {"normalizers", {nested}}};
  json["normalizer"] = nested;
  EXPECT_FALSE(from(json));
}

TEST(Tokenizer, TwoTokensWithOneSpellingAreRefused) {
  Json json = small_tokenizer();
  add_token(json, "caf\xC3\xA9", {.normalized = true});
  add_token(json, "cafe\xCC\x81", {.normalized = true});
  EXPECT_FALSE(from(json));
}

// llama.cpp's vectors for the tokenizers of Llama 3 and Qwen.
TEST(RealTokenizers, LlamaCppVectors) {
  const std::filesystem::path tokenizers = shared_folder() / "data/tokenizers";
  if (!std::filesystem::exists(tokenizers / "vectors")) {
    GTEST_SKIP() << "did not run: no " << tokenizers << " (set VOLLEY_SHARED)";
  }
  const std::pair<const char*, const char*> sets[] = {{"llama3.1", "llama-bpe"},
                                                      {"qwen3", "qwen2"}};
  for (const auto& [folder, vectors] : sets) {
    const auto t = Tokenizer::load(tokenizers / folder);
    ASSERT_TRUE(t) << t.error().message;
    const std::filesystem::path stem =
        tokenizers / "vectors" / fmt::format("ggml-vocab-{}.gguf", vectors);
    const std::string inputs = *read_file(stem.string() + ".inp");
    std::istringstream expected(*read_file(stem.string() + ".out"));
    static constexpr std::string_view kBreak = "\n__ggml_vocab_test__\n";
    size_t num_cases = 0;
    std::string line;
    for (size_t pos = 0; std::getline(expected, line); ++num_cases) {
      const size_t end = inputs.find(kBreak, pos);
      const std::string text = inputs.substr(pos, end == std::string::npos ? end : end - pos);
      pos = end == std::string::npos ? inputs.size() : end + kBreak.size();
      std::istringstream numbers(line);
      const Ids want{std::istream_iterator<int32_t>(numbers), {}};
      const Ids got = t->encode(text, {.add_special_tokens = false});
      EXPECT_EQ(got, want) << folder << ": " << text;
      EXPECT_EQ(t->decode(got), text);
    }
    EXPECT_GT(num_cases, 40u);
  }
}

TEST(RealTokenizers, LlamaAddsItsBos) {
  const std::filesystem::path folder = shared_folder() / "data/tokenizers/llama3.1";
  if (!std::filesystem::exists(folder)) {
    GTEST_SKIP() << "did not run: no " << folder << " (set VOLLEY_SHARED)";
  }
  const auto t = Tokenizer::load(folder);
  ASSERT_TRUE(t);
  EXPECT_EQ(t->encode("Hello"), (Ids{128000, 9906}));
  EXPECT_EQ(t->encode("Hello", {.add_special_tokens = false}), Ids{9906});
  EXPECT_EQ(t->vocab_size(), 128256);
  EXPECT_EQ(t->special_ids().size(), 256u);
}

}  // namespace
}  // namespace volley
