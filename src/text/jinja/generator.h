#pragma once

// Python generators, for the filters that are lazy in Jinja.

#include <functional>
#include <utility>

#include "text/jinja/interpreter.h"

namespace volley::jinja {

class Generator final : public Iterator {
 public:
  using Next = std::function<bool(Interpreter&, Value*)>;
  Generator(Heap* heap, const char* name, int source_depth, Next next)
      : Iterator(heap, name, source_depth), next_(std::move(next)) {}
  bool next(Interpreter& interpreter, Value* out) override {
    const Interpreter::Level level(interpreter);
    return next_(interpreter, out);
  }

 private:
  Next next_;
};

inline int depth_of(const Value& value, const Args& args) {
  int depth = value.depth();
  for (const Value& arg : args.positional) depth = std::max(depth, arg.depth());
  for (const auto& [name, arg] : args.named) depth = std::max(depth, arg.depth());
  return depth;
}

inline Value make_generator(Interpreter& interpreter, int source_depth, Generator::Next next,
                            const char* name = "generator") {
  return Value::object(Kind::kIterator,
                       new Generator(&interpreter.heap(), name, source_depth, std::move(next)));
}

// All items are computed when the first one is asked for.
template <class Compute>
Value make_deferred(Interpreter& interpreter, int source_depth, Compute compute,
                    const char* name = "generator") {
  struct State {
    std::vector<Value> items;
    size_t next = 0;
    bool ready = false;
  };
  return make_generator(
      interpreter, source_depth,
      [compute, state = State()](Interpreter& in, Value* out) mutable {
        if (!std::exchange(state.ready, true)) state.items = compute(in);
        if (state.next >= state.items.size()) return false;
        *out = std::move(state.items[state.next++]);
        return true;
      },
      name);
}

}  // namespace volley::jinja
