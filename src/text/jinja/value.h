#pragma once

// Values of the template language: what Python objects a chat template can meet. A Value is 16
// bytes; everything larger than a number is a reference-counted Object, owned by one rendering and
// charged to its Heap. Objects are immutable once made, except namespaces, loop state and
// list.pop(), so that no cycle arises but through a namespace or a macro's scope (the interpreter
// breaks those when it ends).

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/failure.h"
#include "text/jinja/limits.h"

namespace volley::jinja {

class Heap;
class Interpreter;

// Counted by intrusive, not atomic, references: a rendering stays on its thread. Constants of a
// parsed template are shared by many threads; they are `immortal` and never counted.
class Object {
 public:
  Object(Heap* heap, size_t bytes);  // charges `bytes`; heap may be null (immortal constants)
  virtual ~Object();
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  void retain() {
    if (!immortal_) ++refs_;
  }
  void release() {
    if (!immortal_ && --refs_ == 0) delete this;
  }
  uint32_t refs() const { return refs_; }
  void make_immortal() { immortal_ = true; }
  int depth() const { return depth_; }
  // Counts work done on this object: comparing and hashing shared values can be exponential.
  void work(size_t steps) const;

 protected:
  // Nesting of values inside this one. Bounded, because destructors and printing recurse.
  int depth_ = 0;

 private:
  Heap* heap_;
  size_t bytes_;
  uint32_t refs_ = 0;
  bool immortal_ = false;
};

template <class T>
class Ref {
 public:
  Ref() = default;
  explicit Ref(T* object) : object_(object) {
    if (object_) object_->retain();
  }
  Ref(const Ref& other) : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_) object_->release();
  }
  T* get() const { return object_; }
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  T* object_ = nullptr;
};

enum class Kind : uint8_t {
  kMissing,  // no value at all: an unset variable, an argument not given
  kNone,
  kBool,
  kInt,
  kFloat,
  // From here on the payload is an Object.
  kUndefined,
  kStr,
  kList,
  kTuple,
  kDict,
  kView,  // dict.keys(), dict.values(), dict.items()
  kRange,
  kIterator,  // generators of lazy filters, reversed(...)
  kFunction,
  kNamespace,
};

struct Str;
struct Sequence;
struct Dict;
struct DictView;
struct Range;
struct Iterator;
struct Function;
struct Namespace;
struct Undefined;

class Value {
 public:
  Value() = default;
  static Value none() { return Value(Kind::kNone, 0); }
  static Value boolean(bool b) { return Value(Kind::kBool, b); }
  static Value integer(int64_t i) { return Value(Kind::kInt, i); }
  static Value real(double d) {
    Value value(Kind::kFloat, 0);
    value.real_ = d;
    return value;
  }
  static Value object(Kind kind, Object* object) {
    Value value(kind, 0);
    value.object_ = object;
    object->retain();
    return value;
  }

  Value(const Value& other) : kind_(other.kind_), int_(other.int_) {
    if (kind_ >= Kind::kUndefined) object_->retain();
  }
  Value(Value&& other) noexcept
      : kind_(std::exchange(other.kind_, Kind::kMissing)), int_(other.int_) {}
  Value& operator=(Value other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(int_, other.int_);
    return *this;
  }
  ~Value() {
    if (kind_ >= Kind::kUndefined) object_->release();
  }

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool missing() const { return kind_ == Kind::kMissing; }
  bool is_integral() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool is_number() const { return is_integral() || kind_ == Kind::kFloat; }
  bool is_sequence() const { return kind_ == Kind::kList || kind_ == Kind::kTuple; }

  // Unchecked: the caller has looked at kind().
  bool as_bool() const { return int_ != 0; }
  int64_t as_int() const { return int_; }  // of kInt and kBool
  double as_real() const { return kind_ == Kind::kFloat ? real_ : static_cast<double>(int_); }
  Object* as_object() const { return object_; }
  inline const Str& str() const;
  inline std::string_view text() const;
  inline const std::vector<Value>& items() const;  // list or tuple
  inline Sequence& sequence() const;
  inline const Dict& dict() const;
  inline const DictView& view() const;
  inline const Range& range() const;
  inline Iterator& iterator() const;
  inline Function& function() const;
  inline Namespace& name_space() const;
  inline const Undefined& undefined() const;
  int depth() const { return kind_ >= Kind::kUndefined ? object_->depth() : 0; }

 private:
  Value(Kind kind, int64_t i) : kind_(kind), int_(i) {}

  Kind kind_ = Kind::kMissing;
  union {
    int64_t int_ = 0;
    double real_;
    Object* object_;
  };
};

using Named = std::pair<std::string, Value>;

struct Args {
  std::vector<Value> positional;
  std::vector<Named> named;
};

struct Str : Object {
  Str(Heap* heap, std::string t, bool is_markup);
  const std::string text;
  const size_t num_chars;  // code points
  const bool ascii;
  const bool markup;  // made by `safe` or `escape`: markupsafe.Markup
};

struct Undefined : Object {
  Undefined(Heap* heap, std::string m, const char* e)
      : Object(heap, sizeof(Undefined) + m.size()), message(std::move(m)), error_type(e) {}
  const std::string message;     // said when the value is used
  const char* const error_type;  // "UndefinedError" or "SecurityError"
};

struct Sequence : Object {
  Sequence(Heap* heap, std::vector<Value> values, bool is_group = false);
  std::vector<Value> items;
  const bool group;  // what groupby yields: a tuple with the names `grouper` and `list`
};

