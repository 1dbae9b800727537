#pragma once

// JSON Schema (draft 2020-12, the part below) to rules.
//
//   type (one or a list), enum, const, nullable, $ref (inside the document, recursion included),
//   $defs, definitions, allOf, anyOf, oneOf (of branches that cannot both match)
//   properties, required, additionalProperties, unevaluatedProperties: false
//   items, prefixItems, minItems, maxItems
//   minLength, maxLength, pattern, format: date, time, date-time, duration, uuid, email, hostname,
//     ipv4, ipv6, uri
//   minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, exactly
//
// Annotations (title, description, default, examples, ...) are skipped; any other keyword is an
// error that names it and its place. What is written is narrower than what the schema admits where
// that costs nothing and keeps the output sane: members come in the order of the schema, an object
// that names members and is silent about others has no others, strings under a pattern or an enum
// use the shortest escapes, numbers are as JsonText says.

#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/result.h"
#include "text/grammar/grammar.h"
#include "text/grammar/json_numbers.h"
#include "text/grammar/json_text.h"
#include "text/grammar/rules.h"
#include "text/grammar/schema_tree.h"

namespace volley::grammar {

class JsonSchemaCompiler {
 public:
  JsonSchemaCompiler(Rules& rules, const JsonSchemaOptions& options, const GrammarLimits& limits,
                     Budget& budget)
      : rules_(rules),
        options_(options),
        limits_(limits),
        budget_(budget),
        text_(rules, options.whitespace) {}

  RuleId any_object() { return text_.object(); }
  Result<RuleId> compile(std::string_view schema);
  Result<RuleId> compile_tool_calls(const GrammarSpec& spec);

 private:
  // A value must satisfy all parts. Conjunctions are the whole trick: $ref and allOf add parts,
  // anyOf makes one conjunction per branch, and a property of a conjunction is the conjunction of
  // what its parts say of the property. There are finitely many, each is one rule, so recursion
  // closes.
  struct Part {
    const SchemaNode* node = nullptr;
    // Keywords of the node that a branch was already chosen for.
    bool any_of_done = false;
    bool one_of_done = false;
    bool is_expanded = false;  // its $ref and allOf are among the parts
  };
  struct Conjunction {
    std::vector<Part> parts;
    bool is_never = false;  // one part is `false`
  };
  struct Strings;  // what a conjunction says of strings

  Result<RuleId> rule_of(const SchemaNode& schema);
  Result<RuleId> rule_of(std::vector<Part> parts, std::string name);
  Status build_pending();
  Result<Conjunction> flatten(const std::vector<Part>& parts);
  Status check_keywords(const SchemaNode& node);
  Result<const SchemaNode*> target_of(const SchemaNode& reference);

  Result<ExprId> build(const Conjunction& all);
  Result<ExprId> build_branches(const Conjunction& all, size_t part_idx, bool is_one_of);
  // oneOf: sees to it that no value of one branch satisfies another, or says that it cannot. A
  // branch that only a tag tells apart gets the tag as a required property.
  Status make_disjoint(const SchemaNode& list, std::vector<std::vector<Part>>& branches);
  struct Branch;
  Result<Branch> branch_of(const std::vector<Part>& parts);
  static bool are_disjoint(Branch& a, Branch& b);
  static std::vector<const SchemaNode*> nodes_of(const std::vector<Part>& parts);
  Result<unsigned> types_of(const Conjunction& all);
  Result<ExprId> build_values(const Conjunction& all, unsigned types);
  Result<ExprId> value_text(const SchemaNode& value);
  Result<ExprId> build_string(const Conjunction& all);
  Result<Strings> strings_of(const Conjunction& all);
  Result<NumberRange> range_of(const Conjunction& all);
  Result<std::vector<Automaton>> multiples_in(const Conjunction& all);
  Result<ExprId> build_number(const Conjunction& all, bool is_integer);
  Result<ExprId> build_array(const Conjunction& all);
  Result<ExprId> build_object(const Conjunction& all);
  Result<ExprId> other_keys(const std::vector<std::string>& names);
  Result<const Automaton*> pattern_automaton(std::string_view pattern, bool is_search,
                                             const SchemaNode& where);

  Rules& rules_;
  const JsonSchemaOptions options_;
  const GrammarLimits limits_;
  Budget& budget_;
  JsonText text_;
  std::deque<SchemaTree> trees_;
  std::deque<SchemaNode> made_nodes_;
  std::unordered_set<const SchemaNode*> checked_;
  std::map<std::vector<uint64_t>, RuleId> rule_ids_;
  std::deque<std::pair<RuleId, Conjunction>> pending_;
  std::map<std::string, RuleId> string_rules_;
  std::map<std::string, Automaton> patterns_;
};

}  // namespace volley::grammar
