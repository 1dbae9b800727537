#include "text/jinja/parser.h"

#include <algorithm>
#include <set>

#include "text/jinja/parser_state.h"
#include "text/jinja/print.h"

namespace volley::jinja {
namespace {

class StatementParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  void run() {
    program_->body = parse_body({});
    if (current().kind != TokenKind::kEnd) syntax_error("unexpected end of a block");
  }

 private:
  using Names = std::vector<std::string_view>;

  // Statements up to one of the tags in `ends`, which becomes the current token.
  std::vector<StmtPtr> parse_body(const Names& ends) {
    std::vector<StmtPtr> body;
    while (current().kind != TokenKind::kEnd) {
      if (current().kind == TokenKind::kText) {
        auto text = make_stmt(StmtKind::kText, current().line);
        text->text = take().text;
        body.push_back(std::move(text));
      } else if (current().kind == TokenKind::kPrintBegin) {
        auto print = make_stmt(StmtKind::kPrint, take().line);
        print->exprs.push_back(parse_tuple(TupleMode::kFull));
        expect(TokenKind::kPrintEnd, "end of print statement");
        body.push_back(std::move(print));
      } else {
        expect(TokenKind::kBlockBegin, "begin of statement block");
        if (std::any_of(ends.begin(), ends.end(), [&](auto name) { return at_name(name); })) {
          return body;
        }
        body.push_back(parse_statement(ends));
        expect(TokenKind::kBlockEnd, "end of statement block");
      }
    }
    if (!ends.empty()) fail_tag("Unexpected end of template.", ends);
    return body;
  }

  // The body of a block tag, from behind its header to behind the name of its end tag.
  std::vector<StmtPtr> parse_block_body(std::string_view end) {
    auto body = parse_branch_body({end});
    take();
    return body;
  }
  std::vector<StmtPtr> parse_branch_body(const Names& ends) {
    skip_operator(":");
    expect(TokenKind::kBlockEnd, "end of statement block");
    return parse_body(ends);
  }

  [[noreturn]] void fail_tag(std::string message, const Names& ends) const {
    for (size_t i = 0; i < ends.size(); ++i) {
      message += fmt::format(
          "{}'{}'", i == 0 ? " Jinja was looking for the following tags: " : " or ", ends[i]);
    }
    if (!ends.empty()) message += ".";
    if (!open_tags_.empty()) {
      message +=
          fmt::format(" The innermost block that needs to be closed is '{}'.", open_tags_.back());
    }
    syntax_error(std::move(message));
  }

  StmtPtr make_stmt(StmtKind kind, int line) const { return std::make_unique<Stmt>(kind, line); }

  StmtPtr parse_statement(const Names& ends) {
    const Nesting nesting(this);
    if (current().kind != TokenKind::kName) syntax_error("tag name expected");
    const std::string tag = current().text;
    using Parse = StmtPtr (StatementParser::*)();
    static constexpr std::pair<std::string_view, Parse> kTags[] = {
        {"if", &StatementParser::parse_if},
        {"for", &StatementParser::parse_for},
        {"set", &StatementParser::parse_set},
        {"macro", &StatementParser::parse_macro},
        {"call", &StatementParser::parse_call_block},
        {"filter", &StatementParser::parse_filter_block},
        {"with", &StatementParser::parse_with},
        {"print", &StatementParser::parse_print},
        {"block", &StatementParser::parse_block},
        {"generation", &StatementParser::parse_generation},
        {"break", &StatementParser::parse_loop_control},
        {"continue", &StatementParser::parse_loop_control},
    };
    for (const auto& [name, parse] : kTags) {
      if (tag != name) continue;
      open_tags_.push_back(tag);
      StmtPtr stmt = (this->*parse)();
      open_tags_.pop_back();
      return stmt;
    }
    for (const std::string_view name : {"include", "import", "from", "extends", "autoescape"}) {
      if (tag != name) continue;
      throw Failure{"NotSupported",
                    fmt::format("chat templates stand alone: {{% {} %}} is not supported", tag),
                    current().line, ErrorKind::kUnsupported};
    }
    fail_tag(fmt::format("Encountered unknown tag {}.", repr(tag)), ends);
  }

