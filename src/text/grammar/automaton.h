#pragma once

// Deterministic automata over bytes and rule calls: one rule's expression, determinised. Also the
// algebra of regular languages that schemas need (a pattern and a length, any key but these).

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/grammar/rules.h"

namespace volley::grammar {

struct Automaton {
  struct ByteEdge {
    uint8_t lo = 0;
    uint8_t hi = 0;  // inclusive
    int32_t to = 0;
  };
  struct CallEdge {
    int32_t rule = 0;
    int32_t to = 0;
  };
  struct State {
    std::vector<ByteEdge> bytes;  // sorted, disjoint
    std::vector<CallEdge> calls;  // one per rule
    bool accepting = false;
  };
  std::vector<State> states;
  int32_t start = 0;

  bool accepts(std::string_view text) const;  // no calls
  bool matches_nothing() const;               // no calls
};

// What one compilation may still spend. Steps are elementary operations (about 25 ns and a few
// bytes each), counted rather than timed so that the same input gives the same answer on every
// machine.
struct Budget {
  int64_t steps = 20'000'000;
  int64_t states = 400'000;  // of all deterministic automata together

  bool spend(int64_t n) { return (steps -= n) >= 0; }
};

// `nullable[r]`: rule r matches the empty string (a call of it may be skipped).
Result<Automaton> determinise(const Rules& rules, ExprId expr, const std::vector<bool>& nullable,
                              std::string_view name, Budget& budget);

// A regular expression (no calls in it) as an automaton.
Result<Automaton> determinise(const Rules& rules, ExprId expr, std::string_view name,
                              Budget& budget);

// Strings of both; strings of `a` that are not in `b`. No calls in either.
Result<Automaton> intersection(const Automaton& a, const Automaton& b, std::string_view name,
                               Budget& budget);
Result<Automaton> difference(const Automaton& a, const Automaton& b, std::string_view name,
                             Budget& budget);

}  // namespace volley::grammar
