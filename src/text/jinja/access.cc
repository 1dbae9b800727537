// Elements, attributes and iteration.

#include <algorithm>

#include "text/jinja/interpreter.h"
#include "text/jinja/methods.h"
#include "text/jinja/operators.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

std::string object_description(const Value& value) {
  if (value.is(Kind::kNone)) return "None";
  const std::string_view name = type_name(value);
  if (value.is(Kind::kNamespace) || name == "Cycler" || name == "Joiner") {
    return fmt::format("jinja2.utils.{} object", name);
  }
  if (name == "Macro" || name == "LoopContext") {
    return fmt::format("jinja2.runtime.{} object", name);
  }
  if (name == "Markup") return "markupsafe.Markup object";
  if (name == "_GroupTuple") return "jinja2.filters._GroupTuple object";
  return fmt::format("{} object", name);
}

class ItemsIterator final : public Iterator {
 public:
  ItemsIterator(Heap* heap, Value items)
      : Iterator(heap, "list_iterator", items.depth()), items_(std::move(items)) {}
  bool next(Interpreter&, Value* out) override {
    // The size is read anew each time: list.pop() may have shortened it.
    if (index_ >= items_.items().size()) return false;
    *out = items_.items()[index_++];
    return true;
  }

 private:
  const Value items_;
  size_t index_ = 0;
};

class DictIterator final : public Iterator {
 public:
  DictIterator(Heap* heap, Value dict, DictView::What what)
      : Iterator(heap, "dict_itemiterator", dict.depth() + 1),
        dict_(std::move(dict)),
        what_(what) {}
  bool next(Interpreter& interpreter, Value* out) override {
    const auto& entries = dict_.dict().entries;
    if (index_ >= entries.size()) return false;
    const auto& [key, value] = entries[index_++];
    switch (what_) {
      case DictView::What::kKeys:
        *out = key;
        break;
      case DictView::What::kValues:
        *out = value;
        break;
      case DictView::What::kItems:
        *out = interpreter.heap().tuple({key, value});
        break;
    }
    return true;
  }

 private:
  const Value dict_;
  const DictView::What what_;
  size_t index_ = 0;
};

class TextIterator final : public Iterator {
 public:
  TextIterator(Heap* heap, Value text)
      : Iterator(heap, "str_iterator", 0), text_(std::move(text)) {}
  bool next(Interpreter& interpreter, Value* out) override {
    const std::string_view text = text_.text();
    if (pos_ >= text.size()) return false;
    const size_t begin = pos_;
    next_code_point(text, &pos_);
    *out = interpreter.heap().str_view(text.substr(begin, pos_ - begin));  // of Markup, too
    return true;
  }

 private:
  const Value text_;
  size_t pos_ = 0;
};

class RangeIterator final : public Iterator {
 public:
  RangeIterator(Heap* heap, Value range)
      : Iterator(heap, "range_iterator", 0), range_(std::move(range)) {}
  bool next(Interpreter&, Value* out) override {
    if (index_ >= range_.range().size) return false;
    *out = Value::integer(range_.range().at(index_++));
    return true;
  }

 private:
  const Value range_;
  int64_t index_ = 0;
};

// The element at a Python index, or kMissing.
Value element_at(Heap& heap, const Value& value, int64_t index) {
  const int64_t size = length(value);
  if (index < 0) index += size;
  if (index < 0 || index >= size) return Value();
  const auto idx = static_cast<size_t>(index);
  switch (value.kind()) {
    case Kind::kRange:
      return Value::integer(value.range().at(index));
    case Kind::kStr: {
      const std::string_view text = value.text();
      if (value.str().ascii) return heap.str_view(text.substr(idx, 1), value.str().markup);
      heap.step_bytes(text.size());
      size_t end = code_point_offset(text, idx);
      const size_t begin = end;
      next_code_point(text, &end);
      return heap.str_view(text.substr(begin, end - begin), value.str().markup);
    }
    default:
      return value.items()[idx];
  }
}

