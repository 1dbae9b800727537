#pragma once

// Decimal numbers as text, and the JSON numbers between two of them as expressions. No double is
// ever computed, so bounds hold to the last digit.

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/grammar/automaton.h"
#include "text/grammar/rules.h"

namespace volley::grammar {

struct Decimal {
  bool is_negative = false;
  std::string whole = "0";  // no leading zeros
  std::string fraction;     // no trailing zeros

  bool is_integer() const { return fraction.empty(); }
  std::string to_string() const;
};

// A JSON number. Exponents past +-60 are an error: as a bound they say nothing a client means.
Result<Decimal> parse_decimal(std::string_view text);

int compare(const Decimal& a, const Decimal& b);  // < 0, 0, > 0

struct NumberBound {
  Decimal value;
  bool is_exclusive = false;
};

struct NumberRange {
  std::optional<NumberBound> min;
  std::optional<NumberBound> max;

  bool contains(const Decimal& value) const;
  // Narrows the range.
  void raise_min(const NumberBound& bound);
  void lower_max(const NumberBound& bound);
};

// Integers without exponent, fraction or "-0". A side without bound has at most 18 digits, so that
// every parser reads them as 64-bit integers.
ExprId integers_in(const NumberRange& range, Rules& rules);

// Decimals without exponent or "-0", the fraction short enough that reading them as doubles does
// not round them across a bound.
Result<ExprId> decimals_in(const NumberRange& range, Rules& rules, std::string_view name,
                           Budget& budget);

// Decimals (without exponent; leading zeros are the caller's affair) that are multiples of `step`.
Result<Automaton> multiples_of(const Decimal& step);

}  // namespace volley::grammar
