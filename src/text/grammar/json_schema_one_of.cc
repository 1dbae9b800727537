// oneOf. A value must satisfy exactly one branch, which no automaton can count; but where no value
// that we write for one branch can satisfy another, oneOf is anyOf.

#include <algorithm>
#include <optional>

#include "text/grammar/json_schema.h"
#include "text/grammar/schema_values.h"

namespace volley::grammar {

namespace {

using Texts = std::set<std::string>;

bool have_common(const Texts& a, const Texts& b) {
  return std::any_of(a.begin(), a.end(), [&](const std::string& text) { return b.contains(text); });
}

// The values that the first enum or const among `schemas` names: no value outside satisfies all.
Result<std::optional<Texts>> named_values(const std::vector<const SchemaNode*>& schemas) {
  for (const SchemaNode* schema : schemas) {
    for (const std::string_view keyword : {"const", "enum"}) {
      const SchemaNode* node = schema->find(keyword);
      if (node == nullptr) continue;
      VOLLEY_TRY(const auto values, values_of(*node, keyword == "enum"));
      Texts texts;
      for (const SchemaNode* value : values) texts.insert(canonical_text(*value));
      return std::optional<Texts>(std::move(texts));
    }
  }
  return std::optional<Texts>();
}

}  // namespace

struct JsonSchemaCompiler::Branch {
  unsigned written_types = 0;    // of the values that we write
  unsigned satisfied_types = 0;  // of the values that may satisfy it
  std::optional<Texts> values;
  ObjectShape shape;
  std::map<std::string, Texts> tags;  // properties that name their values
  std::set<std::string> forced;       // tags that must be written

  bool never_writes(const std::string& name) const {
    return !shape.is_open &&
           std::find(shape.names.begin(), shape.names.end(), name) == shape.names.end();
  }
};

Result<JsonSchemaCompiler::Branch> JsonSchemaCompiler::branch_of(const std::vector<Part>& parts) {
  VOLLEY_TRY(const Conjunction all, flatten(parts));
  Branch branch;
  if (all.is_never) return branch;
  VOLLEY_TRY(branch.written_types, types_of(all));
  branch.satisfied_types = kAllTypes;
  bool has_choices = false;
  for (const Part& part : all.parts) {
    VOLLEY_TRY(const unsigned stated, stated_types(*part.node));
    branch.satisfied_types &= stated;
    for (const auto& [keyword, is_done] :
         {std::pair("anyOf", part.any_of_done), std::pair("oneOf", part.one_of_done)}) {
      const SchemaNode* list = part.node->find(keyword);
      if (list == nullptr || is_done) continue;
      has_choices = true;
      // A choice inside: what is written and what satisfies is bounded by its branches together.
      unsigned either = 0;
      for (const SchemaNode* item : list->items) {
        unsigned types = kAllTypes;
        if (item->is(SchemaNode::Type::kObject)) {
          VOLLEY_TRY(types, stated_types(*item));
        }
        either |= types;
      }
      branch.written_types &= either;
      branch.satisfied_types &= either;
    }
  }
  const std::vector<const SchemaNode*> nodes = nodes_of(all.parts);
  VOLLEY_TRY(branch.values, named_values(nodes));
  if (branch.values) {
    branch.written_types &= branch.satisfied_types;
  }
  VOLLEY_TRY(branch.shape, object_shape(nodes, options_));
  branch.shape.is_open |= has_choices;
  for (const std::string& name : branch.shape.names) {
    std::vector<Part> property;
    for (const SchemaNode* node : nodes) {
      const SchemaNode* properties = node->find("properties");
      const SchemaNode* schema = properties ? properties->find(name) : nullptr;
      if (schema != nullptr) property.push_back({schema});
    }
    VOLLEY_TRY(const Conjunction said, flatten(property));
    VOLLEY_TRY(const std::optional<Texts> values, named_values(nodes_of(said.parts)));
    if (values) branch.tags.emplace(name, *values);
  }
  return branch;
}

// May make a tag of both required.
bool JsonSchemaCompiler::are_disjoint(Branch& a, Branch& b) {
  if (!(a.written_types & b.satisfied_types) && !(b.written_types & a.satisfied_types)) return true;
  if (a.values && b.values && !have_common(*a.values, *b.values)) return true;
  // What is left concerns objects.
  if (((a.written_types & b.satisfied_types) | (b.written_types & a.satisfied_types)) !=
      kObjectType) {
    return false;
  }
  const auto demands_what_never_comes = [](const Branch& x, const Branch& y) {
    return std::any_of(x.shape.required.begin(), x.shape.required.end(),
                       [&](const std::string& name) { return y.never_writes(name); });
  };
  if (demands_what_never_comes(a, b) && demands_what_never_comes(b, a)) return true;
  for (const auto& [name, values] : a.tags) {
    const auto other = b.tags.find(name);
    if (other == b.tags.end() || have_common(values, other->second)) continue;
    a.forced.insert(name);
    b.forced.insert(name);
    return true;
  }
  return false;
}

Status JsonSchemaCompiler::make_disjoint(const SchemaNode& list,
                                         std::vector<std::vector<Part>>& branches) {
  std::vector<Branch> seen;
  for (const auto& parts : branches) {
    VOLLEY_TRY(Branch branch, branch_of(parts));
    seen.push_back(std::move(branch));
  }
  for (size_t i = 0; i < seen.size(); ++i) {
    for (size_t j = i + 1; j < seen.size(); ++j) {
      if (!budget_.spend(100)) {
        return make_error(ErrorKind::kExhausted, "JSON schema, {}: too many branches", list.path());
      }
      if (are_disjoint(seen[i], seen[j])) continue;
      return make_error(ErrorKind::kUnsupported,
                        "JSON schema, {}: branches {} and {} may both match; give them different "
                        "types or a property with a different 'const', or use 'anyOf'",
                        list.path(), i, j);
    }
  }
  for (size_t i = 0; i < seen.size(); ++i) {
    if (seen[i].forced.empty()) continue;
    SchemaNode& names = made_nodes_.emplace_back();
    names.type = SchemaNode::Type::kArray;
    for (const std::string& name : seen[i].forced) {
      SchemaNode& one = made_nodes_.emplace_back();
      one.type = SchemaNode::Type::kString;
      one.text = name;
      names.items.push_back(&one);
    }
    SchemaNode& schema = made_nodes_.emplace_back();
    schema.type = SchemaNode::Type::kObject;
    schema.key = "required";
    schema.members.emplace_back("required", &names);
    schema.member_index.emplace("required", &names);
    branches[i].push_back({&schema});
  }
  return {};
}

}  // namespace volley::grammar
