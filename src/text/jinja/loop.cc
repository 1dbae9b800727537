#include "text/jinja/loop.h"

#include "text/jinja/params.h"

namespace volley::jinja {
namespace {

// loop.cycle and loop.changed.
class LoopMethod final : public Function {
 public:
  LoopMethod(Heap* heap, Ref<Loop> loop, bool is_cycle)
      : Function(heap, is_cycle ? "cycle" : "changed"), loop_(std::move(loop)), cycle_(is_cycle) {}
  Value call(Interpreter& interpreter, Args args) override {
    return cycle_ ? loop_->cycle(std::move(args)) : loop_->changed(interpreter, std::move(args));
  }
  const char* type_name() const override { return "method"; }

 private:
  const Ref<Loop> loop_;
  const bool cycle_;
};

}  // namespace

Loop::Loop(Heap* heap, const Stmt& stmt, Ref<Scope> outer, Ref<Iterator> source,
           int64_t known_length, int depth0)
    : Function(heap, "loop"),
      stmt_(stmt),
      outer_(std::move(outer)),
      source_(std::move(source)),
      length_(known_length),
      depth0_(depth0) {
  depth_ = source_->depth() + 1;
  if (depth_ > heap->limits().max_value_depth) {
    fail_limit("values nested deeper than {} levels", heap->limits().max_value_depth);
  }
}

bool Loop::draw(Interpreter& interpreter, Value* item) {
  if (!counted_) return source_->next(interpreter, item);
  if (next_drawn_ >= drawn_.size()) return false;
  *item = std::move(drawn_[next_drawn_++]);
  return true;
}

bool Loop::peek(Interpreter& interpreter) {
  return !after_.missing() || draw(interpreter, &after_);
}

bool Loop::advance(Interpreter& interpreter, Value* item) {
  Value next;
  if (!after_.missing()) {
    next = std::move(after_);
  } else if (!draw(interpreter, &next)) {
    return false;
  }
  ++index0_;
  before_ = std::move(current_);
  current_ = next;
  *item = std::move(next);
  return true;
}

std::string Loop::description() const {
  const std::string total = length_ >= 0 ? std::to_string(length_) : "?";
  return fmt::format("<LoopContext {}/{}>", index0_ + 1, total);
}

int64_t Loop::length(Interpreter& interpreter) {
  if (length_ >= 0) return length_;
  for (Value item; source_->next(interpreter, &item);) {
    interpreter.heap().step();
    interpreter.heap().check_item_count(drawn_.size() + 1);
    drawn_.push_back(std::move(item));
  }
  counted_ = true;
  length_ = static_cast<int64_t>(drawn_.size()) + index0_ + 1 + (after_.missing() ? 0 : 1);
  return length_;
}

Value Loop::call(Interpreter& interpreter, Args args) {
  const Params params("loop", args, {"iterable"}, 1);
  if (!stmt_.recursive) {
    fail_type("The loop must have the 'recursive' marker to be called recursively.");
  }
  return interpreter.heap().str(interpreter.run_loop(stmt_, outer_, params.at(0), depth0_ + 1));
}

Value Loop::attribute(Interpreter& interpreter, std::string_view name) {
  Heap& heap = interpreter.heap();
  if (name == "index") return Value::integer(index0_ + 1);
  if (name == "index0") return Value::integer(index0_);
  if (name == "first") return Value::boolean(index0_ == 0);
  if (name == "last") return Value::boolean(!peek(interpreter));
  if (name == "length") return Value::integer(length(interpreter));
  if (name == "revindex") return Value::integer(length(interpreter) - index0_);
  if (name == "revindex0") return Value::integer(length(interpreter) - index0_ - 1);
  if (name == "depth") return Value::integer(depth0_ + 1);
  if (name == "depth0") return Value::integer(depth0_);
  if (name == "previtem") {
    return index0_ == 0 ? heap.undefined("there is no previous item") : before_;
  }
  if (name == "nextitem") {
    return peek(interpreter) ? after_ : heap.undefined("there is no next item");
  }
  if (name == "cycle" || name == "changed") {
    return Value::object(Kind::kFunction, new LoopMethod(&heap, Ref<Loop>(this), name == "cycle"));
  }
  return Value();
}

Value Loop::cycle(Args args) const {
  if (args.positional.empty()) fail_type("no items for cycling given");
  return args.positional[static_cast<size_t>(index0_) % args.positional.size()];
}

Value Loop::changed(Interpreter& interpreter, Args args) {
  Value value = interpreter.heap().tuple(std::move(args.positional));
  if (!last_changed_.missing() && equals(last_changed_, value)) return Value::boolean(false);
  last_changed_ = std::move(value);
  return Value::boolean(true);
}

}  // namespace volley::jinja
