// Methods of str.

#include <algorithm>

#include "text/jinja/format.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/methods.h"
#include "text/jinja/print.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

// A result keeps the Markup of the string it came from.
Value same_type(Interpreter& interpreter, const Value& self, std::string text) {
  return interpreter.heap().str(std::move(text), self.str().markup);
}
Value same_type(Interpreter& interpreter, const Value& self, std::string_view text) {
  return interpreter.heap().str_view(text, self.str().markup);
}

// Looking at every character costs more than copying it.
void step_chars(Interpreter& interpreter, const Value& self) {
  interpreter.heap().step(self.text().size() / 2);
}

template <std::string (*kConvert)(std::string_view)>
Value convert(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("str method", args, {});
  step_chars(interpreter, self);
  return same_type(interpreter, self, kConvert(self.text()));
}

template <CharClass kClass>
Value all_chars(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("str method", args, {});
  step_chars(interpreter, self);
  bool all = kClass == CharClass::kPrintable || !self.text().empty();
  for (size_t pos = 0; all && pos < self.text().size();) {
    all = is_char(next_code_point(self.text(), &pos), kClass);
  }
  return Value::boolean(all);
}

Value str_isalnum(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("isalnum", args, {});
  step_chars(interpreter, self);
  bool all = !self.text().empty();
  for (size_t pos = 0; all && pos < self.text().size();) {
    const char32_t c = next_code_point(self.text(), &pos);
    all = is_char(c, CharClass::kAlpha) || is_char(c, CharClass::kDigit) ||
          is_char(c, CharClass::kNumeric);
  }
  return Value::boolean(all);
}

Value str_isascii(Interpreter&, const Value& self, Args& args) {
  const Params params("isascii", args, {});
  return Value::boolean(self.str().ascii);
}

Value str_isidentifier(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("isidentifier", args, {});
  step_chars(interpreter, self);
  bool all = !self.text().empty();
  for (size_t pos = 0; all && pos < self.text().size();) {
    const auto char_class = pos == 0 ? CharClass::kIdStart : CharClass::kIdContinue;
    all = is_char(next_code_point(self.text(), &pos), char_class);
  }
  return Value::boolean(all);
}

// islower and isupper: some cased character, and none of the other case.
template <CharClass kWanted, CharClass kOther>
Value all_cased(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("str method", args, {});
  step_chars(interpreter, self);
  bool found = false;
  for (size_t pos = 0; pos < self.text().size();) {
    const char32_t c = next_code_point(self.text(), &pos);
    if (is_char(c, kOther) || is_char(c, CharClass::kTitle)) return Value::boolean(false);
    found |= is_char(c, kWanted);
  }
  return Value::boolean(found);
}

Value str_istitle(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("istitle", args, {});
  step_chars(interpreter, self);
  bool found = false, in_word = false;
  for (size_t pos = 0; pos < self.text().size();) {
    const char32_t c = next_code_point(self.text(), &pos);
    const bool starts = is_char(c, CharClass::kUpper) || is_char(c, CharClass::kTitle);
    const bool cased = is_char(c, CharClass::kCased);
    if (cased && starts == in_word) return Value::boolean(false);
    found |= cased;
    in_word = cased;
  }
  return Value::boolean(found);
}

Value strip_sides(Interpreter& interpreter, const Value& self, Args& args, const char* name,
                  bool left, bool right) {
  const Params params(name, args, {""});
  std::string_view chars;
  if (params.given(0)) chars = params.text(0);
  step_chars(interpreter, self);
  interpreter.heap().step_bytes(4 * chars.size());
  return same_type(interpreter, self,
                   strip(self.text(), params.given(0) ? &chars : nullptr, left, right));
}
Value str_strip(Interpreter& interpreter, const Value& self, Args& args) {
  return strip_sides(interpreter, self, args, "strip", true, true);
}
Value str_lstrip(Interpreter& interpreter, const Value& self, Args& args) {
  return strip_sides(interpreter, self, args, "lstrip", true, false);
}
Value str_rstrip(Interpreter& interpreter, const Value& self, Args& args) {
  return strip_sides(interpreter, self, args, "rstrip", false, true);
}

