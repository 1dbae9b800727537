#include "text/jinja/print.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja/operators.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

// Namespaces may hold each other; everything else is bounded by JinjaLimits::max_value_depth.
constexpr int kMaxPrintDepth = 300;

void append_str_repr(std::string* out, std::string_view text) {
  const bool has_single = text.find('\'') != text.npos;
  const char quote = has_single && text.find('"') == text.npos ? '"' : '\'';
  out->push_back(quote);
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, &pos);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (c >= 0x20 && c < 0x7f) {
      out->push_back(static_cast<char>(c));
    } else if (c >= 0x7f && is_char(c, CharClass::kPrintable)) {
      out->append(text.substr(begin, pos - begin));
    } else {
      const auto code = static_cast<uint32_t>(c);
      *out += c < 0x100     ? fmt::format("\\x{:02x}", code)
              : c < 0x10000 ? fmt::format("\\u{:04x}", code)
                            : fmt::format("\\U{:08x}", code);
    }
  }
  out->push_back(quote);
}

class ReprPrinter {
 public:
  explicit ReprPrinter(StringBuilder* out) : out_(*out) {}

  void print(const Value& value) {
    if (++depth_ > kMaxPrintDepth) {
      fail("RecursionError",
           "maximum recursion depth exceeded while getting the repr of an object");
    }
    print_any(value);
    --depth_;
  }

 private:
  void print_any(const Value& value) {
    switch (value.kind()) {
      case Kind::kStr:
        return print_string(value.str());
      case Kind::kList:
        return print_items("[", value.items(), "]");
      case Kind::kTuple:
        return print_items("(", value.items(), value.items().size() == 1 ? ",)" : ")");
      case Kind::kDict:
        return print_dict(value.dict());
      case Kind::kView:
        return print_view(value.view());
      case Kind::kNamespace:
        return print_namespace(value.name_space());
      default:
        return out_.append(scalar(value));
    }
  }

  static std::string scalar(const Value& value) {
    switch (value.kind()) {
      case Kind::kMissing:
      case Kind::kUndefined:
        return "Undefined";
      case Kind::kNone:
        return "None";
      case Kind::kBool:
        return value.as_bool() ? "True" : "False";
      case Kind::kInt:
        return std::to_string(value.as_int());
      case Kind::kFloat:
        return float_repr(value.as_real());
      case Kind::kRange: {
        const Range& range = value.range();
        return range.step == 1
                   ? fmt::format("range({}, {})", range.start, range.stop)
                   : fmt::format("range({}, {}, {})", range.start, range.stop, range.step);
      }
      case Kind::kFunction:
        return value.function().description();
      default:
        // Python prints an address here; ours must not depend on one.
        return fmt::format("<{} object>", type_name(value));
    }
  }

  void print_string(const Str& str) {
    std::string text;
    append_str_repr(&text, str.text);
    if (str.markup) text = "Markup(" + text + ")";
    out_.append(text);
  }

  void print_items(std::string_view open, const std::vector<Value>& items, std::string_view close) {
    out_.append(open);
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out_.append(", ");
      print(items[i]);
    }
    out_.append(close);
  }

  void print_dict(const Dict& dict) {
    out_.append("{");
    bool first = true;
    for (const auto& [key, value] : dict.entries) {
      if (!std::exchange(first, false)) out_.append(", ");
      print(key);
      out_.append(": ");
      print(value);
    }
    out_.append("}");
  }

  void print_view(const DictView& view) {
    out_.append(view.what == DictView::What::kKeys     ? "dict_keys(["
                : view.what == DictView::What::kValues ? "dict_values(["
                                                       : "dict_items([");
    bool first = true;
    for (const auto& [key, value] : view.owner.dict().entries) {
      if (!std::exchange(first, false)) out_.append(", ");
      if (view.what == DictView::What::kItems) out_.append("(");
      if (view.what != DictView::What::kValues) print(key);
      if (view.what == DictView::What::kItems) out_.append(", ");
      if (view.what != DictView::What::kKeys) print(value);
      if (view.what == DictView::What::kItems) out_.append(")");
    }
    out_.append("])");
  }

  void print_namespace(const Namespace& names) {
    if (std::count(open_.begin(), open_.end(), &names) > 0) return out_.append("<Namespace {...}>");
    open_.push_back(&names);
    out_.append("<Namespace {");
    bool first = true;
    for (const auto& [name, value] : names.attributes) {
      if (!std::exchange(first, false)) out_.append(", ");
      out_.append(repr(name));
      out_.append(": ");
      print(value);
    }
    out_.append("}>");
    open_.pop_back();
  }

  StringBuilder& out_;
  std::vector<const Namespace*> open_;  // namespaces around the value at hand
  int depth_ = 0;
};

class JsonPrinter {
 public:
  JsonPrinter(Heap& heap, const JsonStyle& style) : out_(heap), style_(style) {}

