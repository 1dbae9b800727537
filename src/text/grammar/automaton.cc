#include "text/grammar/automaton.h"

#include <algorithm>
#include <bitset>
#include <map>
#include <unordered_map>

#include "text/grammar/hashing.h"

namespace volley::grammar {
namespace {

Error too_complex(std::string_view name) {
  return {ErrorKind::kExhausted,
          fmt::format("{}: too complex to compile (its automaton grows past the limit)", name)};
}

// Thompson's construction. Edges of a state form a list through `next`.
class Nfa {
 public:
  enum Label : int32_t { kEpsilon = -1 };  // else lo | hi << 8, or kCall | rule
  static constexpr int32_t kCall = 1 << 30;
  struct Edge {
    int32_t next;
    int32_t to;
    int32_t label;
  };

  Nfa(const Rules& rules, const std::vector<bool>* nullable, Budget& budget)
      : rules_(rules), nullable_(nullable), budget_(budget) {
    add_state();
  }

  // Adds what `expr` matches behind state `from`; returns the state where it ends.
  int32_t build(int32_t from, ExprId id) {
    budget_.spend(1);
    const Expr& expr = rules_[id];
    switch (expr.kind) {
      case Expr::Kind::kNothing:
        return add_state();
      case Expr::Kind::kLiterals:
        return build_literals(from, expr.literals);
      case Expr::Kind::kChars:
        return build_chars(from, expr.chars);
      case Expr::Kind::kSequence:
        for (const ExprId part : expr.parts) {
          if (overflow()) break;
          from = build(from, part);
        }
        return from;
      case Expr::Kind::kChoice: {
        const int32_t end = add_state();
        for (const ExprId part : expr.parts) {
          if (overflow()) break;
          add_edge(build(from, part), end, kEpsilon);
        }
        return end;
      }
      case Expr::Kind::kRepeat:
        return build_repeat(from, expr);
      case Expr::Kind::kRule: {
        const int32_t end = add_state();
        const int32_t rule = static_cast<int32_t>(expr.rule);
        add_edge(from, end, kCall | rule);
        if (nullable_ != nullptr && (*nullable_)[rule]) add_edge(from, end, kEpsilon);
        return end;
      }
      case Expr::Kind::kGraph:
        return build_graph(from, *expr.graph);
      case Expr::Kind::kAutomaton:
        return build_automaton(from, *expr.automaton);
    }
    return from;
  }

  bool overflow() const { return budget_.steps < 0; }
  int32_t head(int32_t state) const { return heads_[state]; }
  const Edge& edge(int32_t edge_idx) const { return edges_[edge_idx]; }
  size_t num_states() const { return heads_.size(); }

 private:
  int32_t add_state() {
    budget_.spend(12);
    heads_.push_back(-1);
    return static_cast<int32_t>(heads_.size() - 1);
  }

  void add_edge(int32_t from, int32_t to, int32_t label) {
    edges_.push_back({heads_[from], to, label});
    heads_[from] = static_cast<int32_t>(edges_.size() - 1);
  }

  static int32_t byte_label(uint8_t lo, uint8_t hi) { return lo | hi << 8; }

  int32_t build_literals(int32_t from, const std::vector<std::string>& literals) {
    // Literals share the states of their common prefixes: ten thousand enum values make a trie, not
    // ten thousand paths.
    std::unordered_map<uint64_t, int32_t> children;
    const int32_t end = add_state();
    for (const std::string& literal : literals) {
      int32_t state = from;
      for (const char c : literal) {
        if (overflow()) return end;
        const uint8_t byte = static_cast<uint8_t>(c);
        const auto [child, is_new] =
            children.try_emplace(static_cast<uint64_t>(state) << 8 | byte, 0);
        if (is_new) {
          child->second = add_state();
          add_edge(state, child->second, byte_label(byte, byte));
        }
        state = child->second;
      }
      add_edge(state, end, kEpsilon);
    }
    return end;
  }

