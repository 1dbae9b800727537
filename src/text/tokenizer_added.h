#pragma once

// Added tokens: strings that are found in the text before anything else, with the semantics of
// AddedVocabulary in `tokenizers`.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley {

struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool single_word = false;
  bool lstrip = false;
  bool rstrip = false;
  bool normalized = true;
  bool special = false;
};

// A stretch of text, or an added token when id >= 0.
struct AddedSpan {
  size_t begin;
  size_t end;
  int32_t id;
};

// Finds one set of added tokens in a text.
class AddedTokenMatcher {
 public:
  // Adds a token under the string it is searched as. False when that string is taken.
  bool add(std::string_view pattern, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // Appends spans that cover `text` (valid UTF-8). Of the tokens that start at the leftmost place,
  // the longest wins, and the search goes on behind it even when it is then turned down because it
  // is special (and `parse_special` is false) or not a single word.
  void split(std::string_view text, bool parse_special, std::vector<AddedSpan>& out) const;

 private:
  struct Node {
    uint32_t first_child = 0;  // 0: none; the root is nobody's child
    uint32_t next_sibling = 0;
    int32_t token_idx = -1;
    uint8_t byte = 0;
  };
  struct Match {
    int32_t token_idx = -1;
    size_t num_bytes = 0;
  };
  uint32_t child(uint32_t node, uint8_t byte) const;
  Match longest_match(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  bool starts_token_[256] = {};
};

}  // namespace volley
