#include "text/grammar/json_numbers.h"

#include <algorithm>

namespace volley::grammar {
namespace {

constexpr int kMaxExponent = 60;
constexpr size_t kMaxDigits = 80;
constexpr size_t kFreeIntegerDigits = 18;
constexpr size_t kMaxMultipleStates = 50'000;
constexpr size_t kExactDoubleDigits = 15;  // any decimal of 15 digits survives a double

// Non-negative integers as digits.
int compare_digits(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return a.size() < b.size() ? -1 : 1;
  return a.compare(b);
}

std::string next_integer(std::string digits) {
  size_t i = digits.size();
  while (i > 0 && digits[i - 1] == '9') digits[--i] = '0';
  if (i == 0) return "1" + digits;
  ++digits[i - 1];
  return digits;
}

// Of a positive integer.
std::string previous_integer(std::string digits) {
  size_t i = digits.size();
  while (digits[i - 1] == '0') digits[--i] = '9';
  --digits[i - 1];
  const size_t zeros = std::min(digits.find_first_not_of('0'), digits.size() - 1);
  return digits.substr(zeros);
}

ExprId digit(char lo, char hi, Rules& rules) {
  if (lo > hi) return rules.nothing();
  return rules.chars(CodePointSet({{static_cast<uint32_t>(lo), static_cast<uint32_t>(hi)}}));
}

ExprId digits(size_t min, size_t max, Rules& rules) {
  return rules.repeat(digit('0', '9', rules), static_cast<int>(min), static_cast<int>(max));
}

// Digit strings of the length of `bound`, at least (or at most) it.
ExprId bounded_digits(std::string_view bound, bool at_least, Rules& rules) {
  if (bound.empty()) return rules.empty();
  const char first = bound[0];
  const ExprId other = at_least ? digit(static_cast<char>(first + 1), '9', rules)
                                : digit('0', static_cast<char>(first - 1), rules);
  return rules.choice({rules.sequence({other, digits(bound.size() - 1, bound.size() - 1, rules)}),
                       rules.sequence({rules.literal(std::string(1, first)),
                                       bounded_digits(bound.substr(1), at_least, rules)})});
}

// Digit strings from `a` to `b`, all of one length.
ExprId digits_between(std::string_view a, std::string_view b, Rules& rules) {
  if (a.empty()) return rules.empty();
  if (a[0] == b[0]) {
    return rules.sequence(
        {rules.literal(std::string(1, a[0])), digits_between(a.substr(1), b.substr(1), rules)});
  }
  const ExprId middle = digit(static_cast<char>(a[0] + 1), static_cast<char>(b[0] - 1), rules);
  return rules.choice({rules.sequence({rules.literal(std::string(1, a[0])),
                                       bounded_digits(a.substr(1), true, rules)}),
                       rules.sequence({middle, digits(a.size() - 1, a.size() - 1, rules)}),
                       rules.sequence({rules.literal(std::string(1, b[0])),
                                       bounded_digits(b.substr(1), false, rules)})});
}

// Non-negative integers from `min` to `max`, or to as many digits as are written freely.
ExprId integers_between(const std::string& min, const std::optional<std::string>& max,
                        Rules& rules) {
  if (max && compare_digits(min, *max) > 0) return rules.nothing();
  const size_t max_size = max ? max->size() : std::max(kFreeIntegerDigits, min.size());
  std::vector<ExprId> parts;
  for (size_t size = min.size(); size <= max_size; ++size) {
    const std::string lo = size == min.size() ? min : "1" + std::string(size - 1, '0');
    const std::string hi = max && size == max->size() ? *max : std::string(size, '9');
    parts.push_back(digits_between(lo, hi, rules));
  }
  return rules.choice(std::move(parts));
}

// "." and digits, where all digits after the first `done` are free.
struct FractionWriter {
  Rules& rules;
  size_t max_digits;

  // Up to `n` digits of which one is not 0.
  ExprId not_all_zero(size_t n) const {
    std::vector<ExprId> parts;
    for (size_t zeros = 0; zeros < n; ++zeros) {
      parts.push_back(rules.sequence({rules.literal(std::string(zeros, '0')),
                                      digit('1', '9', rules), digits(0, n - zeros - 1, rules)}));
    }
    return parts.empty() ? rules.nothing() : rules.choice(std::move(parts));
  }

