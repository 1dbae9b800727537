#include "text/grammar/json_schema.h"

#include <algorithm>

#include "text/grammar/automaton.h"
#include "text/grammar/regex.h"
#include "text/grammar/schema_values.h"

namespace volley::grammar {
namespace {

using Type = SchemaNode::Type;

// Longer strings and arrays are not written, whatever the schema admits.
constexpr int kMaxCount = 8192;
constexpr int kMaxHops = 100;  // from reference to reference

template <class... Args>
tl::unexpected<Error> schema_error(const SchemaNode& where, fmt::format_string<Args...> format,
                                   Args&&... args) {
  return invalid("JSON schema, {}: {}", where.path(),
                 fmt::format(format, std::forward<Args>(args)...));
}

constexpr std::string_view kAnnotations[] = {
    "title",         "description",  "default",   "examples",        "example",
    "$schema",       "$id",          "$comment",  "$defs",           "definitions",
    "deprecated",    "readOnly",     "writeOnly", "contentEncoding", "contentMediaType",
    "discriminator", "externalDocs", "xml"};

constexpr std::string_view kConstraints[] = {"type",
                                             "enum",
                                             "const",
                                             "nullable",
                                             "$ref",
                                             "allOf",
                                             "anyOf",
                                             "oneOf",
                                             "properties",
                                             "required",
                                             "additionalProperties",
                                             "unevaluatedProperties",
                                             "items",
                                             "prefixItems",
                                             "minItems",
                                             "maxItems",
                                             "minLength",
                                             "maxLength",
                                             "pattern",
                                             "format",
                                             "minimum",
                                             "maximum",
                                             "exclusiveMinimum",
                                             "exclusiveMaximum",
                                             "multipleOf"};

template <class List>
bool contains(const List& list, std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

bool is_annotation(std::string_view name) {
  return contains(kAnnotations, name) || name.starts_with("x-");
}

bool is_false(const SchemaNode* node) {
  return node != nullptr && node->is(Type::kBool) && !node->boolean;
}

// "format" by name; "" for the formats that only annotate.
const std::string* format_pattern(std::string_view format) {
  static const std::string date =
      "(?:[12]\\d{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]"
      "\\d|"
      "30)|02-(?:0[1-9]|1\\d|2[0-8]))|(?:[12]\\d(?:0[48]|[2468][048]|[13579][26])|1[26]00|2[048]00)"
      "-02-29)";
  static const std::string time =
      "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,6})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)";
  static const std::string label = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,58}[A-Za-z0-9])?";
  static const std::string host = label + "(?:\\." + label + "){0,3}";
  static const std::string byte = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";
  static const std::string ipv4 = byte + "(?:\\." + byte + "){3}";
  static const std::string group = "[0-9A-Fa-f]{1,4}";
  static const std::string path_char = "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})";
  static const std::string date_part =
      "(?:\\d{1,9}Y(?:\\d{1,9}M(?:\\d{1,9}D)?)?|\\d{1,9}M(?:\\d{1,9}D)?|\\d{1,9}D)";
  static const std::string time_part =
      "T(?:\\d{1,9}H(?:\\d{1,9}M(?:\\d{1,9}S)?)?|\\d{1,9}M(?:\\d{1,9}S)?|\\d{1,9}S)";
  static const std::string ipv6 = [] {
    std::string any = "(?:" + group + ":){7}" + group;
    // "::" with `before` groups in front and at most 7 - before - 1 behind.
    for (int before = 0; before <= 7; ++before) {
      std::string head = before == 0 ? "" : group;
      for (int i = 1; i < before; ++i) head += ":" + group;
      const int behind = 7 - before;
      any += "|" + head + "::";
      if (behind > 0) any += "(?:" + group + fmt::format("(?::{}){{0,{}}})?", group, behind - 1);
    }
    return any;
  }();
  static const std::map<std::string, std::string, std::less<>> patterns = {
      {"date", date},
      {"time", time},
      {"date-time", date + "T" + time},
      {"duration", "P(?:\\d{1,9}W|" + date_part + "(?:" + time_part + ")?|" + time_part + ")"},
      {"uuid", "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"},
      {"email",
       "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,32}(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,24})?@" + label +
           "(?:\\." + label + "){1,2}"},
      {"hostname", host},
      {"ipv4", ipv4},
      {"ipv6", ipv6},
      {"uri", "[A-Za-z][A-Za-z0-9+.-]{0,30}://" + host + "(?::[1-9]\\d{0,4})?(?:/" + path_char +
                  "*)*(?:\\?(?:" + path_char + "|[/?])*)?(?:#(?:" + path_char + "|[/?])*)?"},
      {"int32", ""},
      {"int64", ""},
      {"float", ""},
      {"double", ""},
      {"password", ""},
      {"binary", ""},
      {"byte", ""},
  };
  const auto found = patterns.find(format);
  return found == patterns.end() ? nullptr : &found->second;
}

Result<int> count_of(const SchemaNode& node) {
  if (node.is(Type::kNumber)) {
    VOLLEY_TRY(const Decimal value, parse_decimal(node.text));
    if (value.is_integer() && !value.is_negative) {
      return value.whole.size() > 9 ? 1'000'000'000 : std::stoi(value.whole);
    }
  }
  return schema_error(node, "expected a count");
}

// Narrows [min, max] by the members `min_name` and `max_name` of `node`. max: -1 for none.
Status narrow_counts(const SchemaNode& node, std::string_view min_name, std::string_view max_name,
                     int& min, int& max) {
  if (const SchemaNode* bound = node.find(min_name)) {
    VOLLEY_TRY(const int count, count_of(*bound));
    if (count > kMaxCount) {
      return make_error(ErrorKind::kExhausted, "JSON schema, {}: at most {} are supported",
                        bound->path(), kMaxCount);
    }
    min = std::max(min, count);
  }
  if (const SchemaNode* bound = node.find(max_name)) {
    VOLLEY_TRY(const int count, count_of(*bound));
    max = max < 0 ? count : std::min(max, count);
    max = std::min(max, kMaxCount);
  }
  return {};
}

}  // namespace

