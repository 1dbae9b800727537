#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

constexpr size_t kIndexedDictSize = 8;

int deepest(const std::vector<Value>& values) {
  int depth = 0;
  for (const Value& value : values) depth = std::max(depth, value.depth());
  return depth;
}

int deepest(const std::vector<Dict::Entry>& entries) {
  int depth = 0;
  for (const auto& [key, value] : entries) depth = std::max({depth, key.depth(), value.depth()});
  return depth;
}

void check_depth(Heap* heap, int depth) {
  if (heap != nullptr && depth > heap->limits().max_value_depth) {
    fail_limit("values nested deeper than {} levels", heap->limits().max_value_depth);
  }
}

// True when `d` is an integer of 64 bits; then *i is it.
bool exact_integer(double d, int64_t* i) {
  if (!(d >= -9223372036854775808.0 && d < 9223372036854775808.0)) return false;
  *i = static_cast<int64_t>(d);
  return static_cast<double>(*i) == d;
}

bool number_equals(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.as_int() == b.as_int();
  if (a.is(Kind::kFloat) && b.is(Kind::kFloat)) return a.as_real() == b.as_real();
  const Value& real = a.is(Kind::kFloat) ? a : b;
  const Value& other = a.is(Kind::kFloat) ? b : a;
  int64_t i = 0;
  return exact_integer(real.as_real(), &i) && i == other.as_int();
}

bool sequence_equals(const std::vector<Value>& a, const std::vector<Value>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), equals);
}

bool dict_equals(const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  return std::all_of(a.entries.begin(), a.entries.end(), [&](const Dict::Entry& entry) {
    const Value* other = b.find(entry.first);
    return other != nullptr && equals(entry.second, *other);
  });
}

bool range_equals(const Range& a, const Range& b) {
  if (a.size != b.size) return false;
  if (a.size == 0) return true;
  return a.start == b.start && (a.size == 1 || a.step == b.step);
}

size_t mix(size_t seed, size_t hash) {
  return seed ^ (hash + 0x9e3779b97f4a7c15u + (seed << 6) + (seed >> 2));
}

// Keeps the values with equal keys that a dict display would keep. Sorting by hash bounds the time.
std::vector<Dict::Entry> distinct_entries(std::vector<Dict::Entry> entries) {
  std::vector<std::pair<size_t, size_t>> order;  // (hash, entry)
  order.reserve(entries.size());
  for (const auto& [key, value] : entries) order.emplace_back(hash_value(key), order.size());
  std::sort(order.begin(), order.end());
  std::vector<size_t> same_hash;  // first entries of the keys with the hash at hand
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && order[i].first != order[i - 1].first) same_hash.clear();
    Dict::Entry& later = entries[order[i].second];
    const auto earlier = std::find_if(same_hash.begin(), same_hash.end(), [&](size_t entry_idx) {
      return equals(entries[entry_idx].first, later.first);
    });
    if (earlier == same_hash.end()) {
      same_hash.push_back(order[i].second);
    } else {
      entries[*earlier].second = std::move(later.second);
      later.first = Value();  // marks the duplicate
    }
  }
  std::erase_if(entries, [](const Dict::Entry& entry) { return entry.first.missing(); });
  return entries;
}

}  // namespace

Object::Object(Heap* heap, size_t bytes) : heap_(nullptr), bytes_(bytes) {
  if (heap != nullptr) heap->charge(bytes);  // may throw: then nothing is owed
  heap_ = heap;
}

Object::~Object() {
  if (heap_ != nullptr) heap_->release(bytes_);
}

void Object::work(size_t steps) const {
  if (heap_ != nullptr) heap_->step(steps);
}

Str::Str(Heap* heap, std::string t, bool is_markup)
    : Object(heap, sizeof(Str) + t.size()),
      text(std::move(t)),
      num_chars(count_code_points(text)),
      ascii(num_chars == text.size()),
      markup(is_markup) {}

