#pragma once

// Regular expressions in the syntax of ECMA-262 as JSON Schema recommends it, less what no finite
// automaton can do: back references and look-around are errors, as are flags and \b. \d, \w and \s
// are ASCII (and \s also the spaces that ECMA-262 names). '^' and '$' may stand at the ends of the
// top-level alternatives only.

#include <string_view>

#include "base/result.h"
#include "text/grammar/rules.h"

namespace volley::grammar {

struct RegexOptions {
  // The text that is matched stands inside a JSON string: '"', '\' and control characters appear in
  // their shortest escape, all others as themselves.
  bool in_json_string = false;
  // The pattern need match only a part of the text, as in JSON Schema's "pattern".
  bool is_search = false;
  int max_depth = 64;
};

Result<ExprId> parse_regex(std::string_view pattern, const RegexOptions& options, Rules& rules);

// A character class: text after the opening '[' up to and with the closing ']'. Shared with EBNF.
Result<CodePointSet> parse_char_class(std::string_view& text);

// What follows a backslash: one character or a class such as \d. Shared with EBNF.
Result<CodePointSet> parse_escape(std::string_view& text);

// One of `set`, escaped as inside a JSON string.
ExprId json_string_chars(const CodePointSet& set, Rules& rules);

// `code_point` as RegexOptions::in_json_string describes.
void append_json_escaped(std::string& out, uint32_t code_point);

}  // namespace volley::grammar