struct JsonSchemaCompiler::Strings {
  int min_length = 0;
  int max_length = -1;
  std::vector<const Automaton*> patterns;
  std::string key;

  bool accepts(std::string_view text) const;
};

std::vector<const SchemaNode*> JsonSchemaCompiler::nodes_of(const std::vector<Part>& parts) {
  std::vector<const SchemaNode*> nodes;
  for (const Part& part : parts) nodes.push_back(part.node);
  return nodes;
}

Result<RuleId> JsonSchemaCompiler::compile(std::string_view schema) {
  VOLLEY_TRY(SchemaTree tree, SchemaTree::parse(schema, limits_.max_depth));
  trees_.push_back(std::move(tree));
  VOLLEY_TRY(const RuleId rule, rule_of(trees_.back().root()));
  VOLLEY_TRY_STATUS(build_pending());
  return rule;
}

Result<RuleId> JsonSchemaCompiler::compile_tool_calls(const GrammarSpec& spec) {
  if (spec.tools.empty()) return invalid("tool calls: the list of tools is empty");
  if (spec.max_tool_calls < 1 || spec.max_tool_calls > 1000) {
    return invalid("tool calls: from 1 to 1000 calls are supported, not {}", spec.max_tool_calls);
  }
  std::vector<ExprId> tools;
  for (const ToolGrammar& tool : spec.tools) {
    RuleId arguments = text_.object();
    if (!tool.parameters.empty()) {
      Result<RuleId> compiled = compile(tool.parameters);
      if (!compiled) {
        return make_error(compiled.error().kind, "tool '{}': {}", tool.name,
                          compiled.error().message);
      }
      arguments = *compiled;
    }
    tools.push_back(
        rules_.sequence({rules_.literal(json_quoted(tool.name)), rules_.literal(","), text_.gap(),
                         rules_.literal("\"arguments\""), text_.colon(), rules_.call(arguments)}));
  }
  const ExprId call = rules_.call(rules_.add_rule(
      "tool call",
      rules_.sequence({rules_.literal(spec.tool_call_begin), rules_.literal("{"), text_.gap(),
                       rules_.literal("\"name\""), text_.colon(), rules_.choice(std::move(tools)),
                       text_.gap(), rules_.literal("}"), rules_.literal(spec.tool_call_end)})));
  const ExprId more =
      rules_.repeat(rules_.sequence({rules_.literal("\n"), call}), 0, spec.max_tool_calls - 1);
  return rules_.add_rule("tool calls", rules_.sequence({call, more}));
}

Result<RuleId> JsonSchemaCompiler::rule_of(const SchemaNode& schema) {
  return rule_of({Part{&schema}}, schema.path());
}

