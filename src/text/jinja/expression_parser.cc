#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/parser_state.h"
#include "text/jinja/print.h"

namespace volley::jinja {
namespace {

constexpr std::string_view kMacroNames[] = {"caller", "kwargs", "varargs"};

std::string describe(const Token& token) {
  switch (token.kind) {
    case TokenKind::kText:
      return "template data";
    case TokenKind::kPrintBegin:
      return "begin of print statement";
    case TokenKind::kPrintEnd:
      return "end of print statement";
    case TokenKind::kBlockBegin:
      return "begin of statement block";
    case TokenKind::kBlockEnd:
      return "end of statement block";
    case TokenKind::kEnd:
      return "end of template";
    case TokenKind::kInteger:
      return "integer";
    case TokenKind::kFloat:
      return "float";
    default:
      return token.text;
  }
}

bool is_literal_name(std::string_view name) {
  return name == "true" || name == "True" || name == "false" || name == "False" || name == "none" ||
         name == "None";
}

int depth_of(const ExprPtr& expr) {
  return expr == nullptr ? 0 : expr->depth;
}

const char* kind_name(ExprKind kind) {
  switch (kind) {
    case ExprKind::kConst:
      return "const";
    case ExprKind::kList:
      return "list";
    case ExprKind::kDict:
      return "dict";
    default:
      return "expression";
  }
}

}  // namespace

ExpressionParser::ExpressionParser(std::vector<Token> tokens, const JinjaLimits& limits,
                                   Program* program)
    : limits_(limits), program_(program), tokens_(std::move(tokens)) {}

Token ExpressionParser::take() {
  Token token = tokens_[pos_];
  if (pos_ + 1 < tokens_.size()) ++pos_;
  return token;
}

bool ExpressionParser::at_operator(std::string_view op) const {
  return current().kind == TokenKind::kOperator && current().text == op;
}

bool ExpressionParser::at_name(std::string_view name) const {
  return current().kind == TokenKind::kName && current().text == name;
}

bool ExpressionParser::skip_operator(std::string_view op) {
  if (!at_operator(op)) return false;
  take();
  return true;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  take();
  return true;
}

Token ExpressionParser::expect(TokenKind kind, const char* what) {
  if (current().kind == kind) return take();
  if (current().kind == TokenKind::kEnd) {
    syntax_error(fmt::format("unexpected end of template, expected '{}'.", what));
  }
  syntax_error(fmt::format("expected token '{}', got {}", what, repr(describe(current()))));
}

void ExpressionParser::expect_operator(std::string_view op) {
  if (!at_operator(op)) {
    syntax_error(fmt::format("expected token '{}', got {}", op, repr(describe(current()))));
  }
  take();
}

void ExpressionParser::expect_name(std::string_view name) {
  if (!at_name(name)) {
    syntax_error(fmt::format("expected token '{}', got {}", name, repr(describe(current()))));
  }
  take();
}

void ExpressionParser::syntax_error(std::string message, int line) const {
  throw Failure{"TemplateSyntaxError", std::move(message), line > 0 ? line : current().line};
}

void ExpressionParser::fail_nesting() const {
  throw Failure{"LimitError", fmt::format("nested deeper than {} levels", limits_.max_parse_depth),
                current().line, ErrorKind::kExhausted};
}

Symbol ExpressionParser::symbol(const std::string& name) {
  const auto [it, added] = symbols_.emplace(name, static_cast<Symbol>(program_->symbols.size()));
  if (added) program_->symbols.push_back(name);
  return it->second;
}

ExprPtr ExpressionParser::make(ExprKind kind, int line, ExprPtr a, ExprPtr b) const {
  auto expr = std::make_unique<Expr>(kind, line);
  expr->kids.push_back(std::move(a));
  if (b != nullptr) expr->kids.push_back(std::move(b));
  return checked(std::move(expr));
}

ExprPtr ExpressionParser::constant(std::string text, int line) const {
  auto expr = make(ExprKind::kConst, line);
  auto owned = std::make_unique<Str>(nullptr, std::move(text), false);
  owned->make_immortal();
  expr->value = Value::object(Kind::kStr, owned.get());
  program_->constants.push_back(std::move(owned));
  return expr;
}

ExprPtr ExpressionParser::checked(ExprPtr expr) const {
  int depth = 0;
  for (const ExprPtr& kid : expr->kids) depth = std::max(depth, depth_of(kid));
  if (expr->call != nullptr) {
    for (const ExprPtr& arg : expr->call->positional) depth = std::max(depth, depth_of(arg));
    for (const auto& [name, arg] : expr->call->named) depth = std::max(depth, depth_of(arg));
    depth = std::max({depth, depth_of(expr->call->star), depth_of(expr->call->double_star)});
  }
  expr->depth = depth + 1;
  if (expr->depth > limits_.max_parse_depth) fail_nesting();
  return expr;
}

void ExpressionParser::note_use(const std::string& name, bool is_store) {
  for (size_t i = 0; i < std::size(kMacroNames); ++i) {
    if (name != kMacroNames[i]) continue;
    for (MacroUse& use : macro_uses_) {
      if (use.states[i] == MacroUse::kUnseen) {
        use.states[i] = is_store ? MacroUse::kSet : MacroUse::kUsed;
      }
    }
  }
}

bool ExpressionParser::at_tuple_end(std::string_view end_name) const {
  return current().kind == TokenKind::kPrintEnd || current().kind == TokenKind::kBlockEnd ||
         at_operator(")") || (!end_name.empty() && at_name(end_name));
}

ExprPtr ExpressionParser::parse_tuple(TupleMode mode, std::string_view end_name) {
  int line = current().line;
  auto tuple = make(ExprKind::kTuple, line);
  bool is_tuple = false;
  while (true) {
    if (!tuple->kids.empty()) expect_operator(",");
    if (at_tuple_end(end_name)) break;
    tuple->kids.push_back(mode == TupleMode::kTarget          ? parse_primary()
                          : mode == TupleMode::kNoConditional ? parse_or()
                                                              : parse_expression());
    if (!at_operator(",")) break;
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!tuple->kids.empty()) return std::move(tuple->kids[0]);
    if (mode != TupleMode::kParentheses) {
      syntax_error(fmt::format("Expected an expression, got {}", repr(describe(current()))));
    }
  }
  return checked(std::move(tuple));
}