Value removed_fix(Interpreter& interpreter, const Value& self, Args& args, bool prefix) {
  const Params params(prefix ? "removeprefix" : "removesuffix", args, {""}, 1);
  std::string_view text = self.text();
  const std::string_view fix = params.text(0);
  if (prefix && text.starts_with(fix)) {
    text.remove_prefix(fix.size());
  } else if (!prefix && text.ends_with(fix)) {
    text.remove_suffix(fix.size());
  }
  return same_type(interpreter, self, text);
}
Value str_removeprefix(Interpreter& interpreter, const Value& self, Args& args) {
  return removed_fix(interpreter, self, args, true);
}
Value str_removesuffix(Interpreter& interpreter, const Value& self, Args& args) {
  return removed_fix(interpreter, self, args, false);
}

// text[start:end] in bytes; nothing when start lies past the end.
std::optional<std::pair<size_t, size_t>> byte_span(Heap& heap, const Value& self,
                                                   const Params& params, size_t start_idx) {
  const int64_t size = length(self);
  const auto bound = [&](size_t i, int64_t otherwise) {
    int64_t value = params.given(i) ? to_index(params.at(i)) : otherwise;
    if (value < 0) value = value < -size ? 0 : value + size;
    return value;
  };
  const int64_t start = bound(start_idx, 0);
  const int64_t end = std::min(bound(start_idx + 1, size), size);
  if (start > size || start > end) return std::nullopt;
  heap.step_bytes(self.text().size());
  if (self.str().ascii) return std::pair(static_cast<size_t>(start), static_cast<size_t>(end));
  return std::pair(code_point_offset(self.text(), static_cast<size_t>(start)),
                   code_point_offset(self.text(), static_cast<size_t>(end)));
}

Value has_fix(Interpreter& interpreter, const Value& self, Args& args, bool at_start) {
  const char* name = at_start ? "startswith" : "endswith";
  const Params params(name, args, {"", "", ""}, 1);
  const auto span = byte_span(interpreter.heap(), self, params, 1);
  const auto matches = [&](const Value& fix) {
    require_defined(fix);
    if (!fix.is(Kind::kStr)) {
      fail_type("{} first arg must be str or a tuple of str, not {}", name, type_name(fix));
    }
    if (!span) return false;
    const std::string_view text = self.text().substr(span->first, span->second - span->first);
    return at_start ? text.starts_with(fix.text()) : text.ends_with(fix.text());
  };
  if (!params.at(0).is(Kind::kTuple)) return Value::boolean(matches(params.at(0)));
  const auto& fixes = params.at(0).items();
  interpreter.heap().step(fixes.size());
  return Value::boolean(std::any_of(fixes.begin(), fixes.end(), matches));
}
Value str_startswith(Interpreter& interpreter, const Value& self, Args& args) {
  return has_fix(interpreter, self, args, true);
}
Value str_endswith(Interpreter& interpreter, const Value& self, Args& args) {
  return has_fix(interpreter, self, args, false);
}

// Position of the last occurrence, each try counted.
size_t find_last(Heap& heap, std::string_view text, std::string_view needle) {
  size_t last = text.npos;
  for (size_t at = find_text(text, needle); at != text.npos; at = find_text(text, needle, at + 1)) {
    heap.step_bytes(16 + needle.size());
    last = at;
  }
  return last;
}

int64_t position(Interpreter& interpreter, const Value& self, Args& args, const char* name,
                 bool from_right) {
  const Params params(name, args, {"", "", ""}, 1);
  const std::string_view needle = params.text(0);
  Heap& heap = interpreter.heap();
  const auto span = byte_span(heap, self, params, 1);
  if (!span) return -1;
  const std::string_view text = self.text().substr(span->first, span->second - span->first);
  heap.step_bytes(needle.size());
  const size_t found = from_right ? find_last(heap, text, needle) : find_text(text, needle);
  if (found == text.npos) return -1;
  return static_cast<int64_t>(count_code_points(self.text().substr(0, span->first + found)));
}
Value str_find(Interpreter& interpreter, const Value& self, Args& args) {
  return Value::integer(position(interpreter, self, args, "find", false));
}
Value str_rfind(Interpreter& interpreter, const Value& self, Args& args) {
  return Value::integer(position(interpreter, self, args, "rfind", true));
}
Value found_or_fail(int64_t at) {
  if (at < 0) fail("ValueError", "substring not found");
  return Value::integer(at);
}
Value str_index(Interpreter& interpreter, const Value& self, Args& args) {
  return found_or_fail(position(interpreter, self, args, "index", false));
}
Value str_rindex(Interpreter& interpreter, const Value& self, Args& args) {
  return found_or_fail(position(interpreter, self, args, "rindex", true));
}

