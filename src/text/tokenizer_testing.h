#pragma once

// A small tokenizer.json built in memory, for tests and fuzzers.

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "base/json.h"
#include "text/unicode.h"

namespace volley::testing_text {

// The character that stands for a byte in GPT-2's alphabet.
inline std::string alphabet_char(int byte) {
  const auto is_printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
  };
  int code_point = byte;
  if (!is_printable(byte)) {
    code_point = 0x100;
    for (int b = 0; b < byte; ++b) code_point += !is_printable(b);
  }
  std::string out;
  append_utf8(static_cast<uint32_t>(code_point), out);
  return out;
}

// 256 byte tokens, a few merges, no added tokens, Qwen's pattern, NFC.
inline Json small_tokenizer() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[alphabet_char(b)] = b;
  Json merges = Json::array();
  const std::string space = alphabet_char(' ');
  const std::pair<std::string, std::string> pairs[] = {{"t", "h"},
                                                       {"th", "e"},
                                                       {space, "the"},
                                                       {space, space},
                                                       {space + space, space + space},
                                                       {"a", "a"},
                                                       {"aa", "aa"},
                                                       {"a", "b"},
                                                       {"ab", "c"},
                                                       {"b", "c"},
                                                       {"i", "n"},
                                                       {"in", "g"},
                                                       {"\xC3\xA2", "\xC4\xA2"},  // the bytes E2 80
                                                       {"aaaa", "aaaa"}};
  for (const auto& [left, right] : pairs) {
    vocab[left + right] = vocab.size();
    merges.push_back({left, right});
  }
  const auto byte_level = [](bool prefix, bool regex) {
    return Json{{"type", "ByteLevel"},
                {"add_prefix_space", prefix},
                {"trim_offsets", false},
                {"use_regex", regex}};
  };
  static constexpr const char* kPattern =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  Json split = {{"type", "Split"},
                {"pattern", {{"Regex", kPattern}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  return Json{{"version", "1.0"},
              {"added_tokens", Json::array()},
              {"normalizer", {{"type", "NFC"}}},
              {"pre_tokenizer",
               {{"type", "Sequence"},
                {"pretokenizers", Json::array({std::move(split), byte_level(false, false)})}}},
              {"post_processor", nullptr},
              {"decoder", byte_level(true, true)},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", ""},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", false},
                {"vocab", std::move(vocab)},
                {"merges", std::move(merges)}}}};
}

struct AddedFlags {
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = false;
  bool special = false;
};

// Appends an added token under the next free id.
inline void add_token(Json& tokenizer, std::string_view content, const AddedFlags& flags = {}) {
  Json& added = tokenizer["added_tokens"];
  added.push_back({{"id", tokenizer["model"]["vocab"].size() + added.size()},
                   {"content", content},
                   {"single_word", flags.single_word},
                   {"lstrip", flags.lstrip},
                   {"rstrip", flags.rstrip},
                   {"normalized", flags.normalized},
                   {"special", flags.special}});
}

}  // namespace volley::testing_text
