#include "text/jinja/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "text/jinja/interpreter.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

constexpr int64_t kMaxPrecision = 2000;

// [[fill]align][sign][#][0][width][grouping][.precision][type], for both kinds of format.
struct Spec {
  std::string fill = " ";
  char align = '\0';  // < > ^ =
  char sign = '-';
  bool has_sign = false;  // written, even if it is the default
  bool alternate = false;
  int64_t width = 0;
  char grouping = '\0';
  int64_t precision = -1;
  char type = '\0';
};

std::string with_grouping(std::string_view digits, char separator, size_t group) {
  std::string out;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % group == 0) out.push_back(separator);
    out.push_back(digits[i]);
  }
  return out;
}

// Puts sign, prefix and digits at their place in the field.
Value place(Heap& heap, const Spec& spec, std::string_view sign, std::string_view body,
            char default_align) {
  const auto size = static_cast<int64_t>(sign.size() + count_code_points(body));
  const int64_t missing = std::max<int64_t>(spec.width - size, 0);
  heap.check_string_size(static_cast<size_t>(missing) * spec.fill.size());
  const char align = spec.align != '\0' ? spec.align : default_align;
  const int64_t left = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  StringBuilder out(heap);
  if (align == '=') out.append(sign);
  for (int64_t i = 0; i < left; ++i) out.append(spec.fill);
  if (align != '=') out.append(sign);
  out.append(body);
  for (int64_t i = left; i < missing; ++i) out.append(spec.fill);
  return out.finish();
}

std::string_view sign_of(bool negative, char sign) {
  return negative ? "-" : sign == '+' ? "+" : sign == ' ' ? " " : "";
}

std::string integer_digits(uint64_t magnitude, char type) {
  switch (type) {
    case 'x':
      return fmt::format("{:x}", magnitude);
    case 'X':
      return fmt::format("{:X}", magnitude);
    case 'o':
      return fmt::format("{:o}", magnitude);
    case 'b':
      return fmt::format("{:b}", magnitude);
    default:
      return fmt::format("{}", magnitude);
  }
}

Value format_integer(Heap& heap, const Spec& spec, int64_t value) {
  const uint64_t magnitude =
      value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  std::string digits = integer_digits(magnitude, spec.type);
  if (spec.precision > static_cast<int64_t>(digits.size())) {  // %-formats only
    digits.insert(0, static_cast<size_t>(spec.precision) - digits.size(), '0');
  }
  const bool decimal = spec.type == 'd' || spec.type == '\0' || spec.type == 'n';
  if (spec.grouping != '\0') digits = with_grouping(digits, spec.grouping, decimal ? 3 : 4);
  std::string sign(sign_of(value < 0, spec.sign));
  if (spec.alternate && !decimal) sign += std::string("0") + spec.type;
  return place(heap, spec, sign, digits, '>');
}

std::string printf_float(double magnitude, char type, int64_t precision, bool alternate) {
  const char format[] = {'%', '#', '.', '*', type, '\0'};
  const char plain[] = {'%', '.', '*', type, '\0'};
  const char* used = alternate ? format : plain;
  const auto digits = static_cast<int>(precision);
  std::string out(400 + static_cast<size_t>(precision), '\0');
  const int size = std::snprintf(out.data(), out.size(), used, digits, magnitude);
  out.resize(static_cast<size_t>(std::max(size, 0)));
  return out;
}

std::string float_digits(double magnitude, const Spec& spec) {
  if (!std::isfinite(magnitude)) {
    const bool upper = spec.type == 'F' || spec.type == 'E' || spec.type == 'G';
    return std::isnan(magnitude) ? (upper ? "NAN" : "nan") : (upper ? "INF" : "inf");
  }
  if (spec.type == '%') {
    return printf_float(magnitude * 100, 'f', spec.precision < 0 ? 6 : spec.precision,
                        spec.alternate) +
           "%";
  }
  if (spec.type == '\0') {
    if (spec.precision < 0) return float_repr(magnitude);
    std::string out = printf_float(magnitude, 'g', std::max<int64_t>(spec.precision, 1), false);
    if (out.find_first_of(".e") == out.npos) out += ".0";
    return out;
  }
  const char type = spec.type == 'n' ? 'g' : spec.type;
  return printf_float(magnitude, type, spec.precision < 0 ? 6 : spec.precision, spec.alternate);
}

