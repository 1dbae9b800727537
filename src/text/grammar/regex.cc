#include "text/grammar/regex.h"

#include <algorithm>

namespace volley::grammar {
namespace {

// Repetition counts above this would only run into the budget later.
constexpr int kMaxRepeat = 100'000;

const CodePointSet& digits() {
  static const CodePointSet set({{'0', '9'}});
  return set;
}

const CodePointSet& word_chars() {
  static const CodePointSet set({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}});
  return set;
}

const CodePointSet& spaces() {
  static const CodePointSet set({{9, 13},
                                 {' ', ' '},
                                 {0xa0, 0xa0},
                                 {0x1680, 0x1680},
                                 {0x2000, 0x200a},
                                 {0x2028, 0x2029},
                                 {0x202f, 0x202f},
                                 {0x205f, 0x205f},
                                 {0x3000, 0x3000},
                                 {0xfeff, 0xfeff}});
  return set;
}

const CodePointSet& line_ends() {
  static const CodePointSet set({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
  return set;
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Takes exactly `count` hexadecimal digits.
bool take_hex(std::string_view& text, size_t count, uint32_t& value) {
  if (text.size() < count) return false;
  value = 0;
  for (size_t i = 0; i < count; ++i) {
    const int digit = hex_value(text[i]);
    if (digit < 0) return false;
    value = value * 16 + static_cast<uint32_t>(digit);
  }
  text.remove_prefix(count);
  return true;
}

class Parser {
 public:
  Parser(std::string_view pattern, const RegexOptions& options, Rules& rules)
      : text_(pattern), size_(pattern.size()), options_(options), rules_(rules) {}

  Result<ExprId> parse() {
    Result<ExprId> expr = parse_choice(0);
    if (expr && !text_.empty()) expr = invalid("')' without '('");
    if (expr) return expr;
    return invalid("regex, at byte {}: {}", size_ - text_.size(), expr.error().message);
  }

 private:
  Result<ExprId> parse_choice(int depth) {
    if (depth > options_.max_depth) {
      return invalid("groups nested deeper than {} levels", options_.max_depth);
    }
    std::vector<ExprId> parts;
    while (true) {
      VOLLEY_TRY(const ExprId part, parse_sequence(depth));
      parts.push_back(part);
      if (!text_.starts_with('|')) break;
      text_.remove_prefix(1);
    }
    return rules_.choice(std::move(parts));
  }

  Result<ExprId> parse_sequence(int depth) {
    std::vector<ExprId> parts;
    const bool from_start = depth == 0 && take('^');
    bool to_end = false;
    if (depth == 0 && options_.is_search && !from_start) parts.push_back(anything());
    while (!text_.empty() && text_[0] != '|' && text_[0] != ')') {
      if (depth == 0 && text_[0] == '$' && (text_.size() == 1 || text_[1] == '|')) {
        text_.remove_prefix(1);
        to_end = true;
        break;
      }
      VOLLEY_TRY(const ExprId atom, parse_atom(depth));
      VOLLEY_TRY(const ExprId part, parse_quantifier(atom));
      parts.push_back(part);
    }
    if (depth == 0 && options_.is_search && !to_end) parts.push_back(anything());
    if (parts.empty()) return rules_.empty();
    return rules_.sequence(std::move(parts));
  }

  Result<ExprId> parse_atom(int depth) {
    const char c = text_[0];
    switch (c) {
      case '(': {
        text_.remove_prefix(1);
        VOLLEY_TRY_STATUS(skip_group_kind());
        VOLLEY_TRY(const ExprId group, parse_choice(depth + 1));
        if (!take(')')) return invalid("'(' without ')'");
        return group;
      }
      case '[': {
        text_.remove_prefix(1);
        VOLLEY_TRY(const CodePointSet set, parse_char_class(text_));
        return chars(set);
      }
      case '.':
        text_.remove_prefix(1);
        return chars(line_ends().complement());
      case '\\': {
        text_.remove_prefix(1);
        VOLLEY_TRY(const CodePointSet set, parse_escape(text_));
        return chars(set);
      }
      case '^':
      case '$':
        return invalid("'{}' is supported at the ends of the pattern only", c);
      case '*':
      case '+':
      case '?':
        return invalid("'{}' has nothing to repeat", c);
      default:
        break;
    }
    uint32_t code_point = 0;
    if (!take_code_point(text_, code_point)) return invalid("not valid UTF-8");
    return chars(CodePointSet({{code_point, code_point}}));
  }

  Status skip_group_kind() {
    if (!text_.starts_with('?')) return {};
    if (text_.starts_with("?:")) {
      text_.remove_prefix(2);
      return {};
    }
    const size_t skip = text_.starts_with("?P<") ? 3 : 2;
    if ((text_.starts_with("?<") || skip == 3) && text_.size() > skip && text_[skip] != '=' &&
        text_[skip] != '!') {
      const size_t close = text_.find('>');
      if (close == std::string_view::npos) return invalid("a group's name needs a '>'");
      text_.remove_prefix(close + 1);
      return {};
    }
    return invalid("'({}' is not supported (look-around and flags are not)", text_.substr(0, 2));
  }

  Result<ExprId> parse_quantifier(ExprId atom) {
    int min = 0;
    int max = Expr::kUnbounded;
    if (take('*')) {
    } else if (take('+')) {
      min = 1;
    } else if (take('?')) {
      max = 1;
    } else if (text_.starts_with('{')) {
      VOLLEY_TRY_STATUS(parse_counts(min, max));
    } else {
      return atom;
    }
    take('?');  // lazy: the same language
    if (!text_.empty() && (text_[0] == '*' || text_[0] == '+' || text_[0] == '?')) {
      return invalid("'{}' has nothing to repeat", text_[0]);
    }
    return rules_.repeat(atom, min, max);
  }

  // {m}, {m,} or {m,n}.
  Status parse_counts(int& min, int& max) {
    text_.remove_prefix(1);
    VOLLEY_TRY(min, parse_count());
    max = min;
    if (take(',')) {
      max = Expr::kUnbounded;
      if (!text_.starts_with('}')) {
        VOLLEY_TRY(max, parse_count());
        if (max < min) return invalid("{{{},{}}} is out of order", min, max);
      }
    }
    if (!take('}')) return invalid("'{{' needs counts and a '}}', as in {{2,3}}");
    return {};
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

  bool take(char c) {
    if (!text_.starts_with(c)) return false;
    text_.remove_prefix(1);
    return true;
  }

  ExprId chars(const CodePointSet& set) {
    return options_.in_json_string ? json_string_chars(set, rules_) : rules_.chars(set);
  }

  ExprId anything() { return rules_.repeat(chars(CodePointSet::all()), 0, Expr::kUnbounded); }

  std::string_view text_;  // what is left
  const size_t size_;
  const RegexOptions& options_;
  Rules& rules_;
};

}  // namespace

Result<CodePointSet> parse_escape(std::string_view& text) {
  uint32_t c = 0;
  if (!take_code_point(text, c)) return invalid("it ends in a backslash");
  const auto one = [](uint32_t code_point) { return CodePointSet({{code_point, code_point}}); };
  switch (c) {
    case 'd':
      return digits();
    case 'D':
      return digits().complement();
    case 'w':
      return word_chars();
    case 'W':
      return word_chars().complement();
    case 's':
      return spaces();
    case 'S':
      return spaces().complement();
    case 'n':
      return one('\n');
    case 'r':
      return one('\r');
    case 't':
      return one('\t');
    case 'f':
      return one('\f');
    case 'v':
      return one('\v');
    case '0':
      return one(0);
    case 'x':
    case 'u':
    case 'U': {
      const bool has_braces = c == 'u' && text.starts_with('{');
      size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      if (has_braces) {
        text.remove_prefix(1);
        count = text.find('}');
        if (count == std::string_view::npos || count == 0 || count > 6) {
          return invalid("\\u{{...}} needs one to six hexadecimal digits");
        }
      }
      const char kind = static_cast<char>(c);
      if (!take_hex(text, count, c)) {
        return invalid("\\{} needs {} hexadecimal digits", kind, count);
      }
      if (has_braces) text.remove_prefix(1);
      uint32_t low = 0;
      if (c >= 0xd800 && c < 0xdc00 && text.starts_with("\\u")) {
        std::string_view rest = text.substr(2);
        if (take_hex(rest, 4, low) && low >= 0xdc00 && low < 0xe000) {
          text = rest;
          c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        }
      }
      if (c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
        return invalid("U+{:04X} is no character", c);
      }
      return one(c);
    }
    default:
      break;
  }
  if (c < 0x80 && word_chars().contains(c)) {
    return invalid("'\\{}' is not supported", static_cast<char>(c));
  }
  return one(c);
}

Result<CodePointSet> parse_char_class(std::string_view& text) {
  std::vector<CodePointRange> ranges;
  const bool negated = text.starts_with('^');
  if (negated) text.remove_prefix(1);
  const auto take_item = [&]() -> Result<CodePointSet> {
    if (text.starts_with('\\')) {
      text.remove_prefix(1);
      if (text.starts_with('b')) {
        text.remove_prefix(1);
        return CodePointSet({{'\b', '\b'}});
      }
      return parse_escape(text);
    }
    uint32_t c = 0;
    if (!take_code_point(text, c)) return invalid("'[' without ']'");
    return CodePointSet({{c, c}});
  };
  const auto is_one = [](const CodePointSet& set) {
    return set.ranges().size() == 1 && set.ranges()[0].lo == set.ranges()[0].hi;
  };
  while (!text.starts_with(']')) {
    VOLLEY_TRY(const CodePointSet item, take_item());
    if (text.size() > 1 && text[0] == '-' && text[1] != ']' && is_one(item)) {
      text.remove_prefix(1);
      VOLLEY_TRY(const CodePointSet last, take_item());
      if (!is_one(last) || last.ranges()[0].lo < item.ranges()[0].lo) {
        return invalid("a range in '[...]' is out of order");
      }
      ranges.push_back({item.ranges()[0].lo, last.ranges()[0].lo});
    } else {
      ranges.insert(ranges.end(), item.ranges().begin(), item.ranges().end());
    }
  }
  text.remove_prefix(1);
  const CodePointSet set(std::move(ranges));
  return negated ? set.complement() : set;
}

void append_json_escaped(std::string& out, uint32_t code_point) {
  switch (code_point) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      break;
  }
  if (code_point < 0x20) {
    out += fmt::format("\\u{:04x}", code_point);
  } else {
    append_utf8(out, code_point);
  }
}

ExprId json_string_chars(const CodePointSet& set, Rules& rules) {
  static const CodePointSet escaped({{0, 0x1f}, {'"', '"'}, {'\\', '\\'}});
  const CodePointSet plain = set.intersected(escaped.complement());
  std::vector<std::string> escapes;
  const CodePointSet must_escape = set.intersected(escaped);
  for (const CodePointRange range : must_escape.ranges()) {
    for (uint32_t c = range.lo; c <= range.hi; ++c) append_json_escaped(escapes.emplace_back(), c);
  }
  if (escapes.empty()) return rules.chars(plain);
  if (plain.empty()) return rules.literals(std::move(escapes));
  return rules.choice({rules.chars(plain), rules.literals(std::move(escapes))});
}

Result<ExprId> parse_regex(std::string_view pattern, const RegexOptions& options, Rules& rules) {
  return Parser(pattern, options, rules).parse();
}

}  // namespace volley::grammar
