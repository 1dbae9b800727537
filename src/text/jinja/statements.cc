// The statements of the interpreter: control flow, assignment, macros and blocks.

#include <algorithm>

#include "text/jinja/interpreter.h"
#include "text/jinja/loop.h"
#include "text/jinja/print.h"

namespace volley::jinja {
namespace {

// A macro together with the scope it was defined in.
class Macro final : public Function {
 public:
  Macro(Heap* heap, const MacroNode& node, Ref<Scope> scope)
      : Function(heap, node.name), node_(node), scope_(std::move(scope)) {}

  Value call(Interpreter& interpreter, Args args) override {
    return interpreter.call_macro(node_, scope_, std::move(args));
  }
  const char* type_name() const override { return "Macro"; }
  Value attribute(Interpreter& interpreter, std::string_view attribute_name) override {
    Heap& heap = interpreter.heap();
    if (attribute_name == "name") return heap.str_view(name);
    if (attribute_name == "caller") return Value::boolean(node_.uses_caller);
    if (attribute_name == "catch_kwargs") return Value::boolean(node_.uses_kwargs);
    if (attribute_name == "catch_varargs") return Value::boolean(node_.uses_varargs);
    if (attribute_name != "arguments") return Value();
    std::vector<Value> names;
    for (const std::string& parameter : node_.parameter_names) {
      names.push_back(heap.str_view(parameter));
    }
    return heap.tuple(std::move(names));
  }

 private:
  const MacroNode& node_;
  const Ref<Scope> scope_;
};

// Items of a loop with a condition, tested one by one as the loop asks for them.
class FilteredItems final : public Iterator {
 public:
  FilteredItems(Heap* heap, const Stmt& loop, Ref<Scope> outer, Ref<Iterator> items)
      : Iterator(heap, "generator", items->depth()),
        loop_(loop),
        outer_(std::move(outer)),
        items_(std::move(items)) {}
  bool next(Interpreter& interpreter, Value* out) override {
    const Interpreter::Level level(interpreter);
    while (items_->next(interpreter, out)) {
      interpreter.heap().step();
      if (interpreter.passes_loop_filter(loop_, outer_, *out)) return true;
    }
    return false;
  }

 private:
  const Stmt& loop_;
  const Ref<Scope> outer_;
  const Ref<Iterator> items_;
};

// Takes the value named `name` out of `args`; kMissing if it is not there.
Value take_named(Args* args, std::string_view name) {
  const auto found = std::find_if(args->named.begin(), args->named.end(),
                                  [&](const Named& named) { return named.first == name; });
  if (found == args->named.end()) return Value();
  Value value = std::move(found->second);
  args->named.erase(found);
  return value;
}

Value named_as_dict(Heap& heap, std::vector<Named> named) {
  std::vector<Dict::Entry> entries;
  for (auto& [name, value] : named) entries.emplace_back(heap.str(name), std::move(value));
  return heap.dict(std::move(entries));
}

}  // namespace

// Makes `scope` current while it lives.
class ScopeSwitch {
 public:
  ScopeSwitch(Ref<Scope>* current, Ref<Scope> scope)
      : current_(current), outer_(std::exchange(*current, std::move(scope))) {}
  ~ScopeSwitch() { *current_ = std::move(outer_); }
  ScopeSwitch(const ScopeSwitch&) = delete;
  ScopeSwitch& operator=(const ScopeSwitch&) = delete;

