#pragma once

// The vocabulary as a byte trie: all tokens that share a prefix are judged by one automaton step.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace volley {

// Nodes lie in preorder, so that a walk is one pass over three arrays and a subtree that no token
// of interest lies in is skipped by one jump. Immutable; one per tokenizer, shared by all grammars.
class TokenTrie {
 public:
  // token_bytes[id]: the bytes that token id stands for; empty for special and unused ids, which a
  // grammar never allows. end_tokens: the ids that end a generation; allowed once the document may
  // end, whatever their bytes. Ids outside the vocabulary are left out.
  TokenTrie(std::vector<std::string> token_bytes, std::span<const int32_t> end_tokens);

  int32_t vocab_size() const { return static_cast<int32_t>(token_bytes_.size()); }
  std::span<const int32_t> end_tokens() const { return end_tokens_; }
  bool is_end_token(int32_t token) const;
  // Empty for ids outside the vocabulary too.
  std::string_view bytes_of(int32_t token) const;
  int max_token_bytes() const { return max_token_bytes_; }
  // Whether a token of exactly this byte exists.
  bool has_single_byte(uint8_t byte) const { return has_single_byte_[byte]; }

  struct Node {
    uint32_t subtree_end;  // index one past the last descendant
    uint32_t first_token;  // tokens_at() of this node: [first_token, next node's first_token)
    uint16_t depth;        // the root, node 0, has 0
    uint8_t byte;          // last byte of the prefix
  };
  std::span<const Node> nodes() const { return {nodes_.data(), nodes_.size() - 1}; }
  // The tokens whose bytes are exactly the prefix of node `node_idx`.
  std::span<const int32_t> tokens_at(uint32_t node_idx) const {
    return {token_ids_.data() + nodes_[node_idx].first_token,
            token_ids_.data() + nodes_[node_idx + 1].first_token};
  }

 private:
  std::vector<std::string> token_bytes_;
  std::vector<int32_t> end_tokens_;
  std::vector<Node> nodes_;  // and a sentinel
  std::vector<int32_t> token_ids_;
  int max_token_bytes_ = 0;
  bool has_single_byte_[256] = {};
};

}  // namespace volley
