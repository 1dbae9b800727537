// Filters on text.

#include <algorithm>

#include "text/jinja/builtins.h"
#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/methods.h"
#include "text/jinja/params.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

// The value as a str, Markup left as it is.
Value soft_str(Heap& heap, const Value& value) {
  return value.is(Kind::kStr) ? value : to_str(heap, value);
}

Value call_method(Interpreter& interpreter, const Value& value, const char* name, Args args) {
  return find_str_method(name)->function(interpreter, soft_str(interpreter.heap(), value), args);
}

Value filter_capitalize(Interpreter& interpreter, const Value& value, Args& args) {
  return call_method(interpreter, value, "capitalize", std::move(args));
}
Value filter_lower(Interpreter& interpreter, const Value& value, Args& args) {
  return call_method(interpreter, value, "lower", std::move(args));
}
Value filter_upper(Interpreter& interpreter, const Value& value, Args& args) {
  return call_method(interpreter, value, "upper", std::move(args));
}

Value filter_center(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_center", args, {"width"});
  return call_method(interpreter, value, "center", {{Value::integer(params.integer(0, 80))}, {}});
}

Value filter_trim(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_trim", args, {"chars"});
  return call_method(interpreter, value, "strip", {{params.value(0, Value::none())}, {}});
}

Value filter_escape(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("escape", args, {});
  return escape(interpreter.heap(), value);
}

Value filter_forceescape(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_forceescape", args, {});
  return escape(interpreter.heap(), to_str(interpreter.heap(), value));
}

Value filter_safe(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_mark_safe", args, {});
  Heap& heap = interpreter.heap();
  return heap.str_view(to_str(heap, value).text(), true);
}

Value filter_string(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("soft_str", args, {});
  return soft_str(interpreter.heap(), value);
}

Value filter_format(Interpreter& interpreter, const Value& value, Args& args) {
  Heap& heap = interpreter.heap();
  const Value format = soft_str(heap, value);
  if (args.named.empty()) {
    return format_percent(interpreter, format, heap.tuple(std::move(args.positional)));
  }
  if (!args.positional.empty()) {
    fail("FilterArgumentError", "can't handle positional and keyword arguments at the same time");
  }
  std::vector<Dict::Entry> entries;
  for (auto& [name, argument] : args.named) entries.emplace_back(heap.str(name), argument);
  return format_percent(interpreter, format, heap.dict(std::move(entries)));
}

std::string indention_of(Heap& heap, const Params& params) {
  if (!params.has(0)) return "    ";
  if (params.at(0).is(Kind::kStr)) return std::string(params.text(0));
  const auto width = static_cast<size_t>(std::max<int64_t>(params.integer(0, 4), 0));
  heap.check_string_size(width);
  return std::string(width, ' ');
}

Value filter_indent(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_indent", args, {"width", "first", "blank"});
  Heap& heap = interpreter.heap();
  require_defined(value);
  if (!value.is(Kind::kStr)) {
    fail_type("unsupported operand type(s) for +=: '{}' and 'str'", type_name(value));
  }
  const std::string indention = indention_of(heap, params);
  const bool first = params.flag(1, false), blank = params.flag(2, false);
  // The newline makes a line even of the empty string, as in Jinja.
  const std::string text = std::string(value.text()) + "\n";
  heap.step(text.size() / 2);
  StringBuilder out(heap);
  bool is_first = true;
  for (const std::string_view line : split_lines(text, false)) {
    if (!is_first) out.append("\n");
    if (is_first ? first : blank || !line.empty()) out.append(indention);
    out.append(line);
    is_first = false;
  }
  return out.finish(value.str().markup);
}

Value filter_replace(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_replace", args, {"old", "new", "count"}, 2);
  Heap& heap = interpreter.heap();
  const Value text = to_str(heap, value);
  const Value old_text = to_str(heap, params.at(0)), new_text = to_str(heap, params.at(1));
  const int64_t count = params.given(2) ? to_index(params.at(2)) : -1;
  return heap.str(replaced(heap, text.text(), old_text.text(), new_text.text(), count));
}

Value filter_title(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_title", args, {});
  Heap& heap = interpreter.heap();
  const Value text = to_str(heap, value);
  heap.step(text.text().size() / 2);
  std::string out;
  // A word begins after blanks and opening brackets, and at hyphens: [-\s({\[<]+
  size_t begin = 0;
  const auto flush = [&](size_t end) {
    if (end == begin) return;
    size_t rest = begin;
    next_code_point(text.text(), &rest);
    out += to_upper(text.text().substr(begin, rest - begin));
    out += to_lower(text.text().substr(rest, end - rest));
  };
  for (size_t pos = 0; pos < text.text().size();) {
    const size_t at = pos;
    const char32_t c = next_code_point(text.text(), &pos);
    const bool separates =
        c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || is_char(c, CharClass::kSpace);
    if (!separates) continue;
    flush(at);
    out.append(text.text().substr(at, pos - at));
    begin = pos;
  }
  flush(text.text().size());
  return heap.str(std::move(out));
}

