// Filters on sequences and mappings.

#include <algorithm>
#include <map>

#include "text/jinja/builtins.h"
#include "text/jinja/generator.h"
#include "text/jinja/params.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

Value ignore_case(Heap& heap, const Value& value) {
  return value.is(Kind::kStr) ? heap.str(to_lower(value.text()), value.str().markup) : value;
}

// "a.0.b": where filters with an `attribute` look.
class AttributePath {
 public:
  AttributePath(Heap& heap, const Value& attribute, Value otherwise = Value())
      : otherwise_(std::move(otherwise)) {
    if (attribute.missing() || attribute.is(Kind::kNone)) return;
    if (!attribute.is(Kind::kStr)) {
      parts_.push_back(attribute);
      return;
    }
    std::string_view rest = attribute.text();
    while (true) {
      const size_t dot = rest.find('.');
      const std::string_view part = rest.substr(0, dot);
      const bool is_index =
          !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == part.npos;
      parts_.push_back(is_index ? Value::integer(std::stoll(std::string(part)))
                                : heap.str_view(part));
      if (dot == rest.npos) return;
      rest.remove_prefix(dot + 1);
    }
  }

  Value get(Interpreter& interpreter, Value item) const {
    for (const Value& part : parts_) {
      interpreter.heap().step();
      item = get_item(interpreter, item, part);
      const bool replace = !otherwise_.missing() && !otherwise_.is(Kind::kNone);
      if (replace && item.is(Kind::kUndefined)) item = otherwise_;
    }
    return item;
  }

 private:
  std::vector<Value> parts_;
  Value otherwise_;
};

struct Keyed {
  std::vector<Value> keys;
  Value item;
};

bool keys_less(const std::vector<Value>& a, const std::vector<Value>& b) {
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    if (!equals(a[i], b[i])) return less_than(a[i], b[i]);
  }
  return a.size() < b.size();
}

// By one value or, as `sort` does, by lists of values, which look for equality first.
enum class KeyOrder { kValue, kList };

void sort_keyed(Interpreter& interpreter, std::vector<Keyed>* items, bool reverse, KeyOrder order) {
  Heap& heap = interpreter.heap();
  std::stable_sort(items->begin(), items->end(), [&](const Keyed& a, const Keyed& b) {
    heap.step();
    const auto& first = reverse ? b.keys : a.keys;
    const auto& second = reverse ? a.keys : b.keys;
    return order == KeyOrder::kList ? keys_less(first, second) : less_than(first[0], second[0]);
  });
}

std::vector<Value> take_items(std::vector<Keyed> keyed) {
  std::vector<Value> items;
  items.reserve(keyed.size());
  for (Keyed& entry : keyed) items.push_back(std::move(entry.item));
  return items;
}

Value filter_batch(Interpreter& interpreter, const Value& value, Args& args) {
  const int depth = depth_of(value, args);
  const Params params("do_batch", args, {"linecount", "fill_with"}, 1);
  const int64_t count = params.integer(0, 0);
  const Value fill = params.given(1) ? params.at(1) : Value();
  return make_deferred(interpreter, depth + 1, [value, count, fill](Interpreter& in) {
    std::vector<Value> rows, row;
    for (Value& item : to_vector(in, value)) {
      if (static_cast<int64_t>(row.size()) == count) {
        rows.push_back(in.heap().list(std::exchange(row, {})));
      }
      row.push_back(std::move(item));
    }
    if (row.empty()) return rows;
    if (!fill.missing() && static_cast<int64_t>(row.size()) < count) {
      in.heap().check_item_count(static_cast<size_t>(count));
      row.resize(static_cast<size_t>(count), fill);
    }
    rows.push_back(in.heap().list(std::move(row)));
    return rows;
  });
}

Value filter_slice(Interpreter& interpreter, const Value& value, Args& args) {
  const int depth = depth_of(value, args);
  const Params params("do_slice", args, {"slices", "fill_with"}, 1);
  const int64_t slices = params.integer(0, 0);
  const Value fill = params.given(1) ? params.at(1) : Value();
  return make_deferred(interpreter, depth + 1, [value, slices, fill](Interpreter& in) {
    const std::vector<Value> items = to_vector(in, value);
    if (slices == 0) fail("ZeroDivisionError", "integer division or modulo by zero");
    std::vector<Value> columns;
    if (slices < 0) return columns;
    in.heap().check_item_count(static_cast<size_t>(slices));
    const auto num_slices = static_cast<size_t>(slices);
    const size_t per_slice = items.size() / num_slices, extra = items.size() % num_slices;
    auto next = items.begin();
    for (size_t i = 0; i < num_slices; ++i) {
      in.heap().step();
      const auto end = next + static_cast<std::ptrdiff_t>(per_slice + (i < extra ? 1 : 0));
      std::vector<Value> column(next, end);
      if (!fill.missing() && i >= extra) column.push_back(fill);
      columns.push_back(in.heap().list(std::move(column)));
      next = end;
    }
    return columns;
  });
}

