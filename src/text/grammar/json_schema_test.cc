#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/json.h"
#include "text/grammar/grammar.h"
#include "text/grammar/grammar_testing.h"

namespace volley {
namespace {

using GrammarPtr = std::shared_ptr<const CompiledGrammar>;
using testing::HasSubstr;

const std::shared_ptr<const TokenTrie>& vocabulary() {
  static const auto shared = small_vocabulary();
  return shared;
}

Result<GrammarPtr> try_schema(std::string text, const JsonSchemaOptions& options = {}) {
  GrammarSpec spec{.kind = GrammarSpec::Kind::kJsonSchema, .text = std::move(text)};
  spec.json = options;
  return CompiledGrammar::compile(spec, vocabulary());
}

GrammarPtr schema(std::string text, const JsonSchemaOptions& options = {}) {
  Result<GrammarPtr> grammar = try_schema(text, options);
  EXPECT_TRUE(grammar) << text << ": " << (grammar ? "" : grammar.error().message);
  return grammar ? *grammar : nullptr;
}

std::string error_of(std::string text) {
  const Result<GrammarPtr> grammar = try_schema(std::move(text));
  return grammar ? "no error" : grammar.error().message;
}

void expect_language(const GrammarPtr& grammar, std::vector<std::string_view> documents,
                     std::vector<std::string_view> others) {
  ASSERT_NE(grammar, nullptr);
  for (const std::string_view text : documents) {
    EXPECT_TRUE(accepts_document(grammar, text)) << text;
  }
  for (const std::string_view text : others) {
    EXPECT_FALSE(accepts_document(grammar, text)) << text;
  }
}

TEST(JsonSchema, Types) {
  expect_language(schema(R"({"type":"string"})"), {R"("")", R"("a\u00e9")"}, {"1", "null", "\"a"});
  expect_language(schema(R"({"type":"boolean"})"), {"true", "false"}, {"null", "1"});
  expect_language(schema(R"({"type":"null"})"), {"null"}, {"true"});
  expect_language(schema(R"({"type":"integer"})"), {"0", "-7", "123456789012345678"},
                  {"1.5", "01", "1e3", "-", "1234567890123456789"});
  expect_language(schema(R"({"type":"number"})"), {"0", "-7.25", "1e-10", "12E+3"},
                  {"1.", ".5", "+1", "1e400"});
  expect_language(schema(R"({"type":["string","null"]})"), {R"("a")", "null"}, {"1", "{}"});
  expect_language(schema(R"({"type":"integer","nullable":true})"), {"1", "null"}, {"\"a\""});
  expect_language(schema(R"({"type":"object"})"), {"{}", R"({"a":[1]})"}, {"[]"});
  expect_language(schema(R"({"type":"array"})"), {"[]", R"([1,{"a":2}])"}, {"{}"});
  expect_language(schema("true"), {"1", "{}", "\"a\""}, {"", "x"});
  expect_language(schema("{}"), {"1", "{}", "\"a\""}, {"", "x"});
}

TEST(JsonSchema, ObjectsKeepTheOrderOfTheSchema) {
  const auto grammar = schema(R"({"type":"object","properties":{
      "b":{"type":"integer"},"a":{"type":"string"},"c":{"type":"null"}},"required":["a"]})");
  expect_language(grammar,
                  {R"({"a":"x"})", R"({"b":1,"a":"x"})", R"({"b": 1, "a": "x", "c": null})",
                   R"({"a":"x","c":null})", "{\n  \"a\": \"x\"\n}"},
                  {"{}", R"({"b":1})", R"({"a":"x","b":1})", R"({"a":"x","d":1})", R"({"a":"x",})",
                   R"({"a":"x","a":"y"})"});
  expect_language(schema(R"({"properties":{}})"), {"{}"}, {R"({"a":1})", "1"});
  expect_language(schema(R"({"type":"object","required":["z"]})"), {R"({"z":1,"y":2})"}, {"{}"});
}

