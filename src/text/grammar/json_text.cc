#include "text/grammar/json_text.h"

#include <algorithm>

#include "text/grammar/regex.h"

namespace volley::grammar {

template <class Body>
RuleId JsonText::once(std::optional<RuleId>& slot, std::string_view name, Body body) {
  if (!slot) {
    slot = rules_.add_rule(std::string(name));
    rules_.define(*slot, body());
  }
  return *slot;
}

ExprId JsonText::gap() {
  if (!whitespace_.allowed) return rules_.empty();
  const int max_indent = std::clamp(whitespace_.max_indent, 0, 1000);
  return rules_.call(once(gap_, "white space", [&] {
    const ExprId indent = rules_.choice({rules_.repeat(rules_.literal(" "), 0, max_indent),
                                         rules_.repeat(rules_.literal("\t"), 0, max_indent / 4)});
    return rules_.choice(
        {rules_.literals({"", " "}), rules_.sequence({rules_.literal("\n"), indent})});
  }));
}

ExprId JsonText::colon() {
  return whitespace_.allowed ? rules_.literals({":", ": "}) : rules_.literal(":");
}

RuleId JsonText::value() {
  return once(value_, "JSON value", [&] {
    return rules_.choice({rules_.call(object()), rules_.call(array()), rules_.call(string()),
                          rules_.call(number()), rules_.literals({"true", "false", "null"})});
  });
}

RuleId JsonText::object() {
  return once(object_, "JSON object",
              [&] { return object_of(rules_.call(string()), rules_.call(value())); });
}

RuleId JsonText::array() {
  return once(array_, "JSON array", [&] {
    const ExprId item = rules_.call(value());
    const ExprId more =
        rules_.repeat(rules_.sequence({rules_.literal(","), gap(), item}), 0, Expr::kUnbounded);
    return rules_.sequence({rules_.literal("["),
                            rules_.optional(rules_.sequence({gap(), item, more, gap()})),
                            rules_.literal("]")});
  });
}

ExprId JsonText::object_of(ExprId key, ExprId value) {
  const ExprId member = rules_.sequence({gap(), key, colon(), value});
  const ExprId more =
      rules_.repeat(rules_.sequence({rules_.literal(","), member}), 0, Expr::kUnbounded);
  return rules_.sequence({rules_.literal("{"),
                          rules_.optional(rules_.sequence({member, more, gap()})),
                          rules_.literal("}")});
}

RuleId JsonText::string_char() {
  return once(string_char_, "character", [&] {
    const CodePointSet escaped({{0, 0x1f}, {'"', '"'}, {'\\', '\\'}});
    const auto any_of = [&](std::vector<CodePointRange> ranges) {
      return rules_.chars(CodePointSet(std::move(ranges)));
    };
    const ExprId hex = any_of({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
    const ExprId d = any_of({{'D', 'D'}, {'d', 'd'}});
    const ExprId not_d = any_of({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}});
    const ExprId high = any_of({{'8', '9'}, {'A', 'B'}, {'a', 'b'}});
    const ExprId low = any_of({{'C', 'F'}, {'c', 'f'}});
    const ExprId below_surrogates = rules_.sequence({d, any_of({{'0', '7'}}), hex, hex});
    const ExprId surrogate_pair =
        rules_.sequence({d, high, hex, hex, rules_.literal("\\u"), d, low, hex, hex});
    const ExprId by_number = rules_.sequence(
        {rules_.literal("u"), rules_.choice({rules_.sequence({not_d, hex, hex, hex}),
                                             below_surrogates, surrogate_pair})});
    const ExprId by_letter = rules_.literals({"\"", "\\", "/", "b", "f", "n", "r", "t"});
    return rules_.choice(
        {rules_.chars(escaped.complement()),
         rules_.sequence({rules_.literal("\\"), rules_.choice({by_letter, by_number})})});
  });
}

RuleId JsonText::string() {
  return once(string_, "JSON string", [&] {
    // The body of the rule, not a call: the commonest state of all then has the shortest stack.
    const ExprId one = rules_[string_char()].body;
    return quoted(rules_.repeat(one, 0, Expr::kUnbounded));
  });
}

ExprId JsonText::quoted(ExprId content) {
  return rules_.sequence({rules_.literal("\""), content, rules_.literal("\"")});
}

RuleId JsonText::integer() {
  return once(integer_, "JSON integer", [&] {
    const ExprId first = rules_.chars(CodePointSet({{'1', '9'}}));
    const ExprId digit = rules_.chars(CodePointSet({{'0', '9'}}));
    return rules_.sequence(
        {rules_.literals({"", "-"}),
         rules_.choice(
             {rules_.literal("0"), rules_.sequence({first, rules_.repeat(digit, 0, 17)})})});
  });
}

RuleId JsonText::number() {
  return once(number_, "JSON number", [&] {
    const ExprId first = rules_.chars(CodePointSet({{'1', '9'}}));
    const ExprId digit = rules_.chars(CodePointSet({{'0', '9'}}));
    const ExprId whole =
        rules_.choice({rules_.literal("0"), rules_.sequence({first, rules_.repeat(digit, 0, 19)})});
    const ExprId fraction = rules_.sequence({rules_.literal("."), rules_.repeat(digit, 1, 20)});
    // At most 279: 20 digits and it stay below the largest double.
    const ExprId size = rules_.choice(
        {rules_.repeat(digit, 1, 2), rules_.sequence({rules_.literal("1"), digit, digit}),
         rules_.sequence({rules_.literal("2"), rules_.chars(CodePointSet({{'0', '7'}})), digit})});
    const ExprId exponent =
        rules_.sequence({rules_.literals({"e", "E"}), rules_.literals({"", "+", "-"}), size});
    return rules_.sequence(
        {rules_.literals({"", "-"}), whole, rules_.optional(fraction), rules_.optional(exponent)});
  });
}

std::string json_quoted(std::string_view value) {
  std::string out = "\"";
  uint32_t code_point = 0;
  while (take_code_point(value, code_point)) append_json_escaped(out, code_point);
  return out + "\"";
}

}  // namespace volley::grammar