Value format_float(Heap& heap, const Spec& spec, double value) {
  std::string digits = float_digits(std::fabs(value), spec);
  if (spec.grouping != '\0') {
    const size_t end = std::min(digits.find_first_not_of("0123456789"), digits.size());
    digits = with_grouping(digits.substr(0, end), spec.grouping, 3) + digits.substr(end);
  }
  const bool negative = std::signbit(value) && !std::isnan(value);
  return place(heap, spec, sign_of(negative, spec.sign), digits, '>');
}

std::string_view truncated(std::string_view text, int64_t precision) {
  if (precision < 0) return text;
  return text.substr(0, code_point_offset(text, static_cast<size_t>(precision)));
}

// Reads digits into *number; false when there are none.
bool read_number(std::string_view text, size_t* pos, int64_t* number) {
  const size_t begin = *pos;
  int64_t value = 0;
  while (*pos < text.size() && text[*pos] >= '0' && text[*pos] <= '9') {
    value = std::min<int64_t>(value * 10 + (text[*pos] - '0'), int64_t{1} << 40);
    ++*pos;
  }
  *number = value;
  return *pos > begin;
}

void check_precision(const Spec& spec) {
  if (spec.precision > kMaxPrecision) fail_limit("a precision of {} digits", spec.precision);
}

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t pos = 0;
  const auto at = [&](size_t i) { return i < text.size() ? text[i] : '\0'; };
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  size_t fill_end = 0;
  if (!text.empty()) next_code_point(text, &fill_end);
  if (fill_end > 0 && is_align(at(fill_end))) {
    spec.fill = text.substr(0, fill_end);
    spec.align = at(fill_end);
    pos = fill_end + 1;
  } else if (is_align(at(0))) {
    spec.align = at(pos++);
  }
  if (at(pos) == '+' || at(pos) == '-' || at(pos) == ' ') {
    spec.sign = at(pos++);
    spec.has_sign = true;
  }
  if (at(pos) == '#') spec.alternate = at(pos++) != '\0';
  if (at(pos) == '0' && spec.align == '\0') {
    spec.fill = "0";
    spec.align = '=';
    ++pos;
  }
  read_number(text, &pos, &spec.width);
  if (at(pos) == ',' || at(pos) == '_') spec.grouping = at(pos++);
  if (at(pos) == '.') {
    ++pos;
    if (!read_number(text, &pos, &spec.precision)) {
      fail("ValueError", "Format specifier missing precision");
    }
  }
  if (pos < text.size()) spec.type = text[pos++];
  if (pos < text.size()) fail("ValueError", "Invalid format specifier");
  check_precision(spec);
  return spec;
}

[[noreturn]] void fail_code(const Spec& spec, const Value& value) {
  fail("ValueError", "Unknown format code '{}' for object of type '{}'", spec.type,
       type_name(value));
}

// format(value, spec)
Value format_value(Heap& heap, const Value& value, std::string_view spec_text) {
  if (spec_text.empty()) return to_str(heap, value);
  if (value.is(Kind::kStr)) {
    Spec spec = parse_spec(spec_text);
    if (spec.type != '\0' && spec.type != 's') fail_code(spec, value);
    if (spec.has_sign || spec.alternate || spec.grouping != '\0') {
      fail("ValueError", "Sign, '#' and grouping are not allowed in a string format specifier");
    }
    if (spec.align == '=' && spec.fill == "0") spec.align = '<';
    if (spec.align == '=') {
      fail("ValueError", "'=' alignment not allowed in string format specifier");
    }
    return place(heap, spec, "", truncated(value.text(), spec.precision), '<');
  }
  if (!value.is_number()) {
    require_defined(value);
    fail_type("unsupported format string passed to {}.__format__", type_name(value));
  }
  const Spec spec = parse_spec(spec_text);
  static constexpr std::string_view kFloatTypes = "eEfFgG%";
  const bool as_float = value.is(Kind::kFloat) ||
                        (spec.type != '\0' && kFloatTypes.find(spec.type) != kFloatTypes.npos);
  if (as_float) {
    if (spec.type != '\0' && spec.type != 'n' && kFloatTypes.find(spec.type) == kFloatTypes.npos) {
      fail_code(spec, value);
    }
    return format_float(heap, spec, value.as_real());
  }
  if (spec.type == 'c') {
    if (value.as_int() < 0 || value.as_int() > 0x10FFFF) {
      fail("OverflowError", "%c arg not in range(0x110000)");
    }
    std::string text;
    append_utf8(&text, static_cast<char32_t>(value.as_int()));
    return place(heap, spec, "", text, '<');
  }
  static constexpr std::string_view kIntegerTypes = "bdoxXn";
  if (spec.type != '\0' && kIntegerTypes.find(spec.type) == kIntegerTypes.npos) {
    fail_code(spec, value);
  }
  if (spec.precision >= 0) fail("ValueError", "Precision not allowed in integer format specifier");
  return format_integer(heap, spec, value.as_int());
}

