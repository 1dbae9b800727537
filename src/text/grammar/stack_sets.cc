#include "text/grammar/stack_sets.h"

#include <algorithm>

namespace volley::grammar {

void normalise_stacks(std::vector<std::vector<int32_t>>& stacks, size_t max_stacks) {
  if (stacks.size() < 2) return;
  std::sort(stacks.begin(), stacks.end(), [](const auto& a, const auto& b) {
    return a.size() != b.size() ? a.size() < b.size() : a < b;
  });
  stacks.erase(std::unique(stacks.begin(), stacks.end()), stacks.end());
  if (stacks.size() > max_stacks) stacks.resize(max_stacks);
}

size_t StackSets::SetHash::operator()(const Set& set) const {
  uint64_t hash = mix_hash(set.can_leave, set.left);
  for (const auto& stack : set.stacks) hash = mix_hash(hash, IntVectorHash()(stack));
  return hash;
}

StackSets::StackSets(const Pushdown& pushdown)
    : pushdown_(pushdown), num_classes_(pushdown.num_classes) {
  clear();
}

void StackSets::clear() {
  ids_.clear();
  sets_.clear();
  rows_.clear();
  last_walk_.clear();
  starts_.assign(pushdown_.num_states(), -1);
  memory_bytes_ = starts_.size() * sizeof(int32_t);
  intern({});
}

int32_t StackSets::intern(Set set) {
  normalise_stacks(set.stacks, kMaxStacks);
  const auto [found, is_new] = ids_.try_emplace(std::move(set), static_cast<int32_t>(sets_.size()));
  if (is_new) {
    sets_.push_back(&found->first);
    rows_.resize(rows_.size() + num_classes_, -1);
    last_walk_.push_back(0);
    memory_bytes_ += 128 + num_classes_ * sizeof(int32_t);
    for (const auto& stack : found->first.stacks) {
      memory_bytes_ += sizeof(stack) + stack.capacity() * sizeof(int32_t);
    }
  }
  return found->second;
}

// Adds a stack after its top has moved; a top that can only return is taken off.
void StackSets::add(std::vector<int32_t> stack, Set& to) const {
  // Calls in tail position push no frame, so below a final state lies none.
  if (pushdown_.states[stack.back()].is_final) {
    stack.pop_back();
    if (stack.empty()) {
      to.can_leave = to.left = true;
      return;
    }
  }
  to.can_leave |= std::all_of(stack.begin(), stack.end(),
                              [&](int32_t state) { return pushdown_.states[state].accepting; });
  to.stacks.push_back(std::move(stack));
}

int32_t StackSets::start(int32_t state) {
  if (starts_[state] < 0) {
    Set set;
    add({state}, set);
    starts_[state] = intern(std::move(set));
  }
  return starts_[state];
}

int32_t StackSets::step_slowly(int32_t set, int byte_class) {
  const uint8_t byte = pushdown_.class_byte[byte_class];
  std::vector<std::vector<int32_t>> work = sets_[set]->stacks;
  Set next;
  // Calls push and accepting states pop, both without reading. There is no left recursion, so the
  // pushes end; there are at most as many pops as frames. An ambiguous grammar may still offer
  // exponentially many ways to the same byte: once one is found, the search is cut short.
  for (int tries = 0; !work.empty() && (tries < kMaxTries || next == Set{}); ++tries) {
    std::vector<int32_t> stack = std::move(work.back());
    work.pop_back();
    const int32_t top = stack.back();
    for (const Pushdown::Call& call : pushdown_.calls_of(top)) {
      if (!pushdown_.rule_first[call.rule * num_classes_ + byte_class]) continue;
      std::vector<int32_t> pushed(stack.begin(), stack.end() - 1);
      if (!pushdown_.states[call.to].is_final) pushed.push_back(call.to);
      pushed.push_back(pushdown_.rule_start[call.rule]);
      work.push_back(std::move(pushed));
    }
    if (pushdown_.states[top].accepting && stack.size() > 1) {
      work.emplace_back(stack.begin(), stack.end() - 1);
    }
    if (const int32_t to = pushdown_.next(top, byte); to >= 0) {
      stack.back() = to;
      add(std::move(stack), next);
    }
  }
  const int32_t id = intern(std::move(next));
  rows_[set * num_classes_ + byte_class] = id;
  return id;
}

}  // namespace volley::grammar