Result<RuleId> JsonSchemaCompiler::rule_of(std::vector<Part> parts, std::string name) {
  VOLLEY_TRY(Conjunction all, flatten(parts));
  if (all.parts.empty() && !all.is_never) return text_.value();
  std::vector<uint64_t> key = {all.is_never};
  for (const Part& part : all.parts) {
    key.push_back(reinterpret_cast<uintptr_t>(part.node));
    key.push_back(part.any_of_done * 2 + part.one_of_done);
  }
  if (const auto found = rule_ids_.find(key); found != rule_ids_.end()) return found->second;
  if (rules_.num_rules() >= static_cast<size_t>(limits_.max_rules)) {
    return make_error(ErrorKind::kExhausted, "JSON schema, {}: more than {} rules", name,
                      limits_.max_rules);
  }
  const RuleId rule = rules_.add_rule(std::move(name));
  rule_ids_.emplace(std::move(key), rule);
  pending_.emplace_back(rule, std::move(all));
  return rule;
}

// Bodies wait in a queue, so that a long chain of references does not become a deep recursion.
Status JsonSchemaCompiler::build_pending() {
  while (!pending_.empty()) {
    const auto [rule, all] = std::move(pending_.front());
    pending_.pop_front();
    VOLLEY_TRY(const ExprId body, build(all));
    rules_.define(rule, body);
    if (budget_.steps < 0 || rules_.num_exprs() > 64 * static_cast<size_t>(limits_.max_rules)) {
      return make_error(ErrorKind::kExhausted, "JSON schema, {}: too complex to compile",
                        rules_[rule].name);
    }
  }
  return {};
}

// Follows $ref and allOf; drops parts that say nothing, so that a reference to a schema and the
// schema itself are one rule.
Result<JsonSchemaCompiler::Conjunction> JsonSchemaCompiler::flatten(
    const std::vector<Part>& parts) {
  Conjunction all;
  std::vector<Part> work(parts.rbegin(), parts.rend());
  std::unordered_map<const SchemaNode*, size_t> seen;  // index in all.parts, or npos
  constexpr size_t kDropped = SIZE_MAX;
  while (!work.empty()) {
    const Part part = work.back();
    work.pop_back();
    const SchemaNode& node = *part.node;
    if (!budget_.spend(10 + static_cast<int64_t>(node.members.size()))) {
      return make_error(ErrorKind::kExhausted, "JSON schema, {}: too complex to compile",
                        node.path());
    }
    if (node.is(Type::kBool)) {
      all.is_never |= !node.boolean;
      continue;
    }
    if (const auto found = seen.find(&node); found != seen.end()) {
      if (found->second == kDropped) continue;
      // A branch that leads back to the choice it is a branch of adds no value.
      const Part& known = all.parts[found->second];
      all.is_never |=
          (known.any_of_done && node.find("anyOf")) || (known.one_of_done && node.find("oneOf"));
      continue;
    }
    VOLLEY_TRY_STATUS(check_keywords(node));
    bool says_something = false;
    for (const auto& [name, value] : node.members) {
      says_something |= !is_annotation(name) && name != "$ref" && name != "allOf";
    }
    seen[&node] = says_something ? all.parts.size() : kDropped;
    if (says_something) all.parts.push_back(part), all.parts.back().is_expanded = true;
    if (part.is_expanded) continue;
    if (const SchemaNode* list = node.find("allOf")) {
      if (!list->is(Type::kArray)) return schema_error(*list, "expected a list of schemas");
      for (auto item = list->items.rbegin(); item != list->items.rend(); ++item) {
        work.push_back({*item});
      }
    }
    if (const SchemaNode* reference = node.find("$ref")) {
      VOLLEY_TRY(const SchemaNode* target, target_of(*reference));
      work.push_back({target});
    }
  }
  return all;
}

Result<const SchemaNode*> JsonSchemaCompiler::target_of(const SchemaNode& reference) {
  if (!reference.is(Type::kString)) return schema_error(reference, "expected a reference");
  if (!reference.text.starts_with('#')) {
    return schema_error(reference, "'{}' leads outside the schema; only '#...' is supported",
                        reference.text);
  }
  const SchemaNode* target = reference.resolve(reference.text);
  if (target == nullptr) return schema_error(reference, "'{}' leads nowhere", reference.text);
  // References that only lead to each other describe nothing.
  const SchemaNode* next = target;
  for (int hop = 0; next != nullptr && next->find("$ref") != nullptr; ++hop) {
    if (hop == kMaxHops) return schema_error(reference, "'{}' leads in a circle", reference.text);
    next = next->resolve(next->find("$ref")->text);
  }
  return target;
}

