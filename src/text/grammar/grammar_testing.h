#pragma once

// A vocabulary small enough to judge every token at every step, and walks under the mask.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/philox.h"
#include "text/grammar/grammar.h"

namespace volley {

// All bytes, what BPE makes of JSON, words, blanks, digits and pieces of UTF-8; id 0 is special and
// never allowed, id 1 ends.
inline std::shared_ptr<const TokenTrie> small_vocabulary() {
  std::vector<std::string> tokens = {"", "<end>"};
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  for (const char* text :
       {"{\"",      "\":",   "\": ",  "\": \"", "\",",      "\", \"",      "\"}",      "\"]",
        "}}",       "]}",    "},",    "}, {",   "],",       ", ",          ", \"",     "[{",
        "[[",       "]]",    "{}",    "[]",     "\"\"",     "\n",          "\n  ",     ",\n",
        ",\n  ",    "{\n  ", "\n}",   "  ",     "    ",     " \"",         "true",     "false",
        "null",     "12",    "123",   "00",     "-1",       "0.",          ".5",       "e+",
        "1e",       "name",  "na",    "age",    "red",      "green",       "value",    " value",
        "kind",     "\\n",   "\\u00", "\\\"",   "a\"",      "b\",",        "\xc3\xa9", "\xf0\x9f",
        "\x98\x80", "e\xcc", "aa",    "aaaa",   "aaaaaaaa", "ab",          "abc",      "\"a\"",
        "\"a\":",   "1,",    "1}",    "1]",     ",1",       "<tool_call>", "\\\\"}) {
    tokens.emplace_back(text);
  }
  const int32_t end = 1;
  return std::make_shared<const TokenTrie>(std::move(tokens), std::span(&end, 1));
}

class RandomStream {
 public:
  explicit RandomStream(uint64_t seed) : seed_(seed) {}
  uint32_t below(uint32_t bound) {
    const auto block =
        philox4x32({static_cast<uint32_t>(count_), static_cast<uint32_t>(count_ >> 32), 0, 0},
                   {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)});
    ++count_;
    return bound == 0 ? 0 : block[0] % bound;
  }

 private:
  uint64_t seed_;
  uint64_t count_ = 0;
};

inline std::vector<uint32_t> mask_of(const GrammarState& state, const TokenTrie& vocabulary) {
  std::vector<uint32_t> mask((static_cast<size_t>(vocabulary.vocab_size()) + 31) / 32, ~0u);
  state.allowed(mask);
  return mask;
}

inline std::vector<int32_t> tokens_of(const std::vector<uint32_t>& mask) {
  std::vector<int32_t> tokens;
  for (size_t word = 0; word < mask.size(); ++word) {
    for (uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      tokens.push_back(static_cast<int32_t>(word * 32) + __builtin_ctz(bits));
    }
  }
  return tokens;
}

// The whole text, as bytes: it is a document.
inline bool accepts_document(const std::shared_ptr<const CompiledGrammar>& grammar,
                             std::string_view text) {
  GrammarState state(grammar);
  for (const char c : text) {
    if (!state.accept_bytes({&c, 1})) return false;
  }
  return state.can_end();
}

// A random document, or "" where it did not end within max_tokens. Ends as soon as it may with
// probability 1 / end_odds. Past half of max_tokens tokens that close something come first.
inline std::string random_document(const std::shared_ptr<const CompiledGrammar>& grammar,
                                   RandomStream& random, int max_tokens, uint32_t end_odds = 4) {
  const TokenTrie& vocabulary = grammar->vocabulary();
  GrammarState state(grammar);
  std::string text;
  for (int i = 0; i < max_tokens; ++i) {
    if (state.can_end() && random.below(end_odds) == 0) return text;
    std::vector<int32_t> tokens = tokens_of(mask_of(state, vocabulary));
    if (tokens.empty()) return "dead end after " + text;
    int32_t token = tokens[random.below(static_cast<uint32_t>(tokens.size()))];
    if (i > max_tokens / 2 || random.below(3) == 0) {
      for (const std::string_view closing : {"}", "]", "\"", "0", ","}) {
        const int32_t id = 2 + static_cast<uint8_t>(closing[0]);
        if (std::find(tokens.begin(), tokens.end(), id) == tokens.end()) continue;
        token = id;
        break;
      }
    }
    if (!state.accept(token)) return "refused after " + text;
    if (state.has_ended()) return text;
    text += vocabulary.bytes_of(token);
  }
  return state.can_end() ? text : "";
}

}  // namespace volley