TEST(JsonSchema, AdditionalProperties) {
  expect_language(schema(R"({"properties":{"ab":{"type":"integer"}},
                             "additionalProperties":{"type":"boolean"}})"),
                  {"{}", R"({"ab":1})", R"({"ab":1,"a":true,"abc":false,"":true})"},
                  {R"({"ab":true})", R"({"a":true,"ab":1})", R"({"a\u0062":true})", R"({"x":1})"});
  expect_language(schema(R"({"additionalProperties":{"type":"integer"}})"),
                  {"{}", R"({"a":1,"b":2})"}, {R"({"a":"x"})"});
  JsonSchemaOptions open;
  open.additional_properties_by_default = true;
  expect_language(schema(R"({"properties":{"a":{"type":"integer"}}})", open),
                  {R"({"b":"x"})", R"({"a":1,"b":[]})"}, {R"({"a":"x"})"});
  expect_language(schema(R"({"properties":{"a":{"type":"integer"}},
                             "additionalProperties":false})",
                         open),
                  {R"({"a":1})"}, {R"({"b":"x"})"});
}

TEST(JsonSchema, Arrays) {
  expect_language(schema(R"({"items":{"type":"integer"},"minItems":1,"maxItems":3})"),
                  {"[1]", "[1,2]", "[1, 2, 3]", "[\n  1,\n  2\n]"}, {"[]", "[1,2,3,4]", "[\"a\"]"});
  expect_language(schema(R"({"items":{"type":"integer"},"minItems":2})"), {"[1,2]", "[1,2,3,4,5]"},
                  {"[1]"});
  expect_language(schema(R"({"prefixItems":[{"type":"integer"},{"type":"string"}],"items":false})"),
                  {"[]", "[1]", R"([1,"a"])"}, {R"(["a"])", R"([1,"a",2])"});
  expect_language(schema(R"({"prefixItems":[{"type":"integer"}],"items":{"type":"null"}})"),
                  {"[]", "[1,null,null]"}, {"[1,2]"});
  expect_language(schema(R"({"type":"array","maxItems":0})"), {"[]"}, {"[1]"});
  expect_language(schema(R"({"type":"array","minItems":2})"), {R"([1,"a"])"}, {"[1]"});
}

TEST(JsonSchema, EnumsAndConst) {
  expect_language(schema(R"({"enum":["red","gr\u00fcn",1,null,{"a":[1,"b"]},1.50]})"),
                  {R"("red")", "\"gr\xc3\xbcn\"", "1", "null", R"({"a": [1, "b"]})", "1.5"},
                  {R"("re")", "2", R"({"a":[1]})"});
  expect_language(schema(R"({"const":"a\"b\n"})"), {R"("a\"b\n")"}, {R"("a")"});
  expect_language(schema(R"({"type":"string","enum":["a",1]})"), {R"("a")"}, {"1"});
  expect_language(schema(R"({"enum":["a","bb","ccc"],"minLength":2,"pattern":"^[ab]+$"})"),
                  {R"("bb")"}, {R"("a")", R"("ccc")"});
  expect_language(schema(R"({"enum":[1,5,9],"minimum":2,"exclusiveMaximum":9})"), {"5"},
                  {"1", "9"});
  expect_language(schema(R"({"allOf":[{"enum":[1,2,3]},{"enum":[2.0,3,4]}],"const":3})"), {"3"},
                  {"2", "1", "4"});
}

