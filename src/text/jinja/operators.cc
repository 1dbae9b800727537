#include "text/jinja/operators.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

constexpr const char* kOperatorNames[] = {"+", "-", "*", "/", "//", "%", "** or pow()"};

[[noreturn]] void fail_overflow() {
  fail("OverflowError", "an integer leaves the 64 bits this engine computes with");
}

[[noreturn]] void fail_operands(BinaryOp op, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  fail_type("unsupported operand type(s) for {}: '{}' and '{}'",
            kOperatorNames[static_cast<size_t>(op)], type_name(a), type_name(b));
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) fail("ZeroDivisionError", "integer division or modulo by zero");
  if (a == std::numeric_limits<int64_t>::min() && b == -1) fail_overflow();
  const int64_t quotient = a / b;
  return quotient - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

int64_t floor_modulo(int64_t a, int64_t b) {
  if (b == 0) fail("ZeroDivisionError", "integer modulo by zero");
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest + ((rest != 0 && (rest < 0) != (b < 0)) ? b : 0);
}

double float_modulo(double a, double b) {
  if (b == 0) fail("ZeroDivisionError", "float modulo");
  double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return rest + ((rest < 0) != (b < 0) ? b : 0);
}

double float_floor_divide(double a, double b) {
  if (b == 0) fail("ZeroDivisionError", "float floor division by zero");
  const double rest = float_modulo(a, b);
  const double quotient = (a - rest) / b;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1 : floored;
}

Value power(const Value& a, const Value& b) {
  if (!a.is_integral() || !b.is_integral() || b.as_int() < 0) {
    const double base = a.as_real(), exponent = b.as_real();
    if (base == 0 && exponent < 0) {
      fail("ZeroDivisionError", "0.0 cannot be raised to a negative power");
    }
    if (base < 0 && std::isfinite(base) && std::isfinite(exponent) &&
        exponent != std::floor(exponent)) {
      fail_unsupported("complex numbers");
    }
    const double result = std::pow(base, exponent);
    if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent)) {
      fail("OverflowError", "(34, 'Numerical result out of range')");
    }
    return Value::real(result);
  }
  int64_t base = a.as_int(), result = 1;
  uint64_t exponent = static_cast<uint64_t>(b.as_int());
  if (base == 0 || base == 1) return Value::integer(exponent == 0 ? 1 : base);
  if (base == -1) return Value::integer(exponent % 2 == 0 ? 1 : -1);
  for (; exponent > 0; --exponent) {  // at most 63 rounds before it overflows
    if (__builtin_mul_overflow(result, base, &result)) fail_overflow();
  }
  return Value::integer(result);
}

Value integer_arithmetic(BinaryOp op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::kAdd:
      overflow = __builtin_add_overflow(a, b, &result);
      break;
    case BinaryOp::kSub:
      overflow = __builtin_sub_overflow(a, b, &result);
      break;
    case BinaryOp::kMul:
      overflow = __builtin_mul_overflow(a, b, &result);
      break;
    case BinaryOp::kDiv:
      if (b == 0) fail("ZeroDivisionError", "division by zero");
      // Python rounds the exact quotient, also of integers that a double cannot hold.
      return Value::real(
          static_cast<double>(static_cast<long double>(a) / static_cast<long double>(b)));
    case BinaryOp::kFloorDiv:
      return Value::integer(floor_divide(a, b));
    default:
      return Value::integer(floor_modulo(a, b));
  }
  if (overflow) fail_overflow();
  return Value::integer(result);
}

Value float_arithmetic(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd:
      return Value::real(a + b);
    case BinaryOp::kSub:
      return Value::real(a - b);
    case BinaryOp::kMul:
      return Value::real(a * b);
    case BinaryOp::kDiv:
      if (b == 0) fail("ZeroDivisionError", "float division by zero");
      return Value::real(a / b);
    case BinaryOp::kFloorDiv:
      return Value::real(float_floor_divide(a, b));
    default:
      return Value::real(float_modulo(a, b));
  }
}

Value add_text(Heap& heap, const Value& a, const Value& b) {
  const bool markup = a.str().markup || b.str().markup;
  const Value left = markup ? escape(heap, a) : a;
  const Value right = markup ? escape(heap, b) : b;
  heap.check_string_size(left.text().size() + right.text().size());
  std::string text;
  text.reserve(left.text().size() + right.text().size());
  text.append(left.text()).append(right.text());
  return heap.str(std::move(text), markup);
}

