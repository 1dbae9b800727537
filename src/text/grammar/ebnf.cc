#include "text/grammar/ebnf.h"

#include <algorithm>
#include <map>

#include "text/grammar/regex.h"

namespace volley::grammar {
namespace {

constexpr int kMaxRepeat = 100'000;
constexpr int kMaxQuantifiers = 8;  // on one item

bool is_name_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '_';
}

class Parser {
 public:
  Parser(std::string_view text, int max_depth, int max_rules)
      : whole_(text), text_(text), max_depth_(max_depth), max_rules_(max_rules) {}

  Result<Rules> parse() {
    if (Status status = parse_rules(); !status) {
      const std::string_view read = whole_.substr(0, whole_.size() - text_.size());
      return invalid("grammar, line {}: {}", 1 + std::count(read.begin(), read.end(), '\n'),
                     status.error().message);
    }
    for (const auto& [name, entry] : names_) {
      if (!entry.is_defined) return invalid("grammar: rule '{}' is used but not defined", name);
    }
    const auto root = names_.find("root");
    if (root == names_.end()) return invalid("grammar: there is no rule named 'root'");
    rules_.root = root->second.rule;
    return std::move(rules_);
  }

 private:
  struct Entry {
    RuleId rule{};
    bool is_defined = false;
  };

  Status parse_rules() {
    for (skip_blanks(); !text_.empty(); skip_blanks()) {
      const std::string_view name = take_name();
      if (name.empty()) return invalid("expected the name of a rule");
      skip_blanks();
      if (!take("::=")) return invalid("expected '::=' after '{}'", name);
      VOLLEY_TRY(const RuleId rule, rule_named(name));
      if (names_.find(name)->second.is_defined) {
        return invalid("rule '{}' is defined twice", name);
      }
      VOLLEY_TRY(const ExprId body, parse_choice(0));
      rules_.define(rule, body);
      names_.find(name)->second.is_defined = true;
    }
    return {};
  }

  Result<ExprId> parse_choice(int depth) {
    if (depth > max_depth_) return invalid("groups nested deeper than {} levels", max_depth_);
    std::vector<ExprId> parts;
    do {
      VOLLEY_TRY(const ExprId part, parse_sequence(depth));
      parts.push_back(part);
      skip_blanks();
    } while (take("|"));
    return rules_.choice(std::move(parts));
  }

  Result<ExprId> parse_sequence(int depth) {
    std::vector<ExprId> parts;
    while (true) {
      skip_blanks();
      if (text_.empty() || text_[0] == '|' || text_[0] == ')' || at_rule_start()) break;
      VOLLEY_TRY(const ExprId atom, parse_atom(depth));
      VOLLEY_TRY(const ExprId part, parse_quantifiers(atom));
      parts.push_back(part);
    }
    if (parts.empty()) return rules_.empty();
    return rules_.sequence(std::move(parts));
  }

  Result<ExprId> parse_atom(int depth) {
    if (take("\"")) return parse_literal();
    if (take("[")) {
      VOLLEY_TRY(CodePointSet set, parse_char_class(text_));
      return rules_.chars(std::move(set));
    }
    if (take(".")) return rules_.chars(CodePointSet::all());
    if (take("(")) {
      VOLLEY_TRY(const ExprId group, parse_choice(depth + 1));
      skip_blanks();
      if (!take(")")) return invalid("'(' without ')'");
      return group;
    }
    const std::string_view name = take_name();
    if (name.empty()) return invalid("unexpected '{}'", text_.substr(0, 1));
    VOLLEY_TRY(const RuleId rule, rule_named(name));
    return rules_.call(rule);
  }

  // A literal behind its opening quote.
  Result<ExprId> parse_literal() {
    std::string bytes;
    while (!text_.starts_with('"')) {
      uint32_t c = 0;
      if (text_.starts_with('\\')) {
        text_.remove_prefix(1);
        VOLLEY_TRY(const CodePointSet set, parse_escape(text_));
        if (set.ranges().size() != 1 || set.ranges()[0].lo != set.ranges()[0].hi) {
          return invalid("an escape for many characters in a literal");
        }
        c = set.ranges()[0].lo;
      } else if (!take_code_point(text_, c)) {
        return invalid("a literal without its closing '\"', or not valid UTF-8");
      }
      append_utf8(bytes, c);
    }
    text_.remove_prefix(1);
    return rules_.literal(std::move(bytes));
  }

