#include "text/jinja/numbers.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

// Drops single underscores between digits; false if one stands elsewhere.
bool drop_underscores(std::string* text) {
  std::string out;
  for (size_t i = 0; i < text->size(); ++i) {
    const auto is_alnum = [&](size_t at) {
      return at < text->size() && std::isalnum(static_cast<unsigned char>((*text)[at]));
    };
    if ((*text)[i] != '_') {
      out.push_back((*text)[i]);
    } else if (i == 0 || !is_alnum(i - 1) || !is_alnum(i + 1)) {
      return false;
    }
  }
  *text = std::move(out);
  return true;
}

// Removes a prefix such as 0x that fits `base` and settles base 0. False if there can be no number.
bool take_prefix(std::string_view* digits, int* base) {
  int prefix_base = 0;
  if (digits->size() > 1 && (*digits)[0] == '0') {
    const char mark = static_cast<char>((*digits)[1] | 0x20);
    prefix_base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
  }
  if (prefix_base != 0 && (*base == 0 || *base == prefix_base)) {
    *base = prefix_base;
    digits->remove_prefix(2);
    if (digits->starts_with('_')) digits->remove_prefix(1);
    return true;
  }
  if (*base != 0) return true;
  *base = 10;
  const bool zeros_only = digits->find_first_not_of("0_") == digits->npos;
  return !digits->starts_with('0') || zeros_only;
}

}  // namespace

std::optional<int64_t> parse_int(std::string_view text, int base) {
  if (base != 0 && (base < 2 || base > 36)) return std::nullopt;
  std::string_view digits = strip(text, nullptr, true, true);
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  if (!take_prefix(&digits, &base)) return std::nullopt;
  std::string plain(digits);
  if (plain.empty() || !drop_underscores(&plain) ||
      !std::isalnum(static_cast<unsigned char>(plain[0]))) {
    return std::nullopt;
  }
  if (negative) plain.insert(plain.begin(), '-');
  int64_t value = 0;
  const auto parsed = std::from_chars(plain.data(), plain.data() + plain.size(), value, base);
  if (parsed.ec != std::errc() || parsed.ptr != plain.data() + plain.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  std::string plain(strip(text, nullptr, true, true));
  if (!drop_underscores(&plain) || plain.empty()) return std::nullopt;
  std::string_view digits = plain;
  const bool negative = digits.starts_with('-');
  if (negative || digits.starts_with('+')) digits.remove_prefix(1);
  std::string word(digits);
  std::transform(word.begin(), word.end(), word.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const double sign = negative ? -1 : 1;
  if (word == "inf" || word == "infinity") return sign * HUGE_VAL;
  if (word == "nan") return std::nan("");
  if (digits.empty() || digits.find_first_not_of("0123456789.eE+-") != digits.npos ||
      digits[0] == '-' || digits[0] == '+') {
    return std::nullopt;
  }
  const std::string number(digits);
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  if (end != number.c_str() + number.size()) return std::nullopt;
  return sign * value;
}

double round_float(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 320) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits >= 0) {
    // printf rounds the exact binary value, as Python does.
    std::string text(400 + static_cast<size_t>(digits), '\0');
    const int size =
        std::snprintf(text.data(), text.size(), "%.*f", static_cast<int>(digits), value);
    text.resize(static_cast<size_t>(size));
    return std::strtod(text.c_str(), nullptr);
  }
  const long double unit = std::pow(10.0L, static_cast<long double>(-digits));
  return static_cast<double>(std::nearbyint(static_cast<long double>(value) / unit) * unit);
}

int64_t round_integer(int64_t value, int num_zeros) {
  int64_t unit = 1;
  for (int i = 0; i < num_zeros; ++i) unit *= 10;
  const __int128 wide = value;
  const __int128 rest = ((wide % unit) + unit) % unit;
  __int128 down = wide - rest;
  const bool is_odd = (down / unit) % 2 != 0;
  if (rest * 2 > unit || (rest * 2 == unit && is_odd)) down += unit;
  return static_cast<int64_t>(std::clamp<__int128>(down, INT64_MIN, INT64_MAX));
}

}  // namespace volley::jinja
