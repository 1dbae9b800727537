#pragma once

// The rules of JSON itself, shared by all schemas of a grammar and made when first needed.

#include <optional>
#include <string_view>

#include "text/grammar/grammar.h"
#include "text/grammar/rules.h"

namespace volley::grammar {

class JsonText {
 public:
  JsonText(Rules& rules, const JsonWhitespace& whitespace)
      : rules_(rules), whitespace_(whitespace) {}

  // White space behind '{', '[' and ',' and before '}' and ']'; ':' with what may follow it.
  ExprId gap();
  ExprId colon();

  // Any value of a kind. Numbers have at most 20 digits before and after the point and an exponent
  // that a double holds; integers have at most 18 digits.
  RuleId value();
  RuleId object();
  RuleId array();
  RuleId string();
  RuleId number();
  RuleId integer();

  // One character of a string in any spelling, escapes included; never half a surrogate pair.
  RuleId string_char();
  // `content` between quotes.
  ExprId quoted(ExprId content);

  // '{' member (',' member)* '}' or '{}', where a member is `key` ':' `value`.
  ExprId object_of(ExprId key, ExprId value);

 private:
  // Makes the rule behind `slot` when it is first asked for; it may call itself.
  template <class Body>
  RuleId once(std::optional<RuleId>& slot, std::string_view name, Body body);

  Rules& rules_;
  const JsonWhitespace whitespace_;
  std::optional<RuleId> gap_, value_, object_, array_, string_, number_, integer_, string_char_;
};

// The text of `value` as a JSON string with the shortest escapes, quotes included.
std::string json_quoted(std::string_view value);

}  // namespace volley::grammar