Value filter_truncate(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_truncate", args, {"length", "killwords", "end", "leeway"});
  Heap& heap = interpreter.heap();
  const int64_t limit = params.integer(0, 255);
  const Value end = params.has(2) ? params.at(2) : heap.str("...");
  const int64_t leeway = params.given(3) ? params.integer(3, 5) : 5;
  if (limit < volley::jinja::length(end)) {
    fail("AssertionError", "expected length >= {}, got {}", volley::jinja::length(end), limit);
  }
  if (leeway < 0) fail("AssertionError", "expected leeway >= 0, got {}", leeway);
  const int64_t size = volley::jinja::length(value);
  if (size <= limit || size - limit <= leeway) return value;
  const Value head = slice(interpreter, value, Value::none(),
                           Value::integer(limit - volley::jinja::length(end)), Value::none());
  if (!head.is(Kind::kStr)) return binary(interpreter, BinaryOp::kAdd, head, end);
  std::string_view kept = head.text();
  if (!params.flag(1, false)) {
    const size_t blank = kept.rfind(' ');
    if (blank != kept.npos) kept = kept.substr(0, blank);
  }
  return binary(interpreter, BinaryOp::kAdd, heap.str_view(kept, head.str().markup), end);
}

std::string url_quoted(std::string_view text, bool for_query) {
  std::string out;
  for (const unsigned char c : text) {
    const bool plain = (c < 0x80 && std::isalnum(c)) || c == '_' || c == '.' || c == '-' ||
                       c == '~' || (c == '/' && !for_query);
    if (plain) {
      out.push_back(static_cast<char>(c));
    } else if (c == ' ' && for_query) {
      out.push_back('+');
    } else {
      out += fmt::format("%{:02X}", c);
    }
  }
  return out;
}

Value filter_urlencode(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_urlencode", args, {});
  Heap& heap = interpreter.heap();
  const bool is_pairs = value.is_sequence() || value.is(Kind::kDict) || value.is(Kind::kView) ||
                        value.is(Kind::kIterator);
  if (!is_pairs) return heap.str(url_quoted(to_str(heap, value).text(), false));
  std::vector<Value> pairs;
  if (value.is(Kind::kDict)) {
    for (const auto& [key, element] : value.dict().entries) {
      pairs.push_back(heap.tuple({key, element}));
    }
  } else {
    pairs = to_vector(interpreter, value);
  }
  StringBuilder out(heap);
  for (const Value& pair : pairs) {
    const auto parts = to_vector(interpreter, pair);
    if (parts.size() != 2) fail("ValueError", "expected pairs, got {} values", parts.size());
    if (&pair != &pairs.front()) out.append("&");
    out.append(url_quoted(to_str(heap, parts[0]).text(), true));
    out.append("=");
    out.append(url_quoted(to_str(heap, parts[1]).text(), true));
  }
  return out.finish();
}

Value filter_wordcount(Interpreter& interpreter, const Value& value, Args& args) {
  const Params params("do_wordcount", args, {});
  const Value text = soft_str(interpreter.heap(), value);
  interpreter.heap().step(text.text().size() / 2);
  int64_t count = 0;
  bool in_word = false;
  for (size_t pos = 0; pos < text.text().size();) {
    const char32_t c = next_code_point(text.text(), &pos);
    const bool is_word = c == '_' || is_char(c, CharClass::kAlpha) ||
                         is_char(c, CharClass::kDigit) || is_char(c, CharClass::kNumeric);
    count += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return Value::integer(count);
}

constexpr FilterEntry kFilters[] = {
    {"capitalize", filter_capitalize},
    {"center", filter_center},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"forceescape", filter_forceescape},
    {"format", filter_format},
    {"indent", filter_indent},
    {"lower", filter_lower},
    {"replace", filter_replace},
    {"safe", filter_safe},
    {"string", filter_string},
    {"title", filter_title},
    {"trim", filter_trim},
    {"truncate", filter_truncate},
    {"upper", filter_upper},
    {"urlencode", filter_urlencode},
    {"wordcount", filter_wordcount},
};

}  // namespace

FilterFunction find_text_filter(std::string_view name) {
  return find_in(kFilters, name);
}

}  // namespace volley::jinja
