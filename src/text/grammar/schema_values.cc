#include "text/grammar/schema_values.h"

#include <algorithm>
#include <map>
#include <unordered_set>

#include "text/grammar/json_numbers.h"
#include "text/grammar/json_text.h"

namespace volley::grammar {
namespace {

using Type = SchemaNode::Type;

Result<unsigned> type_named(const SchemaNode& name) {
  static const std::map<std::string, unsigned, std::less<>> types = {
      {"null", kNullType},       {"boolean", kBoolType},
      {"integer", kIntegerType}, {"number", kIntegerType | kFractionType},
      {"string", kStringType},   {"array", kArrayType},
      {"object", kObjectType}};
  const auto found = name.is(Type::kString) ? types.find(name.text) : types.end();
  if (found == types.end()) {
    return invalid("JSON schema, {}: '{}' is no type", name.path(), name.text);
  }
  return found->second;
}

}  // namespace

Result<unsigned> stated_types(const SchemaNode& schema) {
  const SchemaNode* type = schema.find("type");
  if (type == nullptr) return kAllTypes;
  unsigned types = 0;
  if (type->is(Type::kArray)) {
    for (const SchemaNode* item : type->items) {
      VOLLEY_TRY(const unsigned one, type_named(*item));
      types |= one;
    }
  } else {
    VOLLEY_TRY(types, type_named(*type));
  }
  const SchemaNode* nullable = schema.find("nullable");
  if (nullable != nullptr && nullable->boolean) types |= kNullType;
  return types;
}

unsigned implied_types(std::string_view keyword) {
  if (keyword == "properties" || keyword == "required" || keyword == "additionalProperties" ||
      keyword == "unevaluatedProperties") {
    return kObjectType;
  }
  if (keyword == "items" || keyword == "prefixItems" || keyword == "minItems" ||
      keyword == "maxItems") {
    return kArrayType;
  }
  if (keyword == "minLength" || keyword == "maxLength" || keyword == "pattern" ||
      keyword == "format") {
    return kStringType;
  }
  if (keyword == "minimum" || keyword == "maximum" || keyword == "exclusiveMinimum" ||
      keyword == "exclusiveMaximum" || keyword == "multipleOf") {
    return kIntegerType | kFractionType;
  }
  return 0;
}

unsigned type_of_value(const SchemaNode& value) {
  switch (value.type) {
    case Type::kNull:
      return kNullType;
    case Type::kBool:
      return kBoolType;
    case Type::kString:
      return kStringType;
    case Type::kArray:
      return kArrayType;
    case Type::kObject:
      return kObjectType;
    case Type::kNumber:
      break;
  }
  const Result<Decimal> number = parse_decimal(value.text);
  return number && number->is_integer() ? kIntegerType : kFractionType;
}

Result<std::vector<const SchemaNode*>> values_of(const SchemaNode& node, bool is_list) {
  if (!is_list) return std::vector<const SchemaNode*>{&node};
  if (!node.is(Type::kArray) || node.items.empty()) {
    return invalid("JSON schema, {}: expected a list of values", node.path());
  }
  return std::vector<const SchemaNode*>(node.items.begin(), node.items.end());
}

std::string canonical_text(const SchemaNode& value) {
  std::string out;
  switch (value.type) {
    case Type::kNull:
      return "null";
    case Type::kBool:
      return value.boolean ? "true" : "false";
    case Type::kNumber: {
      const Result<Decimal> number = parse_decimal(value.text);
      return number ? number->to_string() : value.text;
    }
    case Type::kString:
      return json_quoted(value.text);
    case Type::kArray:
      for (const SchemaNode* item : value.items) {
        out += (out.empty() ? "" : ",") + canonical_text(*item);
      }
      return "[" + out + "]";
    case Type::kObject: {
      std::map<std::string, const SchemaNode*> sorted(value.members.begin(), value.members.end());
      for (const auto& [key, item] : sorted) {
        out += (out.empty() ? "" : ",") + json_quoted(key) + ":" + canonical_text(*item);
      }
      return "{" + out + "}";
    }
  }
  return out;
}

Result<ObjectShape> object_shape(const std::vector<const SchemaNode*>& schemas,
                                 const JsonSchemaOptions& options) {
  ObjectShape shape;
  std::unordered_set<std::string> known;
  bool names_members = false;  // some schema has "properties"
  bool is_closed = false;      // some schema says that there are no others
  bool is_opened = false;      // some schema says that there may be others
  shape.says_nothing = true;
  for (const SchemaNode* schema : schemas) {
    for (const auto& [name, value] : schema->members) {
      if (implied_types(name) == kObjectType) shape.says_nothing = false;
    }
    if (const SchemaNode* properties = schema->find("properties")) {
      if (!properties->is(Type::kObject)) {
        return invalid("JSON schema, {}: expected an object", properties->path());
      }
      names_members = true;
      for (const auto& [name, property] : properties->members) {
        if (known.insert(name).second) shape.names.push_back(name);
      }
    }
    if (const SchemaNode* additional = schema->find("additionalProperties")) {
      (additional->is(Type::kBool) && !additional->boolean ? is_closed : is_opened) = true;
    }
    if (const SchemaNode* others = schema->find("unevaluatedProperties")) {
      if (!others->is(Type::kBool)) {
        return make_error(ErrorKind::kUnsupported,
                          "JSON schema, {}: only true and false are supported", others->path());
      }
      is_closed |= !others->boolean;
    }
  }
  for (const SchemaNode* schema : schemas) {
    const SchemaNode* required = schema->find("required");
    if (required == nullptr) continue;
    if (!required->is(Type::kArray)) {
      return invalid("JSON schema, {}: expected a list of names", required->path());
    }
    for (const SchemaNode* name : required->items) {
      if (!name->is(Type::kString)) {
        return invalid("JSON schema, {}: expected a name", name->path());
      }
      shape.required.insert(name->text);
      if (known.insert(name->text).second) shape.names.push_back(name->text);
    }
  }
  shape.is_open =
      !is_closed && (is_opened || !names_members || options.additional_properties_by_default);
  return shape;
}

}  // namespace volley::grammar
