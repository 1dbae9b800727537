#include "text/jinja/interpreter.h"

#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {

Value* Scope::find(Symbol symbol) {
  if (!slots.empty()) return slots[symbol].missing() ? nullptr : &slots[symbol];
  work(variables.size() / 16);
  for (auto& [name, value] : variables) {
    if (name == symbol) return &value;
  }
  return nullptr;
}

void Scope::set(Symbol symbol, Value value) {
  if (!slots.empty()) {
    std::swap(slots[symbol], value);
  } else if (Value* old = find(symbol)) {
    std::swap(*old, value);
  } else {
    variables.emplace_back(symbol, std::move(value));
  }
}

Interpreter::Interpreter(const Program& program, const JinjaLimits& limits, const Clock& clock)
    : program_(program), clock_(clock), heap_(limits) {}

// Namespaces and the scopes that macros refer to are emptied while all of them are still alive, so
// that cycles break and no destructor runs deep.
Interpreter::~Interpreter() {
  for (const auto& names : namespaces_) {
    std::vector<Named> attributes;
    attributes.swap(names->attributes);
  }
  for (const auto& scope : captured_scopes_) {
    std::vector<std::pair<Symbol, Value>> variables;
    variables.swap(scope->variables);
    std::vector<Value> slots;
    slots.swap(scope->slots);
  }
}

std::string Interpreter::render(const Json& context) {
  std::string text;
  out_ = &text;
  try {
    globals_.resize(program_.symbols.size());
    for (size_t i = 0; i < globals_.size(); ++i) {
      const auto given = context.find(program_.symbols[i]);
      globals_[i] = given != context.end() ? value_from_json(heap_, *given)
                                           : make_global(*this, program_.symbols[i]);
    }
    scope_ = Ref<Scope>(new Scope(&heap_, Ref<Scope>()));
    scope_->slots.resize(program_.symbols.size());
    captured_scopes_.push_back(scope_);
    run(program_.body);
  } catch (Failure& failure) {
    if (failure.line == 0) failure.line = line_;
    throw;
  }
  return text;
}

void Interpreter::fail_recursion() {
  fail_limit("evaluation nested deeper than {} levels (endless recursion?)",
             heap_.limits().max_recursion);
}

void Interpreter::write(std::string_view text) {
  if (out_->size() + text.size() > heap_.limits().max_output_bytes) {
    fail_limit("the template writes more than {} bytes", heap_.limits().max_output_bytes);
  }
  heap_.step_bytes(text.size());
  out_->append(text);
}

void Interpreter::write_value(const Value& value) {
  if (value.is(Kind::kStr)) return write(value.text());
  if (value.is(Kind::kUndefined)) return;
  StringBuilder text(heap_);
  append_str(&text, value);
  write(text.text());
}

Value Interpreter::make_namespace() {
  Ref<Namespace> names(new Namespace(&heap_));
  namespaces_.push_back(names);
  return Value::object(Kind::kNamespace, names.get());
}

Value Interpreter::call(const Value& callee, Args args) {
  require_defined(callee);
  if (!callee.is(Kind::kFunction) || !callee.function().callable()) {
    fail_type("'{}' object is not callable", type_name(callee));
  }
  const Level level(*this);
  heap_.step();
  const Value keep = callee;  // the callee may drop the last other reference to itself
  return keep.function().call(*this, std::move(args));
}

Value Interpreter::call_filter(std::string_view name, const Value& value, Args args) {
  const FilterFunction filter = find_filter(name);
  if (filter == nullptr) fail("TemplateRuntimeError", "No filter named {}.", repr(name));
  const Level level(*this);
  heap_.step();
  return filter(*this, value, args);
}

bool Interpreter::call_test(std::string_view name, const Value& value, Args args) {
  const TestFunction test = find_test(name);
  if (test == nullptr) fail("TemplateRuntimeError", "No test named {}.", repr(name));
  const Level level(*this);
  heap_.step();
  return test(*this, value, args);
}