void ExpressionParser::mark_stored(Expr* target) {
  if (target->kind == ExprKind::kTuple) {
    for (ExprPtr& kid : target->kids) mark_stored(kid.get());
  } else if (target->kind == ExprKind::kName) {
    note_use(program_->symbols[target->symbol], true);
  } else {
    syntax_error(fmt::format("can't assign to '{}'", kind_name(target->kind)), target->line);
  }
}

ExprPtr ExpressionParser::parse_target(std::string_view end_name) {
  in_target_ = true;
  ExprPtr target = parse_tuple(TupleMode::kTarget, end_name);
  in_target_ = false;
  mark_stored(target.get());
  return target;
}

ExprPtr ExpressionParser::parse_name_target() {
  const Token token = expect(TokenKind::kName, "name");
  if (is_literal_name(token.text)) syntax_error("can't assign to 'const'", token.line);
  auto target = make(ExprKind::kName, token.line);
  target->symbol = symbol(token.text);
  note_use(token.text, true);
  return target;
}

ExprPtr ExpressionParser::parse_conditional() {
  const Nesting nesting(this);
  int line = current().line;
  ExprPtr expr = parse_or();
  while (skip_name("if")) {
    auto conditional = make(ExprKind::kConditional, line);
    conditional->kids.push_back(parse_or());
    conditional->kids.push_back(std::move(expr));
    conditional->kids.push_back(skip_name("else") ? parse_conditional() : nullptr);
    expr = checked(std::move(conditional));
    line = current().line;
  }
  return expr;
}

ExprPtr ExpressionParser::parse_or() {
  ExprPtr left = parse_and();
  while (at_name("or")) {
    const int line = take().line;
    left = make(ExprKind::kOr, line, std::move(left), parse_and());
  }
  return left;
}

ExprPtr ExpressionParser::parse_and() {
  ExprPtr left = parse_not();
  while (at_name("and")) {
    const int line = take().line;
    left = make(ExprKind::kAnd, line, std::move(left), parse_not());
  }
  return left;
}

