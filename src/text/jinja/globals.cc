// Global functions: Jinja's own, and those that Hugging Face adds for chat templates.

#include <array>
#include <cstdlib>

#include "text/jinja/builtins.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/params.h"
#include "text/jinja/print.h"

namespace volley::jinja {
namespace {

// Range bounds past this could overflow when the range is sliced.
constexpr int64_t kMaxRangeBound = int64_t{1} << 60;

class GlobalFunction final : public Function {
 public:
  using Body = Value (*)(Interpreter&, Args&);
  GlobalFunction(Heap* heap, std::string_view function_name, Body body)
      : Function(heap, std::string(function_name)), body_(body) {}
  Value call(Interpreter& interpreter, Args args) override { return body_(interpreter, args); }

 private:
  const Body body_;
};

Value call_range(Interpreter& interpreter, Args& args) {
  const Params params("range", args, {"", "", ""}, 1);
  const bool one = !params.has(1);
  const int64_t start = one ? 0 : params.integer(0, 0);
  const int64_t stop = params.integer(one ? 0 : 1, 0);
  const int64_t step = params.integer(2, 1);
  if (step == 0) fail("ValueError", "range() arg 3 must not be zero");
  for (const int64_t bound : {start, stop, step}) {
    if (bound > kMaxRangeBound || bound < -kMaxRangeBound) {
      fail("OverflowError", "range() argument {} is too large", bound);
    }
  }
  Value range = interpreter.heap().range(start, stop, step);
  const int64_t limit = interpreter.heap().limits().max_range;
  if (range.range().size > limit) {
    fail("OverflowError", "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).",
         limit);
  }
  return range;
}

// The entries that dict(*args, **kwargs) would have.
std::vector<Dict::Entry> dict_entries(Interpreter& interpreter, Args& args) {
  std::vector<Dict::Entry> entries;
  if (args.positional.size() > 1) {
    fail_type("dict expected at most 1 argument, got {}", args.positional.size());
  }
  if (!args.positional.empty() && args.positional[0].is(Kind::kDict)) {
    entries = args.positional[0].dict().entries;
  } else if (!args.positional.empty()) {
    for (const Value& pair : to_vector(interpreter, args.positional[0])) {
      std::vector<Value> parts = to_vector(interpreter, pair);
      if (parts.size() != 2) {
        fail("ValueError", "dictionary update sequence element has length {}; 2 is required",
             parts.size());
      }
      entries.emplace_back(std::move(parts[0]), std::move(parts[1]));
    }
  }
  for (auto& [name, value] : args.named) {
    entries.emplace_back(interpreter.heap().str(name), std::move(value));
  }
  return entries;
}

Value call_dict(Interpreter& interpreter, Args& args) {
  return interpreter.heap().dict(dict_entries(interpreter, args));
}

Value call_namespace(Interpreter& interpreter, Args& args) {
  const Value entries = interpreter.heap().dict(dict_entries(interpreter, args));
  Value names = interpreter.make_namespace();
  interpreter.heap().charge(entries.dict().entries.size() * 64);
  for (const auto& [key, value] : entries.dict().entries) {
    if (!key.is(Kind::kStr)) continue;  // nothing could ever read it
    names.name_space().attributes.emplace_back(std::string(key.text()), value);
  }
  return names;
}

class Cycler final : public Function {
 public:
  Cycler(Heap* heap, Value items) : Function(heap, "cycler"), items_(std::move(items)) {
    depth_ = items_.depth() + 1;
  }
  bool callable() const override { return false; }
  const char* type_name() const override { return "Cycler"; }
  Value call(Interpreter&, Args) override { fail_type("'Cycler' object is not callable"); }
  Value attribute(Interpreter& interpreter, std::string_view attribute_name) override;
  Value next() {
    Value value = items_.items()[pos_];
    pos_ = (pos_ + 1) % items_.items().size();
    return value;
  }
  void reset() { pos_ = 0; }

 private:
  const Value items_;
  size_t pos_ = 0;
};

class CyclerMethod final : public Function {
 public:
  CyclerMethod(Heap* heap, Ref<Cycler> cycler, bool is_next)
      : Function(heap, is_next ? "next" : "reset"), cycler_(std::move(cycler)), next_(is_next) {}
  Value call(Interpreter&, Args args) override {
    const Params params("cycler", args, {});
    if (next_) return cycler_->next();
    cycler_->reset();
    return Value::none();
  }

 private:
  const Ref<Cycler> cycler_;
  const bool next_;
};

Value Cycler::attribute(Interpreter& interpreter, std::string_view attribute_name) {
  if (attribute_name == "current") return items_.items()[pos_];
  if (attribute_name == "items") return items_;
  if (attribute_name != "next" && attribute_name != "reset") return Value();
  return Value::object(Kind::kFunction, new CyclerMethod(&interpreter.heap(), Ref<Cycler>(this),
                                                         attribute_name == "next"));
}

Value call_cycler(Interpreter& interpreter, Args& args) {
  if (args.positional.empty()) fail("RuntimeError", "at least one item has to be provided");
  Heap& heap = interpreter.heap();
  return Value::object(Kind::kFunction, new Cycler(&heap, heap.tuple(std::move(args.positional))));
}

class Joiner final : public Function {
 public:
  Joiner(Heap* heap, Value separator) : Function(heap, "joiner"), separator_(std::move(separator)) {
    depth_ = separator_.depth() + 1;
  }
  const char* type_name() const override { return "Joiner"; }
  Value call(Interpreter& interpreter, Args args) override {
    const Params params("joiner", args, {});
    return std::exchange(used_, true) ? separator_ : interpreter.heap().str("");
  }

 private:
  const Value separator_;
  bool used_ = false;
};

Value call_joiner(Interpreter& interpreter, Args& args) {
  const Params params("joiner", args, {"sep"});
  Heap& heap = interpreter.heap();
  return Value::object(Kind::kFunction,
                       new Joiner(&heap, params.has(0) ? params.at(0) : heap.str(", ")));
}

Value call_raise_exception(Interpreter& interpreter, Args& args) {
  const Params params("raise_exception", args, {"message"}, 1);
  fail("TemplateError", "{}", to_str(interpreter.heap(), params.at(0)).text());
}

Value call_strftime_now(Interpreter& interpreter, Args& args) {
  const Params params("strftime_now", args, {"format"}, 1);
  const std::string format(params.text(0));
  if (format.empty()) return interpreter.heap().str("");
  if (format.size() > 1024) fail_limit("a date format of {} bytes", format.size());
  const std::tm now = interpreter.clock()();
  std::array<char, 32768> text;
  const size_t size = std::strftime(text.data(), text.size(), format.c_str(), &now);
  return interpreter.heap().str(std::string(text.data(), size));
}

Value call_lipsum(Interpreter&, Args&) {
  fail_unsupported("lipsum(): rendering has no source of chance");
}

struct GlobalEntry {
  std::string_view name;
  GlobalFunction::Body body;
};

constexpr GlobalEntry kGlobals[] = {
    {"cycler", call_cycler},       {"dict", call_dict},
    {"joiner", call_joiner},       {"lipsum", call_lipsum},
    {"namespace", call_namespace}, {"raise_exception", call_raise_exception},
    {"range", call_range},         {"strftime_now", call_strftime_now},
};

}  // namespace

Value make_global(Interpreter& interpreter, std::string_view name) {
  for (const GlobalEntry& entry : kGlobals) {
    if (entry.name != name) continue;
    return Value::object(Kind::kFunction,
                         new GlobalFunction(&interpreter.heap(), entry.name, entry.body));
  }
  return Value();
}

}  // namespace volley::jinja
