#pragma once

// Text as Python sees it: sequences of code points, with the character classes of `str` methods.
// Every string in the engine is valid UTF-8.

#include <cstdint>
#include <string>
#include <string_view>

namespace volley::jinja {

bool is_valid_utf8(std::string_view text);
std::string replace_invalid_utf8(std::string_view text);  // bad bytes become U+FFFD
size_t count_code_points(std::string_view text);

// Byte offset of code point `index` (clamped to the end).
size_t code_point_offset(std::string_view text, size_t index);

// Decodes the code point at `*pos` and advances it.
char32_t next_code_point(std::string_view text, size_t* pos);
void append_utf8(std::string* out, char32_t c);

enum class CharClass {
  kSpace,
  kAlpha,
  kDecimal,
  kDigit,
  kNumeric,
  kPrintable,
  kUpper,
  kLower,
  kTitle,
  kCased,
  kIdStart,
  kIdContinue
};
bool is_char(char32_t c, CharClass char_class);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_casefold(std::string_view text);
std::string to_capitalized(std::string_view text);  // str.capitalize
std::string to_title(std::string_view text);        // str.title
std::string swap_case(std::string_view text);

// Strips code points that are white space, or that occur in `chars` when it is not null.
std::string_view strip(std::string_view text, const std::string_view* chars, bool left, bool right);

}  // namespace volley::jinja
