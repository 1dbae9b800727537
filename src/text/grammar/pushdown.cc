#include "text/grammar/pushdown.h"

#include <algorithm>
#include <bitset>
#include <unordered_map>

#include "text/grammar/hashing.h"

namespace volley::grammar {
namespace {

// Calls that may nest before a byte is read. One step of the automaton costs the square of it.
constexpr int kMaxCallChain = 1000;

// Rules that may match the empty string, to a fixpoint.
class Nullability {
 public:
  explicit Nullability(const Rules& rules) : rules_(rules), nullable_(rules.num_rules(), false) {}

  std::vector<bool> solve() {
    // A rule is looked at again only when one that it names became nullable.
    std::vector<std::vector<int32_t>> users(rules_.num_rules());
    std::vector<int32_t> work;
    for (size_t rule = 0; rule < rules_.num_rules(); ++rule) {
      work.push_back(static_cast<int32_t>(rule));
      collect_calls(rules_[static_cast<RuleId>(rule)].body, static_cast<int32_t>(rule), users);
    }
    while (!work.empty()) {
      const int32_t rule = work.back();
      work.pop_back();
      if (nullable_[rule] || !is_nullable(rules_[static_cast<RuleId>(rule)].body)) continue;
      nullable_[rule] = true;
      work.insert(work.end(), users[rule].begin(), users[rule].end());
    }
    return nullable_;
  }

 private:
  void collect_calls(ExprId id, int32_t user, std::vector<std::vector<int32_t>>& users) {
    const Expr& expr = rules_[id];
    if (expr.kind == Expr::Kind::kRule) users[static_cast<size_t>(expr.rule)].push_back(user);
    for (const ExprId part : expr.parts) collect_calls(part, user, users);
    if (expr.graph) {
      for (const auto& edge : expr.graph->edges) collect_calls(edge.expr, user, users);
    }
  }

  bool is_nullable(ExprId id) const {
    const Expr& expr = rules_[id];
    const auto part_nullable = [&](ExprId part) { return is_nullable(part); };
    switch (expr.kind) {
      case Expr::Kind::kNothing:
      case Expr::Kind::kChars:
        return false;
      case Expr::Kind::kLiterals:
        return std::any_of(expr.literals.begin(), expr.literals.end(),
                           [](const std::string& literal) { return literal.empty(); });
      case Expr::Kind::kSequence:
        return std::all_of(expr.parts.begin(), expr.parts.end(), part_nullable);
      case Expr::Kind::kChoice:
        return std::any_of(expr.parts.begin(), expr.parts.end(), part_nullable);
      case Expr::Kind::kRepeat:
        return expr.min == 0 || is_nullable(expr.parts[0]);
      case Expr::Kind::kRule:
        return nullable_[static_cast<size_t>(expr.rule)];
      case Expr::Kind::kGraph:
        return graph_nullable(*expr.graph);
      case Expr::Kind::kAutomaton:
        return expr.automaton->states[expr.automaton->start].accepting;
    }
    return false;
  }

  bool graph_nullable(const ExprGraph& graph) const {
    std::vector<bool> reached(graph.num_nodes, false);
    reached[0] = true;
    for (bool changed = true; changed;) {
      changed = false;
      for (const auto& edge : graph.edges) {
        if (!reached[edge.from] || reached[edge.to] || !is_nullable(edge.expr)) continue;
        reached[edge.to] = changed = true;
      }
    }
    return reached[graph.accept];
  }