Status JsonSchemaCompiler::check_keywords(const SchemaNode& node) {
  if (!node.is(Type::kObject)) return schema_error(node, "a schema is an object or a boolean");
  if (!checked_.insert(&node).second) return {};
  for (const auto& [name, value] : node.members) {
    if (is_annotation(name) || contains(kConstraints, name)) continue;
    if (name == "uniqueItems" && is_false(value)) continue;
    return make_error(ErrorKind::kUnsupported, "JSON schema, {}: keyword '{}' is not supported",
                      node.path(), name);
  }
  return {};
}

Result<ExprId> JsonSchemaCompiler::build(const Conjunction& all) {
  if (all.is_never) return rules_.nothing();
  bool has_values = false;
  for (size_t i = 0; i < all.parts.size(); ++i) {
    const Part& part = all.parts[i];
    if (!part.any_of_done && part.node->find("anyOf")) return build_branches(all, i, false);
    if (!part.one_of_done && part.node->find("oneOf")) return build_branches(all, i, true);
    has_values |= part.node->find("enum") || part.node->find("const");
  }
  VOLLEY_TRY(const unsigned types, types_of(all));
  if (has_values) return build_values(all, types);
  std::vector<ExprId> parts;
  if (types & kObjectType) {
    VOLLEY_TRY(const ExprId part, build_object(all));
    parts.push_back(part);
  }
  if (types & kArrayType) {
    VOLLEY_TRY(const ExprId part, build_array(all));
    parts.push_back(part);
  }
  if (types & kStringType) {
    VOLLEY_TRY(const ExprId part, build_string(all));
    parts.push_back(part);
  }
  if (types & (kIntegerType | kFractionType)) {
    VOLLEY_TRY(const ExprId part, build_number(all, !(types & kFractionType)));
    parts.push_back(part);
  }
  if (types & kBoolType) parts.push_back(rules_.literals({"true", "false"}));
  if (types & kNullType) parts.push_back(rules_.literal("null"));
  return parts.empty() ? rules_.nothing() : rules_.choice(std::move(parts));
}

Result<ExprId> JsonSchemaCompiler::build_branches(const Conjunction& all, size_t part_idx,
                                                  bool is_one_of) {
  std::vector<Part> parts = all.parts;
  const SchemaNode& list = *parts[part_idx].node->find(is_one_of ? "oneOf" : "anyOf");
  if (!list.is(Type::kArray) || list.items.empty()) {
    return schema_error(list, "expected a list of schemas");
  }
  (is_one_of ? parts[part_idx].one_of_done : parts[part_idx].any_of_done) = true;
  std::vector<std::vector<Part>> branches;
  for (const SchemaNode* branch : list.items) {
    branches.push_back(parts);
    branches.back().push_back({branch});
  }
  if (is_one_of) VOLLEY_TRY_STATUS(make_disjoint(list, branches));
  std::vector<ExprId> choices;
  for (size_t i = 0; i < branches.size(); ++i) {
    VOLLEY_TRY(const RuleId rule, rule_of(branches[i], list.items[i]->path()));
    choices.push_back(rules_.call(rule));
  }
  return rules_.choice(std::move(choices));
}

// The types that may be written. Where no part names one, the keywords tell what is meant: a schema
// of properties alone is an object, though any string would satisfy it too.
Result<unsigned> JsonSchemaCompiler::types_of(const Conjunction& all) {
  unsigned types = kAllTypes;
  bool is_stated = false;
  unsigned implied = 0;
  for (const Part& part : all.parts) {
    VOLLEY_TRY(const unsigned stated, stated_types(*part.node));
    types &= stated;
    for (const auto& [name, value] : part.node->members) {
      is_stated |= name == "type" || name == "enum" || name == "const";
      implied |= implied_types(name);
    }
  }
  return is_stated || implied == 0 ? types : types & implied;
}