Value filter_dictsort(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_dictsort", args, {"case_sensitive", "by", "reverse"});
  const bool case_sensitive = params.flag(0, false);
  const std::string_view by = params.has(1) ? params.text(1) : "key";
  if (by != "key" && by != "value") {
    fail("FilterArgumentError", "You can only sort by either \"key\" or \"value\"");
  }
  require_defined(value);
  if (!value.is(Kind::kDict)) {
    fail("AttributeError", "'{}' object has no attribute 'items'", type_name(value));
  }
  Heap& heap = interpreter.heap();
  std::vector<Keyed> items;
  for (const auto& [key, element] : value.dict().entries) {
    const Value& sort_key = by == "key" ? key : element;
    items.push_back(
        {{case_sensitive ? sort_key : ignore_case(heap, sort_key)}, heap.tuple({key, element})});
  }
  sort_keyed(interpreter, &items, params.flag(2, false), KeyOrder::kValue);
  return heap.list(take_items(std::move(items)));
}

Value filter_first(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_first", args, {});
  Value item;
  if (iterate(interpreter, value)->next(interpreter, &item)) return item;
  return interpreter.heap().undefined("No first item, sequence was empty.");
}

std::vector<Value> reversed(Interpreter& interpreter, const Value& value) {
  std::vector<Value> items = to_vector(interpreter, value);
  std::reverse(items.begin(), items.end());
  return items;
}

Value filter_last(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_last", args, {});
  if (value.is(Kind::kIterator)) {
    fail_type("'{}' object is not reversible", type_name(value));
  }
  if (value.is_sequence() && !value.items().empty()) return value.items().back();
  std::vector<Value> items = to_vector(interpreter, value);
  if (!items.empty()) return items.back();
  return interpreter.heap().undefined("No last item, sequence was empty.");
}

Value filter_groupby(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_groupby", args, {"attribute", "default", "case_sensitive"}, 1);
  Heap& heap = interpreter.heap();
  const AttributePath path(heap, params.at(0), params.value(1, Value()));
  const bool case_sensitive = params.flag(2, false);
  std::vector<Keyed> items;
  for (Value& item : to_vector(interpreter, value)) {
    Value key = path.get(interpreter, item);
    if (!case_sensitive) key = ignore_case(heap, key);
    items.push_back({{std::move(key)}, std::move(item)});
  }
  sort_keyed(interpreter, &items, false, KeyOrder::kValue);
  std::vector<Value> groups;
  for (size_t begin = 0; begin < items.size();) {
    size_t end = begin;
    std::vector<Value> members;
    while (end < items.size() && equals(items[begin].keys[0], items[end].keys[0])) {
      members.push_back(items[end++].item);
    }
    Value grouper = case_sensitive ? items[begin].keys[0] : path.get(interpreter, members.front());
    groups.push_back(
        heap.tuple({std::move(grouper), heap.list(std::move(members))}, /*group=*/true));
    begin = std::max(end, begin + 1);  // a NaN does not equal itself
  }
  return heap.list(std::move(groups));
}

Value filter_items(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_items", args, {});
  return make_deferred(interpreter, value.depth() + 1, [value](Interpreter& in) {
    std::vector<Value> pairs;
    if (value.is(Kind::kUndefined)) return pairs;
    if (!value.is(Kind::kDict)) fail_type("Can only get item pairs from a mapping.");
    for (const auto& [key, element] : value.dict().entries) {
      pairs.push_back(in.heap().tuple({key, element}));
    }
    return pairs;
  });
}

Value filter_join(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_join", args, {"d", "attribute"});
  Heap& heap = interpreter.heap();
  const Value separator = to_str(heap, params.value(0, heap.str("")));
  const AttributePath path(heap, params.value(1, Value()));
  StringBuilder text(heap);
  bool first = true;
  for (Value& item : to_vector(interpreter, value)) {
    if (!std::exchange(first, false)) text.append(separator.text());
    append_str(&text, path.get(interpreter, std::move(item)));
  }
  return text.finish();
}

Value filter_length(Interpreter&, const Value& value, Args& args) {
  const Params params("len", args, {});
  return Value::integer(length(value));
}

Value filter_list(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_list", args, {});
  return interpreter.heap().list(to_vector(interpreter, value));
}

// One call of the filter or attribute that `map` was given.
struct MapFunction {
  Value value;
  Args args;

