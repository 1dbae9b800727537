#pragma once

// The two halves of the parser: expressions, and statements on top of them.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/ast.h"
#include "text/jinja/lexer.h"

namespace volley::jinja {

class ExpressionParser {
 public:
  ExpressionParser(std::vector<Token> tokens, const JinjaLimits& limits, Program* program);

 protected:
  // Nesting of the source, so that no recursion here or over the tree can overflow the stack.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser* parser) : parser_(parser) {
      if (++parser->nesting_ > parser->limits_.max_parse_depth) parser->fail_nesting();
    }
    ~Nesting() { --parser_->nesting_; }

   private:
    ExpressionParser* parser_;
  };

  // Names that a macro body uses without setting them: caller, kwargs, varargs.
  struct MacroUse {
    enum State : uint8_t { kUnseen, kUsed, kSet };
    State states[3] = {};
  };

  const Token& current() const { return tokens_[pos_]; }
  const Token& look_ahead() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  Token take();
  bool at_operator(std::string_view op) const;
  bool at_name(std::string_view name) const;
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  Token expect(TokenKind kind, const char* what);
  void expect_operator(std::string_view op);
  void expect_name(std::string_view name);
  [[noreturn]] void syntax_error(std::string message, int line = 0) const;
  [[noreturn]] void fail_nesting() const;

  Symbol symbol(const std::string& name);
  ExprPtr make(ExprKind kind, int line) const { return std::make_unique<Expr>(kind, line); }
  ExprPtr make(ExprKind kind, int line, ExprPtr a, ExprPtr b = nullptr) const;
  ExprPtr constant(std::string text, int line) const;
  ExprPtr checked(ExprPtr expr) const;  // sets and bounds the depth of the tree

  enum class TupleMode { kFull, kNoConditional, kTarget, kParentheses };
  ExprPtr parse_expression() { return parse_conditional(); }
  ExprPtr parse_tuple(TupleMode mode, std::string_view end_name = "");
  ExprPtr parse_target(std::string_view end_name = "");
  ExprPtr parse_name_target();
  ExprPtr parse_filters(ExprPtr expr, bool inline_start);
  void note_use(const std::string& name, bool is_store);

  std::vector<MacroUse> macro_uses_;
  const JinjaLimits& limits_;
  Program* program_;

 private:
  bool at_tuple_end(std::string_view end_name) const;
  ExprPtr parse_conditional();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  bool parse_compare_op(CompareOp* op);
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filter = true);
  ExprPtr parse_primary();
  ExprPtr parse_name();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr expr);
  ExprPtr parse_postfix_filter(ExprPtr expr);
  ExprPtr parse_subscript(ExprPtr expr);
  ExprPtr parse_subscribed(ExprPtr owner, bool* is_slice);
  ExprPtr parse_call(ExprPtr callee);
  std::unique_ptr<CallArgs> parse_call_args();
  void parse_call_arg(CallArgs* args, int line);
  ExprPtr parse_test(ExprPtr expr);
  std::string parse_dotted_name(const char* what);
  bool at_test_argument() const;
  void mark_stored(Expr* target);

  std::vector<Token> tokens_;
  std::map<std::string, Symbol, std::less<>> symbols_;
  size_t pos_ = 0;
  int nesting_ = 0;
  bool in_target_ = false;
};

}  // namespace volley::jinja