// value[key] as Python reads it; kMissing where Python raises TypeError or LookupError.
Value element(Heap& heap, const Value& value, const Value& key) {
  if (value.is(Kind::kDict)) {
    if (key.is(Kind::kList) || key.is(Kind::kDict)) return Value();
    const Value* found = value.dict().find(key);
    return found != nullptr ? *found : Value();
  }
  const bool indexed = value.is_sequence() || value.is(Kind::kStr) || value.is(Kind::kRange);
  return indexed && key.is_integral() ? element_at(heap, value, key.as_int()) : Value();
}

Value unsafe_attribute(Heap& heap, const Value& value, std::string_view name) {
  return heap.undefined(fmt::format("access to attribute {} of {} object is unsafe.", repr(name),
                                    repr(std::string_view(type_name(value)))),
                        "SecurityError");
}

bool is_hidden(const Value& value, std::string_view name) {
  return (name.starts_with("__") && name.ends_with("__") && name.size() > 4) ||
         modifies(value, name);
}

}  // namespace

Value no_attribute(Heap& heap, const Value& value, const Value& name) {
  if (!name.is(Kind::kStr)) {
    return heap.undefined(
        fmt::format("{} has no element {}", object_description(value), repr(heap, name)));
  }
  return heap.undefined(
      fmt::format("{} has no attribute {}", repr(object_description(value)), repr(name.text())));
}

Value own_attribute(Interpreter& interpreter, const Value& value, std::string_view name) {
  if (value.is(Kind::kNamespace)) {
    const Value* found = value.name_space().find(name);
    return found != nullptr ? *found : Value();
  }
  if (is_hidden(value, name)) return unsafe_attribute(interpreter.heap(), value, name);
  if (value.is(Kind::kFunction)) return value.function().attribute(interpreter, name);
  return builtin_attribute(interpreter, value, name);
}

Value get_attribute(Interpreter& interpreter, const Value& value, const Value& name) {
  require_defined(value);
  Value found = own_attribute(interpreter, value, name.text());
  if (!found.missing()) return found;
  found = element(interpreter.heap(), value, name);
  return found.missing() ? no_attribute(interpreter.heap(), value, name) : found;
}

Value get_item(Interpreter& interpreter, const Value& value, const Value& key) {
  require_defined(value);
  Value found = element(interpreter.heap(), value, key);
  if (found.missing() && key.is(Kind::kStr)) {
    found = own_attribute(interpreter, value, key.text());
  }
  return found.missing() ? no_attribute(interpreter.heap(), value, key) : found;
}

Ref<Iterator> iterate(Interpreter& interpreter, const Value& value) {
  Heap* heap = &interpreter.heap();
  switch (value.kind()) {
    case Kind::kList:
    case Kind::kTuple:
      return Ref<Iterator>(new ItemsIterator(heap, value));
    case Kind::kDict:
      return Ref<Iterator>(new DictIterator(heap, value, DictView::What::kKeys));
    case Kind::kView:
      return Ref<Iterator>(new DictIterator(heap, value.view().owner, value.view().what));
    case Kind::kStr:
      return Ref<Iterator>(new TextIterator(heap, value));
    case Kind::kRange:
      return Ref<Iterator>(new RangeIterator(heap, value));
    case Kind::kIterator:
      return Ref<Iterator>(&value.iterator());
    case Kind::kUndefined:
      return Ref<Iterator>(new ItemsIterator(heap, interpreter.heap().list({})));
    default:
      fail_type("'{}' object is not iterable", type_name(value));
  }
}

std::vector<Value> to_vector(Interpreter& interpreter, const Value& value) {
  Heap& heap = interpreter.heap();
  if (value.is_sequence()) {
    heap.step(value.items().size() / 4);
    return value.items();
  }
  std::vector<Value> items;
  const Ref<Iterator> source = iterate(interpreter, value);
  for (Value item; source->next(interpreter, &item);) {
    heap.step();
    heap.check_item_count(items.size() + 1);
    items.push_back(std::move(item));
  }
  return items;
}

}  // namespace volley::jinja