ExprPtr ExpressionParser::parse_not() {
  const Nesting nesting(this);
  if (!at_name("not")) return parse_compare();
  const int line = take().line;
  return make(ExprKind::kNot, line, parse_not());
}

bool ExpressionParser::parse_compare_op(CompareOp* op) {
  static constexpr std::pair<std::string_view, CompareOp> kOps[] = {
      {"==", CompareOp::kEq}, {"!=", CompareOp::kNe}, {"<", CompareOp::kLt},
      {"<=", CompareOp::kLe}, {">", CompareOp::kGt},  {">=", CompareOp::kGe}};
  for (const auto& [text, compare_op] : kOps) {
    if (!skip_operator(text)) continue;
    *op = compare_op;
    return true;
  }
  *op = CompareOp::kIn;
  if (skip_name("in")) return true;
  if (!at_name("not") || look_ahead().kind != TokenKind::kName || look_ahead().text != "in") {
    return false;
  }
  take();
  take();
  *op = CompareOp::kNotIn;
  return true;
}

ExprPtr ExpressionParser::parse_compare() {
  ExprPtr first = parse_sum();
  auto compare = make(ExprKind::kCompare, first->line);
  for (CompareOp op; parse_compare_op(&op);) {
    if (compare->kids.empty()) compare->kids.push_back(std::move(first));
    compare->compare_ops.push_back(op);
    compare->kids.push_back(parse_sum());
  }
  return compare->kids.empty() ? std::move(first) : checked(std::move(compare));
}

ExprPtr ExpressionParser::parse_sum() {
  ExprPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    const Token op = take();
    left = make(ExprKind::kBinary, op.line, std::move(left), parse_concat());
    left->binary_op = op.text == "+" ? BinaryOp::kAdd : BinaryOp::kSub;
  }
  return left;
}

ExprPtr ExpressionParser::parse_concat() {
  ExprPtr first = parse_product();
  if (!at_operator("~")) return first;
  auto concat = make(ExprKind::kConcat, first->line);
  concat->kids.push_back(std::move(first));
  while (skip_operator("~")) concat->kids.push_back(parse_product());
  return checked(std::move(concat));
}

ExprPtr ExpressionParser::parse_product() {
  static constexpr std::pair<std::string_view, BinaryOp> kOps[] = {{"*", BinaryOp::kMul},
                                                                   {"/", BinaryOp::kDiv},
                                                                   {"//", BinaryOp::kFloorDiv},
                                                                   {"%", BinaryOp::kMod}};
  ExprPtr left = parse_power();
  while (true) {
    const auto* op = std::find_if(std::begin(kOps), std::end(kOps),
                                  [&](const auto& entry) { return at_operator(entry.first); });
    if (op == std::end(kOps)) return left;
    const int line = take().line;
    left = make(ExprKind::kBinary, line, std::move(left), parse_power());
    left->binary_op = op->second;
  }
}

ExprPtr ExpressionParser::parse_power() {
  ExprPtr left = parse_unary();
  while (at_operator("**")) {
    const int line = take().line;
    left = make(ExprKind::kBinary, line, std::move(left), parse_unary());
    left->binary_op = BinaryOp::kPow;
  }
  return left;
}

ExprPtr ExpressionParser::parse_unary(bool with_filter) {
  const Nesting nesting(this);
  ExprPtr expr;
  if (at_operator("-") || at_operator("+")) {
    const Token op = take();
    expr = make(op.text == "-" ? ExprKind::kNegate : ExprKind::kPlus, op.line, parse_unary(false));
  } else {
    expr = parse_primary();
  }
  expr = parse_postfix(std::move(expr));
  return with_filter ? parse_postfix_filter(std::move(expr)) : std::move(expr);
}