Result<ExprId> JsonSchemaCompiler::build_values(const Conjunction& all, unsigned types) {
  // Values that every enum and const names.
  std::vector<const SchemaNode*> values;
  bool is_first = true;
  for (const Part& part : all.parts) {
    for (const std::string_view keyword : {"enum", "const"}) {
      const SchemaNode* node = part.node->find(keyword);
      if (node == nullptr) continue;
      VOLLEY_TRY(const std::vector<const SchemaNode*> named, values_of(*node, keyword == "enum"));
      if (is_first) {
        values = named;
      } else {
        std::unordered_set<std::string> texts;
        for (const SchemaNode* value : named) texts.insert(canonical_text(*value));
        std::erase_if(values, [&](auto* value) { return !texts.contains(canonical_text(*value)); });
      }
      is_first = false;
    }
  }
  VOLLEY_TRY(const Strings strings, strings_of(all));
  VOLLEY_TRY(const NumberRange range, range_of(all));
  VOLLEY_TRY(const std::vector<Automaton> multiples, multiples_in(all));
  std::vector<std::string> texts;
  std::vector<ExprId> parts;
  for (const SchemaNode* value : values) {
    if (!(type_of_value(*value) & types)) continue;
    if (value->is(Type::kString) && !strings.accepts(value->text)) continue;
    if (value->is(Type::kNumber)) {
      VOLLEY_TRY(const Decimal number, parse_decimal(value->text));
      const std::string text = number.to_string();
      const bool fits = range.contains(number) &&
                        std::all_of(multiples.begin(), multiples.end(),
                                    [&](const Automaton& one) { return one.accepts(text); });
      if (!fits) continue;
    }
    if (value->is(Type::kArray) || value->is(Type::kObject)) {
      for (const Part& part : all.parts) {
        for (const auto& [name, keyword] : part.node->members) {
          if (!(implied_types(name) & (kArrayType | kObjectType))) continue;
          return make_error(ErrorKind::kUnsupported,
                            "JSON schema, {}: '{}' beside an enum of objects or arrays",
                            part.node->path(), name);
        }
      }
      VOLLEY_TRY(const ExprId text, value_text(*value));
      parts.push_back(text);
    } else {
      texts.push_back(value->is(Type::kString) ? json_quoted(value->text) : canonical_text(*value));
    }
  }
  if (!texts.empty()) parts.push_back(rules_.literals(std::move(texts)));
  return parts.empty() ? rules_.nothing() : rules_.choice(std::move(parts));
}

Result<ExprId> JsonSchemaCompiler::value_text(const SchemaNode& value) {
  const bool is_object = value.is(Type::kObject);
  if (!is_object && !value.is(Type::kArray)) {
    return rules_.literal(value.is(Type::kString) ? json_quoted(value.text)
                                                  : canonical_text(value));
  }
  std::vector<ExprId> parts = {rules_.literal(is_object ? "{" : "[")};
  const auto add = [&](const std::string* key, const SchemaNode& item) -> Status {
    if (parts.size() > 1) parts.push_back(rules_.literal(","));
    parts.push_back(text_.gap());
    if (key != nullptr) {
      parts.push_back(rules_.literal(json_quoted(*key)));
      parts.push_back(text_.colon());
    }
    VOLLEY_TRY(const ExprId text, value_text(item));
    parts.push_back(text);
    return {};
  };
  for (const auto& [key, item] : value.members) VOLLEY_TRY_STATUS(add(&key, *item));
  for (const SchemaNode* item : value.items) VOLLEY_TRY_STATUS(add(nullptr, *item));
  if (parts.size() > 1) parts.push_back(text_.gap());
  parts.push_back(rules_.literal(is_object ? "}" : "]"));
  return rules_.sequence(std::move(parts));
}

Result<const Automaton*> JsonSchemaCompiler::pattern_automaton(std::string_view pattern,
                                                               bool is_search,
                                                               const SchemaNode& where) {
  const std::string key = (is_search ? "s" : "m") + std::string(pattern);
  if (const auto found = patterns_.find(key); found != patterns_.end()) return &found->second;
  const Result<ExprId> expr = parse_regex(
      pattern, {.in_json_string = true, .is_search = is_search, .max_depth = limits_.max_depth},
      rules_);
  if (!expr) {
    return make_error(expr.error().kind, "JSON schema, {}: {}", where.path(), expr.error().message);
  }
  VOLLEY_TRY(Automaton automaton,
             determinise(rules_, *expr, "JSON schema, " + where.path(), budget_));
  return &patterns_.emplace(key, std::move(automaton)).first->second;
}

