#include "text/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <iterator>

#include "text/jinja/failure.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

// Longest first: the first that fits is the token.
constexpr std::string_view kOperators[] = {"**", "//", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  return out;
}

bool is_digit(char c, int base = 10) {
  if (base == 16 && ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))) return true;
  return c >= '0' && c < '0' + std::min(base, 10);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : normalized_(normalize_newlines(source)) {
    source_ = normalized_;
    if (source_.ends_with('\n')) source_.remove_suffix(1);
  }

  std::vector<Token> run() {
    while (pos_ < source_.size()) lex_text();
    push(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void syntax_error(std::string message) const {
    throw Failure{"TemplateSyntaxError", std::move(message), line_};
  }

  char peek(size_t ahead = 0) const {
    return pos_ + ahead < source_.size() ? source_[pos_ + ahead] : '\0';
  }
  bool at(std::string_view text) const { return source_.substr(pos_).starts_with(text); }

  // Moves to `end`, counting lines.
  void advance_to(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(pos_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    if (end > pos_) line_starting_ = source_[end - 1] == '\n';
    pos_ = end;
  }

  size_t skip_space(size_t pos) const {
    while (pos < source_.size()) {
      size_t next = pos;
      if (!is_char(next_code_point(source_, &next), CharClass::kSpace)) break;
      pos = next;
    }
    return pos;
  }

  Token& push(TokenKind kind, std::string text = "") {
    tokens_.push_back(Token{kind, line_, std::move(text)});
    return tokens_.back();
  }

  // Text up to the next tag, then the tag.
  void lex_text() {
    size_t tag = pos_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == source_.npos) {
        push(TokenKind::kText, std::string(source_.substr(pos_)));
        return advance_to(source_.size());
      }
      const char kind = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (kind == '%' || kind == '{' || kind == '#') break;
      ++tag;
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const size_t body = tag + 2 + (sign == '-' || sign == '+' ? 1 : 0);
    push_text(tag, sign, kind != '{');
    advance_to(tag);
    if (kind == '%') {
      if (const size_t raw_end = raw_begin(body); raw_end != 0) return lex_raw(raw_end);
    }
    advance_to(body);
    line_starting_ = false;
    if (kind == '#') return lex_comment();
    push(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kPrintBegin);
    lex_tag(kind == '%');
  }

  // The text before a tag at `end`, stripped as the tag's sign says.
  void push_text(size_t end, char sign, bool may_lstrip) {
    std::string_view text = source_.substr(pos_, end - pos_);
    if (sign == '-') {
      text = strip(text, nullptr, false, true);
    } else if (sign != '+' && may_lstrip) {
      const size_t line_begin = text.rfind('\n') + 1;  // 0 when there is none
      if (line_begin > 0 || line_starting_) {
        if (strip(text.substr(line_begin), nullptr, true, false).empty()) {
          text = text.substr(0, line_begin);
        }
      }
    }
    if (!text.empty()) push(TokenKind::kText, std::string(text));
  }

  // {% raw %} with its white space control. Returns where the raw text starts, or 0.
  size_t raw_begin(size_t pos) const {
    pos = skip_space(pos);
    if (!source_.substr(pos).starts_with("raw")) return 0;
    pos = skip_space(pos + 3);
    if (source_.substr(pos).starts_with("-%}")) return skip_space(pos + 3);
    return source_.substr(pos).starts_with("%}") ? pos + 2 : 0;
  }

  void lex_raw(size_t begin) {
    advance_to(begin);
    for (size_t tag = source_.find("{%", pos_); tag != source_.npos;
         tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      size_t end = skip_space(tag + 2 + (sign == '-' || sign == '+' ? 1 : 0));
      if (!source_.substr(end).starts_with("endraw")) continue;
      end = tag_end(skip_space(end + 6), "%}", true);
      if (end == 0) continue;
      push_text(tag, sign, true);
      return advance_to(end);
    }
    syntax_error("Missing end of raw directive");
  }

  void lex_comment() {
    const size_t close = source_.find("#}", pos_);
    if (close == source_.npos) syntax_error("Missing end of comment tag");
    const char sign = close > pos_ ? source_[close - 1] : '\0';
    size_t end = close + 2;
    if (sign == '-') {
      end = skip_space(end);
    } else if (sign != '+' && end < source_.size() && source_[end] == '\n') {
      ++end;
    }
    advance_to(end);
  }

  // Where the text goes on after the end tag at `pos`, or 0 if there is no end tag.
  size_t tag_end(size_t pos, std::string_view mark, bool is_block) const {
    const std::string_view rest = source_.substr(pos);
    if (rest.starts_with('-') && rest.substr(1).starts_with(mark)) return skip_space(pos + 3);
    if (is_block && rest.starts_with('+') && rest.substr(1).starts_with(mark)) return pos + 3;
    if (!rest.starts_with(mark)) return 0;
    const bool newline = is_block && rest.substr(2).starts_with('\n');
    return pos + 2 + (newline ? 1 : 0);
  }

  void lex_tag(bool is_block) {
    std::string open;  // brackets that wait for their end
    while (true) {
      advance_to(skip_space(pos_));
      if (pos_ >= source_.size()) return;  // the parser misses the end of the tag
      if (open.empty()) {
        if (const size_t end = tag_end(pos_, is_block ? "%}" : "}}", is_block); end != 0) {
          push(is_block ? TokenKind::kBlockEnd : TokenKind::kPrintEnd);
          return advance_to(end);
        }
      }
      lex_token(&open);
    }
  }

  void lex_token(std::string* open) {
    const char c = peek();
    if (is_digit(c)) return lex_number();
    if (c == '\'' || c == '"') return lex_string(c);
    size_t end = pos_;
    if (is_char(next_code_point(source_, &end), CharClass::kIdStart)) return lex_name();
    for (const std::string_view op : kOperators) {
      if (!at(op)) continue;
      check_brackets(op[0], open);
      push(TokenKind::kOperator, std::string(op));
      return advance_to(pos_ + op.size());
    }
    syntax_error(fmt::format("unexpected char '{}' at {}", source_.substr(pos_, end - pos_), pos_));
  }

  void check_brackets(char c, std::string* open) const {
    if (c == '(') open->push_back(')');
    if (c == '[') open->push_back(']');
    if (c == '{') open->push_back('}');
    if (c != ')' && c != ']' && c != '}') return;
    if (open->empty()) syntax_error(fmt::format("unexpected '{}'", c));
    if (open->back() != c) {
      syntax_error(fmt::format("unexpected '{}', expected '{}'", c, open->back()));
    }
    open->pop_back();
  }

  void lex_name() {
    size_t end = pos_;
    while (end < source_.size()) {
      size_t next = end;
      if (!is_char(next_code_point(source_, &next), CharClass::kIdContinue)) break;
      end = next;
    }
    push(TokenKind::kName, std::string(source_.substr(pos_, end - pos_)));
    advance_to(end);
  }

  // The end of digits, single underscores between them allowed; `pos` if there are none.
  size_t digits_end(size_t pos, int base) const {
    size_t end = pos;
    while (end < source_.size()) {
      const size_t digit = source_[end] == '_' && end > pos ? end + 1 : end;
      if (digit >= source_.size() || !is_digit(source_[digit], base)) break;
      end = digit + 1;
    }
    return end;
  }

  // The end of a float literal that starts here; pos_ if there is none.
  size_t float_end() const {
    if (pos_ > 0 && source_[pos_ - 1] == '.') return pos_;
    size_t end = digits_end(pos_, 10);
    bool is_float = false;
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      end = digits_end(end + 1, 10);
      is_float = true;
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) {
        ++exponent;
      }
      const size_t exponent_end = digits_end(exponent, 10);
      if (exponent_end > exponent) return exponent_end;
    }
    return is_float ? end : pos_;
  }

  void lex_number() {
    if (const size_t end = float_end(); end > pos_) {
      std::string digits(source_.substr(pos_, end - pos_));
      std::erase(digits, '_');
      push(TokenKind::kFloat).real = std::strtod(digits.c_str(), nullptr);
      return advance_to(end);
    }
    int base = 10;
    size_t begin = pos_;
    if (peek() == '0') {
      const char mark = static_cast<char>(peek(1) | 0x20);
      base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
      if (base != 10) {
        begin = pos_ + 2 + (peek(2) == '_' ? 1 : 0);
        if (digits_end(begin, base) == begin) {
          base = 10;
          begin = pos_;
        }
      }
    }
    size_t end = digits_end(begin, base);
    if (base == 10 && peek() == '0') {  // only zeros may follow a zero
      end = pos_ + 1;
      while (end < source_.size() && source_[end] == '0') ++end;
    }
    std::string digits(source_.substr(begin, end - begin));
    std::erase(digits, '_');
    int64_t value = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (parsed.ec != std::errc()) syntax_error("an integer literal does not fit in 64 bits");
    push(TokenKind::kInteger).integer = value;
    advance_to(end);
  }

  void lex_string(char quote) {
    size_t end = pos_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) {
      syntax_error(fmt::format("unexpected char {} at {}", quote == '"' ? "'\"'" : "\"'\"", pos_));
    }
    push(TokenKind::kString, unescape(source_.substr(pos_ + 1, end - pos_ - 1)));
    advance_to(end + 1);
  }

  std::string unescape(std::string_view text) const {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out.push_back(text[i]);
        continue;
      }
      static constexpr std::string_view kNames = "\\'\"abfnrtv";
      static constexpr std::string_view kValues = "\\'\"\a\b\f\n\r\t\v";
      const char c = text[++i];  // lex_string saw to it that something follows
      if (c == '\n') continue;
      if (const size_t known = kNames.find(c); known != kNames.npos) {
        out.push_back(kValues[known]);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_code(&out, text.substr(i + 1, count), count, 16, c);
        i += count;
      } else if (is_digit(c, 8)) {
        size_t count = 1;
        while (count < 3 && i + count < text.size() && is_digit(text[i + count], 8)) ++count;
        append_code(&out, text.substr(i, count), count, 8, c);
        i += count - 1;
      } else if (c == 'N') {
        syntax_error("\\N{...} escapes are not supported");
      } else {
        out.push_back('\\');
        out.push_back(c);
      }
    }
    return out;
  }

  void append_code(std::string* out, std::string_view digits, size_t count, int base,
                   char letter) const {
    uint32_t code = 0;
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), code, base);
    if (digits.size() < count || parsed.ec != std::errc() ||
        parsed.ptr != digits.data() + digits.size()) {
      syntax_error(fmt::format("truncated \\{} escape", letter));
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      syntax_error(fmt::format("\\{}{} is not a character", letter, digits));
    }
    append_utf8(out, code);
  }

  std::string normalized_;
  std::string_view source_;
  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace volley::jinja