TEST(JsonSchema, Strings) {
  expect_language(
      schema(R"({"type":"string","minLength":2,"maxLength":3})"),
      {R"("ab")", "\"\xc3\xa9\xf0\x9f\x98\x80z\"", R"("\u00e9\ud83d\ude00")", R"("\"\\")"},
      {R"("a")", R"("abcd")"});
  expect_language(schema(R"({"pattern":"^a+[\"\\\\\\n]$"})"), {R"("aa\"")", R"("a\\")", R"("a\n")"},
                  {R"("a")", R"("aab")"});
  expect_language(schema(R"({"pattern":"b"})"), {R"("b")", R"("abc")", R"("\"b\n")"}, {R"("ac")"});
  expect_language(schema(R"({"pattern":"^[a-c]*$","maxLength":3,"minLength":1})"), {R"("abc")"},
                  {R"("")", R"("abca")", R"("d")"});
  expect_language(schema(R"({"allOf":[{"pattern":"a"},{"pattern":"b"}],"maxLength":2})"),
                  {R"("ab")", R"("ba")"}, {R"("a")", R"("aa")", R"("abc")"});
}

TEST(JsonSchema, Formats) {
  const auto format = [](std::string name) {
    return schema(R"({"type":"string","format":")" + name + "\"}");
  };
  expect_language(format("date"), {R"("2024-02-29")", R"("2023-12-31")"},
                  {R"("2023-02-29")", R"("2023-13-01")", R"("2023-04-31")"});
  expect_language(format("date-time"),
                  {R"("2024-01-02T03:04:05Z")", R"("2024-01-02T03:04:05.5+01:00")"},
                  {R"("2024-01-02 03:04:05Z")", R"("2024-01-02T24:04:05Z")"});
  expect_language(format("uuid"), {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567")"});
  expect_language(format("ipv4"), {R"("127.0.0.1")", R"("255.255.255.255")"},
                  {R"("256.0.0.1")", R"("1.2.3")"});
  expect_language(
      format("ipv6"),
      {R"("::")", R"("::1")", R"("2001:db8::ff00:42:8329")", R"("1:2:3:4:5:6:7:8")", R"("1::8")"},
      {R"("1::2::3")", R"("1:2:3")", R"("1:2:3:4:5:6:7::8")"});
  expect_language(format("email"), {R"("a.b@example.com")"}, {R"("a@")", R"("example.com")"});
  expect_language(format("hostname"), {R"("example.com")", R"("a-b")"}, {R"("-a")", R"("a..b")"});
  expect_language(format("uri"), {R"("https://example.com/a?b=c#d")"}, {R"("example.com")"});
  expect_language(format("duration"), {R"("P1Y2M3DT4H5M6S")", R"("PT5M")", R"("P2W")"},
                  {R"("P")", R"("5M")"});
  expect_language(format("time"), {R"("23:59:59Z")"}, {R"("24:00:00Z")"});
  EXPECT_THAT(error_of(R"({"properties":{"a":{"type":"string","format":"regex"}}})"),
              HasSubstr("#/properties/a/format: format 'regex' is not supported"));
}

// Every integer near the bounds, against arithmetic.
TEST(JsonSchema, IntegerBoundsAreExact) {
  for (const auto& [min, max] : std::vector<std::pair<int, int>>{
           {0, 0}, {-5, 5}, {-123, -99}, {7, 1005}, {98, 203}, {-1, 0}, {1, 10}, {-1000, 1}}) {
    const auto grammar =
        schema(fmt::format(R"({{"type":"integer","minimum":{},"maximum":{}}})", min, max));
    const auto exclusive = schema(fmt::format(
        R"({{"type":"integer","exclusiveMinimum":{},"exclusiveMaximum":{}}})", min - 1, max + 1));
    const auto fractions =
        schema(fmt::format(R"({{"type":"integer","minimum":{}.5,"maximum":{}.5}})", min - 1, max));
    for (int value = -1300; value <= 1300; ++value) {
      const std::string text = std::to_string(value);
      ASSERT_EQ(accepts_document(grammar, text), min <= value && value <= max) << text;
      ASSERT_EQ(accepts_document(exclusive, text), min <= value && value <= max) << text;
      ASSERT_EQ(accepts_document(fractions, text), value >= min - 1 + (min - 1 >= 0 ? 0.5 : -0.5) &&
                                                       value <= max + (max >= 0 ? 0.5 : -0.5))
          << text << " in " << min - 1 << ".5 to " << max << ".5";
    }
  }
  expect_language(schema(R"({"type":"integer","minimum":10})"), {"10", "99999"}, {"9", "-10", "0"});
  expect_language(schema(R"({"type":"integer","maximum":-10})"), {"-10", "-99999"}, {"-9", "10"});
  expect_language(schema(R"({"type":"integer","exclusiveMaximum":0})"), {"-1"}, {"0", "-0", "1"});
  expect_language(
      schema(R"({"type":"integer","minimum":9223372036854775806,"maximum":9223372036854775807})"),
      {"9223372036854775806", "9223372036854775807"},
      {"9223372036854775805", "9223372036854775808"});
}

TEST(JsonSchema, NumberBoundsAreExact) {
  // Tenths and hundredths, against integers of hundredths.
  for (const auto& [min, max] : std::vector<std::pair<int, int>>{
           {-50, 125}, {0, 100}, {101, 110}, {-205, -199}, {-1, 1}, {350, 350}}) {
    const auto text_of = [](int hundredths) {
      return fmt::format("{}{}.{:02}", hundredths < 0 ? "-" : "", std::abs(hundredths) / 100,
                         std::abs(hundredths) % 100);
    };
    const auto inclusive = schema(fmt::format(R"({{"type":"number","minimum":{},"maximum":{}}})",
                                              text_of(min), text_of(max)));
    const auto exclusive =
        try_schema(fmt::format(R"({{"type":"number","exclusiveMinimum":{},"exclusiveMaximum":{}}})",
                               text_of(min), text_of(max)));
    for (int value = -400; value <= 400; ++value) {
      const std::string text = text_of(value);
      if (text == "-0.00") continue;
      ASSERT_EQ(accepts_document(inclusive, text), min <= value && value <= max) << text;
      if (min == max) continue;
      ASSERT_TRUE(exclusive) << exclusive.error().message;
      ASSERT_EQ(accepts_document(*exclusive, text), min < value && value < max) << text;
      if (value % 100 == 0) {
        const std::string whole = std::to_string(value / 100);
        ASSERT_EQ(accepts_document(inclusive, whole), min <= value && value <= max) << whole;
      }
    }
    EXPECT_EQ(min != max, exclusive.has_value());
  }
  expect_language(schema(R"({"type":"number","minimum":1.5e1})"), {"15", "15.0", "16.25", "100"},
                  {"14.9", "-15", "1.5"});
  expect_language(schema(R"({"type":"number","exclusiveMaximum":0})"), {"-0.5", "-3"},
                  {"0", "0.1"});
}

TEST(JsonSchema, MultiplesAreExact) {
  const auto sevens = schema(R"({"type":"integer","multipleOf":7,"minimum":-50,"maximum":1000})");
  const auto quarters = schema(R"({"type":"number","multipleOf":0.25,"minimum":-2})");
  const auto both = schema(R"({"allOf":[{"multipleOf":4},{"multipleOf":6}],"type":"integer"})");
  for (int value = -200; value <= 1200; ++value) {
    const std::string text = std::to_string(value);
    ASSERT_EQ(accepts_document(sevens, text), value % 7 == 0 && value >= -50 && value <= 1000)
        << text;
    ASSERT_EQ(accepts_document(both, text), value % 12 == 0) << text;
    const std::string hundredths = fmt::format("{}{}.{:02}", value < 0 ? "-" : "",
                                               std::abs(value) / 100, std::abs(value) % 100);
    ASSERT_EQ(accepts_document(quarters, hundredths), value % 25 == 0 && value >= -200)
        << hundredths;
  }
  expect_language(quarters, {"0", "3", "1.5", "1.50"}, {"0.1", "-3"});
  expect_language(schema(R"({"enum":[1,2,3,4.5],"multipleOf":1.5})"), {"3", "4.5"}, {"1", "2"});
  EXPECT_THAT(error_of(R"({"type":"number","multipleOf":0})"), HasSubstr("#/multipleOf: expected"));
  EXPECT_THAT(error_of(R"({"type":"number","multipleOf":1e-20})"), HasSubstr("#/multipleOf"));
  EXPECT_THAT(error_of(R"({"type":"number","multipleOf":"x"})"), HasSubstr("#/multipleOf"));
}

TEST(JsonSchema, AnyOfAllOf) {
  expect_language(schema(R"({"anyOf":[{"type":"integer"},{"type":"string","maxLength":1}]})"),
                  {"12", R"("a")"}, {R"("ab")", "null"});
  expect_language(schema(R"({"type":"object","properties":{"k":{"type":"integer"}},
      "anyOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},
               {"properties":{"b":{"type":"integer"}},"required":["b"]}]})"),
                  {R"({"k":1,"a":2})", R"({"k":1,"b":2})", R"({"b":2})"},
                  {"{}", R"({"k":1})", R"({"a":1,"b":2})"});
  expect_language(schema(R"({"allOf":[{"properties":{"a":{"minimum":3}},"required":["a"]},
      {"properties":{"a":{"type":"integer","maximum":5},"b":{"type":"null"}}}]})"),
                  {R"({"a":3})", R"({"a":5,"b":null})"}, {R"({"a":6})", R"({"a":2})", "{}"});
  expect_language(schema(R"({"allOf":[{"properties":{"a":{"type":"integer"}},
      "additionalProperties":false},{"properties":{"b":{"type":"null"}}}]})"),
                  {"{}", R"({"a":1})"}, {R"({"b":null})"});
  EXPECT_THAT(error_of(R"({"allOf":[{"type":"integer"},{"type":"string"}]})"),
              HasSubstr("no document satisfies"));
  EXPECT_THAT(error_of("false"), HasSubstr("no document satisfies"));
}