Value add(Heap& heap, const Value& a, const Value& b) {
  if (a.is(Kind::kStr) && b.is(Kind::kStr)) return add_text(heap, a, b);
  if (a.is_sequence() && a.kind() == b.kind()) {
    heap.check_item_count(a.items().size() + b.items().size());
    heap.step((a.items().size() + b.items().size()) / 4);
    std::vector<Value> items;
    items.reserve(a.items().size() + b.items().size());
    items.insert(items.end(), a.items().begin(), a.items().end());
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is(Kind::kList) ? heap.list(std::move(items)) : heap.tuple(std::move(items));
  }
  if (!b.is(Kind::kUndefined) && (a.is(Kind::kStr) || a.is_sequence())) {
    const char* type = a.is(Kind::kStr) ? "str" : type_name(a);
    fail_type("can only concatenate {} (not \"{}\") to {}", type, type_name(b), type);
  }
  fail_operands(BinaryOp::kAdd, a, b);
}

Value repeat(Heap& heap, const Value& value, int64_t times) {
  const auto count = static_cast<size_t>(std::max<int64_t>(times, 0));
  if (value.is(Kind::kStr)) {
    const std::string_view text = value.text();
    if (text.empty() || count == 0) return heap.str("", value.str().markup);
    heap.check_string_size(count > heap.limits().max_value_bytes ? count : count * text.size());
    std::string out;
    out.reserve(count * text.size());
    if (text.size() == 1) {
      out.assign(count, text[0]);
    } else {
      heap.step(count / 2);
      for (size_t i = 0; i < count; ++i) out.append(text);
    }
    return heap.str(std::move(out), value.str().markup);
  }
  const auto& items = value.items();
  std::vector<Value> out;
  if (!items.empty()) {
    heap.check_item_count(count > heap.limits().max_items ? count : count * items.size());
    heap.step(count * items.size() / 4);
    out.reserve(count * items.size());
    for (size_t i = 0; i < count; ++i) out.insert(out.end(), items.begin(), items.end());
  }
  return value.is(Kind::kList) ? heap.list(std::move(out)) : heap.tuple(std::move(out));
}

template <class T>
bool apply_order(CompareOp op, const T& a, const T& b) {
  switch (op) {
    case CompareOp::kLt:
      return a < b;
    case CompareOp::kLe:
      return a <= b;
    case CompareOp::kGt:
      return a > b;
    default:
      return a >= b;
  }
}

bool order_numbers(CompareOp op, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return apply_order(op, a.as_int(), b.as_int());
  // 64 mantissa bits hold every int64 exactly, so that the comparison is exact as Python's is.
  static_assert(std::numeric_limits<long double>::digits >= 64);
  const auto wide = [](const Value& value) {
    return value.is(Kind::kFloat) ? static_cast<long double>(value.as_real())
                                  : static_cast<long double>(value.as_int());
  };
  return apply_order(op, wide(a), wide(b));
}

bool ordered(CompareOp op, const Value& a, const Value& b) {
  static constexpr const char* kNames[] = {"==", "!=", "<", "<=", ">", ">="};
  if (a.is_number() && b.is_number()) return order_numbers(op, a, b);
  if (a.is(Kind::kStr) && b.is(Kind::kStr)) {
    a.as_object()->work(1 + std::min(a.text().size(), b.text().size()) / 16);
    return apply_order(op, a.text(), b.text());  // UTF-8 orders as its code points do
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    a.as_object()->work(1);
    for (size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i) {
      if (!equals(a.items()[i], b.items()[i])) return ordered(op, a.items()[i], b.items()[i]);
    }
    return apply_order(op, a.items().size(), b.items().size());
  }
  require_defined(a);
  require_defined(b);
  fail_type("'{}' not supported between instances of '{}' and '{}'",
            kNames[static_cast<size_t>(op)], type_name(a), type_name(b));
}

// The index that Python's slicing rules make of `value`, for a sequence of `size` items.
int64_t slice_bound(const Value& value, int64_t size, int64_t low, int64_t high) {
  int64_t index = to_index(value);
  if (index < 0) index = index < -size ? low : index + size;
  return std::clamp(index, low, high);
}

struct SliceBounds {
  int64_t begin, end, step;
};

