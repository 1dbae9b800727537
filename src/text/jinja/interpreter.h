#pragma once

// Walks the tree of a parsed template and writes its text. One Interpreter renders once.

#include <ctime>
#include <functional>
#include <span>
#include <string>

#include "base/json.h"
#include "text/jinja/ast.h"
#include "text/jinja/value.h"

namespace volley::jinja {

using Clock = std::function<std::tm()>;  // local time for strftime_now

// Variables of one frame: a loop body, a macro call, a block. Names are symbols of the template.
struct Scope : Object {
  Scope(Heap* heap, Ref<Scope> enclosing) : Object(heap, 128), parent(std::move(enclosing)) {}
  Value* find(Symbol symbol);
  void set(Symbol symbol, Value value);
  void clear() { variables.clear(); }

  Ref<Scope> parent;  // null above the template's own variables
  std::vector<std::pair<Symbol, Value>> variables;
  std::vector<Value> slots;  // by symbol, in place of `variables`: the template's own scope
};

class Interpreter {
 public:
  Interpreter(const Program& program, const JinjaLimits& limits, const Clock& clock);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // The text of the template with the members of `context` as its variables.
  std::string render(const Json& context);

  Heap& heap() { return heap_; }
  const Clock& clock() const { return clock_; }
  int line() const { return line_; }

  Value call(const Value& callee, Args args);
  Value call_filter(std::string_view name, const Value& value, Args args);
  bool call_test(std::string_view name, const Value& value, Args args);
  Value make_namespace();

  // Used by macros, loops and their iterators.
  Value call_macro(const MacroNode& macro, const Ref<Scope>& scope, Args args);
  std::string run_loop(const Stmt& loop, const Ref<Scope>& outer, const Value& items, int depth0);
  bool passes_loop_filter(const Stmt& loop, const Ref<Scope>& outer, const Value& item);

  // Bounds the C++ stack: one level for every nested evaluation.
  class Level {
   public:
    explicit Level(Interpreter& interpreter) : interpreter_(interpreter) {
      if (++interpreter_.level_ > interpreter_.heap_.limits().max_recursion) [[unlikely]] {
        interpreter_.fail_recursion();  // the destructor does not run: the rendering is over
      }
    }
    ~Level() { --interpreter_.level_; }

   private:
    Interpreter& interpreter_;
  };

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  // While it lives, output goes to a string of its own.
  class Capture {
   public:
    explicit Capture(Interpreter& interpreter)
        : interpreter_(interpreter), outer_(std::exchange(interpreter.out_, &text_)) {}
    ~Capture() { interpreter_.out_ = outer_; }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;
    std::string take() { return std::move(text_); }

   private:
    Interpreter& interpreter_;
    std::string* outer_;
    std::string text_;
  };

  [[noreturn]] void fail_recursion();
  void write(std::string_view text);
  void write_value(const Value& value);

  // Statements.
  Flow run(const std::vector<StmtPtr>& body);
  Flow run_statement(const Stmt& stmt);
  Flow run_if(const Stmt& stmt);
  void run_for(const Stmt& stmt);
  void loop_over(const Stmt& stmt, const Ref<Scope>& outer, const Value& items, int depth0);
  void run_set(const Stmt& stmt);
  void run_set_block(const Stmt& stmt);
  void run_macro(const Stmt& stmt);
  void run_call_block(const Stmt& stmt);
  void run_filter_block(const Stmt& stmt);
  Flow run_with(const Stmt& stmt);
  Flow run_scoped(const Stmt& stmt, Ref<Scope> parent);
  std::string captured_body(const std::vector<StmtPtr>& body);
  void assign(const Expr& target, Value value);
  void assign_tuple(const Expr& target, const Value& value);

  // Expressions.
  Value eval(const Expr& expr);
  Value eval_level(const Expr& expr);
  Value eval_name(const Expr& expr);
  Value eval_concat(const Expr& expr);
  Value eval_compare(const Expr& expr);
  Value eval_dict(const Expr& expr);
  Value eval_conditional(const Expr& expr);
  Value eval_slice(const Expr& expr);
  Value eval_call(const Expr& expr);
  Value eval_filter(const Expr& expr, const Value* block_text);
  Value eval_test(const Expr& expr);
  std::vector<Value> eval_all(const std::vector<ExprPtr>& exprs);
  Args eval_args(const CallArgs& args);
  Value lookup(Symbol symbol);

  const Program& program_;
  const Clock& clock_;
  Heap heap_;
  // Objects that can be part of a cycle; emptied when the rendering ends.
  std::vector<Ref<Namespace>> namespaces_;
  std::vector<Ref<Scope>> captured_scopes_;
  std::vector<Value> globals_;  // by symbol: the context, then the built-in functions
  Ref<Scope> scope_;
  std::string* out_ = nullptr;
  int level_ = 0;
  int line_ = 0;
};

Value value_from_json(Heap& heap, const Json& json);

}  // namespace volley::jinja
