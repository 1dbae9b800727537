// Jinja's tests: what may follow `is`.

#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/params.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

void no_arguments(Args& args) {
  const Params params("test", args, {});
}

template <Kind kKind>
bool test_kind(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is(kKind);
}

template <CompareOp kOp>
bool test_compare(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("compare", args, {"", ""}, 1);
  return compare(interpreter, kOp, value, params.at(0));
}

bool test_in(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("test_in", args, {"seq"}, 1);
  return contains(interpreter, params.at(0), value);
}

bool test_callable(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  // jinja2's Undefined has a __call__, which fails.
  return value.is(Kind::kUndefined) || (value.is(Kind::kFunction) && value.function().callable());
}

bool test_defined(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return !value.is(Kind::kUndefined);
}

bool test_divisibleby(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("test_divisibleby", args, {"num"}, 1);
  return equals(binary(interpreter, BinaryOp::kMod, value, params.at(0)), Value::integer(0));
}

bool test_even(Interpreter& interpreter, const Value& value, Args& args) {
  no_arguments(args);
  return equals(binary(interpreter, BinaryOp::kMod, value, Value::integer(2)), Value::integer(0));
}

bool test_odd(Interpreter& interpreter, const Value& value, Args& args) {
  no_arguments(args);
  return equals(binary(interpreter, BinaryOp::kMod, value, Value::integer(2)), Value::integer(1));
}

bool test_escaped(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is(Kind::kStr) && value.str().markup;
}

bool test_false(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is(Kind::kBool) && !value.as_bool();
}

bool test_true(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is(Kind::kBool) && value.as_bool();
}

bool test_filter(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is(Kind::kStr) && find_filter(value.text()) != nullptr;
}

bool test_test(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is(Kind::kStr) && find_test(value.text()) != nullptr;
}

bool test_iterable(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return !(value.is_number() || value.is(Kind::kNone) || value.is(Kind::kFunction) ||
           value.is(Kind::kNamespace));
}

bool test_sequence(Interpreter& interpreter, const Value& value, Args& args) {
  return test_iterable(interpreter, value, args) && !value.is(Kind::kIterator) &&
         !value.is(Kind::kView);
}

bool test_number(Interpreter&, const Value& value, Args& args) {
  no_arguments(args);
  return value.is_number();
}

// islower and isupper of the value's text.
template <CharClass kWanted, CharClass kOther>
bool test_case(Interpreter& interpreter, const Value& value, Args& args) {
  no_arguments(args);
  if (!value.is(Kind::kStr)) {
    Args none;
    const FilterFunction to_string = find_filter("string");
    return test_case<kWanted, kOther>(interpreter, to_string(interpreter, value, none), none);
  }
  interpreter.heap().step(value.text().size() / 2);
  bool found = false;
  for (size_t pos = 0; pos < value.text().size();) {
    const char32_t c = next_code_point(value.text(), &pos);
    if (is_char(c, kOther) || is_char(c, CharClass::kTitle)) return false;
    found |= is_char(c, kWanted);
  }
  return found;
}

// `is` of Python: the same object; small values are their own identity here.
bool test_sameas(Interpreter&, const Value& value, Args& args) {
  const Params params("test_sameas", args, {"other"}, 1);
  const Value& other = params.at(0);
  if (value.kind() != other.kind()) return false;
  if (value.kind() < Kind::kUndefined || value.is(Kind::kStr)) return equals(value, other);
  return value.as_object() == other.as_object();
}

struct TestEntry {
  std::string_view name;
  TestFunction function;
};

constexpr TestEntry kTests[] = {
    {"!=", test_compare<CompareOp::kNe>},
    {"<", test_compare<CompareOp::kLt>},
    {"<=", test_compare<CompareOp::kLe>},
    {"==", test_compare<CompareOp::kEq>},
    {">", test_compare<CompareOp::kGt>},
    {">=", test_compare<CompareOp::kGe>},
    {"boolean", test_kind<Kind::kBool>},
    {"callable", test_callable},
    {"defined", test_defined},
    {"divisibleby", test_divisibleby},
    {"eq", test_compare<CompareOp::kEq>},
    {"equalto", test_compare<CompareOp::kEq>},
    {"escaped", test_escaped},
    {"even", test_even},
    {"false", test_false},
    {"filter", test_filter},
    {"float", test_kind<Kind::kFloat>},
    {"ge", test_compare<CompareOp::kGe>},
    {"greaterthan", test_compare<CompareOp::kGt>},
    {"gt", test_compare<CompareOp::kGt>},
    {"in", test_in},
    {"integer", test_kind<Kind::kInt>},
    {"iterable", test_iterable},
    {"le", test_compare<CompareOp::kLe>},
    {"lessthan", test_compare<CompareOp::kLt>},
    {"lower", test_case<CharClass::kLower, CharClass::kUpper>},
    {"lt", test_compare<CompareOp::kLt>},
    {"mapping", test_kind<Kind::kDict>},
    {"ne", test_compare<CompareOp::kNe>},
    {"none", test_kind<Kind::kNone>},
    {"number", test_number},
    {"odd", test_odd},
    {"sameas", test_sameas},
    {"sequence", test_sequence},
    {"string", test_kind<Kind::kStr>},
    {"test", test_test},
    {"true", test_true},
    {"undefined", test_kind<Kind::kUndefined>},
    {"upper", test_case<CharClass::kUpper, CharClass::kLower>},
};

}  // namespace

TestFunction find_test(std::string_view name) {
  for (const TestEntry& entry : kTests) {
    if (entry.name == name) return entry.function;
  }
  return nullptr;
}

}  // namespace volley::jinja
