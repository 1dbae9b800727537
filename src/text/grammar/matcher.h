#pragma once

// What CompiledGrammar hides: the automaton, the tables found while decoding, and their lock.

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/grammar/grammar.h"
#include "text/grammar/pushdown.h"
#include "text/grammar/stack_sets.h"

namespace volley {

class CompiledGrammar::Matcher {
 public:
  Matcher(grammar::Pushdown pushdown, std::shared_ptr<const TokenTrie> vocabulary,
          size_t max_cache_bytes);

  const TokenTrie& vocabulary() const { return *vocabulary_; }
  const grammar::Pushdown& pushdown() const { return pushdown_; }
  size_t memory_bytes() const;

  // Finds the masks of all frames ahead of their use, as far as about `max_nodes` trie nodes go.
  void warm(int64_t max_nodes);

  void begin(GrammarState& state) const;
  void allowed(const GrammarState& state, std::span<uint32_t> mask);
  bool accept(GrammarState& state, std::string_view bytes);
  bool can_end(const GrammarState& state) const;

 private:
  // The tokens that frame `state` allows, given where in the trie the frames above it were left.
  struct Memo {
    std::vector<uint32_t> mask;    // one of these two: many tokens,
    std::vector<int32_t> tokens;   // or few
    std::vector<uint32_t> leaves;  // trie nodes with descendants, at which the frame may be left
  };
  // More sets in one walk than any sane grammar needs: past it only single-byte tokens are judged,
  // so that the time of a mask is bounded and a way forward remains.
  static constexpr int kMaxWalkSets = 4000;

  const Memo& memo(int32_t above, int32_t state);
  void walk(uint32_t from, int32_t state, std::vector<int32_t>& tokens,
            std::vector<uint32_t>& leaves);
  void trim();

  const grammar::Pushdown pushdown_;
  const std::shared_ptr<const TokenTrie> vocabulary_;
  const size_t max_cache_bytes_;

  mutable std::mutex mutex_;  // guards what follows
  grammar::StackSets sets_;
  std::unordered_map<uint64_t, int32_t> memo_ids_;  // (memo of the frame above, state) to index
  std::vector<std::unique_ptr<Memo>> memos_;
  size_t memo_bytes_ = 0;
  int64_t num_nodes_walked_ = 0;
  std::vector<int32_t> set_at_depth_;  // scratch of walk()
};

}  // namespace volley