SliceBounds slice_bounds(int64_t size, const Value& start, const Value& stop, const Value& step) {
  const int64_t stride = step.is(Kind::kNone) ? 1 : to_index(step);
  if (stride == 0) fail("ValueError", "slice step cannot be zero");
  const int64_t low = stride > 0 ? 0 : -1, high = stride > 0 ? size : size - 1;
  const int64_t first = stride > 0 ? low : high, last = stride > 0 ? high : low;
  return {start.is(Kind::kNone) ? first : slice_bound(start, size, low, high),
          stop.is(Kind::kNone) ? last : slice_bound(stop, size, low, high), stride};
}

template <class F>
void for_each_index(const SliceBounds& bounds, F&& visit) {
  for (__int128 i = bounds.begin; bounds.step > 0 ? i < bounds.end : i > bounds.end;
       i += bounds.step) {
    visit(static_cast<size_t>(i));
  }
}

Value slice_text(Heap& heap, const Value& value, const SliceBounds& bounds) {
  const std::string_view text = value.text();
  heap.step_bytes(text.size());
  std::string out;
  if (value.str().ascii && bounds.step == 1) {
    if (bounds.begin < bounds.end) {
      out = text.substr(static_cast<size_t>(bounds.begin),
                        static_cast<size_t>(bounds.end - bounds.begin));
    }
  } else if (value.str().ascii) {
    for_each_index(bounds, [&](size_t i) { out.push_back(text[i]); });
  } else {
    std::vector<uint32_t> offsets;
    for (size_t pos = 0; pos < text.size(); next_code_point(text, &pos)) {
      offsets.push_back(static_cast<uint32_t>(pos));
    }
    offsets.push_back(static_cast<uint32_t>(text.size()));
    for_each_index(bounds, [&](size_t i) {
      out.append(text.substr(offsets[i], offsets[i + 1] - offsets[i]));
    });
  }
  return heap.str(std::move(out), value.str().markup);
}

Value slice_items(Heap& heap, const Value& value, const SliceBounds& bounds) {
  std::vector<Value> items;
  for_each_index(bounds, [&](size_t i) { items.push_back(value.items()[i]); });
  return value.is(Kind::kTuple) ? heap.tuple(std::move(items)) : heap.list(std::move(items));
}

bool contains_text(const Value& haystack, const Value& needle) {
  require_defined(needle);
  if (!needle.is(Kind::kStr)) {
    fail_type("'in <string>' requires string as left operand, not {}", type_name(needle));
  }
  haystack.as_object()->work((haystack.text().size() + needle.text().size()) / 8);
  return find_text(haystack.text(), needle.text()) != std::string_view::npos;
}

}  // namespace

bool truth(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kNone:
    case Kind::kUndefined:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.as_int() != 0;
    case Kind::kFloat:
      return value.as_real() != 0;
    case Kind::kStr:
      return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !value.items().empty();
    case Kind::kDict:
      return !value.dict().entries.empty();
    case Kind::kView:
      return !value.view().owner.dict().entries.empty();
    case Kind::kRange:
      return value.range().size != 0;
    default:
      return true;
  }
}

void require_defined(const Value& value) {
  if (value.is(Kind::kUndefined)) {
    throw Failure{value.undefined().error_type, value.undefined().message};
  }
}

bool less_than(const Value& a, const Value& b) {
  return ordered(CompareOp::kLt, a, b);
}

bool compare(Interpreter& interpreter, CompareOp op, const Value& a, const Value& b) {
  switch (op) {
    case CompareOp::kEq:
      return equals(a, b);
    case CompareOp::kNe:
      return !equals(a, b);
    case CompareOp::kIn:
      return contains(interpreter, b, a);
    case CompareOp::kNotIn:
      return !contains(interpreter, b, a);
    default:
      return ordered(op, a, b);
  }
}

bool contains(Interpreter& interpreter, const Value& haystack, const Value& needle) {
  switch (haystack.kind()) {
    case Kind::kStr:
      return contains_text(haystack, needle);
    case Kind::kDict:
      return haystack.dict().find(needle) != nullptr;
    case Kind::kList:
    case Kind::kTuple: {
      const auto& items = haystack.items();
      interpreter.heap().step(items.size());
      return std::any_of(items.begin(), items.end(),
                         [&](const Value& item) { return equals(item, needle); });
    }
    case Kind::kUndefined:
      return false;
    case Kind::kView:
    case Kind::kRange:
    case Kind::kIterator:
      break;
    default:
      fail_type("argument of type '{}' is not iterable", type_name(haystack));
  }
  const Ref<Iterator> items = iterate(interpreter, haystack);
  for (Value item; items->next(interpreter, &item);) {
    interpreter.heap().step();
    if (equals(item, needle)) return true;
  }
  return false;
}