// One rendering of a %-format.
class PercentFormatter {
 public:
  PercentFormatter(Interpreter& interpreter, const Value& format, const Value& value)
      : heap_(interpreter.heap()),
        format_(format.text()),
        markup_(format.str().markup),
        value_(value),
        out_(heap_) {}

  Value run() {
    while (pos_ < format_.size()) {
      const size_t percent = std::min(format_.find('%', pos_), format_.size());
      out_.append(format_.substr(pos_, percent - pos_));
      pos_ = percent + 1;
      if (percent < format_.size()) conversion();
    }
    const bool is_mapping = value_.is(Kind::kDict) || value_.is(Kind::kList) ||
                            value_.is(Kind::kUndefined) || value_.is(Kind::kRange);
    const size_t given = value_.is(Kind::kTuple) ? value_.items().size() : 1;
    if (!is_mapping && next_ < given) {
      fail_type("not all arguments converted during string formatting");
    }
    return out_.finish(markup_);
  }

 private:
  char peek() const {
    if (pos_ >= format_.size()) fail("ValueError", "incomplete format");
    return format_[pos_];
  }

  Value next_argument() {
    if (value_.is(Kind::kTuple)) {
      if (next_ < value_.items().size()) return value_.items()[next_++];
    } else if (next_ == 0) {
      ++next_;
      return value_;
    }
    fail_type("not enough arguments for format string");
  }

  Value mapped_argument() {
    const size_t close = format_.find(')', pos_);
    if (close == format_.npos) fail("ValueError", "incomplete format key");
    const std::string_view key = format_.substr(pos_ + 1, close - pos_ - 1);
    pos_ = close + 1;
    if (!value_.is(Kind::kDict)) fail_type("format requires a mapping");
    const Value* found = value_.dict().find(key);
    if (found == nullptr) fail("KeyError", "{}", repr(key));
    return *found;
  }

  int64_t number_or_star() {
    int64_t number = 0;
    if (peek() == '*') {
      ++pos_;
      return to_index(next_argument());
    }
    read_number(format_, &pos_, &number);
    return number;
  }

  void conversion() {
    Spec spec;
    Value mapped;
    bool zero = false, left = false;
    if (peek() == '(') mapped = mapped_argument();
    for (; std::string_view("-+ #0").find(peek()) != std::string_view::npos; ++pos_) {
      left |= peek() == '-';
      zero |= peek() == '0';
      spec.alternate |= peek() == '#';
      if (peek() == '+' || (peek() == ' ' && spec.sign != '+')) spec.sign = peek();
    }
    spec.width = number_or_star();
    if (spec.width < 0) {
      left = true;
      spec.width = -std::max<int64_t>(spec.width, -(int64_t{1} << 40));
    }
    if (peek() == '.') {
      ++pos_;
      spec.precision = std::max<int64_t>(number_or_star(), 0);
    }
    check_precision_of_number(spec);
    while (peek() == 'l' || peek() == 'h' || peek() == 'L') ++pos_;
    spec.type = peek();
    ++pos_;
    if (spec.type == '%') return out_.append("%");
    spec.align = left ? '<' : '>';
    convert(&spec, mapped.missing() ? next_argument() : mapped, zero && !left);
  }

  void check_precision_of_number(const Spec& spec) const {
    if (spec.precision > kMaxPrecision && peek() != 's' && peek() != 'r') check_precision(spec);
  }

