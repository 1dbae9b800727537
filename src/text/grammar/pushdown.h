#pragma once

// The compiled form of a grammar: one deterministic automaton per rule over bytes and calls, with
// every state from which no document can be completed cut away. Whatever is still reachable can be
// finished; that is what makes token masks exact.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "text/grammar/automaton.h"
#include "text/grammar/rules.h"

namespace volley::grammar {

// States of all rules are numbered together.
struct Pushdown {
  struct Call {
    int32_t rule;
    int32_t to;  // where the caller goes on
  };
  struct State {
    uint32_t first_byte_edge = 0;  // [first_byte_edge, next state's)
    uint32_t first_call = 0;
    bool accepting = false;  // the rule may end here
    bool is_final = false;   // accepting, and nothing else may follow
  };

  std::vector<State> states;  // and a sentinel
  std::vector<Automaton::ByteEdge> byte_edges;
  std::vector<Call> calls;
  // Per rule. A call never matches the empty string: where a rule may, its callers skip the call.
  std::vector<int32_t> rule_start;
  int32_t root_start = 0;
  bool root_nullable = false;

  // Bytes that no state tells apart share a class.
  uint8_t byte_class[256] = {};
  int num_classes = 0;
  std::vector<uint8_t> class_byte;  // one byte of each class
  // rule_first[rule * num_classes + class]: some match of the rule starts with such a byte.
  std::vector<bool> rule_first;

  // States with the same representative behave alike for the next `horizon` bytes. A mask looks no
  // further than the longest token, so a string bounded at 10,000 characters needs a few hundred
  // masks, not 10,000.
  std::vector<int32_t> representative;

  int num_states() const { return static_cast<int>(states.size()) - 1; }
  std::span<const Automaton::ByteEdge> byte_edges_of(int32_t state) const {
    return {byte_edges.data() + states[state].first_byte_edge,
            byte_edges.data() + states[state + 1].first_byte_edge};
  }
  std::span<const Call> calls_of(int32_t state) const {
    return {calls.data() + states[state].first_call, calls.data() + states[state + 1].first_call};
  }
  // Where `byte` leads; -1: nowhere.
  int32_t next(int32_t state, uint8_t byte) const;
};

// `usable[b]`: byte b can be written on its own (a token of that byte exists); a document is
// possible only if such bytes can write it. `horizon`: bytes of the longest token.
Result<Pushdown> compile_pushdown(const Rules& rules, const std::vector<bool>& usable, int horizon,
                                  Budget& budget);

}  // namespace volley::grammar