Value binary(Interpreter& interpreter, BinaryOp op, const Value& a, const Value& b) {
  Heap& heap = interpreter.heap();
  if (a.is_number() && b.is_number()) {
    if (op == BinaryOp::kPow) return power(a, b);
    if (a.is_integral() && b.is_integral()) {
      return integer_arithmetic(op, a.as_int(), b.as_int());
    }
    return float_arithmetic(op, a.as_real(), b.as_real());
  }
  if (op == BinaryOp::kAdd) return add(heap, a, b);
  if (op == BinaryOp::kMul) {
    const bool a_repeats = a.is(Kind::kStr) || a.is_sequence();
    const bool b_repeats = b.is(Kind::kStr) || b.is_sequence();
    if (a_repeats && b.is_integral()) return repeat(heap, a, b.as_int());
    if (b_repeats && a.is_integral()) return repeat(heap, b, a.as_int());
    if (a_repeats || b_repeats) {
      require_defined(a);
      require_defined(b);
      fail_type("can't multiply sequence by non-int of type '{}'", type_name(a_repeats ? b : a));
    }
  }
  if (op == BinaryOp::kMod && a.is(Kind::kStr)) return format_percent(interpreter, a, b);
  fail_operands(op, a, b);
}

Value negate(const Value& value) {
  require_defined(value);
  if (value.is(Kind::kFloat)) return Value::real(-value.as_real());
  if (!value.is_integral()) fail_type("bad operand type for unary -: '{}'", type_name(value));
  return integer_arithmetic(BinaryOp::kSub, 0, value.as_int());
}

Value unary_plus(const Value& value) {
  require_defined(value);
  if (value.is(Kind::kFloat)) return value;
  if (!value.is_integral()) fail_type("bad operand type for unary +: '{}'", type_name(value));
  return Value::integer(value.as_int());
}

int64_t length(const Value& value) {
  switch (value.kind()) {
    case Kind::kStr:
      return static_cast<int64_t>(value.str().num_chars);
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries.size());
    case Kind::kView:
      return static_cast<int64_t>(value.view().owner.dict().entries.size());
    case Kind::kRange:
      return value.range().size;
    case Kind::kUndefined:
      return 0;
    default:
      fail_type("object of type '{}' has no len()", type_name(value));
  }
}

Value slice(Interpreter& interpreter, const Value& value, const Value& start, const Value& stop,
            const Value& step) {
  require_defined(value);
  Heap& heap = interpreter.heap();
  if (value.is(Kind::kDict)) fail_type("unhashable type: 'slice'");
  if (!value.is(Kind::kStr) && !value.is_sequence() && !value.is(Kind::kRange)) {
    fail_type("'{}' object is not subscriptable", type_name(value));
  }
  for (const Value* bound : {&start, &stop, &step}) {
    if (!bound->is(Kind::kNone) && !bound->is_integral()) {
      require_defined(*bound);
      fail_type("slice indices must be integers or None or have an __index__ method");
    }
  }
  const SliceBounds bounds = slice_bounds(length(value), start, stop, step);
  if (value.is(Kind::kStr)) return slice_text(heap, value, bounds);
  if (value.is_sequence()) return slice_items(heap, value, bounds);
  const Range& range = value.range();
  const __int128 begin = range.start + static_cast<__int128>(bounds.begin) * range.step;
  const __int128 end = range.start + static_cast<__int128>(bounds.end) * range.step;
  const __int128 stride = static_cast<__int128>(range.step) * bounds.step;
  for (const __int128 number : {begin, end, stride}) {
    if (static_cast<int64_t>(number) != number) fail_overflow();
  }
  return heap.range(static_cast<int64_t>(begin), static_cast<int64_t>(end),
                    static_cast<int64_t>(stride));
}

int64_t to_index(const Value& value) {
  require_defined(value);
  if (!value.is_integral()) {
    fail_type("'{}' object cannot be interpreted as an integer", type_name(value));
  }
  return value.as_int();
}

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

Value escape(Heap& heap, const Value& value) {
  if (value.is(Kind::kStr) && value.str().markup) return value;
  const Value text = to_str(heap, value);
  return heap.str(escape_html(text.text()), true);
}

size_t find_text(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return text.npos;
  if (needle.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  if (found == nullptr) return text.npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

}  // namespace volley::jinja
