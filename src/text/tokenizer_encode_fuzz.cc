// Any bytes as a text, for small tokenizers of each family: what is encoded decodes to the same
// (repaired and normalized) text, and piecewise detokenizing agrees with decoding.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/json.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_testing.h"
#include "text/unicode.h"

namespace volley {
namespace {

using testing_text::add_token;
using testing_text::small_tokenizer;

Tokenizer make(const Json& json) {
  auto made = Tokenizer::from_json(dump_json(json), "small");
  CHECK(made.has_value());
  return std::move(*made);
}

Json byte_level(bool prefix) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", prefix}, {"use_regex", true}};
}

// Loses nothing: NFC and Qwen's pattern.
const Tokenizer& plain() {
  static const Tokenizer tokenizer = make(small_tokenizer());
  return tokenizer;
}

// Added tokens with every flag, GPT-2's pattern, a prefix space.
const Tokenizer& decorated() {
  static const Tokenizer tokenizer = [] {
    Json json = small_tokenizer();
    json["pre_tokenizer"] = byte_level(true);
    add_token(json, "<|end|>", {.special = true});
    add_token(json, "<|end|>x", {.special = true});
    add_token(json, "<l>", {.lstrip = true});
    add_token(json, "<r>", {.rstrip = true, .normalized = true});
    add_token(json, " ", {.lstrip = true, .rstrip = true, .special = true});
    add_token(json, "the", {.single_word = true, .normalized = true});
    add_token(json, "e\xCC\x81", {.normalized = true});
    return make(json);
  }();
  return tokenizer;
}

// A pattern that runs on PCRE2, between other stages.
const Tokenizer& staged() {
  static const Tokenizer tokenizer = [] {
    Json json = small_tokenizer();
    json["normalizer"] = nullptr;
    json["pre_tokenizer"] = Json::parse(R"json({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": false},
        {"type": "Split", "pattern": {"Regex": "\\w*|[^\\p{Lu}]{1,8}?(?=\\s|$)"},
         "behavior": "MergedWithNext", "invert": false},
        {"type": "Split", "pattern": {"String": "ab"}, "behavior": "Contiguous", "invert": true},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}]})json");
    json["model"]["ignore_merges"] = true;
    return make(json);
  }();
  return tokenizer;
}

void check_detokenizer(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  IncrementalDetokenizer detokenizer(tokenizer, false);
  std::string text;
  for (const int32_t id : ids) text += detokenizer.push(id);
  text += detokenizer.flush();
  CHECK(text == tokenizer.decode(ids, false));
}

}  // namespace
}  // namespace volley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::string repaired = replace_invalid_utf8(bytes);
  CHECK(is_valid_utf8(repaired));
  std::string normalized = repaired;
  normalize_nfc(repaired, normalized);
  CHECK(is_valid_utf8(normalized));

  const std::vector<int32_t> ids = plain().encode(bytes);
  CHECK(plain().decode(ids) == normalized);
  CHECK(staged().decode(staged().encode(bytes)) == repaired);
  for (const bool special : {true, false}) {
    const std::vector<int32_t> decorated_ids =
        decorated().encode(bytes, {.parse_special = special});
    check_detokenizer(decorated(), decorated_ids);
  }
  // The bytes as ids: the detokenizer sees every broken sequence.
  check_detokenizer(plain(), std::vector<int32_t>(data, data + size));
  return 0;
}
