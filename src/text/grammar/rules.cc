#include "text/grammar/rules.h"

#include <utility>

namespace volley::grammar {

ExprId Rules::add(Expr expr) {
  exprs_.push_back(std::move(expr));
  return static_cast<ExprId>(exprs_.size() - 1);
}

ExprId Rules::literal(std::string bytes) {
  std::vector<std::string> one;
  one.push_back(std::move(bytes));
  return literals(std::move(one));
}

ExprId Rules::literals(std::vector<std::string> any_of) {
  return add({.kind = Expr::Kind::kLiterals, .literals = std::move(any_of)});
}

ExprId Rules::chars(CodePointSet set) {
  return add({.kind = Expr::Kind::kChars, .chars = std::move(set)});
}

ExprId Rules::sequence(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  return add({.kind = Expr::Kind::kSequence, .parts = std::move(parts)});
}

ExprId Rules::choice(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  return add({.kind = Expr::Kind::kChoice, .parts = std::move(parts)});
}

ExprId Rules::repeat(ExprId part, int min, int max) {
  return add({.kind = Expr::Kind::kRepeat, .min = min, .max = max, .parts = {part}});
}

ExprId Rules::call(RuleId rule) {
  return add({.kind = Expr::Kind::kRule, .rule = rule});
}

ExprId Rules::graph(ExprGraph graph) {
  return add({.kind = Expr::Kind::kGraph, .graph = std::make_unique<ExprGraph>(std::move(graph))});
}

ExprId Rules::automaton(std::shared_ptr<const Automaton> automaton) {
  return add({.kind = Expr::Kind::kAutomaton, .automaton = std::move(automaton)});
}

RuleId Rules::add_rule(std::string name) {
  const ExprId body = nothing();
  return add_rule(std::move(name), body);
}

RuleId Rules::add_rule(std::string name, ExprId body) {
  rules_.push_back({std::move(name), body});
  return static_cast<RuleId>(rules_.size() - 1);
}

void Rules::define(RuleId rule, ExprId body) {
  rules_[static_cast<size_t>(rule)].body = body;
}

}  // namespace volley::grammar