ExprPtr ExpressionParser::parse_primary() {
  const Token& token = current();
  const int line = token.line;
  switch (token.kind) {
    case TokenKind::kName:
      return parse_name();
    case TokenKind::kString: {
      std::string text;
      while (current().kind == TokenKind::kString) text += take().text;
      return constant(std::move(text), line);
    }
    case TokenKind::kInteger:
    case TokenKind::kFloat: {
      auto number = make(ExprKind::kConst, line);
      number->value = token.kind == TokenKind::kInteger ? Value::integer(token.integer)
                                                        : Value::real(token.real);
      take();
      return number;
    }
    default:
      break;
  }
  if (skip_operator("(")) {
    const Nesting nesting(this);
    ExprPtr inner = parse_tuple(TupleMode::kParentheses);
    expect_operator(")");
    return inner;
  }
  if (at_operator("[")) return parse_list();
  if (at_operator("{")) return parse_dict();
  syntax_error(fmt::format("unexpected {}", repr(describe(token))));
}

ExprPtr ExpressionParser::parse_name() {
  const Token token = take();
  if (!is_literal_name(token.text)) {
    auto name = make(ExprKind::kName, token.line);
    name->symbol = symbol(token.text);
    if (!in_target_) note_use(token.text, false);
    return name;
  }
  auto literal = make(ExprKind::kConst, token.line);
  const bool is_none = token.text == "none" || token.text == "None";
  literal->value =
      is_none ? Value::none() : Value::boolean(token.text == "true" || token.text == "True");
  return literal;
}

ExprPtr ExpressionParser::parse_list() {
  const Nesting nesting(this);
  auto list = make(ExprKind::kList, take().line);
  while (!at_operator("]")) {
    if (!list->kids.empty()) expect_operator(",");
    if (at_operator("]")) break;
    list->kids.push_back(parse_expression());
  }
  expect_operator("]");
  return checked(std::move(list));
}

ExprPtr ExpressionParser::parse_dict() {
  const Nesting nesting(this);
  auto dict = make(ExprKind::kDict, take().line);
  while (!at_operator("}")) {
    if (!dict->kids.empty()) expect_operator(",");
    if (at_operator("}")) break;
    dict->kids.push_back(parse_expression());
    expect_operator(":");
    dict->kids.push_back(parse_expression());
  }
  expect_operator("}");
  return checked(std::move(dict));
}