  int32_t build_chars(int32_t from, const CodePointSet& chars) {
    const int32_t end = add_state();
    for (const Utf8Sequence& sequence : utf8_sequences(chars)) {
      if (overflow()) break;
      int32_t state = from;
      for (int i = 0; i < sequence.length; ++i) {
        const int32_t next = i + 1 == sequence.length ? end : add_state();
        add_edge(state, next, byte_label(sequence.bytes[i].lo, sequence.bytes[i].hi));
        state = next;
      }
    }
    return end;
  }

  int32_t build_repeat(int32_t from, const Expr& expr) {
    const ExprId part = expr.parts[0];
    for (int i = 0; i < expr.min && !overflow(); ++i) from = build(from, part);
    const int32_t end = add_state();
    if (expr.max == Expr::kUnbounded) {
      const int32_t loop = add_state();
      add_edge(from, loop, kEpsilon);
      add_edge(build(loop, part), loop, kEpsilon);
      add_edge(loop, end, kEpsilon);
      return end;
    }
    for (int i = expr.min; i < expr.max && !overflow(); ++i) {
      add_edge(from, end, kEpsilon);
      from = build(from, part);
    }
    add_edge(from, end, kEpsilon);
    return end;
  }

  int32_t build_graph(int32_t from, const ExprGraph& graph) {
    const int32_t first = add_state();
    for (int i = 1; i < graph.num_nodes; ++i) add_state();
    add_edge(from, first, kEpsilon);
    for (const ExprGraph::Edge& edge : graph.edges) {
      if (overflow()) break;
      add_edge(build(first + edge.from, edge.expr), first + edge.to, kEpsilon);
    }
    return first + graph.accept;
  }

  int32_t build_automaton(int32_t from, const Automaton& automaton) {
    const int32_t first = static_cast<int32_t>(heads_.size());
    for (size_t i = 0; i < automaton.states.size(); ++i) add_state();
    const int32_t end = add_state();
    add_edge(from, first + automaton.start, kEpsilon);
    for (size_t i = 0; i < automaton.states.size(); ++i) {
      const Automaton::State& state = automaton.states[i];
      const int32_t here = first + static_cast<int32_t>(i);
      for (const auto& edge : state.bytes) {
        add_edge(here, first + edge.to, byte_label(edge.lo, edge.hi));
      }
      if (state.accepting) add_edge(here, end, kEpsilon);
    }
    return end;
  }

  const Rules& rules_;
  const std::vector<bool>* nullable_;
  Budget& budget_;
  std::vector<int32_t> heads_;
  std::vector<Edge> edges_;
};

// The subset construction.
class SubsetBuilder {
 public:
  SubsetBuilder(const Nfa& nfa, int32_t accept, Budget& budget)
      : nfa_(nfa), accept_(accept), budget_(budget), seen_(nfa.num_states(), 0) {}

  bool build(Automaton& out) {
    intern({0}, out);
    for (size_t i = 0; i < out.states.size(); ++i) {
      if (!expand(i, out)) return false;
    }
    return true;
  }

 private:
  struct Move {
    int32_t lo, hi, to;
  };

  // The set without its epsilon-only states, plus all that epsilon reaches; sorted.
  std::vector<int32_t> closure(std::vector<int32_t> work) {
    ++stamp_;
    std::vector<int32_t> closed;
    while (!work.empty()) {
      const int32_t state = work.back();
      work.pop_back();
      if (seen_[state] == stamp_) continue;
      seen_[state] = stamp_;
      bool matters = state == accept_;
      for (int32_t e = nfa_.head(state); e >= 0; e = nfa_.edge(e).next) {
        budget_.spend(1);
        if (nfa_.edge(e).label == Nfa::kEpsilon) {
          work.push_back(nfa_.edge(e).to);
        } else {
          matters = true;
        }
      }
      if (matters) closed.push_back(state);
    }
    std::sort(closed.begin(), closed.end());
    return closed;
  }

