// Filters on numbers and single values, and the table of all filters.

#include <algorithm>
#include <cmath>

#include "text/jinja/builtins.h"
#include "text/jinja/generator.h"
#include "text/jinja/numbers.h"
#include "text/jinja/params.h"
#include "text/jinja/print.h"

namespace volley::jinja {
namespace {

Value filter_abs(Interpreter&, const Value& value, Args& args) {
  const Params params("abs", args, {});
  require_defined(value);
  if (value.is(Kind::kFloat)) return Value::real(std::fabs(value.as_real()));
  if (!value.is_integral()) fail_type("bad operand type for abs(): '{}'", type_name(value));
  return value.as_int() < 0 ? negate(value) : Value::integer(value.as_int());
}

Value filter_attr(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_attr", args, {"name"}, 1);
  require_defined(value);
  const Value name = to_str(interpreter.heap(), params.at(0));
  Value found = own_attribute(interpreter, value, name.text());
  return found.missing() ? no_attribute(interpreter.heap(), value, name) : found;
}

Value filter_default(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_default", args, {"default_value", "boolean"});
  const bool replace = value.is(Kind::kUndefined) || (params.flag(1, false) && !truth(value));
  if (!replace) return value;
  return params.has(0) ? params.at(0) : interpreter.heap().str("");
}

Value filter_float(Interpreter&, const Value& value, Args& args) {
  const Params params("do_float", args, {"default"});
  require_defined(value);
  if (value.is_number()) return Value::real(value.as_real());
  if (value.is(Kind::kStr)) {
    if (const auto parsed = parse_float(value.text())) return Value::real(*parsed);
  }
  return params.value(0, Value::real(0));
}

Value truncated(double d) {
  if (std::isinf(d)) fail("OverflowError", "cannot convert float infinity to integer");
  if (!(d >= -9223372036854775808.0 && d < 9223372036854775808.0)) {
    fail("OverflowError", "an integer leaves the 64 bits this engine computes with");
  }
  return Value::integer(static_cast<int64_t>(d));
}

Value filter_int(Interpreter&, const Value& value, Args& args) {
  const Params params("do_int", args, {"default", "base"});
  require_defined(value);
  if (value.is_integral()) return Value::integer(value.as_int());
  if (value.is(Kind::kFloat) && !std::isnan(value.as_real())) return truncated(value.as_real());
  if (value.is(Kind::kStr)) {
    const int64_t base = params.integer(1, 10);
    if (const auto parsed =
            parse_int(value.text(), static_cast<int>(std::clamp<int64_t>(base, -1, 99)))) {
      return Value::integer(*parsed);
    }
    const auto parsed = parse_float(value.text());
    if (parsed && !std::isnan(*parsed)) return truncated(*parsed);
  }
  return params.value(0, Value::integer(0));
}

Value filter_filesizeformat(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_filesizeformat", args, {"binary"});
  const bool binary = params.flag(0, false);
  require_defined(value);
  std::optional<double> bytes;
  if (value.is_number()) bytes = value.as_real();
  if (value.is(Kind::kStr)) bytes = parse_float(value.text());
  if (!bytes) fail("ValueError", "could not convert to float: {}", repr(interpreter.heap(), value));
  const double base = binary ? 1024 : 1000;
  if (*bytes == 1) return interpreter.heap().str("1 Byte");
  if (*bytes < base) {
    return interpreter.heap().str(std::to_string(truncated(*bytes).as_int()) + " Bytes");
  }
  static constexpr const char* kPrefixes = "kMGTPEZY";
  double unit = base;
  size_t prefix = 0;
  while (prefix < 7 && *bytes >= unit * base) {
    unit *= base;
    ++prefix;
  }
  const char letter = binary && prefix == 0 ? 'K' : kPrefixes[prefix];
  return interpreter.heap().str(
      fmt::format("{:.1f} {}{}B", *bytes / unit, letter, binary ? "i" : ""));
}

Value round_common(const Value& value, int64_t precision) {
  if (value.is_integral()) {
    if (precision >= 0) return Value::integer(value.as_int());
    if (precision < -18) return Value::integer(0);
    return Value::integer(round_integer(value.as_int(), static_cast<int>(-precision)));
  }
  return Value::real(round_float(value.as_real(), precision));
}

Value filter_round(Interpreter&, const Value& value, Args& args) {
  const Params params("do_round", args, {"precision", "method"});
  const int64_t precision = params.integer(0, 0);
  const std::string_view method = params.has(1) ? params.text(1) : "common";
  if (method != "common" && method != "ceil" && method != "floor") {
    fail("FilterArgumentError", "method must be common, ceil or floor");
  }
  require_defined(value);
  if (!value.is_number()) {
    fail_type("type {} doesn't define __round__ method", type_name(value));
  }
  if (method == "common") return round_common(value, precision);
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = value.as_real() * scale;
  if (!std::isfinite(scaled)) fail("OverflowError", "cannot convert float infinity to integer");
  return Value::real((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

std::optional<std::string> json_indent(const Params& params, size_t i) {
  if (!params.given(i)) return std::nullopt;
  if (params.at(i).is(Kind::kStr)) return std::string(params.text(i));
  const int64_t width = std::clamp<int64_t>(params.integer(i, 0), 0, 1000);
  return std::string(static_cast<size_t>(width), ' ');
}

// The `tojson` that Hugging Face puts in the place of Jinja's.
Value filter_tojson(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = params.flag(0, false);
  style.indent = json_indent(params, 1);
  if (style.indent) style.item_separator = ",";
  if (params.given(2)) {
    const auto separators = to_vector(interpreter, params.at(2));
    if (separators.size() != 2 || !separators[0].is(Kind::kStr) || !separators[1].is(Kind::kStr)) {
      fail("ValueError", "separators must be two strings");
    }
    style.item_separator = separators[0].text();
    style.key_separator = separators[1].text();
  }
  style.sort_keys = params.flag(3, false);
  return interpreter.heap().str(to_json(interpreter.heap(), value, style));
}

// json.loads, which llama.cpp offers to templates.
Value filter_from_json(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("from_json", args, {});
  require_defined(value);
  if (!value.is(Kind::kStr)) {
    fail_type("the JSON object must be str, not {}", type_name(value));
  }
  // The parser looks at all earlier keys of an object for each new one.
  const auto num_keys =
      static_cast<uint64_t>(std::count(value.text().begin(), value.text().end(), ':'));
  interpreter.heap().step(value.text().size() / 16 + num_keys * num_keys / 64);
  const auto json = parse_json(value.text(), "from_json");
  if (!json) fail("JSONDecodeError", "{}", json.error().message);
  return value_from_json(interpreter.heap(), *json);
}

Value filter_unsupported(Interpreter&, const Value&, Args&) {
  fail_unsupported("the filters pprint, random, striptags, urlize, wordwrap and xmlattr");
}

constexpr FilterEntry kFilters[] = {
    {"abs", filter_abs},
    {"attr", filter_attr},
    {"d", filter_default},
    {"default", filter_default},
    {"filesizeformat", filter_filesizeformat},
    {"float", filter_float},
    {"from_json", filter_from_json},
    {"int", filter_int},
    {"pprint", filter_unsupported},
    {"random", filter_unsupported},
    {"round", filter_round},
    {"striptags", filter_unsupported},
    {"tojson", filter_tojson},
    {"urlize", filter_unsupported},
    {"wordwrap", filter_unsupported},
    {"xmlattr", filter_unsupported},
};

}  // namespace

FilterFunction find_value_filter(std::string_view name) {
  return find_in(kFilters, name);
}

FilterFunction find_filter(std::string_view name) {
  FilterFunction filter = find_value_filter(name);
  if (filter == nullptr) filter = find_text_filter(name);
  return filter != nullptr ? filter : find_sequence_filter(name);
}

}  // namespace volley::jinja