Result<JsonSchemaCompiler::Strings> JsonSchemaCompiler::strings_of(const Conjunction& all) {
  Strings strings;
  for (const Part& part : all.parts) {
    const SchemaNode& node = *part.node;
    VOLLEY_TRY_STATUS(
        narrow_counts(node, "minLength", "maxLength", strings.min_length, strings.max_length));
    if (const SchemaNode* pattern = node.find("pattern")) {
      if (!pattern->is(Type::kString)) return schema_error(*pattern, "expected a pattern");
      VOLLEY_TRY(const Automaton* automaton, pattern_automaton(pattern->text, true, *pattern));
      strings.patterns.push_back(automaton);
      strings.key += "|p" + pattern->text;
    }
    if (const SchemaNode* format = node.find("format")) {
      if (!format->is(Type::kString)) return schema_error(*format, "expected a name");
      const std::string* pattern = format_pattern(format->text);
      if (pattern == nullptr) {
        return make_error(ErrorKind::kUnsupported, "JSON schema, {}: format '{}' is not supported",
                          format->path(), format->text);
      }
      if (pattern->empty()) continue;
      VOLLEY_TRY(const Automaton* automaton, pattern_automaton(*pattern, false, *format));
      strings.patterns.push_back(automaton);
      strings.key += "|f" + format->text;
    }
  }
  strings.key = fmt::format("{}-{}{}", strings.min_length, strings.max_length, strings.key);
  return strings;
}

bool JsonSchemaCompiler::Strings::accepts(std::string_view text) const {
  const std::string quoted = json_quoted(text);
  const std::string_view content = std::string_view(quoted).substr(1, quoted.size() - 2);
  int length = 0;
  for (uint32_t c = 0; take_code_point(text, c);) ++length;
  return length >= min_length && (max_length < 0 || length <= max_length) &&
         std::all_of(patterns.begin(), patterns.end(),
                     [&](const Automaton* pattern) { return pattern->accepts(content); });
}

Result<ExprId> JsonSchemaCompiler::build_string(const Conjunction& all) {
  VOLLEY_TRY(const Strings strings, strings_of(all));
  const bool is_bounded = strings.min_length > 0 || strings.max_length >= 0;
  if (strings.patterns.empty() && !is_bounded) return rules_.call(text_.string());
  if (strings.max_length >= 0 && strings.min_length > strings.max_length) return rules_.nothing();
  if (const auto found = string_rules_.find(strings.key); found != string_rules_.end()) {
    return rules_.call(found->second);
  }
  const std::string name = "JSON schema, " + all.parts[0].node->path();
  ExprId content;
  if (strings.patterns.empty()) {
    content =
        rules_.repeat(rules_.call(text_.string_char()), strings.min_length, strings.max_length);
  } else {
    Automaton both = *strings.patterns[0];
    for (size_t i = 1; i < strings.patterns.size(); ++i) {
      VOLLEY_TRY(both, intersection(both, *strings.patterns[i], name, budget_));
    }
    if (is_bounded) {
      const ExprId any = rules_.repeat(json_string_chars(CodePointSet::all(), rules_),
                                       strings.min_length, strings.max_length);
      VOLLEY_TRY(const Automaton lengths, determinise(rules_, any, name, budget_));
      VOLLEY_TRY(both, intersection(both, lengths, name, budget_));
    }
    content = rules_.automaton(std::make_shared<const Automaton>(std::move(both)));
  }
  const RuleId rule = rules_.add_rule("string at " + name, text_.quoted(content));
  string_rules_.emplace(strings.key, rule);
  return rules_.call(rule);
}

Result<NumberRange> JsonSchemaCompiler::range_of(const Conjunction& all) {
  NumberRange range;
  for (const Part& part : all.parts) {
    for (const auto& [name, node] : part.node->members) {
      const bool is_min = name == "minimum" || name == "exclusiveMinimum";
      const bool is_max = name == "maximum" || name == "exclusiveMaximum";
      if (!is_min && !is_max) continue;
      if (!node->is(Type::kNumber)) return schema_error(*node, "expected a number");
      const Result<Decimal> value = parse_decimal(node->text);
      if (!value) return schema_error(*node, "{}", value.error().message);
      const NumberBound bound{*value, name.starts_with("exclusive")};
      is_min ? range.raise_min(bound) : range.lower_max(bound);
    }
  }
  return range;
}

