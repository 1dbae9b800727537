#pragma once

// Python's two ways to format, and the text operations that filters and methods share.

#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace volley::jinja {

// "..." % value
Value format_percent(Interpreter& interpreter, const Value& format, const Value& value);
// "...".format(...)
Value format_braces(Interpreter& interpreter, const Value& format, Args args);

std::string replaced(Heap& heap, std::string_view text, std::string_view old_text,
                     std::string_view new_text, int64_t max_count);  // negative: all
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

}  // namespace volley::jinja
