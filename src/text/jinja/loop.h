#pragma once

// The `loop` variable of a for statement, and the iteration behind it.

#include "text/jinja/interpreter.h"

namespace volley::jinja {

class Loop final : public Function {
 public:
  // `known_length` is -1 when the items must be counted by drawing them.
  Loop(Heap* heap, const Stmt& stmt, Ref<Scope> outer, Ref<Iterator> source, int64_t known_length,
       int depth0);

  // Goes on to the next item; false after the last one.
  bool advance(Interpreter& interpreter, Value* item);

  Value call(Interpreter& interpreter, Args args) override;  // recursion into nested items
  const char* type_name() const override { return "LoopContext"; }
  std::string description() const override;
  Value attribute(Interpreter& interpreter, std::string_view attribute_name) override;

  Value cycle(Args args) const;
  Value changed(Interpreter& interpreter, Args args);

 private:
  bool draw(Interpreter& interpreter, Value* item);
  bool peek(Interpreter& interpreter);
  int64_t length(Interpreter& interpreter);

  const Stmt& stmt_;
  const Ref<Scope> outer_;
  const Ref<Iterator> source_;
  std::vector<Value> drawn_;  // drawn ahead to count them
  size_t next_drawn_ = 0;
  bool counted_ = false;
  Value after_, current_, before_, last_changed_;
  int64_t index0_ = -1;
  int64_t length_;
  const int depth0_;
};

}  // namespace volley::jinja