Value str_count(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("count", args, {"", "", ""}, 1);
  const std::string_view needle = params.text(0);
  Heap& heap = interpreter.heap();
  const auto span = byte_span(heap, self, params, 1);
  if (!span) return Value::integer(0);
  const std::string_view text = self.text().substr(span->first, span->second - span->first);
  if (needle.empty()) return Value::integer(static_cast<int64_t>(count_code_points(text)) + 1);
  int64_t count = 0;
  for (size_t at = find_text(text, needle); at != text.npos;
       at = find_text(text, needle, at + needle.size())) {
    heap.step_bytes(16 + needle.size());
    ++count;
  }
  return Value::integer(count);
}

Value str_replace(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("replace", args, {"", "", "count"}, 2);
  const bool markup = self.str().markup;
  Heap& heap = interpreter.heap();
  params.text(0);
  params.text(1);
  const std::string_view old_text = params.text(0);
  const Value new_value = markup ? escape(heap, params.at(1)) : params.at(1);
  return same_type(interpreter, self,
                   replaced(heap, self.text(), old_text, new_value.text(), params.integer(2, -1)));
}

// Pads with `fill` to `width` code points.
Value padded(Interpreter& interpreter, const Value& self, Args& args, const char* name, char side) {
  const Params params(name, args, {"width", ""}, 1);
  const std::string_view fill = params.has(1) ? params.text(1) : " ";
  if (count_code_points(fill) != 1) {
    fail_type("The fill character must be exactly one character long");
  }
  const int64_t missing = params.integer(0, 0) - length(self);
  if (missing <= 0) return self;
  Heap& heap = interpreter.heap();
  heap.check_string_size(static_cast<size_t>(missing));
  // CPython puts the odd blank of center() to the left when the width is odd.
  const int64_t left = side == 'l'   ? 0
                       : side == 'r' ? missing
                                     : missing / 2 + (missing & params.integer(0, 0) & 1);
  StringBuilder text(heap);
  for (int64_t i = 0; i < left; ++i) text.append(fill);
  text.append(self.text());
  for (int64_t i = left; i < missing; ++i) text.append(fill);
  return text.finish(self.str().markup);
}
Value str_ljust(Interpreter& interpreter, const Value& self, Args& args) {
  return padded(interpreter, self, args, "ljust", 'l');
}
Value str_rjust(Interpreter& interpreter, const Value& self, Args& args) {
  return padded(interpreter, self, args, "rjust", 'r');
}
Value str_center(Interpreter& interpreter, const Value& self, Args& args) {
  return padded(interpreter, self, args, "center", 'c');
}

Value str_zfill(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("zfill", args, {""}, 1);
  const int64_t missing = params.integer(0, 0) - length(self);
  if (missing <= 0) return self;
  Heap& heap = interpreter.heap();
  heap.check_string_size(static_cast<size_t>(missing));
  const std::string_view text = self.text();
  const size_t sign = text.starts_with('-') || text.starts_with('+') ? 1 : 0;
  StringBuilder out(heap);
  out.append(text.substr(0, sign));
  out.append(static_cast<size_t>(missing), '0');
  out.append(text.substr(sign));
  return out.finish(self.str().markup);
}

Value str_expandtabs(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("expandtabs", args, {"tabsize"});
  const int64_t tab_size = params.integer(0, 8);
  step_chars(interpreter, self);
  StringBuilder out(interpreter.heap());
  int64_t column = 0;
  for (size_t pos = 0; pos < self.text().size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(self.text(), &pos);
    if (c != '\t') {
      out.append(self.text().substr(begin, pos - begin));
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    } else if (tab_size > 0) {
      const int64_t blanks = tab_size - column % tab_size;
      out.append(static_cast<size_t>(blanks), ' ');
      column = 0;
    }
  }
  return out.finish(self.str().markup);
}