  const Rules& rules_;
  std::vector<bool> nullable_;
};

// A rule that may match nothing gets a start of its own that does not accept: its callers hold the
// alternative of skipping the call.
void split_accepting_start(Automaton& automaton) {
  if (!automaton.states[automaton.start].accepting) return;
  Automaton::State start = automaton.states[automaton.start];
  start.accepting = false;
  automaton.start = static_cast<int32_t>(automaton.states.size());
  automaton.states.push_back(std::move(start));
}

// Which states can be completed, over all rules at once: a backward search in which a call carries
// only once its rule can be completed.
class Liveness {
 public:
  Liveness(const std::vector<Automaton>& automata, const std::vector<bool>& usable)
      : automata_(automata) {
    base_.push_back(0);
    for (const Automaton& automaton : automata) {
      base_.push_back(base_.back() + static_cast<int32_t>(automaton.states.size()));
    }
    live_.assign(base_.back(), false);
    byte_users_.resize(base_.back());
    call_users_.resize(base_.back());
    callers_.resize(automata.size());
    for (size_t rule = 0; rule < automata.size(); ++rule) {
      for (size_t i = 0; i < automata[rule].states.size(); ++i) {
        const Automaton::State& state = automata[rule].states[i];
        const int32_t here = base_[rule] + static_cast<int32_t>(i);
        for (const auto& edge : state.bytes) {
          bool is_usable = false;
          for (int byte = edge.lo; byte <= edge.hi; ++byte) is_usable |= usable[byte];
          if (is_usable) byte_users_[base_[rule] + edge.to].push_back(here);
        }
        for (const auto& call : state.calls) {
          call_users_[base_[rule] + call.to].push_back({here, call.rule});
          callers_[call.rule].push_back({here, base_[rule] + call.to});
        }
      }
    }
    solve();
  }

  bool live(size_t rule, int32_t state) const { return live_[base_[rule] + state]; }
  bool live(size_t rule) const { return live(rule, automata_[rule].start); }

 private:
  void solve() {
    std::vector<int32_t> work;
    const auto mark = [&](int32_t state) {
      if (live_[state]) return;
      live_[state] = true;
      work.push_back(state);
    };
    std::unordered_map<int32_t, size_t> rule_of_start;
    for (size_t rule = 0; rule < automata_.size(); ++rule) {
      rule_of_start[base_[rule] + automata_[rule].start] = rule;
      for (size_t i = 0; i < automata_[rule].states.size(); ++i) {
        if (automata_[rule].states[i].accepting) mark(base_[rule] + static_cast<int32_t>(i));
      }
    }
    while (!work.empty()) {
      const int32_t state = work.back();
      work.pop_back();
      for (const int32_t user : byte_users_[state]) mark(user);
      for (const auto& [user, rule] : call_users_[state]) {
        if (live(rule)) mark(user);
      }
      if (const auto found = rule_of_start.find(state); found != rule_of_start.end()) {
        for (const auto& [user, to] : callers_[found->second]) {
          if (live_[to]) mark(user);
        }
      }
    }
  }

  const std::vector<Automaton>& automata_;
  std::vector<int32_t> base_;  // of each rule's states
  std::vector<bool> live_;
  std::vector<std::vector<int32_t>> byte_users_;
  std::vector<std::vector<std::pair<int32_t, int32_t>>> call_users_;  // by continuation
  std::vector<std::vector<std::pair<int32_t, int32_t>>> callers_;     // by callee
};

// Numbers the live states that the root reaches and lays them out flat.
class Flattener {
 public:
  Flattener(const std::vector<Automaton>& automata, const Liveness& liveness)
      : automata_(automata), liveness_(liveness), numbers_(automata.size()) {}

  Pushdown run(size_t root) {
    out_.rule_start.assign(automata_.size(), -1);
    out_.root_start = number_of_rule(root);
    for (size_t i = 0; i < places_.size(); ++i) emit(i);
    out_.states.push_back({static_cast<uint32_t>(out_.byte_edges.size()),
                           static_cast<uint32_t>(out_.calls.size()), false, false});
    return std::move(out_);
  }

 private:
  int32_t number(size_t rule, int32_t state) {
    if (numbers_[rule].empty()) numbers_[rule].assign(automata_[rule].states.size(), -1);
    int32_t& id = numbers_[rule][state];
    if (id < 0) {
      id = static_cast<int32_t>(places_.size());
      places_.push_back({rule, state});
    }
    return id;
  }