  Result<ExprId> parse_quantifiers(ExprId part) {
    for (int count = 0;; ++count) {
      // GBNF lets blanks stand before a quantifier on the same line; a newline ends the item.
      const std::string_view before = text_;
      while (text_.starts_with(' ') || text_.starts_with('\t')) text_.remove_prefix(1);
      if (take("*")) {
        part = rules_.repeat(part, 0, Expr::kUnbounded);
      } else if (take("+")) {
        part = rules_.repeat(part, 1, Expr::kUnbounded);
      } else if (take("?")) {
        part = rules_.optional(part);
      } else if (take("{")) {
        VOLLEY_TRY(part, parse_counts(part));
      } else {
        text_ = before;
        return part;
      }
      if (count == kMaxQuantifiers) return invalid("more than {} quantifiers in a row", count);
    }
  }

  Result<ExprId> parse_counts(ExprId part) {
    skip_blanks();
    VOLLEY_TRY(const int min, parse_count());
    int max = min;
    skip_blanks();
    if (take(",")) {
      skip_blanks();
      max = Expr::kUnbounded;
      if (!text_.starts_with('}')) {
        VOLLEY_TRY(max, parse_count());
        skip_blanks();
        if (max < min) return invalid("{{{},{}}} is out of order", min, max);
      }
    }
    if (!take("}")) return invalid("'{{' needs counts and a '}}', as in {{2,3}}");
    return rules_.repeat(part, min, max);
  }

  Result<int> parse_count() {
    int count = 0;
    bool is_empty = true;
    for (; !text_.empty() && text_[0] >= '0' && text_[0] <= '9'; text_.remove_prefix(1)) {
      count = count * 10 + (text_[0] - '0');
      is_empty = false;
      if (count > kMaxRepeat) return invalid("a repetition of more than {}", kMaxRepeat);
    }
    if (is_empty) return invalid("'{{' needs counts and a '}}', as in {{2,3}}");
    return count;
  }

  Result<RuleId> rule_named(std::string_view name) {
    if (const auto found = names_.find(name); found != names_.end()) return found->second.rule;
    if (rules_.num_rules() >= static_cast<size_t>(max_rules_)) {
      return make_error(ErrorKind::kExhausted, "more than {} rules", max_rules_);
    }
    const RuleId rule = rules_.add_rule(std::string(name));
    names_.emplace(name, Entry{rule, false});
    return rule;
  }

  void skip_blanks() {
    while (!text_.empty()) {
      if (text_[0] == '#') {
        text_.remove_prefix(std::min(text_.find('\n'), text_.size()));
      } else if (text_[0] == ' ' || text_[0] == '\t' || text_[0] == '\n' || text_[0] == '\r') {
        text_.remove_prefix(1);
      } else {
        return;
      }
    }
  }

  std::string_view take_name() {
    size_t size = 0;
    while (size < text_.size() && is_name_char(text_[size])) ++size;
    const std::string_view name = text_.substr(0, size);
    text_.remove_prefix(size);
    return name;
  }

  // A name with '::=' behind it.
  bool at_rule_start() {
    const std::string_view before = text_;
    bool is_start = false;
    if (!take_name().empty()) {
      while (text_.starts_with(' ') || text_.starts_with('\t')) text_.remove_prefix(1);
      is_start = text_.starts_with("::=");
    }
    text_ = before;
    return is_start;
  }

  bool take(std::string_view token) {
    if (!text_.starts_with(token)) return false;
    text_.remove_prefix(token.size());
    return true;
  }

  const std::string_view whole_;
  std::string_view text_;  // what is left
  const int max_depth_;
  const int max_rules_;
  Rules rules_;
  std::map<std::string, Entry, std::less<>> names_;
};

}  // namespace

Result<Rules> parse_ebnf(std::string_view text, int max_depth, int max_rules) {
  return Parser(text, max_depth, max_rules).parse();
}

}  // namespace volley::grammar
