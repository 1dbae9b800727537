#pragma once

// Token ids to text while they arrive.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace volley {

// Returns the text that is certain now and holds back at most three bytes: the start of a character
// that later tokens may complete. All texts returned, flush() included, join to
// Tokenizer::decode() of all ids. The tokenizer must outlive it.
class IncrementalDetokenizer {
 public:
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true)
      : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // Ids that name no token add nothing.
  std::string push(int32_t id) { return push(std::span<const int32_t>(&id, 1)); }
  std::string push(std::span<const int32_t> ids);

  // What is held back is now known to be incomplete: U+FFFD, or nothing. Then starts afresh.
  std::string flush();

  bool has_pending() const { return !pending_.empty(); }

 private:
  std::string take_certain_text();

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;  // bytes not returned yet; between calls, fewer than four
};

}  // namespace volley
