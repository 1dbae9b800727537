#include "text/tokenizer_added.h"

#include <algorithm>

#include "text/unicode.h"

namespace volley {
namespace {

struct TextRun {
  size_t begin = 0;
  size_t end = 0;
};

uint8_t flags_at(std::string_view text, size_t i) {
  return CodePointTable::instance().flags(decode_valid_utf8(text.data() + i).code_point);
}

// The start of the character that ends at `end` (> 0).
size_t previous_char(std::string_view text, size_t end) {
  size_t i = end - 1;
  while ((static_cast<uint8_t>(text[i]) & 0xC0) == 0x80) --i;
  return i;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  const bool word_before = begin > 0 && (flags_at(text, previous_char(text, begin)) & kWordChar);
  const bool word_after = end < text.size() && (flags_at(text, end) & kWordChar);
  return !word_before && !word_after;
}

size_t skip_spaces_left(std::string_view text, size_t begin, size_t limit) {
  while (begin > limit) {
    const size_t i = previous_char(text, begin);
    if (!(flags_at(text, i) & kSpace)) break;
    begin = i;
  }
  return std::max(begin, limit);
}

size_t skip_spaces_right(std::string_view text, size_t end) {
  while (end < text.size() && (flags_at(text, end) & kSpace)) {
    end += decode_valid_utf8(text.data() + end).num_bytes;
  }
  return end;
}

}  // namespace

uint32_t AddedTokenMatcher::child(uint32_t node, uint8_t byte) const {
  uint32_t c = nodes_[node].first_child;
  while (c != 0 && nodes_[c].byte != byte) c = nodes_[c].next_sibling;
  return c;
}

bool AddedTokenMatcher::add(std::string_view pattern, const AddedToken& token) {
  uint32_t node = 0;
  for (const char ch : pattern) {
    const auto byte = static_cast<uint8_t>(ch);
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({0, nodes_[node].first_child, -1, byte});
      nodes_[node].first_child = next;
    }
    node = next;
  }
  if (node == 0 || nodes_[node].token_idx >= 0) return false;
  nodes_[node].token_idx = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  starts_token_[static_cast<uint8_t>(pattern[0])] = true;
  return true;
}

AddedTokenMatcher::Match AddedTokenMatcher::longest_match(std::string_view text) const {
  Match best;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    node = child(node, static_cast<uint8_t>(text[i]));
    if (node == 0) break;
    if (nodes_[node].token_idx >= 0) best = {nodes_[node].token_idx, i + 1};
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view text, bool parse_special,
                              std::vector<AddedSpan>& out) const {
  size_t covered = 0;
  // The last run of spaces that rstrip measured. Tokens inside it reuse its end: measuring again
  // would take quadratic time for a token that is itself a space.
  TextRun spaces;
  for (size_t i = 0; i < text.size();) {
    if (!starts_token_[static_cast<uint8_t>(text[i])]) {
      ++i;
      continue;
    }
    const Match match = longest_match(text.substr(i));
    if (match.token_idx < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(match.token_idx)];
    size_t begin = i;
    size_t end = i + match.num_bytes;
    i = end;
    if (token.special && !parse_special) continue;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin = skip_spaces_left(text, begin, covered);
    if (token.rstrip) {
      if (end < spaces.begin || end > spaces.end) spaces = {end, skip_spaces_right(text, end)};
      end = spaces.end;
    }
    if (covered < begin) out.push_back({covered, begin, -1});
    // Nothing is left of a token whose spaces an earlier one has taken: `tokenizers` drops it.
    if (begin < end) out.push_back({begin, end, token.id});
    covered = end;
  }
  if (covered != text.size()) out.push_back({covered, text.size(), -1});
}

}  // namespace volley