 private:
  Ref<Scope>* current_;
  Ref<Scope> outer_;
};

Interpreter::Flow Interpreter::run(const std::vector<StmtPtr>& body) {
  for (const StmtPtr& stmt : body) {
    heap_.step();
    if (const Flow flow = run_statement(*stmt); flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::run_statement(const Stmt& stmt) {
  line_ = stmt.line;
  if (stmt.kind == StmtKind::kText) {
    write(stmt.text);
    return Flow::kNormal;
  }
  const Level level(*this);
  switch (stmt.kind) {
    case StmtKind::kPrint:
      for (const ExprPtr& expr : stmt.exprs) write_value(eval(*expr));
      return Flow::kNormal;
    case StmtKind::kIf:
      return run_if(stmt);
    case StmtKind::kFor:
      run_for(stmt);
      return Flow::kNormal;
    case StmtKind::kSet:
      run_set(stmt);
      return Flow::kNormal;
    case StmtKind::kSetBlock:
      run_set_block(stmt);
      return Flow::kNormal;
    case StmtKind::kMacro:
      run_macro(stmt);
      return Flow::kNormal;
    case StmtKind::kCallBlock:
      run_call_block(stmt);
      return Flow::kNormal;
    case StmtKind::kFilterBlock:
      run_filter_block(stmt);
      return Flow::kNormal;
    case StmtKind::kWith:
      return run_with(stmt);
    case StmtKind::kScoped: {
      const Ref<Scope> root = captured_scopes_[0];
      return run_scoped(stmt, stmt.recursive ? scope_ : root);
    }
    case StmtKind::kGeneration:
      return run_scoped(stmt, scope_);
    case StmtKind::kBreak:
      return Flow::kBreak;
    default:
      return Flow::kContinue;
  }
}

Interpreter::Flow Interpreter::run_if(const Stmt& stmt) {
  for (const Stmt::Branch& branch : stmt.branches) {
    if (truth(eval(*branch.condition))) return run(branch.body);
  }
  return run(stmt.else_body);
}

void Interpreter::run_for(const Stmt& stmt) {
  const Value items = eval(*stmt.exprs[0]);
  line_ = stmt.line;
  loop_over(stmt, scope_, items, 0);
}

std::string Interpreter::run_loop(const Stmt& loop, const Ref<Scope>& outer, const Value& items,
                                  int depth0) {
  Capture capture(*this);
  const ScopeSwitch in_outer(&scope_, outer);
  loop_over(loop, outer, items, depth0);
  return capture.take();
}

bool Interpreter::passes_loop_filter(const Stmt& loop, const Ref<Scope>& outer, const Value& item) {
  const ScopeSwitch in_test(&scope_, Ref<Scope>(new Scope(&heap_, outer)));
  assign(*loop.target, item);
  return truth(eval(*loop.condition));
}

void Interpreter::loop_over(const Stmt& stmt, const Ref<Scope>& outer, const Value& items,
                            int depth0) {
  Ref<Iterator> source = iterate(*this, items);
  int64_t known_length = -1;
  if (stmt.condition != nullptr) {
    source = Ref<Iterator>(new FilteredItems(&heap_, stmt, outer, std::move(source)));
  } else if (!items.is(Kind::kIterator)) {
    known_length = length(items);
  }
  const Ref<Loop> loop(new Loop(&heap_, stmt, outer, std::move(source), known_length, depth0));
  const Value loop_value = Value::object(Kind::kFunction, loop.get());
  Ref<Scope> scope(new Scope(&heap_, outer));
  bool run_else = true;
  for (Value item; loop->advance(*this, &item);) {
    heap_.step();
    if (scope->refs() > 1) {  // a macro of the last round still refers to it
      scope = Ref<Scope>(new Scope(&heap_, outer));
    }
    scope->clear();
    const ScopeSwitch in_body(&scope_, scope);
    assign(*stmt.target, std::move(item));
    scope->set(stmt.loop_symbol, loop_value);
    const Flow flow = run(stmt.body);
    if (flow == Flow::kBreak) break;
    // As jinja2 3.1 has it: rounds that end in break or continue do not keep `else` from running.
    if (flow == Flow::kNormal) run_else = false;
  }
  if (!run_else || stmt.else_body.empty()) return;
  const ScopeSwitch in_else(&scope_, Ref<Scope>(new Scope(&heap_, outer)));
  run(stmt.else_body);
}

void Interpreter::run_set(const Stmt& stmt) {
  const bool in_namespace = stmt.target->kind == ExprKind::kNamespaceRef;
  Value target;
  if (in_namespace) {
    target = lookup(stmt.target->symbol);
    if (!target.is(Kind::kNamespace)) {
      fail("TemplateRuntimeError", "cannot assign attribute on non-namespace object");
    }
  }
  Value value = eval(*stmt.exprs[0]);
  line_ = stmt.line;
  if (in_namespace) {
    target.name_space().set(stmt.target->name, std::move(value));
  } else {
    assign(*stmt.target, std::move(value));
  }
}

void Interpreter::run_set_block(const Stmt& stmt) {
  Value text = heap_.str(captured_body(stmt.body));
  if (stmt.condition != nullptr) text = eval_filter(*stmt.condition, &text);
  assign(*stmt.target, std::move(text));
}

std::string Interpreter::captured_body(const std::vector<StmtPtr>& body) {
  Capture capture(*this);
  const ScopeSwitch in_body(&scope_, Ref<Scope>(new Scope(&heap_, scope_)));
  run(body);
  return capture.take();
}

void Interpreter::assign(const Expr& target, Value value) {
  switch (target.kind) {
    case ExprKind::kName:
      return scope_->set(target.symbol, std::move(value));
    case ExprKind::kTuple:
      return assign_tuple(target, value);
    default: {
      const Value names = lookup(target.symbol);
      if (!names.is(Kind::kNamespace)) {
        fail("TemplateRuntimeError", "cannot assign attribute on non-namespace object");
      }
      names.name_space().set(target.name, std::move(value));
    }
  }
}

void Interpreter::assign_tuple(const Expr& target, const Value& value) {
  if (!value.is_sequence() && !value.is(Kind::kUndefined)) {
    if (value.is_number() || value.is(Kind::kNone) || value.is(Kind::kNamespace) ||
        value.is(Kind::kFunction)) {
      fail_type("cannot unpack non-iterable {} object", type_name(value));
    }
  }
  const Ref<Iterator> source = iterate(*this, value);
  std::vector<Value> items;
  for (Value item; items.size() <= target.kids.size() && source->next(*this, &item);) {
    items.push_back(std::move(item));
  }
  if (items.size() < target.kids.size()) {
    fail("ValueError", "not enough values to unpack (expected {}, got {})", target.kids.size(),
         items.size());
  }
  if (items.size() > target.kids.size()) {
    fail("ValueError", "too many values to unpack (expected {})", target.kids.size());
  }
  for (size_t i = 0; i < items.size(); ++i) assign(*target.kids[i], std::move(items[i]));
}

void Interpreter::run_macro(const Stmt& stmt) {
  Value macro = Value::object(Kind::kFunction, new Macro(&heap_, *stmt.macro, scope_));
  captured_scopes_.push_back(scope_);
  heap_.charge(64);
  scope_->set(stmt.macro->symbol, std::move(macro));
}

void Interpreter::run_call_block(const Stmt& stmt) {
  const Expr& call_expr = *stmt.exprs[0];
  const Value callee = eval(*call_expr.kids[0]);
  Args args = eval_args(*call_expr.call);
  const Ref<Macro> caller(new Macro(&heap_, *stmt.macro, scope_));
  args.named.emplace_back("caller", Value::object(Kind::kFunction, caller.get()));
  line_ = call_expr.line;
  write_value(call(callee, std::move(args)));
  if (caller->refs() > 1) {  // someone kept it
    captured_scopes_.push_back(scope_);
    heap_.charge(64);
  }
}

void Interpreter::run_filter_block(const Stmt& stmt) {
  const Value text = heap_.str(captured_body(stmt.body));
  write_value(eval_filter(*stmt.exprs[0], &text));
}

Interpreter::Flow Interpreter::run_with(const Stmt& stmt) {
  std::vector<Value> values = eval_all(stmt.exprs);
  const ScopeSwitch in_with(&scope_, Ref<Scope>(new Scope(&heap_, scope_)));
  for (size_t i = 0; i < values.size(); ++i) assign(*stmt.targets[i], std::move(values[i]));
  return run(stmt.body);
}

Interpreter::Flow Interpreter::run_scoped(const Stmt& stmt, Ref<Scope> parent) {
  const ScopeSwitch in_block(&scope_, Ref<Scope>(new Scope(&heap_, std::move(parent))));
  return run(stmt.body);
}

Value Interpreter::call_macro(const MacroNode& macro, const Ref<Scope>& defined_in, Args args) {
  const size_t num_parameters = macro.parameters.size();
  const size_t num_given = std::min(args.positional.size(), num_parameters);
  const ScopeSwitch in_macro(&scope_, Ref<Scope>(new Scope(&heap_, defined_in)));
  bool found_caller = macro.explicit_caller && num_given == num_parameters;
  std::vector<Value> values(num_parameters);
  for (size_t i = 0; i < num_parameters; ++i) {
    found_caller |= i >= num_given && macro.parameter_names[i] == "caller";
    values[i] = i < num_given ? args.positional[i] : take_named(&args, macro.parameter_names[i]);
  }
  if (macro.uses_caller && !found_caller) {
    Value caller = take_named(&args, "caller");
    if (caller.missing() || caller.is(Kind::kNone)) caller = heap_.undefined("No caller defined");
    scope_->set(macro.caller, std::move(caller));
  }
  if (!macro.uses_kwargs && !args.named.empty()) {
    const std::string& name = args.named[0].first;
    fail_type("macro {} takes no keyword argument {}", repr(macro.name), repr(name));
  }
  if (macro.uses_kwargs) scope_->set(macro.kwargs, named_as_dict(heap_, std::move(args.named)));
  if (macro.uses_varargs) {
    std::vector<Value> rest(args.positional.begin() + static_cast<std::ptrdiff_t>(num_given),
                            args.positional.end());
    scope_->set(macro.varargs, heap_.tuple(std::move(rest)));
  } else if (args.positional.size() > num_parameters) {
    fail_type("macro {} takes not more than {} argument(s)", repr(macro.name), num_parameters);
  }
  const size_t first_default = num_parameters - macro.defaults.size();
  for (size_t i = 0; i < num_parameters; ++i) {
    if (values[i].missing()) {
      values[i] = i >= first_default ? eval(*macro.defaults[i - first_default])
                                     : heap_.undefined(fmt::format("parameter {} was not provided",
                                                                   repr(macro.parameter_names[i])));
    }
    scope_->set(macro.parameters[i], values[i]);
  }
  Capture capture(*this);
  run(macro.body);
  return heap_.str(capture.take());
}

}  // namespace volley::jinja