Result<std::vector<Automaton>> JsonSchemaCompiler::multiples_in(const Conjunction& all) {
  std::vector<Automaton> multiples;
  for (const Part& part : all.parts) {
    const SchemaNode* node = part.node->find("multipleOf");
    if (node == nullptr) continue;
    if (!node->is(Type::kNumber)) return schema_error(*node, "expected a number");
    const Result<Decimal> step = parse_decimal(node->text);
    if (!step) return schema_error(*node, "{}", step.error().message);
    Result<Automaton> automaton = multiples_of(*step);
    if (!automaton) return schema_error(*node, "{}", automaton.error().message);
    budget_.spend(10 * static_cast<int64_t>(automaton->states.size()));
    multiples.push_back(*std::move(automaton));
  }
  return multiples;
}

Result<ExprId> JsonSchemaCompiler::build_number(const Conjunction& all, bool is_integer) {
  VOLLEY_TRY(const NumberRange range, range_of(all));
  VOLLEY_TRY(const std::vector<Automaton> multiples, multiples_in(all));
  if (!range.min && !range.max && multiples.empty()) {
    return rules_.call(is_integer ? text_.integer() : text_.number());
  }
  const std::string name = "JSON schema, " + all.parts[0].node->path();
  ExprId numbers{};
  if (is_integer) {
    numbers = integers_in(range, rules_);
  } else {
    VOLLEY_TRY(numbers, decimals_in(range, rules_, name, budget_));
  }
  if (multiples.empty()) return numbers;
  VOLLEY_TRY(Automaton both, determinise(rules_, numbers, name, budget_));
  for (const Automaton& one : multiples) {
    VOLLEY_TRY(both, intersection(both, one, name, budget_));
  }
  return rules_.automaton(std::make_shared<const Automaton>(std::move(both)));
}

Result<ExprId> JsonSchemaCompiler::build_array(const Conjunction& all) {
  int min = 0, max = -1;
  size_t num_prefix = 0;
  bool says_something = false;
  for (const Part& part : all.parts) {
    const SchemaNode& node = *part.node;
    VOLLEY_TRY_STATUS(narrow_counts(node, "minItems", "maxItems", min, max));
    says_something |= node.find("items") || node.find("prefixItems");
    if (const SchemaNode* prefix = node.find("prefixItems")) {
      if (!prefix->is(Type::kArray)) return schema_error(*prefix, "expected a list of schemas");
      num_prefix = std::max(num_prefix, prefix->items.size());
    }
    if (const SchemaNode* items = node.find("items"); items && items->is(Type::kArray)) {
      return schema_error(*items, "a list of schemas belongs into 'prefixItems'");
    }
  }
  if (!says_something && min == 0 && max < 0) return rules_.call(text_.array());
  if (max >= 0 && min > max) return rules_.nothing();

  // Node i of the graph has read i items; behind the last there are only items of one kind.
  const auto item_at = [&](size_t item_idx) -> Result<ExprId> {
    std::vector<Part> parts;
    std::string name = all.parts[0].node->path() + "/items";
    for (const Part& part : all.parts) {
      const SchemaNode* prefix = part.node->find("prefixItems");
      const SchemaNode* items = part.node->find("items");
      if (prefix && item_idx < prefix->items.size()) items = prefix->items[item_idx];
      if (items) parts.push_back({items}), name = items->path();
    }
    VOLLEY_TRY(const RuleId rule, rule_of(std::move(parts), std::move(name)));
    return rules_.call(rule);
  };
  const int num_counted = max >= 0 ? max : std::max({static_cast<int>(num_prefix), min, 1});
  ExprGraph graph{.num_nodes = num_counted + 2, .accept = num_counted + 1};
  VOLLEY_TRY(const ExprId rest, item_at(num_prefix));
  const ExprId comma = rules_.sequence({rules_.literal(","), text_.gap()});
  const ExprId next_rest = rules_.sequence({comma, rest});
  for (int i = 0; i < num_counted; ++i) {
    ExprId item = rest;
    if (static_cast<size_t>(i) < num_prefix) {
      VOLLEY_TRY(item, item_at(static_cast<size_t>(i)));
    }
    const ExprId before = i == 0 ? text_.gap() : comma;
    graph.edges.push_back({i, i + 1, rules_.sequence({before, item})});
  }
  if (max < 0) graph.edges.push_back({num_counted, num_counted, next_rest});
  for (int i = min; i <= num_counted; ++i) {
    graph.edges.push_back({i, graph.accept, i == 0 ? rules_.empty() : text_.gap()});
  }
  return rules_.sequence(
      {rules_.literal("["), rules_.graph(std::move(graph)), rules_.literal("]")});
}

