#pragma once

// Numbers as Python reads and rounds them.

#include <cstdint>
#include <optional>
#include <string_view>

namespace volley::jinja {

// int(text, base), base 0 or 2 to 36. Nothing when Python raises, or past 64 bits.
std::optional<int64_t> parse_int(std::string_view text, int base);
std::optional<double> parse_float(std::string_view text);  // float(text)

double round_float(double value, int64_t digits);     // round(value, digits)
int64_t round_integer(int64_t value, int num_zeros);  // round(value, -num_zeros), up to 18 zeros

}  // namespace volley::jinja