Value str_join(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("join", args, {""}, 1);
  const bool markup = self.str().markup;
  Heap& heap = interpreter.heap();
  StringBuilder out(heap);
  size_t i = 0;
  for (const Value& item : to_vector(interpreter, params.at(0))) {
    if (!item.is(Kind::kStr) && !markup) {
      require_defined(item);
      fail_type("sequence item {}: expected str instance, {} found", i, type_name(item));
    }
    if (i++ > 0) out.append(self.text());
    out.append(markup ? escape(heap, item).text() : item.text());
  }
  return out.finish(markup);
}

Value partition(Interpreter& interpreter, const Value& self, Args& args, bool from_right) {
  const Params params(from_right ? "rpartition" : "partition", args, {""}, 1);
  const std::string_view text = self.text(), separator = params.text(0);
  if (separator.empty()) fail("ValueError", "empty separator");
  Heap& heap = interpreter.heap();
  heap.step_bytes(text.size() + separator.size());
  const size_t at = from_right ? find_last(heap, text, separator) : find_text(text, separator);
  const auto part = [&](std::string_view piece) { return same_type(interpreter, self, piece); };
  if (at == text.npos) {
    return from_right ? heap.tuple({part(""), part(""), self})
                      : heap.tuple({self, part(""), part("")});
  }
  return heap.tuple(
      {part(text.substr(0, at)), part(separator), part(text.substr(at + separator.size()))});
}
Value str_partition(Interpreter& interpreter, const Value& self, Args& args) {
  return partition(interpreter, self, args, false);
}
Value str_rpartition(Interpreter& interpreter, const Value& self, Args& args) {
  return partition(interpreter, self, args, true);
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const size_t at = pos;
    const bool space = is_char(next_code_point(text, &pos), CharClass::kSpace);
    if (space && in_word) out.push_back(text.substr(begin, at - begin));
    if (!space && !in_word) begin = at;
    in_word = !space;
  }
  if (in_word) out.push_back(text.substr(begin));
  return out;
}

// Joins all pieces past `max_splits` splits back into one; pieces are views of one string.
void limit_splits(std::vector<std::string_view>* pieces, int64_t max_splits, bool from_right,
                  std::string_view text) {
  if (max_splits < 0 || pieces->size() <= static_cast<size_t>(max_splits)) return;
  const auto keep = static_cast<size_t>(max_splits);
  if (from_right) {
    const size_t merged = pieces->size() - keep - 1;  // the last piece that is merged
    const auto end =
        static_cast<size_t>((*pieces)[merged].data() - text.data()) + (*pieces)[merged].size();
    pieces->erase(pieces->begin(), pieces->begin() + static_cast<std::ptrdiff_t>(merged));
    pieces->front() = text.substr(0, end);
  } else {
    pieces->resize(keep + 1);
    pieces->back() = text.substr(static_cast<size_t>(pieces->back().data() - text.data()));
  }
}

std::vector<std::string_view> split_by(Heap& heap, std::string_view text,
                                       std::string_view separator) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = find_text(text, separator); at != text.npos;
       at = find_text(text, separator, begin)) {
    heap.step_bytes(16 + separator.size());
    heap.check_item_count(out.size() + 1);
    out.push_back(text.substr(begin, at - begin));
    begin = at + separator.size();
  }
  out.push_back(text.substr(begin));
  return out;
}

// str.rsplit looks for separators from the right, which matters when they overlap.
std::vector<std::string_view> split_by_from_right(Heap& heap, std::string_view text,
                                                  std::string_view separator) {
  std::vector<std::string_view> out;
  size_t end = text.size();
  while (true) {
    heap.step_bytes(16 + separator.size());
    heap.check_item_count(out.size() + 1);
    size_t at = text.npos;
    for (size_t i = end; i >= separator.size(); --i) {
      heap.step_bytes(separator.size());
      if (text.substr(i - separator.size(), separator.size()) != separator) continue;
      at = i - separator.size();
      break;
    }
    if (at == text.npos) break;
    out.push_back(text.substr(at + separator.size(), end - at - separator.size()));
    end = at;
  }
  out.push_back(text.substr(0, end));
  std::reverse(out.begin(), out.end());
  return out;
}