TEST(JsonSchema, OneOf) {
  expect_language(schema(R"({"oneOf":[{"type":"integer"},{"type":"string"}]})"), {"1", R"("a")"},
                  {"null"});
  const auto tagged = schema(R"({"oneOf":[
      {"type":"object","properties":{"kind":{"const":"a"},"x":{"type":"integer"}}},
      {"$ref":"#/$defs/b"}],
      "$defs":{"b":{"type":"object","properties":{"kind":{"enum":["b","c"]}}}}})");
  expect_language(tagged, {R"({"kind":"a"})", R"({"kind":"a","x":1})", R"({"kind":"c"})"},
                  {"{}", R"({"x":1})", R"({"kind":"b","x":1})"});
  expect_language(schema(R"({"oneOf":[
      {"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},
      {"type":"object","properties":{"b":{"type":"integer"}},"required":["b"]}]})"),
                  {R"({"a":1})", R"({"b":1})"}, {R"({"a":1,"b":1})"});
  EXPECT_THAT(error_of(R"({"oneOf":[{"type":"integer"},{"type":"number"}]})"),
              HasSubstr("#/oneOf: branches 0 and 1 may both match"));
  EXPECT_THAT(error_of(R"({"oneOf":[{"properties":{"a":{}}},{"type":"string"}]})"),
              HasSubstr("may both match"));
}

