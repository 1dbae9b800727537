#pragma once

// Template source to tokens, with Jinja's white space control as Hugging Face sets it: trim_blocks
// and lstrip_blocks on, one trailing newline dropped.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace volley::jinja {

enum class TokenKind : uint8_t {
  kText,
  kPrintBegin,  // {{
  kPrintEnd,    // }}
  kBlockBegin,  // {%
  kBlockEnd,    // %}
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 0;
  std::string text;  // operators and names verbatim, strings and text decoded
  int64_t integer = 0;
  double real = 0;
};

// Throws Failure on malformed source. The last token is kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace volley::jinja