  ExprId at_least(std::string_view bound, size_t done, bool is_exclusive) const {
    const size_t left = max_digits - done;
    if (bound.empty()) return is_exclusive ? not_all_zero(left) : digits(0, left, rules);
    return rules.choice({rules.sequence({digit(static_cast<char>(bound[0] + 1), '9', rules),
                                         digits(0, left - 1, rules)}),
                         rules.sequence({rules.literal(std::string(1, bound[0])),
                                         at_least(bound.substr(1), done + 1, is_exclusive)})});
  }

  ExprId at_most(std::string_view bound, size_t done, bool is_exclusive) const {
    const size_t left = max_digits - done;
    if (bound.empty()) {
      if (is_exclusive) return rules.nothing();
      return rules.repeat(rules.literal("0"), 0, static_cast<int>(left));
    }
    std::vector<ExprId> parts = {
        rules.sequence(
            {digit('0', static_cast<char>(bound[0] - 1), rules), digits(0, left - 1, rules)}),
        rules.sequence({rules.literal(std::string(1, bound[0])),
                        at_most(bound.substr(1), done + 1, is_exclusive)})};
    if (done > 0) parts.push_back(rules.empty());  // what is left of the bound is not zero
    return rules.choice(std::move(parts));
  }

  ExprId free() const {
    return rules.optional(rules.sequence({rules.literal("."), digits(1, max_digits, rules)}));
  }
};

// Magnitudes at least (at most) `bound`.
ExprId magnitudes_from(const NumberBound& bound, const FractionWriter& fractions, Rules& rules) {
  const auto& [value, is_exclusive] = bound;
  ExprId tail;
  if (!value.fraction.empty()) {
    tail =
        rules.sequence({rules.literal("."), fractions.at_least(value.fraction, 0, is_exclusive)});
  } else if (is_exclusive) {
    tail = rules.sequence({rules.literal("."), fractions.not_all_zero(fractions.max_digits)});
  } else {
    tail = fractions.free();
  }
  return rules.choice(
      {rules.sequence({integers_between(next_integer(value.whole), {}, rules), fractions.free()}),
       rules.sequence({rules.literal(value.whole), tail})});
}

ExprId magnitudes_to(const NumberBound& bound, const FractionWriter& fractions, Rules& rules) {
  const auto& [value, is_exclusive] = bound;
  std::vector<ExprId> parts;
  if (value.whole != "0") {
    parts.push_back(rules.sequence(
        {integers_between("0", previous_integer(value.whole), rules), fractions.free()}));
  }
  const ExprId zeros = rules.repeat(rules.literal("0"), 1, static_cast<int>(fractions.max_digits));
  if (!value.fraction.empty()) {
    const ExprId tail =
        rules.sequence({rules.literal("."), fractions.at_most(value.fraction, 0, is_exclusive)});
    parts.push_back(rules.sequence({rules.literal(value.whole), rules.optional(tail)}));
  } else if (!is_exclusive) {
    parts.push_back(rules.sequence(
        {rules.literal(value.whole), rules.optional(rules.sequence({rules.literal("."), zeros}))}));
  }
  return parts.empty() ? rules.nothing() : rules.choice(std::move(parts));
}

Result<ExprId> magnitudes_in(const NumberRange& range, const FractionWriter& fractions,
                             Rules& rules, std::string_view name, Budget& budget) {
  const NumberBound zero;
  const ExprId from = magnitudes_from(range.min.value_or(zero), fractions, rules);
  if (!range.max) return from;
  const ExprId to = magnitudes_to(*range.max, fractions, rules);
  VOLLEY_TRY(const Automaton lower, determinise(rules, from, name, budget));
  VOLLEY_TRY(const Automaton upper, determinise(rules, to, name, budget));
  VOLLEY_TRY(Automaton both, intersection(lower, upper, name, budget));
  return rules.automaton(std::make_shared<const Automaton>(std::move(both)));
}

bool is_zero(const Decimal& value) {
  return value.whole == "0" && value.fraction.empty();
}

NumberBound negated(NumberBound bound) {
  bound.value.is_negative = !bound.value.is_negative && !is_zero(bound.value);
  return bound;
}

// The least integer at or above the bound (for a maximum, negate before and after).
Decimal integer_at_least(const NumberBound& bound) {
  Decimal value = bound.value;
  const bool is_above = !value.is_integer() || bound.is_exclusive;
  const bool had_fraction = !value.is_integer();
  value.fraction.clear();
  if (!is_above) return value;
  if (!value.is_negative) {
    value.whole = next_integer(value.whole);
  } else if (!had_fraction) {
    value.whole = previous_integer(value.whole);
  }
  if (is_zero(value)) value.is_negative = false;
  return value;
}

}  // namespace

std::string Decimal::to_string() const {
  return (is_negative ? "-" : "") + whole + (fraction.empty() ? "" : "." + fraction);
}

Result<Decimal> parse_decimal(std::string_view text) {
  const std::string_view original = text;
  Decimal value;
  if (text.starts_with('-')) {
    value.is_negative = true;
    text.remove_prefix(1);
  }
  std::string all;
  size_t point = std::string_view::npos;
  while (!text.empty() && text[0] != 'e' && text[0] != 'E') {
    if (text[0] == '.') {
      point = all.size();
    } else {
      all += text[0];
    }
    text.remove_prefix(1);
  }
  if (point == std::string_view::npos) point = all.size();
  int exponent = 0;
  if (!text.empty()) {
    text.remove_prefix(1);
    const bool is_negative = text.starts_with('-');
    if (is_negative || text.starts_with('+')) text.remove_prefix(1);
    for (; !text.empty() && exponent <= kMaxExponent; text.remove_prefix(1)) {
      exponent = exponent * 10 + (text[0] - '0');
    }
    if (exponent > kMaxExponent) {
      return invalid("the number {} is out of the range that is supported", original);
    }
    if (is_negative) exponent = -exponent;
  }
  if (all.size() > kMaxDigits) {
    return invalid("a number of more than {} digits is not supported", kMaxDigits);
  }
  if (exponent >= 0) {
    const size_t wanted = point + static_cast<size_t>(exponent);
    if (wanted > all.size()) all.append(wanted - all.size(), '0');
    point = wanted;
  } else {
    const size_t shift = static_cast<size_t>(-exponent);
    if (shift > point) {
      all.insert(0, shift - point, '0');
      point = shift;
    }
    point -= shift;
  }
  value.whole = all.substr(0, point);
  value.fraction = all.substr(point);
  value.whole.erase(0, std::min(value.whole.find_first_not_of('0'), value.whole.size()));
  if (value.whole.empty()) value.whole = "0";
  while (value.fraction.ends_with('0')) value.fraction.pop_back();
  if (is_zero(value)) value.is_negative = false;
  return value;
}

int compare(const Decimal& a, const Decimal& b) {
  if (a.is_negative != b.is_negative) return a.is_negative ? -1 : 1;
  int order = compare_digits(a.whole, b.whole);
  if (order == 0) order = a.fraction.compare(b.fraction);
  return a.is_negative ? -order : order;
}

bool NumberRange::contains(const Decimal& value) const {
  if (min && compare(value, min->value) < (min->is_exclusive ? 1 : 0)) return false;
  if (max && compare(value, max->value) > (max->is_exclusive ? -1 : 0)) return false;
  return true;
}

void NumberRange::raise_min(const NumberBound& bound) {
  const int order = min ? compare(bound.value, min->value) : 1;
  if (order > 0 || (order == 0 && bound.is_exclusive)) min = bound;
}

void NumberRange::lower_max(const NumberBound& bound) {
  const int order = max ? compare(bound.value, max->value) : -1;
  if (order < 0 || (order == 0 && bound.is_exclusive)) max = bound;
}

ExprId integers_in(const NumberRange& range, Rules& rules) {
  std::optional<Decimal> min, max;
  if (range.min) min = integer_at_least(*range.min);
  if (range.max) {
    max = integer_at_least(negated(*range.max));
    max->is_negative = !max->is_negative && !is_zero(*max);
  }
  std::vector<ExprId> parts;
  if (!max || !max->is_negative) {
    const std::string from = min && !min->is_negative ? min->whole : "0";
    parts.push_back(integers_between(from, max ? std::optional(max->whole) : std::nullopt, rules));
  }
  if (!min || min->is_negative) {
    const std::string from = max && max->is_negative ? max->whole : "1";
    parts.push_back(rules.sequence(
        {rules.literal("-"),
         integers_between(from, min ? std::optional(min->whole) : std::nullopt, rules)}));
  }
  return parts.empty() ? rules.nothing() : rules.choice(std::move(parts));
}

Result<ExprId> decimals_in(const NumberRange& range, Rules& rules, std::string_view name,
                           Budget& budget) {
  size_t whole_digits = 1, fraction_digits = 1;
  for (const auto& bound : {range.min, range.max}) {
    if (!bound) continue;
    whole_digits = std::max(whole_digits, bound->value.whole.size());
    fraction_digits = std::max(fraction_digits, bound->value.fraction.size());
  }
  if (whole_digits < kExactDoubleDigits) {
    fraction_digits = std::max(fraction_digits, kExactDoubleDigits - whole_digits);
  }
  const FractionWriter fractions{rules, fraction_digits};
  std::vector<ExprId> parts;
  if (!range.max || !range.max->value.is_negative) {
    NumberRange positive{{}, range.max};
    if (range.min && !range.min->value.is_negative) positive.min = range.min;
    VOLLEY_TRY(const ExprId part, magnitudes_in(positive, fractions, rules, name, budget));
    parts.push_back(part);
  }
  if (!range.min || range.min->value.is_negative) {
    NumberRange magnitude{NumberBound{{}, true}, {}};  // above 0
    if (range.min) magnitude.max = negated(*range.min);
    if (range.max && range.max->value.is_negative) magnitude.min = negated(*range.max);
    VOLLEY_TRY(const ExprId part, magnitudes_in(magnitude, fractions, rules, name, budget));
    parts.push_back(rules.sequence({rules.literal("-"), part}));
  }
  return parts.empty() ? rules.nothing() : rules.choice(std::move(parts));
}

// With step = c / 10^k a decimal is a multiple if its digits, padded to k behind the point, are a
// number that c divides: long division, the remainder is the state.
Result<Automaton> multiples_of(const Decimal& step) {
  const std::string digits_of_c = step.whole + step.fraction;
  const size_t k = step.fraction.size();
  if (step.is_negative || is_zero(step)) return invalid("expected a number above 0");
  const size_t c = digits_of_c.size() <= 6 ? std::stoul(digits_of_c) : kMaxMultipleStates;
  if (c * (k + 2) > kMaxMultipleStates) {
    return make_error(ErrorKind::kUnsupported, "a step of so many digits is not supported");
  }
  // Start, behind the sign; then rows of c remainders: whole digits, behind the point, and after
  // each of k fraction digits.
  Automaton automaton;
  automaton.states.resize(2 + c * (k + 2));
  const auto state_of = [c](size_t row, size_t remainder) {
    return static_cast<int32_t>(2 + row * c + remainder);
  };
  const auto add_digits = [&](int32_t from, size_t remainder, size_t to_row) {
    for (uint8_t digit = 0; digit < 10; ++digit) {
      const uint8_t byte = static_cast<uint8_t>('0' + digit);
      const size_t to = (remainder * 10 + digit) % c;
      automaton.states[from].bytes.push_back({byte, byte, state_of(to_row, to)});
    }
  };
  automaton.states[0].bytes.push_back({'-', '-', 1});
  for (const int32_t start : {0, 1}) add_digits(start, 0, 0);
  for (size_t r = 0; r < c; ++r) {
    if (k > 0) automaton.states[state_of(0, r)].bytes.push_back({'.', '.', state_of(1, r)});
    add_digits(state_of(0, r), r, 0);
    size_t padded = r;  // the remainder once the digits that are missing are read as zeros
    for (size_t read = k + 1; read-- > 0; padded = padded * 10 % c) {
      automaton.states[state_of(read == 0 ? 0 : read + 1, r)].accepting = padded == 0;
      if (read < k) add_digits(state_of(read + 1, r), r, read + 2);
    }
  }
  return automaton;
}

}  // namespace volley::grammar
