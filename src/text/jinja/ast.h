#pragma once

// The tree of a parsed template. Immutable, shared by concurrent renderings.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/jinja/operators.h"
#include "text/jinja/value.h"

namespace volley::jinja {

using Symbol = uint32_t;  // index into Program::symbols

struct Expr;
struct Stmt;
using ExprPtr = std::unique_ptr<Expr>;
using StmtPtr = std::unique_ptr<Stmt>;
using FilterFunction = Value (*)(Interpreter&, const Value&, Args&);
using TestFunction = bool (*)(Interpreter&, const Value&, Args&);

struct CallArgs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star;         // *expr
  ExprPtr double_star;  // **expr
};

enum class ExprKind : uint8_t {
  kConst,         // value
  kName,          // symbol
  kNamespaceRef,  // symbol `.` name, only as a target
  kTuple,         // kids
  kList,          // kids
  kDict,          // kids: key, value, key, value, ...
  kAttribute,     // kids[0] `.` value (a str)
  kItem,          // kids[0] [ kids[1] ]
  kSlice,         // kids[0] [ kids[1] : kids[2] : kids[3] ], absent bounds are null
  kCall,          // kids[0] ( call )
  kFilter,        // kids[0] | name ( call ); kids[0] is null in filter blocks
  kTest,          // kids[0] is name ( call )
  kNot,
  kNegate,
  kPlus,
  kAnd,
  kOr,
  kBinary,       // binary_op
  kConcat,       // kids joined by ~
  kCompare,      // kids[0] compare_ops[0] kids[1] compare_ops[1] ...
  kConditional,  // kids: condition, then, else (may be null)
};

struct Expr {
  Expr(ExprKind k, int l) : kind(k), line(l) {}
  ExprKind kind;
  BinaryOp binary_op = BinaryOp::kAdd;
  int line;
  int depth = 1;
  Symbol symbol = 0;
  std::vector<ExprPtr> kids;
  std::vector<CompareOp> compare_ops;
  std::unique_ptr<CallArgs> call;
  Value value;
  std::string name;
  FilterFunction filter = nullptr;  // null: no such filter, an error when it is reached
  TestFunction test = nullptr;
};

enum class StmtKind : uint8_t {
  kText,         // text
  kPrint,        // exprs
  kIf,           // branches, else_body
  kFor,          // target, exprs[0] items, condition, body, else_body, recursive
  kSet,          // target, exprs[0]
  kSetBlock,     // target, condition: a filter or null, body
  kMacro,        // macro
  kCallBlock,    // exprs[0]: the call, macro: the body as a caller
  kFilterBlock,  // exprs[0]: the filters, body
  kWith,         // targets, exprs, body
  kScoped,       // body: {% block %}
  kGeneration,   // body: {% generation %}
  kBreak,
  kContinue,
};

struct MacroNode {
  std::string name;
  Symbol symbol = 0;
  std::vector<std::string> parameter_names;
  std::vector<Symbol> parameters;
  std::vector<ExprPtr> defaults;  // of the last parameters
  std::vector<StmtPtr> body;
  bool explicit_caller = false;  // a parameter is called `caller`
  bool uses_caller = false;      // the body speaks of caller, kwargs, varargs
  bool uses_kwargs = false;
  bool uses_varargs = false;
  Symbol caller = 0, kwargs = 0, varargs = 0;
};

struct Stmt {
  Stmt(StmtKind k, int l) : kind(k), line(l) {}
  struct Branch {
    ExprPtr condition;
    std::vector<StmtPtr> body;
  };

  StmtKind kind;
  int line;
  bool recursive = false;
  Symbol loop_symbol = 0;
  std::string text;
  ExprPtr target;
  ExprPtr condition;
  std::vector<ExprPtr> targets;
  std::vector<ExprPtr> exprs;
  std::vector<Branch> branches;
  std::vector<StmtPtr> body;
  std::vector<StmtPtr> else_body;
  std::unique_ptr<MacroNode> macro;
};

struct Program {
  std::vector<std::unique_ptr<Object>> constants;  // outlives the tree that refers to it
  std::vector<StmtPtr> body;
  std::vector<std::string> symbols;
};

}  // namespace volley::jinja