std::vector<Value> Interpreter::eval_all(const std::vector<ExprPtr>& exprs) {
  std::vector<Value> values;
  values.reserve(exprs.size());
  for (const ExprPtr& expr : exprs) values.push_back(eval(*expr));
  return values;
}

Args Interpreter::eval_args(const CallArgs& call) {
  Args args;
  args.positional = eval_all(call.positional);
  for (const auto& [name, expr] : call.named) args.named.emplace_back(name, eval(*expr));
  if (call.star != nullptr) {
    for (Value& value : to_vector(*this, eval(*call.star))) {
      args.positional.push_back(std::move(value));
    }
  }
  if (call.double_star != nullptr) {
    const Value more = eval(*call.double_star);
    require_defined(more);
    if (!more.is(Kind::kDict)) fail_type("argument after ** must be a mapping");
    heap_.step(more.dict().entries.size());
    for (const auto& [key, value] : more.dict().entries) {
      if (!key.is(Kind::kStr)) fail_type("keywords must be strings");
      args.named.emplace_back(std::string(key.text()), value);
    }
  }
  return args;
}

Value Interpreter::lookup(Symbol symbol) {
  for (Scope* scope = scope_.get(); scope != nullptr; scope = scope->parent.get()) {
    if (const Value* found = scope->find(symbol)) return *found;
  }
  return globals_[symbol];
}

Value Interpreter::eval_name(const Expr& expr) {
  Value value = lookup(expr.symbol);
  if (!value.missing()) return value;
  return heap_.undefined(fmt::format("{} is undefined", repr(program_.symbols[expr.symbol])));
}

Value Interpreter::eval(const Expr& expr) {
  heap_.step();
  if (expr.kind == ExprKind::kConst) return expr.value;
  if (expr.kind == ExprKind::kName) return eval_name(expr);
  const Level level(*this);
  return eval_level(expr);
}

// Everything but leaves. Each case stays small: this frame is repeated for every level.
Value Interpreter::eval_level(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kTuple:
      return heap_.tuple(eval_all(expr.kids));
    case ExprKind::kList:
      return heap_.list(eval_all(expr.kids));
    case ExprKind::kDict:
      return eval_dict(expr);
    case ExprKind::kAttribute: {
      const Value owner = eval(*expr.kids[0]);
      line_ = expr.line;
      return get_attribute(*this, owner, expr.value);
    }
    case ExprKind::kItem: {
      const Value owner = eval(*expr.kids[0]);
      const Value key = eval(*expr.kids[1]);
      line_ = expr.line;
      return get_item(*this, owner, key);
    }
    case ExprKind::kSlice:
      return eval_slice(expr);
    case ExprKind::kCall:
      return eval_call(expr);
    case ExprKind::kFilter:
      return eval_filter(expr, nullptr);
    case ExprKind::kTest:
      return eval_test(expr);
    case ExprKind::kNot:
      return Value::boolean(!truth(eval(*expr.kids[0])));
    case ExprKind::kNegate:
      return negate(eval(*expr.kids[0]));
    case ExprKind::kPlus:
      return unary_plus(eval(*expr.kids[0]));
    case ExprKind::kAnd: {
      Value left = eval(*expr.kids[0]);
      return truth(left) ? eval(*expr.kids[1]) : left;
    }
    case ExprKind::kOr: {
      Value left = eval(*expr.kids[0]);
      return truth(left) ? left : eval(*expr.kids[1]);
    }
    case ExprKind::kBinary: {
      const Value left = eval(*expr.kids[0]);
      const Value right = eval(*expr.kids[1]);
      line_ = expr.line;
      return binary(*this, expr.binary_op, left, right);
    }
    case ExprKind::kConcat:
      return eval_concat(expr);
    case ExprKind::kCompare:
      return eval_compare(expr);
    case ExprKind::kConditional:
      return eval_conditional(expr);
    default:
      return expr.value;
  }
}

