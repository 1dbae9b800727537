#include "server/constraints.h"

#include "base/check.h"

namespace volley::server {
namespace {

constexpr int kMaxParallelToolCalls = 16;

GrammarSpec spec_of(const Constraint& constraint, const Json& tools, bool parallel_tool_calls) {
  GrammarSpec spec;
  switch (constraint.kind) {
    case Constraint::Kind::kNone:
      CHECK(false);
    case Constraint::Kind::kJsonObject:
      spec.kind = GrammarSpec::Kind::kJsonObject;
      break;
    case Constraint::Kind::kJsonSchema:
      spec.kind = GrammarSpec::Kind::kJsonSchema;
      spec.text = dump_json(constraint.schema);
      break;
    case Constraint::Kind::kRegex:
      spec.kind = GrammarSpec::Kind::kRegex;
      spec.text = constraint.text;
      break;
    case Constraint::Kind::kGrammar:
      spec.kind = GrammarSpec::Kind::kEbnf;
      spec.text = constraint.text;
      break;
    case Constraint::Kind::kChoice:
      spec.kind = GrammarSpec::Kind::kChoice;
      spec.choices = constraint.choices;
      break;
    case Constraint::Kind::kToolCall:
      spec.kind = GrammarSpec::Kind::kToolCalls;
      spec.max_tool_calls =
          parallel_tool_calls && constraint.tool.empty() ? kMaxParallelToolCalls : 1;
      for (const Json& tool : tools) {
        const Json& function = tool["function"];
        const auto name = function["name"].get<std::string>();
        if (!constraint.tool.empty() && name != constraint.tool) continue;
        spec.tools.push_back({.name = name, .parameters = dump_json(function["parameters"])});
      }
      break;
  }
  return spec;
}

}  // namespace

std::shared_ptr<const TokenTrie> make_token_trie(const Tokenizer& tokenizer, int64_t vocab_size,
                                                 std::span<const int32_t> end_tokens) {
  std::vector<std::string> bytes(static_cast<size_t>(vocab_size));
  for (int32_t id = 0; id < vocab_size; ++id) {
    if (!tokenizer.is_special(id)) bytes[id] = tokenizer.token_bytes(id);
  }
  return std::make_shared<const TokenTrie>(std::move(bytes), end_tokens);
}

Result<std::shared_ptr<const TokenFilter>> Constraints::compile(const Constraint& constraint,
                                                                const Json& tools,
                                                                bool parallel_tool_calls) {
  VOLLEY_TRY(std::shared_ptr<const CompiledGrammar> grammar,
             cache_.compile(spec_of(constraint, tools, parallel_tool_calls)));
  ++num_compiled_;
  return std::make_shared<const GrammarFilter>(std::move(grammar));
}

}  // namespace volley::server