// Insertion order, Python's equality of keys (1, 1.0 and True are one key).
struct Dict : Object {
  using Entry = std::pair<Value, Value>;
  Dict(Heap* heap, std::vector<Entry> pairs);  // keys already distinct
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  const std::vector<Entry> entries;

 private:
  // (hash, entry), sorted, when there are many: unlike a hash table it has no slow worst case.
  std::vector<std::pair<size_t, uint32_t>> index_;
};

struct DictView : Object {
  enum class What : uint8_t { kKeys, kValues, kItems };
  DictView(Heap* heap, Value dict, What w);
  const Value owner;  // the dict
  const What what;
};

struct Range : Object {
  Range(Heap* heap, int64_t begin, int64_t end, int64_t stride);
  int64_t at(int64_t i) const { return start + i * step; }
  const int64_t start, stop, step;
  const int64_t size;
};

// A one-way stream, drained by whoever reads it, like a Python iterator.
struct Iterator : Object {
  Iterator(Heap* heap, const char* name, int source_depth);
  virtual bool next(Interpreter& interpreter, Value* out) = 0;
  const char* const type_name;
};

// Whatever can be called: macros, global functions, bound methods; and the objects of the engine
// with attributes of their own: `loop`, cyclers.
struct Function : Object {
  Function(Heap* heap, std::string n) : Object(heap, 128 + n.size()), name(std::move(n)) {}
  virtual Value call(Interpreter& interpreter, Args args) = 0;
  virtual const char* type_name() const { return "builtin_function_or_method"; }
  virtual bool callable() const { return true; }
  virtual std::string description() const;  // repr()
  // kMissing when there is no such attribute.
  virtual Value attribute(Interpreter& interpreter, std::string_view attribute_name);
  const std::string name;
};

struct Namespace : Object {
  explicit Namespace(Heap* heap) : Object(heap, sizeof(Namespace)) {}
  Value* find(std::string_view name);
  void set(std::string_view name, Value value);
  std::vector<Named> attributes;
};

// The resources of one rendering: every object is made here, every bit of work is counted here.
class Heap {
 public:
  explicit Heap(const JinjaLimits& limits) : limits_(limits) {}
  const JinjaLimits& limits() const { return limits_; }

  void step(uint64_t count = 1) {
    steps_ += count;
    if (steps_ > limits_.max_steps) [[unlikely]]
      fail_steps();
  }
  void step_bytes(size_t bytes) { step(bytes / 16); }
  void charge(size_t bytes) {
    live_bytes_ += bytes;
    if (live_bytes_ > limits_.max_memory_bytes) [[unlikely]]
      fail_memory();
  }
  void release(size_t bytes) noexcept { live_bytes_ -= bytes; }
  // Called before a string or list of that size is made.
  void check_string_size(size_t bytes);
  void check_item_count(size_t count);

  Value str(std::string text, bool markup = false);
  Value str_view(std::string_view text, bool markup = false) {
    return str(std::string(text), markup);
  }
  Value list(std::vector<Value> items);
  Value tuple(std::vector<Value> items, bool group = false);
  // Later values of equal keys replace earlier ones, at the earlier place.
  Value dict(std::vector<Dict::Entry> entries);
  Value range(int64_t start, int64_t stop, int64_t step);
  Value undefined(std::string message, const char* error_type = "UndefinedError");

 private:
  [[noreturn]] void fail_steps() const;
  [[noreturn]] void fail_memory() const;

  const JinjaLimits limits_;
  uint64_t steps_ = 0;
  size_t live_bytes_ = 0;
};

// A string that grows under the heap's limit.
class StringBuilder {
 public:
  explicit StringBuilder(Heap& heap) : heap_(heap) {}
  void append(std::string_view text) {
    heap_.check_string_size(text_.size() + text.size());
    heap_.step_bytes(text.size());
    text_.append(text);
  }
  void append(size_t count, char c) {
    heap_.check_string_size(text_.size() + count);
    heap_.step_bytes(count);
    text_.append(count, c);
  }
  std::string& text() { return text_; }
  Value finish(bool markup = false) { return heap_.str(std::move(text_), markup); }

 private:
  Heap& heap_;
  std::string text_;
};

inline const Str& Value::str() const {
  return *static_cast<const Str*>(object_);
}
inline std::string_view Value::text() const {
  return str().text;
}
inline Sequence& Value::sequence() const {
  return *static_cast<Sequence*>(object_);
}
inline const std::vector<Value>& Value::items() const {
  return sequence().items;
}
inline const Dict& Value::dict() const {
  return *static_cast<const Dict*>(object_);
}
inline const DictView& Value::view() const {
  return *static_cast<const DictView*>(object_);
}
inline const Range& Value::range() const {
  return *static_cast<const Range*>(object_);
}
inline Iterator& Value::iterator() const {
  return *static_cast<Iterator*>(object_);
}
inline Function& Value::function() const {
  return *static_cast<Function*>(object_);
}
inline Namespace& Value::name_space() const {
  return *static_cast<Namespace*>(object_);
}
inline const Undefined& Value::undefined() const {
  return *static_cast<const Undefined*>(object_);
}

// Python's names: "str", "list", "dict_items", ...
const char* type_name(const Value& value);

// Equality and hashing of Python values; both fail on values nested past the limit only.
bool equals(const Value& a, const Value& b);
size_t hash_value(const Value& value);  // TypeError for unhashable values

}  // namespace volley::jinja
