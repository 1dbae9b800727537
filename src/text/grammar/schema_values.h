#pragma once

// What single schema nodes say: types, values, the members of an object. Pure reading, no rules.

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/grammar/grammar.h"
#include "text/grammar/schema_tree.h"

namespace volley::grammar {

// "integer" is kIntegerType, "number" is both numeric bits.
enum TypeBits : unsigned {
  kNullType = 1,
  kBoolType = 2,
  kIntegerType = 4,
  kFractionType = 8,
  kStringType = 16,
  kArrayType = 32,
  kObjectType = 64,
  kAllTypes = 127,
};

// What "type" (and "nullable") allow; all types where there is none.
Result<unsigned> stated_types(const SchemaNode& schema);
// The types that a constraint speaks of; 0 for those that speak of all.
unsigned implied_types(std::string_view keyword);
unsigned type_of_value(const SchemaNode& value);

// The values of an enum (or of a const).
Result<std::vector<const SchemaNode*>> values_of(const SchemaNode& node, bool is_list);
// Equal texts are equal values: members sorted, numbers in one spelling.
std::string canonical_text(const SchemaNode& value);

// The members of the objects that satisfy all of `schemas`.
struct ObjectShape {
  std::vector<std::string> names;  // in the order of the schemas
  std::set<std::string, std::less<>> required;
  bool is_open = false;       // members of other names may follow
  bool says_nothing = false;  // any object
};
Result<ObjectShape> object_shape(const std::vector<const SchemaNode*>& schemas,
                                 const JsonSchemaOptions& options);

}  // namespace volley::grammar
