#pragma once

// The pushdown automaton made deterministic on demand. A StackSet is the set of stacks that a frame
// can grow into, above the frame itself: what lies below is not known here, which is why one table
// serves every document.

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "text/grammar/hashing.h"
#include "text/grammar/pushdown.h"

namespace volley::grammar {

class StackSets {
 public:
  explicit StackSets(const Pushdown& pushdown);

  // Set 0 has no stack and no way out: dead.
  static constexpr int32_t kDead = 0;
  struct Set {
    std::vector<std::vector<int32_t>> stacks;  // sorted; the frame itself is stacks[i][0]
    // The frame may be left here, and the frame below goes on. `left`: it was left by a stack that
    // is no longer in `stacks`, because nothing else could follow.
    bool can_leave = false;
    bool left = false;
    bool operator==(const Set&) const = default;
  };
  const Set& operator[](int32_t set) const { return *sets_[set]; }

  // The frame as it stands at automaton state `state`.
  int32_t start(int32_t state);
  int32_t step(int32_t set, uint8_t byte) {
    const int32_t known = rows_[set * num_classes_ + pushdown_.byte_class[byte]];
    return known >= 0 ? known : step_slowly(set, pushdown_.byte_class[byte]);
  }

  // How many sets a walk has met since begin_walk(); grows only for sets not met before.
  void begin_walk() { ++walk_, walk_sets_ = 0; }
  int meet(int32_t set) {
    if (last_walk_[set] != walk_) last_walk_[set] = walk_, ++walk_sets_;
    return walk_sets_;
  }

  size_t memory_bytes() const { return memory_bytes_; }
  void clear();

 private:
  // Alternatives beyond this many are dropped, smallest stacks kept. JSON needs a handful; grammars
  // that are ambiguous without bound lose some of their documents, never their soundness.
  static constexpr size_t kMaxStacks = 64;
  static constexpr int kMaxTries = 4096;

  struct SetHash {
    size_t operator()(const Set& set) const;
  };
  int32_t step_slowly(int32_t set, int byte_class);
  int32_t intern(Set set);
  void add(std::vector<int32_t> stack, Set& to) const;

  const Pushdown& pushdown_;
  const int num_classes_;
  std::unordered_map<Set, int32_t, SetHash> ids_;
  std::vector<const Set*> sets_;  // keys of ids_, which never move
  std::vector<int32_t> rows_;     // [num_sets, num_classes], -1: not known yet
  std::vector<int32_t> starts_;   // [num_states], -1: not known yet
  std::vector<uint32_t> last_walk_;
  uint32_t walk_ = 0;
  int walk_sets_ = 0;
  size_t memory_bytes_ = 0;
};

// Sorts by size, then by content; drops duplicates and what is past `max_stacks`.
void normalise_stacks(std::vector<std::vector<int32_t>>& stacks, size_t max_stacks);

}  // namespace volley::grammar
