#include "text/grammar/grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <unordered_map>

#include "text/grammar/ebnf.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/matcher.h"
#include "text/grammar/regex.h"
#include "text/grammar/rules.h"

namespace volley {
namespace {

using grammar::Budget;
using grammar::Rules;

Result<Rules> rules_of(const GrammarSpec& spec, const GrammarLimits& limits, Budget& budget) {
  Rules rules;
  switch (spec.kind) {
    case GrammarSpec::Kind::kJsonObject: {
      grammar::JsonSchemaCompiler compiler(rules, spec.json, limits, budget);
      rules.root = compiler.any_object();
      return rules;
    }
    case GrammarSpec::Kind::kJsonSchema: {
      grammar::JsonSchemaCompiler compiler(rules, spec.json, limits, budget);
      VOLLEY_TRY(rules.root, compiler.compile(spec.text));
      return rules;
    }
    case GrammarSpec::Kind::kToolCalls: {
      grammar::JsonSchemaCompiler compiler(rules, spec.json, limits, budget);
      VOLLEY_TRY(rules.root, compiler.compile_tool_calls(spec));
      return rules;
    }
    case GrammarSpec::Kind::kRegex: {
      VOLLEY_TRY(const grammar::ExprId body,
                 grammar::parse_regex(spec.text, {.max_depth = limits.max_depth}, rules));
      rules.root = rules.add_rule("regex", body);
      return rules;
    }
    case GrammarSpec::Kind::kEbnf:
      return grammar::parse_ebnf(spec.text, limits.max_depth, limits.max_rules);
    case GrammarSpec::Kind::kChoice:
      if (spec.choices.empty()) return invalid("choice: the list is empty");
      rules.root = rules.add_rule("choice", rules.literals(spec.choices));
      return rules;
  }
  return invalid("grammar: unknown kind {}", static_cast<int>(spec.kind));
}

}  // namespace

std::string GrammarSpec::cache_key() const {
  std::string key = fmt::format("{}|{}|{}|{}|{}|", static_cast<int>(kind), json.whitespace.allowed,
                                json.whitespace.max_indent, json.additional_properties_by_default,
                                max_tool_calls);
  const auto add = [&](std::string_view text) { key += fmt::format("{}:{}", text.size(), text); };
  for (const std::string& part : {text, tool_call_begin, tool_call_end}) add(part);
  key += fmt::format("|{}|", choices.size());
  for (const std::string& choice : choices) add(choice);
  for (const ToolGrammar& tool : tools) add(tool.name), add(tool.parameters);
  return key;
}

CompiledGrammar::CompiledGrammar(std::unique_ptr<Matcher> matcher) : matcher_(std::move(matcher)) {}
CompiledGrammar::~CompiledGrammar() = default;

Result<std::shared_ptr<const CompiledGrammar>> CompiledGrammar::compile(
    const GrammarSpec& spec, std::shared_ptr<const TokenTrie> vocabulary,
    const GrammarLimits& limits) {
  size_t text_bytes = spec.text.size() + spec.tool_call_begin.size() + spec.tool_call_end.size();
  for (const std::string& choice : spec.choices) text_bytes += choice.size();
  for (const ToolGrammar& tool : spec.tools)
    text_bytes += tool.name.size() + tool.parameters.size();
  if (text_bytes > limits.max_text_bytes) {
    return make_error(ErrorKind::kExhausted, "grammar: {} bytes, at most {} are accepted",
                      text_bytes, limits.max_text_bytes);
  }
  Budget budget{.steps = limits.max_compile_steps, .states = limits.max_states};
  VOLLEY_TRY(const Rules rules, rules_of(spec, limits, budget));
  std::vector<bool> usable(256);
  for (int byte = 0; byte < 256; ++byte) {
    usable[byte] = vocabulary->has_single_byte(static_cast<uint8_t>(byte));
  }
  VOLLEY_TRY(grammar::Pushdown pushdown,
             grammar::compile_pushdown(rules, usable, vocabulary->max_token_bytes(), budget));
  auto matcher =
      std::make_unique<Matcher>(std::move(pushdown), std::move(vocabulary), limits.max_cache_bytes);
  matcher->warm(limits.max_warm_nodes);
  return std::shared_ptr<const CompiledGrammar>(new CompiledGrammar(std::move(matcher)));
}

const TokenTrie& CompiledGrammar::vocabulary() const {
  return matcher_->vocabulary();
}
int CompiledGrammar::num_states() const {
  return matcher_->pushdown().num_states();
}
size_t CompiledGrammar::memory_bytes() const {
  return matcher_->memory_bytes();
}

GrammarState::GrammarState(std::shared_ptr<const CompiledGrammar> grammar)
    : grammar_(std::move(grammar)) {
  grammar_->matcher().begin(*this);
}

void GrammarState::allowed(std::span<uint32_t> mask) const {
  grammar_->matcher().allowed(*this, mask);
}

bool GrammarState::accept(int32_t token) {
  if (grammar_->vocabulary().is_end_token(token)) {
    has_ended_ |= can_end();
    return has_ended_;
  }
  const std::string_view bytes = grammar_->vocabulary().bytes_of(token);
  return !bytes.empty() && accept_bytes(bytes);
}

bool GrammarState::accept_bytes(std::string_view bytes) {
  return !has_ended_ && grammar_->matcher().accept(*this, bytes);
}

bool GrammarState::can_end() const {
  return grammar_->matcher().can_end(*this);
}

struct GrammarCache::Entries {
  using Entry = std::pair<std::string, std::shared_ptr<const CompiledGrammar>>;
  std::mutex mutex;
  std::list<Entry> by_use;  // the last used first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_key;
};

GrammarCache::GrammarCache(std::shared_ptr<const TokenTrie> vocabulary, size_t max_grammars,
                           GrammarLimits limits)
    : vocabulary_(std::move(vocabulary)),
      max_grammars_(std::max<size_t>(max_grammars, 1)),
      limits_(limits),
      entries_(std::make_unique<Entries>()) {}
GrammarCache::~GrammarCache() = default;

Result<std::shared_ptr<const CompiledGrammar>> GrammarCache::compile(const GrammarSpec& spec) {
  std::string key = spec.cache_key();
  {
    const std::lock_guard lock(entries_->mutex);
    if (const auto found = entries_->by_key.find(key); found != entries_->by_key.end()) {
      entries_->by_use.splice(entries_->by_use.begin(), entries_->by_use, found->second);
      return found->second->second;
    }
  }
  VOLLEY_TRY(std::shared_ptr<const CompiledGrammar> grammar,
             CompiledGrammar::compile(spec, vocabulary_, limits_));
  const std::lock_guard lock(entries_->mutex);
  if (entries_->by_key.contains(key)) return grammar;
  entries_->by_use.emplace_front(std::move(key), grammar);
  entries_->by_key[entries_->by_use.front().first] = entries_->by_use.begin();
  if (entries_->by_use.size() > max_grammars_) {
    entries_->by_key.erase(entries_->by_use.back().first);
    entries_->by_use.pop_back();
  }
  return grammar;
}

}  // namespace volley