  Value take_named(std::string_view name) {
    for (size_t i = 0; i < args.named.size(); ++i) {
      if (args.named[i].first != name) continue;
      Value found = std::move(args.named[i].second);
      args.named.erase(args.named.begin() + static_cast<std::ptrdiff_t>(i));
      return found;
    }
    return Value();
  }
};

// The items of `value`, which is asked for them no earlier than the first is wanted.
class LazySource {
 public:
  explicit LazySource(Value value) : value_(std::move(value)) {}
  bool next(Interpreter& interpreter, Value* out) {
    interpreter.heap().step();
    if (!source_) source_ = iterate(interpreter, value_);
    return source_->next(interpreter, out);
  }

 private:
  Value value_;
  Ref<Iterator> source_;
};

Value map_attribute(Interpreter& interpreter, MapFunction map, int depth) {
  const Value attribute = map.take_named("attribute");
  const Value otherwise = map.take_named("default");
  if (!map.args.named.empty()) {
    fail("FilterArgumentError", "Unexpected keyword argument {}", repr(map.args.named[0].first));
  }
  const AttributePath path(interpreter.heap(), attribute, otherwise);
  return make_generator(
      interpreter, depth,
      [path, source = LazySource(map.value)](Interpreter& in, Value* out) mutable {
        if (!source.next(in, out)) return false;
        *out = path.get(in, std::move(*out));
        return true;
      });
}

Value map_filter(Interpreter& interpreter, MapFunction map, int depth) {
  const std::string name(map.args.positional[0].is(Kind::kStr) ? map.args.positional[0].text()
                                                               : std::string_view());
  Args rest{{map.args.positional.begin() + 1, map.args.positional.end()}, map.args.named};
  return make_generator(
      interpreter, depth,
      [name, rest, source = LazySource(map.value)](Interpreter& in, Value* out) mutable {
        if (!source.next(in, out)) return false;
        *out = in.call_filter(name, *out, rest);
        return true;
      });
}

Value filter_map(Interpreter& interpreter, const Value& value, Args& args) {
  const int depth = depth_of(value, args) + 1;
  if (!truth(value))
    return make_deferred(interpreter, depth, [](Interpreter&) { return std::vector<Value>(); });
  const bool by_attribute =
      args.positional.empty() &&
      std::any_of(args.named.begin(), args.named.end(),
                  [](const Named& named) { return named.first == "attribute"; });
  if (by_attribute) return map_attribute(interpreter, {value, std::move(args)}, depth);
  if (args.positional.empty()) fail("FilterArgumentError", "map requires a filter argument");
  return map_filter(interpreter, {value, std::move(args)}, depth);
}

Value select_items(Interpreter& interpreter, const Value& value, Args& args, bool keep,
                   bool by_attribute) {
  const int depth = depth_of(value, args) + 1;
  if (!truth(value))
    return make_deferred(interpreter, depth, [](Interpreter&) { return std::vector<Value>(); });
  auto next = args.positional.begin();
  if (by_attribute && next == args.positional.end()) {
    fail("FilterArgumentError", "Missing parameter for attribute name");
  }
  const AttributePath path(interpreter.heap(), by_attribute ? *next++ : Value());
  const bool has_test = next != args.positional.end();
  std::string test;
  if (has_test && next->is(Kind::kStr)) test = next->text();
  if (has_test) ++next;
  Args rest{{next, args.positional.end()}, args.named};
  return make_generator(
      interpreter, depth, [=, source = LazySource(value)](Interpreter& in, Value* out) mutable {
        while (source.next(in, out)) {
          const Value subject = path.get(in, *out);
          const bool passes = has_test ? in.call_test(test, subject, rest) : truth(subject);
          if (passes == keep) return true;
        }
        return false;
      });
}

Value filter_select(Interpreter& interpreter, const Value& value, Args& args) {
  return select_items(interpreter, value, args, true, false);
}
Value filter_reject(Interpreter& interpreter, const Value& value, Args& args) {
  return select_items(interpreter, value, args, false, false);
}
Value filter_selectattr(Interpreter& interpreter, const Value& value, Args& args) {
  return select_items(interpreter, value, args, true, true);
}
Value filter_rejectattr(Interpreter& interpreter, const Value& value, Args& args) {
  return select_items(interpreter, value, args, false, true);
}

Value extreme(Interpreter& interpreter, const Value& value, Args& args, bool is_max) {
  const Params params(is_max ? "do_max" : "do_min", args, {"case_sensitive", "attribute"});
  Heap& heap = interpreter.heap();
  const AttributePath path(heap, params.value(1, Value()));
  Value best, best_key;
  for (Value& item : to_vector(interpreter, value)) {
    Value key = path.get(interpreter, item);
    if (!params.flag(0, false)) key = ignore_case(heap, key);
    const bool better =
        best.missing() ||
        compare(interpreter, is_max ? CompareOp::kGt : CompareOp::kLt, key, best_key);
    if (!better) continue;
    best = std::move(item);
    best_key = std::move(key);
  }
  return best.missing() ? heap.undefined("No aggregated item, sequence was empty.") : best;
}

