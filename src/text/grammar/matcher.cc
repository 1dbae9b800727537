#include "text/grammar/matcher.h"

#include <algorithm>

#include "base/check.h"

namespace volley {

using grammar::normalise_stacks;
using grammar::StackSets;

namespace {

// Ways to read one sequence that a GrammarState keeps.
constexpr size_t kMaxStateStacks = 64;

void set_bit(std::span<uint32_t> mask, int32_t token) {
  mask[token / 32] |= uint32_t{1} << (token % 32);
}

}  // namespace

CompiledGrammar::Matcher::Matcher(grammar::Pushdown pushdown,
                                  std::shared_ptr<const TokenTrie> vocabulary,
                                  size_t max_cache_bytes)
    : pushdown_(std::move(pushdown)),
      vocabulary_(std::move(vocabulary)),
      max_cache_bytes_(max_cache_bytes),
      sets_(pushdown_) {
  set_at_depth_.resize(static_cast<size_t>(vocabulary_->max_token_bytes()) + 1);
}

size_t CompiledGrammar::Matcher::memory_bytes() const {
  const std::lock_guard lock(mutex_);
  return pushdown_.states.size() * (sizeof(grammar::Pushdown::State) + sizeof(int32_t)) +
         pushdown_.byte_edges.size() * sizeof(grammar::Automaton::ByteEdge) +
         pushdown_.calls.size() * sizeof(grammar::Pushdown::Call) + sets_.memory_bytes() +
         memo_bytes_;
}

void CompiledGrammar::Matcher::warm(int64_t max_nodes) {
  const std::lock_guard lock(mutex_);
  num_nodes_walked_ = 0;
  for (int32_t state = 0; state < pushdown_.num_states(); ++state) {
    if (num_nodes_walked_ > max_nodes || memo_bytes_ > max_cache_bytes_ / 2) break;
    if (!pushdown_.states[state].is_final) memo(-1, state);
  }
  trim();
}

void CompiledGrammar::Matcher::begin(GrammarState& state) const {
  const int32_t start = pushdown_.root_start;
  const bool has_way =
      !pushdown_.byte_edges_of(start).empty() || !pushdown_.calls_of(start).empty();
  if (has_way) state.stacks_.push_back({start});
  state.is_complete_ = pushdown_.root_nullable;
}

bool CompiledGrammar::Matcher::can_end(const GrammarState& state) const {
  return state.is_complete_ ||
         std::any_of(state.stacks_.begin(), state.stacks_.end(), [&](const auto& stack) {
           return std::all_of(stack.begin(), stack.end(),
                              [&](int32_t s) { return pushdown_.states[s].accepting; });
         });
}

// Judges the tokens below trie node `from`, with the frame at `state` there.
void CompiledGrammar::Matcher::walk(uint32_t from, int32_t state, std::vector<int32_t>& tokens,
                                    std::vector<uint32_t>& leaves) {
  const auto nodes = vocabulary_->nodes();
  const uint32_t end = nodes[from].subtree_end;
  if (from + 1 == end) return;
  set_at_depth_[nodes[from].depth] = sets_.start(state);
  if (sets_[sets_.start(state)].can_leave) leaves.push_back(from);
  for (uint32_t node = from + 1; node < end;) {
    const TokenTrie::Node& at = nodes[node];
    ++num_nodes_walked_;
    const int32_t set = sets_.step(set_at_depth_[at.depth - 1], at.byte);
    if (set == StackSets::kDead) {
      node = at.subtree_end;
      continue;
    }
    const auto ids = vocabulary_->tokens_at(node);
    tokens.insert(tokens.end(), ids.begin(), ids.end());
    if (at.subtree_end == node + 1) {
      ++node;
      continue;
    }
    if (sets_.meet(set) > kMaxWalkSets) {
      node = at.subtree_end;
      continue;
    }
    if (sets_[set].can_leave) leaves.push_back(node);
    set_at_depth_[at.depth] = set;
    ++node;
  }
}

const CompiledGrammar::Matcher::Memo& CompiledGrammar::Matcher::memo(int32_t above, int32_t state) {
  state = pushdown_.representative[state];
  const uint64_t key = static_cast<uint64_t>(above + 1) << 32 | static_cast<uint32_t>(state);
  const auto [found, is_new] = memo_ids_.try_emplace(key, static_cast<int32_t>(memos_.size()));
  if (!is_new) return *memos_[found->second];
  auto memo = std::make_unique<Memo>();
  sets_.begin_walk();
  if (above < 0) {
    walk(0, state, memo->tokens, memo->leaves);
  } else {
    for (const uint32_t leaf : memos_[above]->leaves) {
      walk(leaf, state, memo->tokens, memo->leaves);
    }
    // Two ways of leaving the frame above may meet in one node.
    std::sort(memo->leaves.begin(), memo->leaves.end());
    memo->leaves.erase(std::unique(memo->leaves.begin(), memo->leaves.end()), memo->leaves.end());
  }
  const size_t num_words = (static_cast<size_t>(vocabulary_->vocab_size()) + 31) / 32;
  if (memo->tokens.size() > num_words / 2) {
    memo->mask.assign(num_words, 0);
    for (const int32_t token : memo->tokens) set_bit(memo->mask, token);
    memo->tokens = {};
  }
  memo->tokens.shrink_to_fit();
  memo->leaves.shrink_to_fit();
  memo_bytes_ += 128 + 4 * (memo->mask.size() + memo->tokens.size() + memo->leaves.size());
  memos_.push_back(std::move(memo));
  return *memos_.back();
}

void CompiledGrammar::Matcher::allowed(const GrammarState& state, std::span<uint32_t> mask) {
  const size_t num_words = (static_cast<size_t>(vocabulary_->vocab_size()) + 31) / 32;
  CHECK_GE(mask.size(), num_words);
  std::fill(mask.begin(), mask.end(), 0);
  if (can_end(state) || state.has_ended_) {
    for (const int32_t token : vocabulary_->end_tokens()) set_bit(mask, token);
  }
  if (state.has_ended_) return;
  const std::lock_guard lock(mutex_);
  for (const auto& stack : state.stacks_) {
    int32_t above = -1;
    for (size_t depth = stack.size(); depth-- > 0;) {
      const Memo& here = memo(above, stack[depth]);
      for (size_t i = 0; i < here.mask.size(); ++i) mask[i] |= here.mask[i];
      for (const int32_t token : here.tokens) set_bit(mask, token);
      if (here.leaves.empty()) break;
      above = memo_ids_.at(static_cast<uint64_t>(above + 1) << 32 |
                           static_cast<uint32_t>(pushdown_.representative[stack[depth]]));
    }
  }
  trim();
}

bool CompiledGrammar::Matcher::accept(GrammarState& state, std::string_view bytes) {
  const std::lock_guard lock(mutex_);
  std::vector<GrammarState::Stack> next;
  bool is_complete = state.is_complete_ && bytes.empty();
  struct Run {
    size_t depth;
    size_t offset;
    bool operator==(const Run&) const = default;
  };
  std::vector<Run> runs;
  for (const auto& stack : state.stacks_) {
    runs = {{stack.size() - 1, 0}};
    const auto leave = [&](size_t depth, size_t offset) {
      if (depth == 0) {
        is_complete |= offset == bytes.size();
      } else if (const Run run{depth - 1, offset};
                 std::find(runs.begin(), runs.end(), run) == runs.end()) {
        runs.push_back(run);
      }
    };
    for (size_t i = 0; i < runs.size(); ++i) {
      const auto [depth, offset] = runs[i];
      int32_t set = sets_.start(stack[depth]);
      for (size_t at = offset; at < bytes.size() && set != StackSets::kDead; ++at) {
        if (sets_[set].can_leave && depth > 0) leave(depth, at);
        set = sets_.step(set, static_cast<uint8_t>(bytes[at]));
      }
      // A frame that may end here but need not is kept as it is; one that must is left.
      if (sets_[set].left) leave(depth, bytes.size());
      for (const auto& above : sets_[set].stacks) {
        next.emplace_back(stack.begin(), stack.begin() + static_cast<ptrdiff_t>(depth));
        next.back().insert(next.back().end(), above.begin(), above.end());
      }
    }
  }
  trim();
  if (next.empty() && !is_complete) return false;
  normalise_stacks(next, kMaxStateStacks);
  state.stacks_ = std::move(next);
  state.is_complete_ = is_complete;
  return true;
}

// What is dropped here is found again when needed, the same to the bit.
void CompiledGrammar::Matcher::trim() {
  if (sets_.memory_bytes() + memo_bytes_ <= max_cache_bytes_) return;
  sets_.clear();
  memo_ids_.clear();
  memos_.clear();
  memo_bytes_ = 0;
}

}  // namespace volley
