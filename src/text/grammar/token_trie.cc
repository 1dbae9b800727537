#include "text/grammar/token_trie.h"

#include <algorithm>
#include <numeric>

namespace volley {

// No real token comes near; a longer one (a broken tokenizer) is left out rather than overflow a
// depth.
constexpr size_t kMaxTokenBytes = 4096;

TokenTrie::TokenTrie(std::vector<std::string> token_bytes, std::span<const int32_t> end_tokens)
    : token_bytes_(std::move(token_bytes)) {
  for (const int32_t token : end_tokens) {
    if (token < 0 || token >= vocab_size()) continue;
    if (!is_end_token(token)) end_tokens_.push_back(token);
    token_bytes_[token].clear();
  }
  std::vector<int32_t> order;
  order.reserve(token_bytes_.size());
  for (int32_t id = 0; id < vocab_size(); ++id) {
    std::string& bytes = token_bytes_[id];
    if (bytes.size() > kMaxTokenBytes) bytes.clear();
    if (bytes.empty()) continue;
    order.push_back(id);
    max_token_bytes_ = std::max(max_token_bytes_, static_cast<int>(bytes.size()));
    if (bytes.size() == 1) has_single_byte_[static_cast<uint8_t>(bytes[0])] = true;
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int order_of_bytes = token_bytes_[a].compare(token_bytes_[b]);
    return order_of_bytes != 0 ? order_of_bytes < 0 : a < b;
  });
  token_ids_.reserve(order.size());
  nodes_.push_back({0, 0, 0, 0});
  std::vector<uint32_t> open = {0};  // nodes from the root to the last one
  std::string_view last;
  for (const int32_t id : order) {
    const std::string_view bytes = token_bytes_[id];
    const size_t shared =
        std::mismatch(last.begin(), last.end(), bytes.begin(), bytes.end()).first - last.begin();
    for (; open.size() > shared + 1; open.pop_back()) {
      nodes_[open.back()].subtree_end = static_cast<uint32_t>(nodes_.size());
    }
    for (size_t i = shared; i < bytes.size(); ++i) {
      open.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({0, static_cast<uint32_t>(token_ids_.size()), static_cast<uint16_t>(i + 1),
                        static_cast<uint8_t>(bytes[i])});
    }
    token_ids_.push_back(id);
    last = bytes;
  }
  for (const uint32_t node : open) nodes_[node].subtree_end = static_cast<uint32_t>(nodes_.size());
  nodes_.push_back({0, static_cast<uint32_t>(token_ids_.size()), 0, 0});
}

bool TokenTrie::is_end_token(int32_t token) const {
  return std::find(end_tokens_.begin(), end_tokens_.end(), token) != end_tokens_.end();
}

std::string_view TokenTrie::bytes_of(int32_t token) const {
  if (token < 0 || token >= vocab_size()) return {};
  return token_bytes_[token];
}

}  // namespace volley