Value filter_max(Interpreter& interpreter, const Value& value, Args& args) {
  return extreme(interpreter, value, args, true);
}
Value filter_min(Interpreter& interpreter, const Value& value, Args& args) {
  return extreme(interpreter, value, args, false);
}

Value filter_reverse(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_reverse", args, {});
  if (value.is(Kind::kStr)) {
    return slice(interpreter, value, Value::none(), Value::none(), Value::integer(-1));
  }
  if (value.is(Kind::kIterator)) return interpreter.heap().list(reversed(interpreter, value));
  if (value.is_number() || value.is(Kind::kNone) || value.is(Kind::kNamespace) ||
      value.is(Kind::kFunction)) {
    fail("FilterArgumentError", "argument must be iterable");
  }
  return make_deferred(
      interpreter, value.depth() + 1, [value](Interpreter& in) { return reversed(in, value); },
      value.is(Kind::kList) ? "list_reverseiterator" : "reversed");
}

Value filter_sort(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_sort", args, {"reverse", "case_sensitive", "attribute"});
  Heap& heap = interpreter.heap();
  const bool case_sensitive = params.flag(1, false);
  std::vector<AttributePath> paths;
  const Value attribute = params.value(2, Value());
  if (attribute.is(Kind::kStr)) {
    std::string_view rest = attribute.text();
    for (size_t comma = 0; comma != rest.npos;) {
      comma = rest.find(',');
      paths.emplace_back(heap, heap.str_view(rest.substr(0, comma)));
      if (comma != rest.npos) rest.remove_prefix(comma + 1);
    }
  } else {
    paths.emplace_back(heap, attribute);
  }
  std::vector<Keyed> items;
  for (Value& item : to_vector(interpreter, value)) {
    Keyed keyed;
    for (const AttributePath& path : paths) {
      const Value key = path.get(interpreter, item);
      keyed.keys.push_back(case_sensitive ? key : ignore_case(heap, key));
    }
    keyed.item = std::move(item);
    items.push_back(std::move(keyed));
  }
  sort_keyed(interpreter, &items, params.flag(0, false), KeyOrder::kList);
  return heap.list(take_items(std::move(items)));
}

Value filter_sum(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_sum", args, {"attribute", "start"});
  const AttributePath path(interpreter.heap(), params.value(0, Value()));
  Value total = params.value(1, Value::integer(0));
  if (total.is(Kind::kStr)) fail_type("sum() can't sum strings [use ''.join(seq) instead]");
  for (Value& item : to_vector(interpreter, value)) {
    total = binary(interpreter, BinaryOp::kAdd, total, path.get(interpreter, std::move(item)));
  }
  return total;
}

Value filter_unique(Interpreter& interpreter, const Value& value, Args& args) {
  const int depth = depth_of(value, args) + 1;
  const Params params("do_unique", args, {"case_sensitive", "attribute"});
  const bool case_sensitive = params.flag(0, false);
  const AttributePath path(interpreter.heap(), params.value(1, Value()));
  return make_deferred(interpreter, depth, [=](Interpreter& in) {
    std::map<size_t, std::vector<Value>> seen;
    std::vector<Value> distinct;
    for (Value& item : to_vector(in, value)) {
      Value key = path.get(in, item);
      if (!case_sensitive) key = ignore_case(in.heap(), key);
      auto& same_hash = seen[hash_value(key)];
      const bool is_new = std::none_of(same_hash.begin(), same_hash.end(),
                                       [&](const Value& other) { return equals(other, key); });
      if (!is_new) continue;
      same_hash.push_back(std::move(key));
      distinct.push_back(std::move(item));
    }
    return distinct;
  });
}

constexpr FilterEntry kFilters[] = {
    {"batch", filter_batch},     {"count", filter_length},    {"dictsort", filter_dictsort},
    {"first", filter_first},     {"groupby", filter_groupby}, {"items", filter_items},
    {"join", filter_join},       {"last", filter_last},       {"length", filter_length},
    {"list", filter_list},       {"map", filter_map},         {"max", filter_max},
    {"min", filter_min},         {"reject", filter_reject},   {"rejectattr", filter_rejectattr},
    {"reverse", filter_reverse}, {"select", filter_select},   {"selectattr", filter_selectattr},
    {"slice", filter_slice},     {"sort", filter_sort},       {"sum", filter_sum},
    {"unique", filter_unique},
};

}  // namespace

FilterFunction find_sequence_filter(std::string_view name) {
  return find_in(kFilters, name);
}

}  // namespace volley::jinja