  void print(const Value& value) {
    switch (value.kind()) {
      case Kind::kNone:
        return out_.append("null");
      case Kind::kBool:
        return out_.append(value.as_bool() ? "true" : "false");
      case Kind::kInt:
        return out_.append(std::to_string(value.as_int()));
      case Kind::kFloat:
        return out_.append(number(value.as_real()));
      case Kind::kStr:
        return print_string(value.text());
      case Kind::kList:
      case Kind::kTuple:
        return print_list(value.items());
      case Kind::kDict:
        return print_dict(value.dict());
      default:
        fail_type("Object of type {} is not JSON serializable", type_name(value));
    }
  }

  std::string finish() { return std::move(out_.text()); }

 private:
  static std::string number(double d) {
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d > 0 ? "Infinity" : "-Infinity";
    return float_repr(d);
  }

  void print_string(std::string_view text) {
    std::string quoted = "\"";
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      const char32_t c = next_code_point(text, &pos);
      switch (c) {
        case '"':
          quoted += "\\\"";
          break;
        case '\\':
          quoted += "\\\\";
          break;
        case '\n':
          quoted += "\\n";
          break;
        case '\r':
          quoted += "\\r";
          break;
        case '\t':
          quoted += "\\t";
          break;
        case '\b':
          quoted += "\\b";
          break;
        case '\f':
          quoted += "\\f";
          break;
        default:
          if (c < 0x20 || (style_.ensure_ascii && c > 0x7e)) {
            append_escape(&quoted, c);
          } else {
            quoted.append(text.substr(begin, pos - begin));
          }
      }
    }
    quoted.push_back('"');
    out_.append(quoted);
  }

  static void append_escape(std::string* out, char32_t c) {
    const auto code = static_cast<uint32_t>(c);
    if (code < 0x10000) {
      *out += fmt::format("\\u{:04x}", code);
    } else {
      *out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + ((code - 0x10000) >> 10),
                          0xdc00 + ((code - 0x10000) & 0x3ff));
    }
  }

  void begin_item(bool first) {
    if (!first) out_.append(style_.item_separator);
    if (style_.indent) new_line();
  }
  void new_line() {
    out_.append("\n");
    for (int i = 0; i < depth_; ++i) out_.append(*style_.indent);
  }

  void print_list(const std::vector<Value>& items) {
    if (items.empty()) return out_.append("[]");
    out_.append("[");
    ++depth_;
    for (size_t i = 0; i < items.size(); ++i) {
      begin_item(i == 0);
      print(items[i]);
    }
    --depth_;
    if (style_.indent) new_line();
    out_.append("]");
  }

  void print_dict(const Dict& dict) {
    if (dict.entries.empty()) return out_.append("{}");
    std::vector<const Dict::Entry*> entries;
    for (const auto& entry : dict.entries) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return less_than(a->first, b->first); });
    }
    out_.append("{");
    ++depth_;
    for (const Dict::Entry* entry : entries) {
      begin_item(entry == entries.front());
      print_key(entry->first);
      out_.append(style_.key_separator);
      print(entry->second);
    }
    --depth_;
    if (style_.indent) new_line();
    out_.append("}");
  }

  void print_key(const Value& key) {
    switch (key.kind()) {
      case Kind::kStr:
        return print_string(key.text());
      case Kind::kNone:
        return out_.append("\"null\"");
      case Kind::kBool:
        return out_.append(key.as_bool() ? "\"true\"" : "\"false\"");
      case Kind::kInt:
        return out_.append("\"" + std::to_string(key.as_int()) + "\"");
      case Kind::kFloat:
        return out_.append("\"" + number(key.as_real()) + "\"");
      default:
        fail_type("keys must be str, int, float, bool or None, not {}", type_name(key));
    }
  }

  StringBuilder out_;
  const JsonStyle& style_;
  int depth_ = 0;
};

}  // namespace

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d > 0 ? "inf" : "-inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific);
  const std::string_view text(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = text.find('e');
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(text);
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::fixed);
  std::string out(buffer, fixed.ptr);
  if (out.find('.') == out.npos) out += ".0";
  return out;
}

void append_str(StringBuilder* out, const Value& value) {
  if (value.is(Kind::kStr)) return out->append(value.text());
  if (value.is(Kind::kUndefined) || value.missing()) return;
  ReprPrinter(out).print(value);
}

void append_repr(StringBuilder* out, const Value& value) {
  ReprPrinter(out).print(value);
}

Value to_str(Heap& heap, const Value& value) {
  if (value.is(Kind::kStr) && !value.str().markup) return value;
  StringBuilder out(heap);
  append_str(&out, value);
  return out.finish();
}

std::string repr(Heap& heap, const Value& value) {
  StringBuilder out(heap);
  append_repr(&out, value);
  return std::move(out.text());
}

std::string repr(std::string_view text) {
  std::string out;
  append_str_repr(&out, text);
  return out;
}

std::string to_json(Heap& heap, const Value& value, const JsonStyle& style) {
  JsonPrinter printer(heap, style);
  printer.print(value);
  return printer.finish();
}

}  // namespace volley::jinja