Sequence::Sequence(Heap* heap, std::vector<Value> values, bool is_group)
    : Object(heap, sizeof(Sequence) + values.size() * sizeof(Value)),
      items(std::move(values)),
      group(is_group) {
  depth_ = deepest(items) + 1;
  check_depth(heap, depth_);
}

Dict::Dict(Heap* heap, std::vector<Entry> pairs)
    : Object(heap, sizeof(Dict) + pairs.size() * (sizeof(Entry) + 32)), entries(std::move(pairs)) {
  depth_ = deepest(entries) + 1;
  check_depth(heap, depth_);
  if (entries.size() <= kIndexedDictSize) return;
  index_.reserve(entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    index_.emplace_back(hash_value(entries[i].first), static_cast<uint32_t>(i));
  }
  std::sort(index_.begin(), index_.end());
}

const Value* Dict::find(const Value& key) const {
  if (entries.size() <= kIndexedDictSize) {
    if (key.is(Kind::kStr)) return find(key.text());
    hash_value(key);  // an unhashable key is an error even when it would not be found
    for (const auto& [k, v] : entries) {
      if (equals(k, key)) return &v;
    }
    return nullptr;
  }
  const size_t hash = hash_value(key);
  auto it = std::lower_bound(index_.begin(), index_.end(), std::pair(hash, uint32_t{0}));
  for (; it != index_.end() && it->first == hash; ++it) {
    work(1);
    if (equals(entries[it->second].first, key)) return &entries[it->second].second;
  }
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  if (entries.size() <= kIndexedDictSize) {
    for (const auto& [k, v] : entries) {
      if (k.is(Kind::kStr) && k.text() == key) return &v;
    }
    return nullptr;
  }
  const size_t hash = std::hash<std::string_view>()(key);
  auto it = std::lower_bound(index_.begin(), index_.end(), std::pair(hash, uint32_t{0}));
  for (; it != index_.end() && it->first == hash; ++it) {
    work(1);
    const auto& [k, v] = entries[it->second];
    if (k.is(Kind::kStr) && k.text() == key) return &v;
  }
  return nullptr;
}

DictView::DictView(Heap* heap, Value dict, What w)
    : Object(heap, sizeof(DictView)), owner(std::move(dict)), what(w) {
  depth_ = owner.depth() + 1;
  check_depth(heap, depth_);
}

Range::Range(Heap* heap, int64_t begin, int64_t end, int64_t stride)
    : Object(heap, sizeof(Range)), start(begin), stop(end), step(stride), size([&] {
        const auto low = static_cast<__int128>(begin), high = static_cast<__int128>(end);
        const __int128 gap = stride > 0 ? high - low : low - high;
        const __int128 width =
            stride > 0 ? static_cast<__int128>(stride) : -static_cast<__int128>(stride);
        const __int128 count = gap <= 0 ? 0 : (gap + width - 1) / width;
        return static_cast<int64_t>(std::min<__int128>(count, std::numeric_limits<int64_t>::max()));
      }()) {}

Iterator::Iterator(Heap* heap, const char* name, int source_depth)
    : Object(heap, 160), type_name(name) {
  depth_ = source_depth + 1;
  check_depth(heap, depth_);
}

std::string Function::description() const {
  return fmt::format("<{} '{}'>", type_name(), name);
}

Value Function::attribute(Interpreter&, std::string_view) {
  return Value();
}