  int32_t number_of_rule(size_t rule) {
    if (out_.rule_start[rule] < 0) out_.rule_start[rule] = number(rule, automata_[rule].start);
    return out_.rule_start[rule];
  }

  void emit(size_t place_idx) {
    const auto [rule, local] = places_[place_idx];
    const Automaton::State& state = automata_[rule].states[local];
    Pushdown::State flat{static_cast<uint32_t>(out_.byte_edges.size()),
                         static_cast<uint32_t>(out_.calls.size()), state.accepting, false};
    for (const auto& edge : state.bytes) {
      if (!liveness_.live(rule, edge.to)) continue;
      out_.byte_edges.push_back({edge.lo, edge.hi, number(rule, edge.to)});
    }
    for (const auto& call : state.calls) {
      if (!liveness_.live(call.rule) || !liveness_.live(rule, call.to)) continue;
      number_of_rule(call.rule);
      out_.calls.push_back({call.rule, number(rule, call.to)});
    }
    flat.is_final = state.accepting && flat.first_byte_edge == out_.byte_edges.size() &&
                    flat.first_call == out_.calls.size();
    out_.states.push_back(flat);
  }

  const std::vector<Automaton>& automata_;
  const Liveness& liveness_;
  std::vector<std::vector<int32_t>> numbers_;
  std::vector<std::pair<size_t, int32_t>> places_;
  Pushdown out_;
};

void find_byte_classes(Pushdown& pushdown) {
  std::bitset<257> is_boundary;
  is_boundary.set(0);
  for (const auto& edge : pushdown.byte_edges) {
    is_boundary.set(edge.lo);
    is_boundary.set(edge.hi + 1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (is_boundary[byte]) {
      ++pushdown.num_classes;
      pushdown.class_byte.push_back(static_cast<uint8_t>(byte));
    }
    pushdown.byte_class[byte] = static_cast<uint8_t>(pushdown.num_classes - 1);
  }
}

// First bytes of every rule. A rule that can call itself before it reads a byte is left recursion:
// the automaton would push without end.
Status find_first_bytes(const Rules& rules, Pushdown& pushdown) {
  const size_t num_rules = pushdown.rule_start.size();
  const size_t num_classes = static_cast<size_t>(pushdown.num_classes);
  pushdown.rule_first.assign(num_rules * num_classes, false);
  enum Mark : uint8_t { kNew, kOpen, kDone };
  std::vector<Mark> marks(num_rules, kNew);
  std::vector<int> chain(num_rules, 0);
  for (size_t root = 0; root < num_rules; ++root) {
    if (pushdown.rule_start[root] < 0 || marks[root] != kNew) continue;
    std::vector<size_t> path = {root};  // depth first, without recursion
    while (!path.empty()) {
      const size_t rule = path.back();
      const int32_t start = pushdown.rule_start[rule];
      if (marks[rule] == kNew) {
        marks[rule] = kOpen;
        for (const auto& call : pushdown.calls_of(start)) {
          if (marks[call.rule] == kOpen) {
            return invalid("rule '{}' is left recursive: it calls itself before it reads anything",
                           rules[static_cast<RuleId>(call.rule)].name);
          }
          if (marks[call.rule] == kNew) path.push_back(call.rule);
        }
        continue;
      }
      path.pop_back();
      if (marks[rule] == kDone) continue;
      marks[rule] = kDone;
      for (const auto& edge : pushdown.byte_edges_of(start)) {
        for (int c = pushdown.byte_class[edge.lo]; c <= pushdown.byte_class[edge.hi]; ++c) {
          pushdown.rule_first[rule * num_classes + c] = true;
        }
      }
      for (const auto& call : pushdown.calls_of(start)) {
        chain[rule] = std::max(chain[rule], chain[call.rule] + 1);
        if (chain[rule] > kMaxCallChain) {
          return make_error(ErrorKind::kExhausted,
                            "rule '{}': more than {} rules nest before the first byte",
                            rules[static_cast<RuleId>(rule)].name, kMaxCallChain);
        }
        for (size_t c = 0; c < num_classes; ++c) {
          if (pushdown.rule_first[call.rule * num_classes + c]) {
            pushdown.rule_first[rule * num_classes + c] = true;
          }
        }
      }
    }
  }
  return {};
}

// Refines {accepting, not} `horizon` times; stops early when nothing changes.
void find_representatives(Pushdown& pushdown, int horizon, Budget& budget) {
  const int32_t num_states = pushdown.num_states();
  const int64_t round_cost =
      4 * static_cast<int64_t>(num_states + pushdown.byte_edges.size() + pushdown.calls.size());
  std::vector<int32_t> group(num_states), next(num_states);
  for (int32_t s = 0; s < num_states; ++s) group[s] = pushdown.states[s].accepting;
  size_t num_groups = 0;
  bool is_stable = false;
  for (int round = 0; round <= horizon && !is_stable; ++round) {
    // Out of budget: every state stands for itself, which costs time later and is as right.
    if (budget.steps < round_cost || !budget.spend(round_cost)) {
      for (int32_t s = 0; s < num_states; ++s) group[s] = s;
      break;
    }
    std::unordered_map<std::vector<int32_t>, int32_t, IntVectorHash> signatures;
    std::vector<int32_t> signature;
    for (int32_t s = 0; s < num_states; ++s) {
      signature = {group[s]};
      for (const auto& edge : pushdown.byte_edges_of(s)) {
        // Neighbouring edges into one group are one edge.
        if (signature.size() >= 3 && signature.back() == group[edge.to] &&
            (signature[signature.size() - 2] & 0xff) + 1 == edge.lo) {
          signature[signature.size() - 2] += edge.hi - edge.lo + 1;
          continue;
        }
        signature.push_back(edge.lo << 8 | edge.hi);
        signature.push_back(group[edge.to]);
      }
      for (const auto& call : pushdown.calls_of(s)) {
        signature.push_back(-1 - call.rule);
        signature.push_back(group[call.to]);
        signature.push_back(pushdown.states[call.to].is_final);
      }
      next[s] =
          signatures.try_emplace(signature, static_cast<int32_t>(signatures.size())).first->second;
    }
    is_stable = signatures.size() == num_groups;
    num_groups = signatures.size();
    group.swap(next);
  }
  pushdown.representative.assign(num_states, 0);
  std::unordered_map<int32_t, int32_t> first_of_group;
  for (int32_t s = 0; s < num_states; ++s) {
    pushdown.representative[s] = first_of_group.try_emplace(group[s], s).first->second;
  }
}

}  // namespace

int32_t Pushdown::next(int32_t state, uint8_t byte) const {
  const auto edges = byte_edges_of(state);
  const auto edge = std::lower_bound(edges.begin(), edges.end(), byte,
                                     [](const auto& e, uint8_t b) { return e.hi < b; });
  return edge != edges.end() && edge->lo <= byte ? edge->to : -1;
}

Result<Pushdown> compile_pushdown(const Rules& rules, const std::vector<bool>& usable, int horizon,
                                  Budget& budget) {
  const std::vector<bool> nullable = Nullability(rules).solve();
  std::vector<Automaton> automata;
  for (size_t rule = 0; rule < rules.num_rules(); ++rule) {
    const Rule& source = rules[static_cast<RuleId>(rule)];
    VOLLEY_TRY(Automaton automaton, determinise(rules, source.body, nullable, source.name, budget));
    split_accepting_start(automaton);
    automata.push_back(std::move(automaton));
  }
  const Liveness liveness(automata, usable);
  const size_t root = static_cast<size_t>(rules.root);
  if (!liveness.live(root) && !nullable[root]) {
    return invalid("no document satisfies the grammar");
  }
  Pushdown pushdown = Flattener(automata, liveness).run(root);
  pushdown.root_nullable = nullable[root];
  find_byte_classes(pushdown);
  VOLLEY_TRY_STATUS(find_first_bytes(rules, pushdown));
  find_representatives(pushdown, horizon, budget);
  return pushdown;
}

}  // namespace volley::grammar