ExprPtr ExpressionParser::parse_postfix(ExprPtr expr) {
  while (true) {
    if (at_operator(".") || at_operator("[")) {
      expr = parse_subscript(std::move(expr));
    } else if (at_operator("(")) {
      expr = parse_call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::parse_postfix_filter(ExprPtr expr) {
  while (true) {
    if (at_operator("|")) {
      expr = parse_filters(std::move(expr), false);
    } else if (at_name("is")) {
      expr = parse_test(std::move(expr));
    } else if (at_operator("(")) {
      expr = parse_call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::parse_subscript(ExprPtr expr) {
  const Token token = take();
  if (token.text == ".") {
    const Token name = take();
    if (name.kind == TokenKind::kName) {
      auto attribute = make(ExprKind::kAttribute, token.line, std::move(expr));
      attribute->value = constant(name.text, name.line)->value;
      return attribute;
    }
    if (name.kind != TokenKind::kInteger) syntax_error("expected name or number", name.line);
    auto index = make(ExprKind::kConst, name.line);
    index->value = Value::integer(name.integer);
    return make(ExprKind::kItem, token.line, std::move(expr), std::move(index));
  }
  const Nesting nesting(this);
  bool is_slice = false;
  ExprPtr first = at_operator("]") ? nullptr : parse_subscribed(std::move(expr), &is_slice);
  if (is_slice) {
    if (at_operator(",")) syntax_error("slices in a tuple are not supported");
    expect_operator("]");
    return first;
  }
  if (first != nullptr && skip_operator("]")) return first;
  if (first == nullptr) {  // x[] subscribes by the empty tuple
    expect_operator("]");
    return make(ExprKind::kItem, token.line, std::move(expr), make(ExprKind::kTuple, token.line));
  }
  auto tuple = make(ExprKind::kTuple, token.line);
  tuple->kids.push_back(std::move(first->kids[1]));
  while (!at_operator("]")) {
    expect_operator(",");
    tuple->kids.push_back(parse_expression());
  }
  expect_operator("]");
  return make(ExprKind::kItem, token.line, std::move(first->kids[0]), checked(std::move(tuple)));
}

ExprPtr ExpressionParser::parse_subscribed(ExprPtr owner, bool* is_slice) {
  const int line = current().line;
  ExprPtr start = at_operator(":") ? nullptr : parse_expression();
  if (start != nullptr && !at_operator(":")) {
    return make(ExprKind::kItem, line, std::move(owner), std::move(start));
  }
  *is_slice = true;
  auto slice = make(ExprKind::kSlice, line);
  slice->kids.push_back(std::move(owner));
  slice->kids.push_back(std::move(start));
  for (int bound = 0; bound < 2; ++bound) {
    const bool present =
        skip_operator(":") && !at_operator(":") && !at_operator("]") && !at_operator(",");
    slice->kids.push_back(present ? parse_expression() : nullptr);
  }
  return checked(std::move(slice));
}

ExprPtr ExpressionParser::parse_call(ExprPtr callee) {
  auto call = make(ExprKind::kCall, current().line);
  call->kids.push_back(std::move(callee));
  call->call = parse_call_args();
  return checked(std::move(call));
}

std::unique_ptr<CallArgs> ExpressionParser::parse_call_args() {
  const Nesting nesting(this);
  const int line = take().line;
  auto args = std::make_unique<CallArgs>();
  bool first = true;
  while (!at_operator(")")) {
    if (!first) expect_operator(",");
    if (at_operator(")")) break;
    parse_call_arg(args.get(), line);
    first = false;
  }
  expect_operator(")");
  return args;
}

void ExpressionParser::parse_call_arg(CallArgs* args, int line) {
  const auto ensure = [&](bool valid) {
    if (!valid) syntax_error("invalid syntax for function call expression", line);
  };
  if (skip_operator("*")) {
    ensure(args->star == nullptr && args->double_star == nullptr);
    args->star = parse_expression();
  } else if (skip_operator("**")) {
    ensure(args->double_star == nullptr);
    args->double_star = parse_expression();
  } else if (current().kind == TokenKind::kName && look_ahead().kind == TokenKind::kOperator &&
             look_ahead().text == "=") {
    ensure(args->double_star == nullptr);
    std::string name = take().text;
    take();
    for (const auto& [other, value] : args->named) {
      if (other == name) syntax_error(fmt::format("keyword argument repeated: {}", name), line);
    }
    args->named.emplace_back(std::move(name), parse_expression());
  } else {
    ensure(args->star == nullptr && args->double_star == nullptr && args->named.empty());
    args->positional.push_back(parse_expression());
  }
}

std::string ExpressionParser::parse_dotted_name(const char* what) {
  std::string name = expect(TokenKind::kName, what).text;
  while (skip_operator(".")) name += "." + expect(TokenKind::kName, what).text;
  return name;
}

ExprPtr ExpressionParser::parse_filters(ExprPtr expr, bool inline_start) {
  while (at_operator("|") || inline_start) {
    if (!inline_start) take();
    inline_start = false;
    auto filter = make(ExprKind::kFilter, current().line);
    filter->kids.push_back(std::move(expr));
    filter->name = parse_dotted_name("name");
    filter->filter = find_filter(filter->name);
    filter->call = at_operator("(") ? parse_call_args() : std::make_unique<CallArgs>();
    expr = checked(std::move(filter));
  }
  return expr;
}

bool ExpressionParser::at_test_argument() const {
  switch (current().kind) {
    case TokenKind::kName:
      return !at_name("else") && !at_name("or") && !at_name("and");
    case TokenKind::kString:
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return true;
    default:
      return at_operator("[") || at_operator("{");
  }
}

ExprPtr ExpressionParser::parse_test(ExprPtr expr) {
  auto test = make(ExprKind::kTest, take().line);
  const int line = test->line;
  const bool negated = skip_name("not");
  test->kids.push_back(std::move(expr));
  test->name = parse_dotted_name("name");
  test->test = find_test(test->name);
  test->call = std::make_unique<CallArgs>();
  if (at_operator("(")) {
    test->call = parse_call_args();
  } else if (at_test_argument()) {
    if (at_name("is")) syntax_error("You cannot chain multiple tests with is");
    test->call->positional.push_back(parse_postfix(parse_primary()));
  }
  ExprPtr result = checked(std::move(test));
  return negated ? make(ExprKind::kNot, line, std::move(result)) : std::move(result);
}

}  // namespace volley::jinja