  StmtPtr parse_if() {
    auto stmt = make_stmt(StmtKind::kIf, current().line);
    while (true) {
      take();  // if, elif
      Stmt::Branch branch;
      branch.condition = parse_tuple(TupleMode::kNoConditional);
      branch.body = parse_branch_body({"elif", "else", "endif"});
      stmt->branches.push_back(std::move(branch));
      if (at_name("elif")) continue;
      if (take().text == "else") stmt->else_body = parse_block_body("endif");
      return stmt;
    }
  }

  StmtPtr parse_for() {
    auto stmt = make_stmt(StmtKind::kFor, take().line);
    stmt->target = parse_target("in");
    expect_name("in");
    stmt->exprs.push_back(parse_tuple(TupleMode::kNoConditional, "recursive"));
    if (skip_name("if")) stmt->condition = parse_expression();
    stmt->recursive = skip_name("recursive");
    stmt->loop_symbol = symbol("loop");
    ++loop_depth_;
    stmt->body = parse_branch_body({"endfor", "else"});
    --loop_depth_;
    if (take().text == "else") stmt->else_body = parse_block_body("endfor");
    return stmt;
  }

  StmtPtr parse_set() {
    const int line = take().line;
    ExprPtr target;
    if (current().kind == TokenKind::kName && look_ahead().kind == TokenKind::kOperator &&
        look_ahead().text == ".") {
      target = make(ExprKind::kNamespaceRef, line);
      const std::string name = take().text;
      target->symbol = symbol(name);
      note_use(name, false);
      take();
      target->name = expect(TokenKind::kName, "name").text;
    } else {
      target = parse_target();
    }
    if (skip_operator("=")) {
      auto stmt = make_stmt(StmtKind::kSet, line);
      stmt->target = std::move(target);
      stmt->exprs.push_back(parse_tuple(TupleMode::kFull));
      return stmt;
    }
    auto stmt = make_stmt(StmtKind::kSetBlock, line);
    stmt->target = std::move(target);
    if (at_operator("|")) stmt->condition = parse_filters(nullptr, false);
    stmt->body = parse_block_body("endset");
    return stmt;
  }

  void parse_signature(MacroNode* macro) {
    expect_operator("(");
    while (!at_operator(")")) {
      if (!macro->parameters.empty()) expect_operator(",");
      const ExprPtr parameter = parse_name_target();
      const std::string name = program_->symbols[parameter->symbol];
      if (std::count(macro->parameters.begin(), macro->parameters.end(), parameter->symbol) > 0) {
        syntax_error(fmt::format("duplicate argument {} in a macro's definition", repr(name)));
      }
      if (skip_operator("=")) {
        macro->defaults.push_back(parse_expression());
      } else if (!macro->defaults.empty()) {
        syntax_error("non-default argument follows default argument");
      }
      macro->explicit_caller |= name == "caller";
      macro->parameters.push_back(parameter->symbol);
      macro->parameter_names.push_back(name);
    }
    expect_operator(")");
  }

  void parse_macro_body(MacroNode* macro, std::string_view end) {
    macro_uses_.emplace_back();
    const int loop_depth = std::exchange(loop_depth_, 0);
    macro->body = parse_block_body(end);
    loop_depth_ = loop_depth;
    const MacroUse use = macro_uses_.back();
    macro_uses_.pop_back();
    const auto is_parameter = [&](std::string_view name) {
      return std::count(macro->parameter_names.begin(), macro->parameter_names.end(), name) > 0;
    };
    macro->caller = symbol("caller");
    macro->kwargs = symbol("kwargs");
    macro->varargs = symbol("varargs");
    macro->uses_caller = use.states[0] == MacroUse::kUsed;
    macro->uses_kwargs = use.states[1] == MacroUse::kUsed && !is_parameter("kwargs");
    macro->uses_varargs = use.states[2] == MacroUse::kUsed && !is_parameter("varargs");
    if (macro->uses_caller && macro->explicit_caller) check_caller_default(*macro);
  }