Value* Namespace::find(std::string_view name) {
  work(attributes.size() / 16);
  for (auto& [key, value] : attributes) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Namespace::set(std::string_view name, Value value) {
  if (Value* old = find(name)) {
    // The old value dies only after the new one is in place: its destructor may look here.
    std::swap(*old, value);
  } else {
    attributes.emplace_back(std::string(name), std::move(value));
  }
}

void Heap::fail_steps() const {
  fail_limit("the template needs more than {} steps", limits_.max_steps);
}

void Heap::fail_memory() const {
  fail_limit("the template's values need more than {} bytes", limits_.max_memory_bytes);
}

void Heap::check_string_size(size_t bytes) {
  if (bytes > limits_.max_value_bytes) {
    fail_limit("a string would have more than {} bytes", limits_.max_value_bytes);
  }
}

void Heap::check_item_count(size_t count) {
  if (count > limits_.max_items) {
    fail_limit("a list or dict would have more than {} items", limits_.max_items);
  }
}

Value Heap::str(std::string text, bool markup) {
  check_string_size(text.size());
  step(1 + text.size() / 16);
  return Value::object(Kind::kStr, new Str(this, std::move(text), markup));
}

Value Heap::list(std::vector<Value> items) {
  check_item_count(items.size());
  step(1 + items.size() / 4);
  return Value::object(Kind::kList, new Sequence(this, std::move(items)));
}

Value Heap::tuple(std::vector<Value> items, bool group) {
  check_item_count(items.size());
  step(1 + items.size() / 4);
  return Value::object(Kind::kTuple, new Sequence(this, std::move(items), group));
}

Value Heap::dict(std::vector<Dict::Entry> entries) {
  check_item_count(entries.size());
  step(1 + 2 * entries.size());
  auto distinct = distinct_entries(std::move(entries));
  return Value::object(Kind::kDict, new Dict(this, std::move(distinct)));
}

Value Heap::range(int64_t start, int64_t stop, int64_t step) {
  return Value::object(Kind::kRange, new Range(this, start, stop, step));
}

Value Heap::undefined(std::string message, const char* error_type) {
  return Value::object(Kind::kUndefined, new Undefined(this, std::move(message), error_type));
}

const char* type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kMissing:
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kStr:
      return value.str().markup ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return value.sequence().group ? "_GroupTuple" : "tuple";
    case Kind::kDict:
      return "dict";
    case Kind::kView:
      switch (value.view().what) {
        case DictView::What::kKeys:
          return "dict_keys";
        case DictView::What::kValues:
          return "dict_values";
        case DictView::What::kItems:
          return "dict_items";
      }
      return "dict_items";
    case Kind::kRange:
      return "range";
    case Kind::kIterator:
      return value.iterator().type_name;
    case Kind::kFunction:
      return value.function().type_name();
    case Kind::kNamespace:
      return "Namespace";
  }
  return "object";
}

bool equals(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return number_equals(a, b);
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kMissing:
    case Kind::kNone:
    case Kind::kUndefined:
      return true;
    case Kind::kStr:
      if (a.text().size() != b.text().size()) return false;
      a.as_object()->work(a.text().size() / 16);
      return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple:
      a.as_object()->work(1 + a.items().size());
      return a.as_object() == b.as_object() || sequence_equals(a.items(), b.items());
    case Kind::kDict:
      a.as_object()->work(1 + 2 * a.dict().entries.size());
      return a.as_object() == b.as_object() || dict_equals(a.dict(), b.dict());
    case Kind::kRange:
      return range_equals(a.range(), b.range());
    default:
      return a.as_object() == b.as_object();
  }
}

size_t hash_value(const Value& value) {
  switch (value.kind()) {
    case Kind::kBool:
    case Kind::kInt:
      return std::hash<int64_t>()(value.as_int());
    case Kind::kFloat: {
      int64_t i = 0;
      if (exact_integer(value.as_real(), &i)) return std::hash<int64_t>()(i);
      return std::hash<double>()(value.as_real());
    }
    case Kind::kStr:
      value.as_object()->work(value.text().size() / 16);
      return std::hash<std::string_view>()(value.text());
    case Kind::kTuple: {
      value.as_object()->work(1 + value.items().size());
      size_t seed = value.items().size();
      for (const Value& item : value.items()) seed = mix(seed, hash_value(item));
      return seed;
    }
    case Kind::kList:
    case Kind::kDict:
      fail_type("unhashable type: '{}'", type_name(value));
    case Kind::kMissing:
    case Kind::kNone:
    case Kind::kUndefined:
      return static_cast<size_t>(value.kind());
    default:
      return std::hash<Object*>()(value.as_object());
  }
}

}  // namespace volley::jinja
