#include "text/jinja/methods.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "text/jinja/interpreter.h"

namespace volley::jinja {
namespace {

class BoundMethod final : public Function {
 public:
  BoundMethod(Heap* heap, Value self, const Method& method)
      : Function(heap, std::string(method.name)), self_(std::move(self)), method_(method) {
    depth_ = self_.depth() + 1;
  }
  Value call(Interpreter& interpreter, Args args) override {
    return method_.function(interpreter, self_, args);
  }

 private:
  const Value self_;
  const Method& method_;
};

Value dict_get(Interpreter&, const Value& self, Args& args) {
  const Params params("get", args, {"", ""}, 1);
  const Value* found = self.dict().find(params.at(0));
  return found != nullptr ? *found : params.value(1, Value::none());
}

template <DictView::What kWhat>
Value dict_view(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("dict view", args, {});
  return Value::object(Kind::kView, new DictView(&interpreter.heap(), self, kWhat));
}

Value copy_self(Interpreter&, const Value& self, Args& args) {
  const Params params("copy", args, {});
  return self;  // lists change by pop() and clear() only: see list_copy
}

Value list_copy(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("copy", args, {});
  return interpreter.heap().list(self.items());
}

Value sequence_count(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("count", args, {""}, 1);
  interpreter.heap().step(self.items().size());
  return Value::integer(
      std::count_if(self.items().begin(), self.items().end(),
                    [&](const Value& item) { return equals(item, params.at(0)); }));
}

Value sequence_index(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("index", args, {"", "", ""}, 1);
  const auto size = static_cast<int64_t>(self.items().size());
  const auto bound = [&](size_t i, int64_t otherwise) {
    const int64_t value = params.integer(i, otherwise);
    return std::clamp<int64_t>(value < 0 ? value + size : value, 0, size);
  };
  interpreter.heap().step(self.items().size());
  for (int64_t i = bound(1, 0); i < bound(2, size); ++i) {
    if (equals(self.items()[static_cast<size_t>(i)], params.at(0))) return Value::integer(i);
  }
  fail("ValueError", "value is not in the {}", type_name(self));
}

// The sandbox of jinja2 3.1 lets pop() and clear() of lists through; published templates use pop.
Value list_pop(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("pop", args, {""});
  auto& items = self.sequence().items;
  if (items.empty()) fail("IndexError", "pop from empty list");
  const auto size = static_cast<int64_t>(items.size());
  int64_t index = params.integer(0, -1);
  if (index < 0) index += size;
  if (index < 0 || index >= size) fail("IndexError", "pop index out of range");
  interpreter.heap().step(items.size() / 8);
  Value popped = std::move(items[static_cast<size_t>(index)]);
  items.erase(items.begin() + index);
  return popped;
}

Value list_clear(Interpreter&, const Value& self, Args& args) {
  const Params params("clear", args, {});
  self.sequence().items.clear();
  return Value::none();
}

Value range_count(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("count", args, {""}, 1);
  for (int64_t i = 0; i < self.range().size; ++i) {
    interpreter.heap().step();
    if (equals(Value::integer(self.range().at(i)), params.at(0))) return Value::integer(1);
  }
  return Value::integer(0);
}

Value range_index(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("index", args, {""}, 1);
  for (int64_t i = 0; i < self.range().size; ++i) {
    interpreter.heap().step();
    if (equals(Value::integer(self.range().at(i)), params.at(0))) return Value::integer(i);
  }
  fail("ValueError", "value is not in range");
}

Value int_bit_length(Interpreter&, const Value& self, Args& args) {
  const Params params("bit_length", args, {});
  const int64_t value = self.as_int();
  const auto magnitude =
      value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
  return Value::integer(std::bit_width(magnitude));
}

Value number_conjugate(Interpreter&, const Value& self, Args& args) {
  const Params params("conjugate", args, {});
  return unary_plus(self);
}

Value float_is_integer(Interpreter&, const Value& self, Args& args) {
  const Params params("is_integer", args, {});
  return Value::boolean(std::isfinite(self.as_real()) &&
                        self.as_real() == std::floor(self.as_real()));
}

constexpr Method kDictMethods[] = {{"copy", copy_self},
                                   {"get", dict_get},
                                   {"items", dict_view<DictView::What::kItems>},
                                   {"keys", dict_view<DictView::What::kKeys>},
                                   {"values", dict_view<DictView::What::kValues>}};
constexpr Method kListMethods[] = {{"clear", list_clear},
                                   {"copy", list_copy},
                                   {"count", sequence_count},
                                   {"index", sequence_index},
                                   {"pop", list_pop}};
constexpr Method kTupleMethods[] = {{"count", sequence_count}, {"index", sequence_index}};
constexpr Method kRangeMethods[] = {{"count", range_count}, {"index", range_index}};
constexpr Method kIntMethods[] = {{"bit_length", int_bit_length}, {"conjugate", number_conjugate}};
constexpr Method kFloatMethods[] = {{"conjugate", number_conjugate},
                                    {"is_integer", float_is_integer}};

template <size_t kCount>
const Method* find_method(const Method (&methods)[kCount], std::string_view name) {
  for (const Method& method : methods) {
    if (method.name == name) return &method;
  }
  return nullptr;
}

const Method* find_method(const Value& value, std::string_view name) {
  switch (value.kind()) {
    case Kind::kStr:
      return find_str_method(name);
    case Kind::kDict:
      return find_method(kDictMethods, name);
    case Kind::kList:
      return find_method(kListMethods, name);
    case Kind::kTuple:
      return find_method(kTupleMethods, name);
    case Kind::kRange:
      return find_method(kRangeMethods, name);
    case Kind::kBool:
    case Kind::kInt:
      return find_method(kIntMethods, name);
    case Kind::kFloat:
      return find_method(kFloatMethods, name);
    default:
      return nullptr;
  }
}

Value number_property(const Value& value, std::string_view name) {
  if (name == "real") return unary_plus(value);
  if (name == "imag") return value.is(Kind::kFloat) ? Value::real(0) : Value::integer(0);
  if (value.is(Kind::kFloat)) return Value();
  if (name == "numerator") return unary_plus(value);
  return name == "denominator" ? Value::integer(1) : Value();
}

Value property(const Value& value, std::string_view name) {
  if (value.is_number()) return number_property(value, name);
  if (value.is(Kind::kRange)) {
    if (name == "start") return Value::integer(value.range().start);
    if (name == "stop") return Value::integer(value.range().stop);
    if (name == "step") return Value::integer(value.range().step);
  }
  if (value.is(Kind::kTuple) && value.sequence().group) {
    if (name == "grouper") return value.items()[0];
    if (name == "list") return value.items()[1];
  }
  return Value();
}

}  // namespace

Value builtin_attribute(Interpreter& interpreter, const Value& value, std::string_view name) {
  if (const Method* method = find_method(value, name)) {
    return Value::object(Kind::kFunction, new BoundMethod(&interpreter.heap(), value, *method));
  }
  return property(value, name);
}

bool modifies(const Value& value, std::string_view name) {
  static constexpr std::string_view kOfDict[] = {"clear", "pop", "popitem", "setdefault", "update"};
  static constexpr std::string_view kOfList[] = {"append", "extend",  "insert",
                                                 "remove", "reverse", "sort"};
  if (value.is(Kind::kDict)) return std::count(std::begin(kOfDict), std::end(kOfDict), name) > 0;
  if (value.is(Kind::kList)) return std::count(std::begin(kOfList), std::end(kOfList), name) > 0;
  return false;
}

}  // namespace volley::jinja