Value Interpreter::eval_concat(const Expr& expr) {
  StringBuilder text(heap_);
  for (const Value& value : eval_all(expr.kids)) append_str(&text, value);
  return text.finish();
}

Value Interpreter::eval_compare(const Expr& expr) {
  Value left = eval(*expr.kids[0]);
  for (size_t i = 0; i < expr.compare_ops.size(); ++i) {
    Value right = eval(*expr.kids[i + 1]);
    line_ = expr.line;
    if (!compare(*this, expr.compare_ops[i], left, right)) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::eval_dict(const Expr& expr) {
  std::vector<Dict::Entry> entries;
  entries.reserve(expr.kids.size() / 2);
  for (size_t i = 0; i < expr.kids.size(); i += 2) {
    Value key = eval(*expr.kids[i]);
    entries.emplace_back(std::move(key), eval(*expr.kids[i + 1]));
  }
  return heap_.dict(std::move(entries));
}

Value Interpreter::eval_conditional(const Expr& expr) {
  if (truth(eval(*expr.kids[0]))) return eval(*expr.kids[1]);
  if (expr.kids[2] != nullptr) return eval(*expr.kids[2]);
  return heap_.undefined(
      fmt::format("the inline if-expression on line {} evaluated to false and no else section was "
                  "defined.",
                  expr.line));
}

Value Interpreter::eval_slice(const Expr& expr) {
  const Value owner = eval(*expr.kids[0]);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    bounds[i] = expr.kids[i + 1] != nullptr ? eval(*expr.kids[i + 1]) : Value::none();
  }
  line_ = expr.line;
  return slice(*this, owner, bounds[0], bounds[1], bounds[2]);
}

Value Interpreter::eval_call(const Expr& expr) {
  const Value callee = eval(*expr.kids[0]);
  Args args = eval_args(*expr.call);
  line_ = expr.line;
  return call(callee, std::move(args));
}

// `block_text` is the value when the chain of filters starts at a block.
Value Interpreter::eval_filter(const Expr& expr, const Value* block_text) {
  const Expr* inner = expr.kids[0].get();
  Value value;
  if (inner == nullptr) {
    value = *block_text;
  } else if (block_text != nullptr && inner->kind == ExprKind::kFilter) {
    const Level level(*this);
    value = eval_filter(*inner, block_text);
  } else {
    value = eval(*inner);
  }
  Args args = eval_args(*expr.call);
  line_ = expr.line;
  if (expr.filter == nullptr) {
    fail("TemplateRuntimeError", "No filter named {} found.", repr(expr.name));
  }
  return expr.filter(*this, value, args);
}

Value Interpreter::eval_test(const Expr& expr) {
  const Value value = eval(*expr.kids[0]);
  Args args = eval_args(*expr.call);
  line_ = expr.line;
  if (expr.test == nullptr) {
    fail("TemplateRuntimeError", "No test named {} found.", repr(expr.name));
  }
  return Value::boolean(expr.test(*this, value, args));
}

Value value_from_json(Heap& heap, const Json& json) {
  heap.step();
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto number = json.get<uint64_t>();
      if (number > static_cast<uint64_t>(INT64_MAX)) {
        return Value::real(static_cast<double>(number));
      }
      return Value::integer(static_cast<int64_t>(number));
    }
    case Json::value_t::number_float:
      return Value::real(json.get<double>());
    case Json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      return heap.str(is_valid_utf8(text) ? text : replace_invalid_utf8(text));
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& item : json) items.push_back(value_from_json(heap, item));
      return heap.list(std::move(items));
    }
    case Json::value_t::object: {
      std::vector<Dict::Entry> entries;
      for (const auto& [key, value] : json.items()) {
        entries.emplace_back(value_from_json(heap, Json(key)), value_from_json(heap, value));
      }
      return heap.dict(std::move(entries));
    }
    default:
      return Value::none();
  }
}

}  // namespace volley::jinja