  int32_t intern(std::vector<int32_t> targets, Automaton& out) {
    std::vector<int32_t> set = closure(std::move(targets));
    budget_.spend(8 + static_cast<int64_t>(set.size()));
    const auto [found, is_new] =
        ids_.try_emplace(std::move(set), static_cast<int32_t>(out.states.size()));
    if (is_new) {
      --budget_.states;
      out.states.emplace_back();
      out.states.back().accepting =
          std::binary_search(found->first.begin(), found->first.end(), accept_);
      sets_.push_back(&found->first);
    }
    return found->second;
  }

  bool expand(size_t state_idx, Automaton& out) {
    std::vector<Move> moves;
    std::map<int32_t, std::vector<int32_t>> calls;
    for (const int32_t state : *sets_[state_idx]) {
      for (int32_t e = nfa_.head(state); e >= 0; e = nfa_.edge(e).next) {
        budget_.spend(2);
        const Nfa::Edge& edge = nfa_.edge(e);
        if (edge.label == Nfa::kEpsilon) continue;
        if (edge.label & Nfa::kCall) {
          calls[edge.label & ~Nfa::kCall].push_back(edge.to);
        } else {
          moves.push_back({edge.label & 0xff, edge.label >> 8, edge.to});
        }
      }
    }
    for (auto& [rule, targets] : calls) {
      const int32_t to = intern(std::move(targets), out);
      out.states[state_idx].calls.push_back({rule, to});
    }
    expand_bytes(state_idx, moves, out);
    return budget_.steps >= 0 && budget_.states >= 0;
  }

  void expand_bytes(size_t state_idx, std::vector<Move>& moves, Automaton& out) {
    std::bitset<257> is_boundary;
    for (const Move& move : moves) {
      is_boundary.set(move.lo);
      is_boundary.set(move.hi + 1);
    }
    std::sort(moves.begin(), moves.end(), [](auto a, auto b) { return a.lo < b.lo; });
    std::vector<Move> active;
    size_t next_move = 0;
    for (int lo = 0; lo < 256;) {
      int hi = lo + 1;
      while (hi < 256 && !is_boundary[hi]) ++hi;
      std::erase_if(active, [=](const Move& move) { return move.hi < lo; });
      for (; next_move < moves.size() && moves[next_move].lo <= lo; ++next_move) {
        active.push_back(moves[next_move]);
      }
      if (!active.empty()) {
        std::vector<int32_t> targets;
        for (const Move& move : active) targets.push_back(move.to);
        budget_.spend(static_cast<int64_t>(targets.size()));
        const int32_t to = intern(std::move(targets), out);
        auto& edges = out.states[state_idx].bytes;
        if (!edges.empty() && edges.back().to == to && edges.back().hi + 1 == lo) {
          edges.back().hi = static_cast<uint8_t>(hi - 1);
        } else {
          edges.push_back({static_cast<uint8_t>(lo), static_cast<uint8_t>(hi - 1), to});
        }
        if (budget_.steps < 0 || budget_.states < 0) return;
      }
      lo = hi;
    }
  }

