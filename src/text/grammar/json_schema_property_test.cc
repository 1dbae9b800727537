// Random schemas. Walks under the mask end in documents that satisfy the schema, by a validator
// that shares nothing with the compiler; documents made from the schema are accepted under any
// spelling of white space and any cut into tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/json.h"
#include "text/grammar/grammar.h"
#include "text/grammar/grammar_testing.h"

namespace volley {
namespace {

using GrammarPtr = std::shared_ptr<const CompiledGrammar>;

const std::shared_ptr<const TokenTrie>& vocabulary() {
  static const auto shared = small_vocabulary();
  return shared;
}

Json random_schema(RandomStream& random, int depth) {
  const auto one_of = [&](std::vector<Json> choices) {
    return choices[random.below(static_cast<uint32_t>(choices.size()))];
  };
  Json schema = Json::object();
  switch (random.below(depth > 0 ? 10 : 5)) {
    case 0:
      schema["type"] = one_of({"boolean", "null", Json::array({"null", "integer"})});
      break;
    case 1: {
      schema["type"] = "integer";
      const int min = static_cast<int>(random.below(300)) - 200;
      if (random.below(3)) schema[one_of({"minimum", "exclusiveMinimum"})] = min;
      if (random.below(3)) {
        schema[one_of({"maximum", "exclusiveMaximum"})] =
            min + 2 + static_cast<int>(random.below(2000));
      }
      break;
    }
    case 2: {
      schema["type"] = "number";
      const double min = (static_cast<int>(random.below(4000)) - 2000) / 100.0;
      if (random.below(3)) schema[one_of({"minimum", "exclusiveMinimum"})] = min;
      if (random.below(3)) {
        schema[one_of({"maximum", "exclusiveMaximum"})] = min + 0.5 + random.below(300) / 8.0;
      }
      break;
    }
    case 3:
      schema["type"] = "string";
      if (random.below(2)) schema["minLength"] = random.below(3);
      if (random.below(2)) schema["maxLength"] = 3 + random.below(5);
      break;
    case 4:
      for (uint32_t i = 0; i <= random.below(4); ++i) {
        schema["enum"].push_back(one_of({1, "a", "red", "b\"\n", nullptr, true, -7}));
      }
      break;
    case 5:
    case 6:
      schema["type"] = "array";
      schema["items"] = random_schema(random, depth - 1);
      if (random.below(2)) schema["minItems"] = random.below(3);
      if (random.below(2)) schema["maxItems"] = 2 + random.below(3);
      break;
    case 7:
      for (uint32_t i = 0; i <= random.below(3); ++i) {
        schema["anyOf"].push_back(random_schema(random, depth - 1));
      }
      break;
    default:
      schema["type"] = "object";
      schema["properties"] = Json::object();
      schema["required"] = Json::array();
      for (const char* name : {"name", "a", "kind", "x\"y", "ab"}) {
        if (random.below(2)) continue;
        schema["properties"][name] = random_schema(random, depth - 1);
        if (random.below(2)) schema["required"].push_back(name);
      }
      if (random.below(3) == 0) {
        schema["properties"]["again"] = {{"anyOf", {{{"$ref", "#"}}, {{"type", "null"}}}}};
      }
      if (random.below(3) == 0) schema["additionalProperties"] = random_schema(random, depth - 1);
  }
  return schema;
}

bool satisfies(const Json& value, const Json& schema, const Json& root);

bool has_type(const Json& value, const std::string& type) {
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_boolean();
  if (type == "integer") return value.is_number_integer();
  if (type == "number") return value.is_number();
  if (type == "string") return value.is_string();
  if (type == "array") return value.is_array();
  return value.is_object();
}

size_t count_code_points(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool object_satisfies(const Json& value, const Json& schema, const Json& root) {
  const Json empty = Json::object();
  const Json& properties = schema.contains("properties") ? schema["properties"] : empty;
  for (const auto& [key, item] : value.items()) {
    if (properties.contains(key)) {
      if (!satisfies(item, properties[key], root)) return false;
    } else if (!schema.contains("additionalProperties") ||
               !satisfies(item, schema["additionalProperties"], root)) {
      return false;
    }
  }
  return !schema.contains("required") ||
         std::all_of(schema["required"].begin(), schema["required"].end(),
                     [&](const Json& key) { return value.contains(key.get<std::string>()); });
}

bool satisfies(const Json& value, const Json& schema, const Json& root) {
  if (schema.contains("$ref")) return satisfies(value, root, root);
  if (schema.contains("anyOf")) {
    return std::any_of(schema["anyOf"].begin(), schema["anyOf"].end(),
                       [&](const Json& branch) { return satisfies(value, branch, root); });
  }
  if (schema.contains("enum")) {
    return std::find(schema["enum"].begin(), schema["enum"].end(), value) != schema["enum"].end();
  }
  const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
  if (std::none_of(types.begin(), types.end(),
                   [&](const Json& type) { return has_type(value, type.get<std::string>()); })) {
    return false;
  }
  const auto bounded = [&](const char* name, auto holds) {
    return !schema.contains(name) || holds(schema[name]);
  };
  if (value.is_number()) {
    return bounded("minimum", [&](const Json& b) { return value >= b; }) &&
           bounded("maximum", [&](const Json& b) { return value <= b; }) &&
           bounded("exclusiveMinimum", [&](const Json& b) { return value > b; }) &&
           bounded("exclusiveMaximum", [&](const Json& b) { return value < b; });
  }
  if (value.is_string()) {
    const size_t length = count_code_points(value.get<std::string>());
    return bounded("minLength", [&](const Json& b) { return length >= b.get<size_t>(); }) &&
           bounded("maxLength", [&](const Json& b) { return length <= b.get<size_t>(); });
  }
  if (value.is_array()) {
    return bounded("minItems", [&](const Json& b) { return value.size() >= b.get<size_t>(); }) &&
           bounded("maxItems", [&](const Json& b) { return value.size() <= b.get<size_t>(); }) &&
           std::all_of(value.begin(), value.end(),
                       [&](const Json& item) { return satisfies(item, schema["items"], root); });
  }
  return !value.is_object() || object_satisfies(value, schema, root);
}

// A value that satisfies the schema, members in its order; nothing where chance leads too deep.
std::optional<Json> random_value(RandomStream& random, const Json& schema, const Json& root,
                                 int depth) {
  if (depth > 8) return {};
  if (schema.contains("$ref")) return random_value(random, root, root, depth + 1);
  if (schema.contains("anyOf")) {
    const Json& branches = schema["anyOf"];
    return random_value(random, branches[random.below(static_cast<uint32_t>(branches.size()))],
                        root, depth + 1);
  }
  if (schema.contains("enum")) {
    return schema["enum"][random.below(static_cast<uint32_t>(schema["enum"].size()))];
  }
  if (schema["type"].is_array()) return Json(nullptr);
  const std::string type = schema["type"];
  if (type == "null") return Json(nullptr);
  if (type == "boolean") return Json(random.below(2) == 0);
  if (type == "integer" || type == "number") {
    const auto bound = [&](const char* name, const char* exclusive, double otherwise) {
      return schema.contains(name)        ? schema[name].get<double>()
             : schema.contains(exclusive) ? schema[exclusive].get<double>()
                                          : otherwise;
    };
    double max = bound("maximum", "exclusiveMaximum", 1e6);
    const double min = bound("minimum", "exclusiveMinimum", max - 1000);
    max = bound("maximum", "exclusiveMaximum", min + 1000);
    const double value = min + (max - min) * (1 + random.below(98)) / 100.0;
    if (type == "integer") return Json(static_cast<int64_t>(value));
    return Json(std::round(value * 100) / 100);
  }
  if (type == "string") {
    const uint32_t min = schema.value("minLength", 0u), max = schema.value("maxLength", min + 4);
    std::string text;
    for (uint32_t i = min + random.below(max - min + 1); i > 0; --i) {
      const std::vector<std::string> chars = {
          "a", "\"", "\\", "\n", "\xc3\xa9", "\xf0\x9f\x98\x80", "\x01", "/", "name"};
      const std::string& chosen = chars[random.below(8)];
      text += chosen;
    }
    return Json(text);
  }
  if (type == "array") {
    const uint32_t min = schema.value("minItems", 0u), max = schema.value("maxItems", min + 2);
    Json value = Json::array();
    for (uint32_t i = min + random.below(max - min + 1); i > 0; --i) {
      std::optional<Json> item = random_value(random, schema["items"], root, depth + 1);
      if (!item) return {};
      value.push_back(*item);
    }
    return value;
  }
  Json value = Json::object();
  const Json& required = schema["required"];
  for (const auto& [name, property] : schema["properties"].items()) {
    const bool must = std::find(required.begin(), required.end(), name) != required.end();
    if (!must && random.below(2)) continue;
    std::optional<Json> item = random_value(random, property, root, depth + 1);
    if (!item && must) return {};
    if (item) value[name] = *item;
  }
  if (schema.contains("additionalProperties") && random.below(2)) {
    std::optional<Json> item =
        random_value(random, schema["additionalProperties"], root, depth + 1);
    if (item) value["other"] = *item;
  }
  return value;
}

// Accepts `text` token by token, cut at random; every token is in the mask.
bool accepts_cut_at_random(const GrammarPtr& grammar, std::string_view text, RandomStream& random) {
  GrammarState state(grammar);
  while (!text.empty()) {
    std::vector<int32_t> fitting;
    for (int32_t id = 2; id < vocabulary()->vocab_size(); ++id) {
      if (text.starts_with(vocabulary()->bytes_of(id))) fitting.push_back(id);
    }
    const int32_t token = fitting[random.below(static_cast<uint32_t>(fitting.size()))];
    const std::vector<uint32_t> mask = mask_of(state, *vocabulary());
    if (!((mask[token / 32] >> (token % 32)) & 1) || !state.accept(token)) return false;
    text.remove_prefix(vocabulary()->bytes_of(token).size());
  }
  return state.can_end();
}

TEST(JsonSchemaProperties, WalksSatisfyAndDocumentsAreAccepted) {
  int num_walks = 0, num_documents = 0, num_refused = 0;
  for (uint64_t seed = 0; seed < 250; ++seed) {
    RandomStream random(seed);
    const Json schema = random_schema(random, 3);
    const auto grammar = CompiledGrammar::compile(
        {.kind = GrammarSpec::Kind::kJsonSchema, .text = schema.dump()}, vocabulary());
    if (!grammar) {
      // Integers with no room between two bounds, or a recursion that nothing ends.
      ASSERT_NE(grammar.error().message.find("no document"), std::string::npos)
          << schema << grammar.error().message;
      ++num_refused;
      continue;
    }
    for (int i = 0; i < 4; ++i) {
      const std::string text = random_document(*grammar, random, 120);
      if (text.empty()) continue;
      const auto value = parse_json(text, "document");
      ASSERT_TRUE(value) << schema << "\n" << text;
      ASSERT_TRUE(satisfies(*value, schema, schema)) << schema << "\n" << text;
      ++num_walks;
    }
    for (int i = 0; i < 4; ++i) {
      const std::optional<Json> value = random_value(random, schema, schema, 0);
      if (!value || !satisfies(*value, schema, schema)) continue;
      for (const std::string& text : {value->dump(), value->dump(2), value->dump(1, '\t')}) {
        if (text.find("e-") != std::string::npos || text.find("-0.0") != std::string::npos)
          continue;
        ASSERT_TRUE(accepts_document(*grammar, text)) << schema << "\n" << text;
        ASSERT_TRUE(accepts_cut_at_random(*grammar, text, random)) << schema << "\n" << text;
        ++num_documents;
      }
    }
  }
  EXPECT_GT(num_walks, 500);
  EXPECT_GT(num_documents, 1500);
  EXPECT_LT(num_refused, 25);
}

}  // namespace
}  // namespace volley