TEST(JsonSchema, References) {
  const auto tree = schema(R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object",
      "properties":{"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/node"},
      {"type":"null"}]}},"required":["v","next"]}}})");
  expect_language(tree, {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"},
                  {R"({"v":1})", R"({"v":1,"next":{"v":2}})"});
  expect_language(schema(R"({"properties":{"a~/b":{"type":"integer"},
      "c":{"$ref":"#/properties/a~0~1b"}}})"),
                  {R"({"a~/b":1,"c":2})"}, {R"({"c":"x"})"});
  expect_language(schema(R"({"items":{"$ref":"#"},"type":"array"})"), {"[]", "[[],[[]]]"}, {"[1]"});
  EXPECT_THAT(error_of(R"({"$ref":"#/$defs/no"})"),
              HasSubstr("#/$ref: '#/$defs/no' leads nowhere"));
  EXPECT_THAT(error_of(R"({"$ref":"http://example.com/s"})"), HasSubstr("outside the schema"));
  EXPECT_THAT(error_of(R"({"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}})"),
              HasSubstr("leads in a circle"));
  EXPECT_THAT(error_of(R"({"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]})"),
              HasSubstr("no document satisfies"));
  // A branch that only leads back to the choice adds nothing.
  expect_language(schema(R"({"anyOf":[{"$ref":"#"},{"type":"string"}]})"), {R"("a")"}, {"1"});
  // Two ways to one base are no circle.
  expect_language(schema(R"({"allOf":[{"type":"object","allOf":[{"$ref":"#/$defs/a"}]},
      {"required":["x"],"allOf":[{"$ref":"#/$defs/a"}]}],
      "$defs":{"a":{"properties":{"x":{}},"anyOf":[{"properties":{"y":{}}},{}]}}})"),
                  {R"({"x":1})", R"({"x":1,"y":2})"}, {"{}", R"({"y":2})"});
}

