#pragma once

// Values as text: Python's str() and repr(), and json.dumps().

#include <string>

#include "text/jinja/value.h"

namespace volley::jinja {

std::string float_repr(double d);  // shortest digits that read back as `d`, Python's layout

void append_str(StringBuilder* out, const Value& value);
void append_repr(StringBuilder* out, const Value& value);
Value to_str(Heap& heap, const Value& value);  // no copy of what is a string already
std::string repr(Heap& heap, const Value& value);
std::string repr(std::string_view text);  // repr of a str

struct JsonStyle {
  bool ensure_ascii = false;
  std::optional<std::string> indent;  // one level of indentation
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
std::string to_json(Heap& heap, const Value& value, const JsonStyle& style);

}  // namespace volley::jinja