  void convert(Spec* spec, const Value& value, bool zero) {
    switch (spec->type) {
      case 's':
      case 'r':
      case 'a':
        return text(*spec, value);
      case 'c':
        return character(*spec, value);
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o':
        return integer(spec, value, zero);
      case 'e':
      case 'E':
      case 'f':
      case 'F':
      case 'g':
      case 'G':
        require_defined(value);
        if (!value.is_number()) fail_type("must be real number, not {}", type_name(value));
        if (spec->precision < 0) spec->precision = 6;
        if (zero) pad_with_zeros(spec);
        return append(format_float(heap_, *spec, value.as_real()));
      default:
        fail("ValueError", "unsupported format character '{}' (0x{:x}) at index {}", spec->type,
             static_cast<unsigned char>(spec->type), pos_ - 1);
    }
  }

  static void pad_with_zeros(Spec* spec) {
    spec->fill = "0";
    spec->align = '=';
  }

  void text(const Spec& spec, const Value& value) {
    Value text = spec.type == 's' ? to_str(heap_, value) : heap_.str(repr(heap_, value));
    if (markup_) text = escape(heap_, spec.type == 's' ? value : text);
    append(place(heap_, spec, "", truncated(text.text(), spec.precision), '>'));
  }

  void character(const Spec& spec, const Value& value) {
    require_defined(value);
    std::string text;
    if (value.is(Kind::kStr) && length(value) == 1) {
      text = value.text();
    } else if (value.is_integral() && value.as_int() >= 0 && value.as_int() <= 0x10FFFF) {
      append_utf8(&text, static_cast<char32_t>(value.as_int()));
    } else {
      fail_type("%c requires int or char");
    }
    append(place(heap_, spec, "", text, '>'));
  }

  void integer(Spec* spec, const Value& value, bool zero) {
    require_defined(value);
    const bool decimal = spec->type == 'd' || spec->type == 'i' || spec->type == 'u';
    if (!value.is_integral() && !(decimal && value.is(Kind::kFloat))) {
      fail_type("%{} format: {} is required, not {}", spec->type,
                decimal ? "a real number" : "an integer", type_name(value));
    }
    const double real = value.as_real();
    if (value.is(Kind::kFloat) && !(std::fabs(real) < 9.2e18)) {
      fail("OverflowError", "cannot convert float to an integer of 64 bits");
    }
    if (decimal) spec->type = 'd';
    if (zero) pad_with_zeros(spec);
    append(format_integer(heap_, *spec,
                          value.is(Kind::kFloat) ? static_cast<int64_t>(real) : value.as_int()));
  }

  void append(const Value& text) { out_.append(text.text()); }

  Heap& heap_;
  const std::string_view format_;
  const bool markup_;
  const Value& value_;
  StringBuilder out_;
  size_t pos_ = 0;
  size_t next_ = 0;  // the next positional argument
};

// One rendering of a str.format template.
class BraceFormatter {
 public:
  BraceFormatter(Interpreter& interpreter, const Args& args, bool markup)
      : interpreter_(interpreter), heap_(interpreter.heap()), args_(args), markup_(markup) {}

  std::string run(std::string_view format, int depth) {
    if (depth < 0) fail("ValueError", "Max string recursion exceeded");
    StringBuilder out(heap_);
    for (size_t pos = 0; pos < format.size();) {
      const char c = format[pos];
      if ((c == '{' || c == '}') && pos + 1 < format.size() && format[pos + 1] == c) {
        out.append(1, c);
        pos += 2;
      } else if (c == '}') {
        fail("ValueError", "Single '}}' encountered in format string");
      } else if (c == '{') {
        const size_t end = field_end(format, pos + 1);
        out.append(field(format.substr(pos + 1, end - pos - 1), depth).text());
        pos = end + 1;
      } else {
        const size_t end = std::min(format.find_first_of("{}", pos), format.size());
        out.append(format.substr(pos, end - pos));
        pos = end;
      }
    }
    return std::move(out.text());
  }

 private:
  static size_t field_end(std::string_view format, size_t pos) {
    for (int open = 1; pos < format.size(); ++pos) {
      if (format[pos] == '{') ++open;
      if (format[pos] == '}' && --open == 0) return pos;
    }
    fail("ValueError", "expected '}}' before end of string");
  }

