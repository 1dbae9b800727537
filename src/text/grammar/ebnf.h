#pragma once

// Grammars in the notation of llama.cpp's GBNF:
//
//   root  ::= greeting (" " name)* "!"?     # a comment
//   name  ::= [A-Za-z] [^\x00-\x20!]{0,20} | "\u00e9"
//
// Literals, character classes, '.', groups, alternatives, * + ? {m} {m,} {m,n}. A rule ends where
// the next one begins. The start is the rule named "root". Left recursion is an error.

#include <string_view>

#include "base/result.h"
#include "text/grammar/rules.h"

namespace volley::grammar {

Result<Rules> parse_ebnf(std::string_view text, int max_depth, int max_rules);

}  // namespace volley::grammar
