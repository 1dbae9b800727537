#pragma once

// A grammar before compilation: named rules, each an expression over bytes and rules. The front
// ends (JSON Schema, EBNF, regex, choice) write it, pushdown.h compiles it.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/grammar/code_points.h"

namespace volley::grammar {

struct Automaton;

enum class ExprId : int32_t {};
enum class RuleId : int32_t {};

// A small graph whose edges are expressions: members of an object, items of an array. What a tree
// would repeat (all that may follow an optional member) is here one node.
struct ExprGraph {
  struct Edge {
    int from = 0;
    int to = 0;
    ExprId expr{};
  };
  int num_nodes = 0;  // node 0 is the start
  int accept = 0;
  std::vector<Edge> edges;
};

struct Expr {
  enum class Kind : uint8_t {
    kNothing,    // matches no string at all
    kLiterals,   // one of `literals`, byte strings; {""} is the empty string
    kChars,      // one code point of `chars`, in UTF-8
    kSequence,   // `parts` one after the other
    kChoice,     // one of `parts`
    kRepeat,     // parts[0], min to max times
    kRule,       // what `rule` matches
    kGraph,      // a path of `graph` from the start to accept
    kAutomaton,  // what `automaton` accepts; it has no calls
  };
  static constexpr int kUnbounded = -1;

  Kind kind = Kind::kNothing;
  RuleId rule{};
  int min = 0;
  int max = kUnbounded;
  std::vector<ExprId> parts;
  std::vector<std::string> literals;
  CodePointSet chars;
  std::unique_ptr<ExprGraph> graph;
  std::shared_ptr<const Automaton> automaton;
};

struct Rule {
  std::string name;  // for messages
  ExprId body{};
};

class Rules {
 public:
  ExprId nothing() { return add({.kind = Expr::Kind::kNothing}); }
  ExprId empty() { return literal(""); }
  ExprId literal(std::string bytes);
  ExprId literals(std::vector<std::string> any_of);
  ExprId chars(CodePointSet set);
  ExprId sequence(std::vector<ExprId> parts);
  ExprId choice(std::vector<ExprId> parts);
  ExprId optional(ExprId part) { return repeat(part, 0, 1); }
  ExprId repeat(ExprId part, int min, int max);
  ExprId call(RuleId rule);
  ExprId graph(ExprGraph graph);
  ExprId automaton(std::shared_ptr<const Automaton> automaton);

  // A rule without a body yet matches nothing.
  RuleId add_rule(std::string name);
  RuleId add_rule(std::string name, ExprId body);
  void define(RuleId rule, ExprId body);

  const Expr& operator[](ExprId id) const { return exprs_[static_cast<size_t>(id)]; }
  const Rule& operator[](RuleId id) const { return rules_[static_cast<size_t>(id)]; }
  size_t num_exprs() const { return exprs_.size(); }
  size_t num_rules() const { return rules_.size(); }

  RuleId root{};

 private:
  ExprId add(Expr expr);

  std::vector<Expr> exprs_;
  std::vector<Rule> rules_;
};

}  // namespace volley::grammar