  // name [!conversion] [:spec]
  Value field(std::string_view text, int depth) {
    heap_.step();
    const size_t name_end = std::min(text.find_first_of("!:"), text.size());
    Value value = argument(text.substr(0, name_end));
    size_t pos = name_end;
    if (pos < text.size() && text[pos] == '!') {
      const char conversion = pos + 1 < text.size() ? text[pos + 1] : '\0';
      if (conversion == 'r' || conversion == 'a') {
        value = heap_.str(repr(heap_, value));
      } else if (conversion == 's') {
        value = to_str(heap_, value);
      } else {
        fail("ValueError", "Unknown conversion specifier '{}'", conversion);
      }
      pos += 2;
    }
    std::string spec;
    if (pos < text.size()) {
      if (text[pos] != ':') fail("ValueError", "expected ':' after conversion specifier");
      spec = run(text.substr(pos + 1), depth - 1);
    }
    if (markup_ && spec.empty()) return escape(heap_, value);
    return format_value(heap_, value, spec);
  }

  Value argument(std::string_view path) {
    const size_t name_end = std::min(path.find_first_of(".["), path.size());
    Value value = first_argument(path.substr(0, name_end));
    for (size_t pos = name_end; pos < path.size();) {
      heap_.step();
      if (path[pos] == '.') {
        const size_t end = std::min(path.find_first_of(".[", pos + 1), path.size());
        value =
            get_attribute(interpreter_, value, heap_.str_view(path.substr(pos + 1, end - pos - 1)));
        pos = end;
      } else {
        const size_t end = path.find(']', pos);
        if (path[pos] != '[' || end == path.npos) {
          fail("ValueError", "Only '.' or '[' may follow ']' in format field specifier");
        }
        const std::string_view key = path.substr(pos + 1, end - pos - 1);
        size_t digits = 0;
        int64_t index = 0;
        const bool is_index = read_number(key, &digits, &index) && digits == key.size();
        value =
            get_item(interpreter_, value, is_index ? Value::integer(index) : heap_.str_view(key));
        pos = end + 1;
      }
    }
    return value;
  }

  Value first_argument(std::string_view name) {
    size_t digits = 0;
    int64_t index = 0;
    if (name.empty()) {
      index = next_++;
    } else if (!read_number(name, &digits, &index) || digits != name.size()) {
      for (const auto& [key, value] : args_.named) {
        if (key == name) return value;
      }
      fail("KeyError", "{}", repr(name));
    }
    if (static_cast<size_t>(index) >= args_.positional.size()) {
      fail("IndexError", "Replacement index {} out of range for positional args tuple", index);
    }
    return args_.positional[static_cast<size_t>(index)];
  }

  Interpreter& interpreter_;
  Heap& heap_;
  const Args& args_;
  const bool markup_;
  int64_t next_ = 0;
};

}  // namespace

Value format_percent(Interpreter& interpreter, const Value& format, const Value& value) {
  return PercentFormatter(interpreter, format, value).run();
}

Value format_braces(Interpreter& interpreter, const Value& format, Args args) {
  const bool markup = format.str().markup;
  BraceFormatter formatter(interpreter, args, markup);
  return interpreter.heap().str(formatter.run(format.text(), 2), markup);
}

std::string replaced(Heap& heap, std::string_view text, std::string_view old_text,
                     std::string_view new_text, int64_t max_count) {
  heap.step_bytes(text.size() + old_text.size());
  StringBuilder out(heap);
  size_t copied = 0;
  int64_t count = 0;
  if (old_text.empty()) {  // between all code points, and at both ends
    for (size_t pos = 0; max_count < 0 || count < max_count; ++count) {
      out.append(text.substr(copied, pos - copied));
      out.append(new_text);
      copied = pos;
      if (pos >= text.size()) break;
      next_code_point(text, &pos);
    }
    out.append(text.substr(copied));
    return std::move(out.text());
  }
  for (; max_count < 0 || count < max_count; ++count) {
    const size_t at = find_text(text, old_text, copied);
    if (at == text.npos) break;
    heap.step_bytes(16 + old_text.size());
    out.append(text.substr(copied, at - copied));
    out.append(new_text);
    copied = at + old_text.size();
  }
  out.append(text.substr(copied));
  return std::move(out.text());
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const char32_t c = next_code_point(text, &pos);
    const bool is_end = (c >= 0x0a && c <= 0x0d) || (c >= 0x1c && c <= 0x1e) || c == 0x85 ||
                        c == 0x2028 || c == 0x2029;
    if (!is_end) continue;
    if (c == '\r' && pos < text.size() && text[pos] == '\n') ++pos;
    lines.push_back(text.substr(begin, (keep_ends ? pos : at) - begin));
    begin = pos;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

}  // namespace volley::jinja