TEST(JsonSchema, ErrorsNameKeywordAndPlace) {
  EXPECT_THAT(error_of(R"({"properties":{"a":{"type":"object","patternProperties":{}}}})"),
              HasSubstr("#/properties/a: keyword 'patternProperties' is not supported"));
  EXPECT_THAT(error_of(R"({"not":{}})"), HasSubstr("#: keyword 'not'"));
  EXPECT_THAT(error_of(R"({"uniqueItems":true})"), HasSubstr("keyword 'uniqueItems'"));
  EXPECT_THAT(error_of(R"({"type":"strin"})"), HasSubstr("#/type: 'strin' is no type"));
  EXPECT_THAT(error_of(R"({"type":5})"), HasSubstr("#/type"));
  EXPECT_THAT(error_of(R"x({"pattern":"(?=a)"})x"), HasSubstr("#/pattern: regex"));
  EXPECT_THAT(error_of(R"({"pattern":7})"), HasSubstr("#/pattern"));
  EXPECT_THAT(error_of(R"({"minLength":-1})"), HasSubstr("#/minLength: expected a count"));
  EXPECT_THAT(error_of(R"({"minItems":1e9,"type":"array"})"), HasSubstr("at most 8192"));
  EXPECT_THAT(error_of(R"({"minimum":"1"})"), HasSubstr("#/minimum: expected a number"));
  EXPECT_THAT(error_of(R"({"minimum":1e99,"type":"number"})"), HasSubstr("out of the range"));
  EXPECT_THAT(error_of(R"({"enum":[]})"), HasSubstr("#/enum"));
  EXPECT_THAT(error_of(R"({"anyOf":[]})"), HasSubstr("#/anyOf"));
  EXPECT_THAT(error_of(R"({"anyOf":{}})"), HasSubstr("#/anyOf"));
  EXPECT_THAT(error_of(R"({"allOf":7})"), HasSubstr("#/allOf"));
  EXPECT_THAT(error_of(R"({"properties":[]})"), HasSubstr("#/properties"));
  EXPECT_THAT(error_of(R"({"required":"a"})"), HasSubstr("#/required"));
  EXPECT_THAT(error_of(R"({"required":[1]})"), HasSubstr("#/required/0"));
  EXPECT_THAT(error_of(R"({"items":[{}]})"), HasSubstr("prefixItems"));
  EXPECT_THAT(error_of(R"({"items":3})"), HasSubstr("a schema is an object or a boolean"));
  EXPECT_THAT(error_of("[]"), HasSubstr("a schema is an object or a boolean"));
  EXPECT_THAT(error_of("{"), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(error_of(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(R"({"a":1,"a":2})"), HasSubstr("key 'a' appears twice"));
  EXPECT_THAT(error_of(R"({"minimum":1e999})"), HasSubstr("JSON schema"));
  EXPECT_THAT(error_of("{\"\xff\":1}"), HasSubstr("not valid JSON"));
}

TEST(JsonSchema, ToolCalls) {
  GrammarSpec spec{.kind = GrammarSpec::Kind::kToolCalls};
  spec.tools = {{"get_weather", R"({"properties":{"city":{"type":"string"}},"required":["city"]})"},
                {"stop", ""}};
  spec.max_tool_calls = 2;
  const auto grammar = CompiledGrammar::compile(spec, vocabulary());
  ASSERT_TRUE(grammar) << grammar.error().message;
  const std::string weather =
      "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
  const std::string stop = "<tool_call>\n{\"name\":\"stop\",\"arguments\":{}}\n</tool_call>";
  expect_language(*grammar, {weather, stop, weather + "\n" + stop},
                  {"", "<tool_call>\n{}\n</tool_call>", stop + "\n" + stop + "\n" + stop,
                   "<tool_call>\n{\"name\":\"get_weather\",\"arguments\":{}}\n</tool_call>"});
  spec.tools[0].parameters = R"({"not":{}})";
  const auto bad = CompiledGrammar::compile(spec, vocabulary());
  ASSERT_FALSE(bad);
  EXPECT_THAT(bad.error().message, HasSubstr("tool 'get_weather': JSON schema, #: keyword 'not'"));
}

TEST(JsonSchema, AdversarialSchemas) {
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += R"({"items":)";
  EXPECT_THAT(error_of(deep + "{}" + std::string(100, '}')), HasSubstr("nested deeper than 64"));

  std::string huge = R"({"enum":["v0")";
  for (int i = 1; i < 20000; ++i) huge += fmt::format(",\"v{}\"", i);
  expect_language(schema(huge + "]}"), {R"("v19999")"}, {R"("v20000")"});

  std::string wide = R"({"properties":{"p0":{})";
  for (int i = 1; i < 500; ++i) wide += fmt::format(",\"p{}\":{{\"type\":\"integer\"}}", i);
  expect_language(schema(wide + "}}"), {R"({"p3":1,"p499":2})"}, {R"({"p4":1,"p3":2})"});

  // 2^k conjunctions: an answer, or an error, but soon.
  std::string product = R"({"allOf":[)";
  for (int i = 0; i < 40; ++i) {
    product += fmt::format(
        R"({}{{"anyOf":[{{"properties":{{"a{}":{{}}}}}},{{"properties":{{"b{}":{{}}}}}}]}})",
        i == 0 ? "" : ",", i, i);
  }
  EXPECT_THAT(error_of(product + "]}"), testing::AnyOf(HasSubstr("rules"), HasSubstr("complex")));

  std::string chain = R"({"$ref":"#/$defs/d0","$defs":{"e":{})";
  for (int i = 0; i < 3000; ++i) {
    chain += fmt::format(R"(,"d{}":{{"anyOf":[{{"$ref":"#/$defs/d{}"}}]}})", i, i + 1);
  }
  EXPECT_NE(error_of(chain + R"(,"d3000":{"type":"null"}}})"), "");

  EXPECT_THAT(error_of(R"({"pattern":"^(a|b)*a(a|b){30}$"})"), HasSubstr("too complex"));
  EXPECT_THAT(
      error_of(R"({"pattern":"^[a-z]{1,5000}[0-9]{1,5000}$","maxLength":8000,"minLength":7})"),
      testing::AnyOf(HasSubstr("too complex"), HasSubstr("no error")));
}

}  // namespace
}  // namespace volley