  void check_caller_default(const MacroNode& macro) const {
    const auto caller =
        std::find(macro.parameter_names.begin(), macro.parameter_names.end(), "caller");
    const auto position = static_cast<size_t>(caller - macro.parameter_names.begin());
    if (position + macro.defaults.size() < macro.parameters.size()) {
      syntax_error(
          "When defining macros or call blocks the special \"caller\" argument must be omitted or "
          "be given a default.");
    }
  }

  StmtPtr parse_macro() {
    auto stmt = make_stmt(StmtKind::kMacro, take().line);
    stmt->macro = std::make_unique<MacroNode>();
    const ExprPtr name = parse_name_target();
    stmt->macro->symbol = name->symbol;
    stmt->macro->name = program_->symbols[name->symbol];
    parse_signature(stmt->macro.get());
    parse_macro_body(stmt->macro.get(), "endmacro");
    return stmt;
  }

  StmtPtr parse_call_block() {
    auto stmt = make_stmt(StmtKind::kCallBlock, take().line);
    stmt->macro = std::make_unique<MacroNode>();
    stmt->macro->name = "caller";
    if (at_operator("(")) parse_signature(stmt->macro.get());
    stmt->exprs.push_back(parse_expression());
    if (stmt->exprs[0]->kind != ExprKind::kCall) syntax_error("expected call", stmt->line);
    parse_macro_body(stmt->macro.get(), "endcall");
    return stmt;
  }

  StmtPtr parse_filter_block() {
    auto stmt = make_stmt(StmtKind::kFilterBlock, take().line);
    stmt->exprs.push_back(parse_filters(nullptr, true));
    stmt->body = parse_block_body("endfilter");
    return stmt;
  }

  StmtPtr parse_with() {
    auto stmt = make_stmt(StmtKind::kWith, take().line);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!stmt->targets.empty()) expect_operator(",");
      stmt->targets.push_back(parse_target());
      expect_operator("=");
      stmt->exprs.push_back(parse_expression());
    }
    stmt->body = parse_block_body("endwith");
    return stmt;
  }

  StmtPtr parse_print() {
    auto stmt = make_stmt(StmtKind::kPrint, take().line);
    while (current().kind != TokenKind::kBlockEnd) {
      if (!stmt->exprs.empty()) expect_operator(",");
      stmt->exprs.push_back(parse_expression());
    }
    return stmt;
  }

  // Without inheritance a block is its own body; it sees the template's variables only, unless it
  // is `scoped`.
  StmtPtr parse_block() {
    auto stmt = make_stmt(StmtKind::kScoped, take().line);
    const std::string name = expect(TokenKind::kName, "name").text;
    if (!block_names_.insert(name).second) {
      syntax_error(fmt::format("block {} defined twice", repr(name)));
    }
    stmt->recursive = skip_name("scoped");
    skip_name("required");
    const int loop_depth = std::exchange(loop_depth_, 0);
    stmt->body = parse_block_body("endblock");
    loop_depth_ = loop_depth;
    skip_name(name);
    return stmt;
  }

  StmtPtr parse_generation() {
    auto stmt = make_stmt(StmtKind::kGeneration, take().line);
    const int loop_depth = std::exchange(loop_depth_, 0);
    stmt->body = parse_block_body("endgeneration");
    loop_depth_ = loop_depth;
    return stmt;
  }

  StmtPtr parse_loop_control() {
    const Token token = take();
    if (loop_depth_ == 0) syntax_error(fmt::format("'{}' outside loop", token.text), token.line);
    return make_stmt(token.text == "break" ? StmtKind::kBreak : StmtKind::kContinue, token.line);
  }

  std::vector<std::string> open_tags_;
  std::set<std::string> block_names_;
  int loop_depth_ = 0;
};

}  // namespace

std::unique_ptr<Program> parse(std::string_view source, const JinjaLimits& limits) {
  auto program = std::make_unique<Program>();
  StatementParser(tokenize(source), limits, program.get()).run();
  return program;
}

}  // namespace volley::jinja