// Keys that are none of `names`, in the shortest escapes: were others allowed, "\u0061" would bring
// back "a".
Result<ExprId> JsonSchemaCompiler::other_keys(const std::vector<std::string>& names) {
  if (names.empty()) return rules_.call(text_.string());
  const std::string name = "JSON schema, additional keys";
  const ExprId any = text_.quoted(
      rules_.repeat(json_string_chars(CodePointSet::all(), rules_), 0, Expr::kUnbounded));
  std::vector<std::string> quoted;
  for (const std::string& one : names) quoted.push_back(json_quoted(one));
  VOLLEY_TRY(const Automaton all_keys, determinise(rules_, any, name, budget_));
  VOLLEY_TRY(const Automaton named,
             determinise(rules_, rules_.literals(std::move(quoted)), name, budget_));
  VOLLEY_TRY(Automaton others, difference(all_keys, named, name, budget_));
  const ExprId key = rules_.automaton(std::make_shared<const Automaton>(std::move(others)));
  return rules_.call(rules_.add_rule(name, key));
}

Result<ExprId> JsonSchemaCompiler::build_object(const Conjunction& all) {
  VOLLEY_TRY(const ObjectShape shape, object_shape(nodes_of(all.parts), options_));
  if (shape.says_nothing) return rules_.call(text_.object());

  std::vector<ExprId> members;
  for (const std::string& name : shape.names) {
    std::vector<Part> parts;
    bool is_declared = false;
    for (const Part& part : all.parts) {
      const SchemaNode* properties = part.node->find("properties");
      const SchemaNode* property = properties ? properties->find(name) : nullptr;
      is_declared |= property != nullptr;
      if (property == nullptr) property = part.node->find("additionalProperties");
      if (property != nullptr) parts.push_back({property});
    }
    for (const Part& part : all.parts) {
      const SchemaNode* others = part.node->find("unevaluatedProperties");
      if (!is_declared && others != nullptr) parts.push_back({others});
    }
    std::string rule_name =
        parts.empty() ? all.parts[0].node->path() + "/" + name : parts[0].node->path();
    VOLLEY_TRY(const RuleId rule, rule_of(std::move(parts), std::move(rule_name)));
    members.push_back(rules_.sequence(
        {text_.gap(), rules_.literal(json_quoted(name)), text_.colon(), rules_.call(rule)}));
  }
  std::optional<ExprId> additional;
  if (shape.is_open) {
    std::vector<Part> parts;
    for (const Part& part : all.parts) {
      if (const SchemaNode* node = part.node->find("additionalProperties")) parts.push_back({node});
    }
    VOLLEY_TRY(const RuleId rule,
               rule_of(std::move(parts), all.parts[0].node->path() + "/additionalProperties"));
    VOLLEY_TRY(const ExprId key, other_keys(shape.names));
    if (shape.names.empty()) return text_.object_of(key, rules_.call(rule));
    additional = rules_.sequence({text_.gap(), key, text_.colon(), rules_.call(rule)});
  }

  // Three rows of nodes. first[i]: nothing written yet, members from i on may come. next[i]: the
  // same after some member. member[i]: the comma, if one was needed, is written.
  const int n = static_cast<int>(members.size());
  const auto first = [](int i) { return i; };
  const auto next = [n](int i) { return n + 1 + i; };
  const auto member = [n](int i) { return 2 * (n + 1) + i; };
  ExprGraph graph{.num_nodes = 3 * (n + 1) + 1, .accept = 3 * (n + 1)};
  const ExprId nothing_more = rules_.empty();
  const ExprId comma = rules_.literal(",");
  const auto add_member = [&](int i, int then, ExprId text) {
    graph.edges.push_back({first(i), member(i), nothing_more});
    graph.edges.push_back({next(i), member(i), comma});
    graph.edges.push_back({member(i), then, text});
  };
  for (int i = 0; i < n; ++i) {
    add_member(i, next(i + 1), members[i]);
    if (shape.required.contains(shape.names[i])) continue;
    graph.edges.push_back({first(i), first(i + 1), nothing_more});
    graph.edges.push_back({next(i), next(i + 1), nothing_more});
  }
  if (additional) add_member(n, next(n), *additional);
  graph.edges.push_back({first(n), graph.accept, nothing_more});
  graph.edges.push_back({next(n), graph.accept, text_.gap()});
  return rules_.sequence(
      {rules_.literal("{"), rules_.graph(std::move(graph)), rules_.literal("}")});
}

}  // namespace volley::grammar