Value split_text(Interpreter& interpreter, const Value& self, Args& args, bool from_right) {
  const Params params(from_right ? "rsplit" : "split", args, {"sep", "maxsplit"});
  const int64_t max_splits = params.integer(1, -1);
  const std::string_view text = self.text();
  Heap& heap = interpreter.heap();
  step_chars(interpreter, self);
  std::vector<std::string_view> pieces;
  if (!params.given(0)) {
    pieces = words(text);
  } else {
    const std::string_view separator = params.text(0);
    if (separator.empty()) fail("ValueError", "empty separator");
    heap.step_bytes(separator.size());
    pieces =
        from_right ? split_by_from_right(heap, text, separator) : split_by(heap, text, separator);
  }
  limit_splits(&pieces, max_splits, from_right, text);
  std::vector<Value> items;
  items.reserve(pieces.size());
  for (std::string_view piece : pieces) items.push_back(same_type(interpreter, self, piece));
  return heap.list(std::move(items));
}
Value str_split(Interpreter& interpreter, const Value& self, Args& args) {
  return split_text(interpreter, self, args, false);
}
Value str_rsplit(Interpreter& interpreter, const Value& self, Args& args) {
  return split_text(interpreter, self, args, true);
}

Value str_splitlines(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("splitlines", args, {"keepends"});
  step_chars(interpreter, self);
  std::vector<Value> lines;
  for (std::string_view line : split_lines(self.text(), params.flag(0, false))) {
    lines.push_back(same_type(interpreter, self, line));
  }
  return interpreter.heap().list(std::move(lines));
}

Value str_format(Interpreter& interpreter, const Value& self, Args& args) {
  return format_braces(interpreter, self, std::move(args));
}

Value str_format_map(Interpreter& interpreter, const Value& self, Args& args) {
  const Params params("format_map", args, {""}, 1);
  if (!params.at(0).is(Kind::kDict)) fail_type("format_map() argument must be a dict");
  Args named;
  for (const auto& [key, value] : params.at(0).dict().entries) {
    if (key.is(Kind::kStr)) named.named.emplace_back(std::string(key.text()), value);
  }
  return format_braces(interpreter, self, std::move(named));
}

Value str_unsupported(Interpreter&, const Value&, Args&) {
  fail_unsupported("the methods encode, maketrans and translate of str");
}

constexpr Method kMethods[] = {
    {"capitalize", convert<to_capitalized>},
    {"casefold", convert<to_casefold>},
    {"center", str_center},
    {"count", str_count},
    {"encode", str_unsupported},
    {"endswith", str_endswith},
    {"expandtabs", str_expandtabs},
    {"find", str_find},
    {"format", str_format},
    {"format_map", str_format_map},
    {"index", str_index},
    {"isalnum", str_isalnum},
    {"isalpha", all_chars<CharClass::kAlpha>},
    {"isascii", str_isascii},
    {"isdecimal", all_chars<CharClass::kDecimal>},
    {"isdigit", all_chars<CharClass::kDigit>},
    {"isidentifier", str_isidentifier},
    {"islower", all_cased<CharClass::kLower, CharClass::kUpper>},
    {"isnumeric", all_chars<CharClass::kNumeric>},
    {"isprintable", all_chars<CharClass::kPrintable>},
    {"isspace", all_chars<CharClass::kSpace>},
    {"istitle", str_istitle},
    {"isupper", all_cased<CharClass::kUpper, CharClass::kLower>},
    {"join", str_join},
    {"ljust", str_ljust},
    {"lower", convert<to_lower>},
    {"lstrip", str_lstrip},
    {"maketrans", str_unsupported},
    {"partition", str_partition},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"replace", str_replace},
    {"rfind", str_rfind},
    {"rindex", str_rindex},
    {"rjust", str_rjust},
    {"rpartition", str_rpartition},
    {"rsplit", str_rsplit},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"splitlines", str_splitlines},
    {"startswith", str_startswith},
    {"strip", str_strip},
    {"swapcase", convert<swap_case>},
    {"title", convert<to_title>},
    {"translate", str_unsupported},
    {"upper", convert<to_upper>},
    {"zfill", str_zfill},
};

}  // namespace

const Method* find_str_method(std::string_view name) {
  const auto* found = std::lower_bound(
      std::begin(kMethods), std::end(kMethods), name,
      [](const Method& method, std::string_view wanted) { return method.name < wanted; });
  return found != std::end(kMethods) && found->name == name ? found : nullptr;
}

}  // namespace volley::jinja