  const Nfa& nfa_;
  const int32_t accept_;
  Budget& budget_;
  std::vector<uint32_t> seen_;
  uint32_t stamp_ = 0;
  std::unordered_map<std::vector<int32_t>, int32_t, IntVectorHash> ids_;
  std::vector<const std::vector<int32_t>*> sets_;  // keys of ids_, which never move
};

Result<Automaton> determinise_with(const Rules& rules, ExprId expr,
                                   const std::vector<bool>* nullable, std::string_view name,
                                   Budget& budget) {
  Nfa nfa(rules, nullable, budget);
  const int32_t accept = nfa.build(0, expr);
  Automaton automaton;
  if (nfa.overflow() || !SubsetBuilder(nfa, accept, budget).build(automaton)) {
    return tl::unexpected(too_complex(name));
  }
  return automaton;
}

const Automaton::ByteEdge* edge_on(const Automaton::State& state, uint8_t byte) {
  const auto edge = std::lower_bound(state.bytes.begin(), state.bytes.end(), byte,
                                     [](const auto& e, uint8_t b) { return e.hi < b; });
  return edge != state.bytes.end() && edge->lo <= byte ? &*edge : nullptr;
}

// Product of `a` with `b`, where b may have died (state -1) if `b_may_die`. Accepts where a does
// and b does (or, with b_may_die, does not). States that cannot reach acceptance are left in.
Result<Automaton> product(const Automaton& a, const Automaton& b, bool subtract,
                          std::string_view name, Budget& budget) {
  Automaton out;
  std::unordered_map<uint64_t, int32_t> ids;
  std::vector<std::pair<int32_t, int32_t>> pairs;
  const auto intern = [&](int32_t x, int32_t y) {
    const uint64_t key = static_cast<uint64_t>(x) << 32 | static_cast<uint32_t>(y);
    const auto [found, is_new] = ids.try_emplace(key, static_cast<int32_t>(pairs.size()));
    if (is_new) {
      pairs.emplace_back(x, y);
      out.states.emplace_back();
      const bool b_accepts = y >= 0 && b.states[y].accepting;
      out.states.back().accepting = a.states[x].accepting && b_accepts != subtract;
      --budget.states;
      budget.spend(8);
    }
    return found->second;
  };
  out.start = intern(a.start, b.start);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const auto [x, y] = pairs[i];
    for (const auto& edge : a.states[x].bytes) {
      // Cut the edge of a at the edges of b.
      for (int lo = edge.lo; lo <= edge.hi;) {
        if (!budget.spend(4) || budget.states < 0) return tl::unexpected(too_complex(name));
        int hi = edge.hi;
        int32_t to_b = -1;
        if (y >= 0) {
          const auto& edges = b.states[y].bytes;
          const auto other = std::lower_bound(edges.begin(), edges.end(), lo,
                                              [](const auto& e, int byte) { return e.hi < byte; });
          if (other != edges.end() && other->lo <= lo) {
            to_b = other->to;
            hi = std::min<int>(hi, other->hi);
          } else if (other != edges.end()) {
            hi = std::min<int>(hi, other->lo - 1);
          }
        }
        if (to_b >= 0 || subtract) {
          const int32_t to = intern(edge.to, to_b);
          out.states[i].bytes.push_back({static_cast<uint8_t>(lo), static_cast<uint8_t>(hi), to});
        }
        lo = hi + 1;
      }
    }
  }
  return out;
}

}  // namespace

bool Automaton::accepts(std::string_view text) const {
  int32_t state = start;
  for (const char c : text) {
    const ByteEdge* edge = edge_on(states[state], static_cast<uint8_t>(c));
    if (edge == nullptr) return false;
    state = edge->to;
  }
  return states[state].accepting;
}

bool Automaton::matches_nothing() const {
  std::vector<bool> seen(states.size(), false);
  std::vector<int32_t> work = {start};
  while (!work.empty()) {
    const int32_t state = work.back();
    work.pop_back();
    if (seen[state]) continue;
    seen[state] = true;
    if (states[state].accepting) return false;
    for (const ByteEdge& edge : states[state].bytes) work.push_back(edge.to);
  }
  return true;
}

Result<Automaton> determinise(const Rules& rules, ExprId expr, const std::vector<bool>& nullable,
                              std::string_view name, Budget& budget) {
  return determinise_with(rules, expr, &nullable, name, budget);
}

Result<Automaton> determinise(const Rules& rules, ExprId expr, std::string_view name,
                              Budget& budget) {
  return determinise_with(rules, expr, nullptr, name, budget);
}

Result<Automaton> intersection(const Automaton& a, const Automaton& b, std::string_view name,
                               Budget& budget) {
  return product(a, b, false, name, budget);
}

Result<Automaton> difference(const Automaton& a, const Automaton& b, std::string_view name,
                             Budget& budget) {
  return product(a, b, true, name, budget);
}

}  // namespace volley::grammar
