#include "text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "text/jinja/special_casing.h"

namespace volley::jinja {
namespace {

constexpr char32_t kReplacement = 0xFFFD;
constexpr char32_t kInvalid = 0xFFFFFFFF;

// Decodes one code point of arbitrary bytes; kInvalid for a byte that starts none.
char32_t decode(std::string_view text, size_t* pos) {
  utf8proc_int32_t c = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + *pos;
  const auto length = utf8proc_iterate(
      bytes, static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - *pos, 4)), &c);
  if (length <= 0 || c < 0) {
    ++*pos;
    return kInvalid;
  }
  *pos += static_cast<size_t>(length);
  return static_cast<char32_t>(c);
}

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

// Numeric_Type=Digit that is no decimal digit: superscripts, circled digits and their like.
bool is_other_digit(char32_t c) {
  static constexpr char32_t kRanges[][2] = {
      {0xb2, 0xb3},       {0xb9, 0xb9},       {0x1369, 0x1371},   {0x19da, 0x19da},
      {0x2070, 0x2070},   {0x2074, 0x2079},   {0x2080, 0x2089},   {0x2460, 0x2468},
      {0x2474, 0x247c},   {0x2488, 0x2490},   {0x24ea, 0x24ea},   {0x24f5, 0x24fd},
      {0x24ff, 0x24ff},   {0x2776, 0x277e},   {0x2780, 0x2788},   {0x278a, 0x2792},
      {0x10a40, 0x10a43}, {0x10e60, 0x10e68}, {0x11052, 0x1105a}, {0x1f100, 0x1f10a}};
  return std::any_of(std::begin(kRanges), std::end(kRanges),
                     [c](const auto& range) { return c >= range[0] && c <= range[1]; });
}

bool is_printable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

bool is_identifier_start(char32_t c) {
  const auto group = category(c);
  return c == '_' || (group >= UTF8PROC_CATEGORY_LU && group <= UTF8PROC_CATEGORY_LO) ||
         group == UTF8PROC_CATEGORY_NL;
}

bool is_identifier_continue(char32_t c) {
  const auto group = category(c);
  return is_identifier_start(c) || group == UTF8PROC_CATEGORY_ND || group == UTF8PROC_CATEGORY_MN ||
         group == UTF8PROC_CATEGORY_MC || group == UTF8PROC_CATEGORY_PC;
}

const SpecialCasing* special_casing(char32_t c) {
  if (c < 0xdf) return nullptr;
  const auto* found =
      std::lower_bound(std::begin(kSpecialCasing), std::end(kSpecialCasing), c,
                       [](const SpecialCasing& entry, char32_t value) { return entry.c < value; });
  return found != std::end(kSpecialCasing) && found->c == c ? found : nullptr;
}

void append_all(std::string* out, const char32_t* text) {
  for (; *text != 0; ++text) append_utf8(out, *text);
}

void append_upper(std::string* out, char32_t c) {
  if (const auto* special = special_casing(c)) return append_all(out, special->upper);
  append_utf8(out, static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
}

void append_title(std::string* out, char32_t c) {
  if (const auto* special = special_casing(c)) return append_all(out, special->title);
  append_utf8(out, static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
}

bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      return c == '\'' || c == '.' || c == ':' || c == 0xb7 || c == 0x2018 || c == 0x2019 ||
             c == 0x2024 || c == 0x2027;
  }
}

// A capital sigma at the end of a word becomes U+03C2: a cased letter stands before it, none after.
bool is_final_sigma(std::string_view text, size_t begin, size_t end) {
  bool cased_before = false;
  for (size_t i = begin; i > 0;) {
    do --i;
    while (i > 0 && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80);
    size_t pos = i;
    const char32_t c = decode(text, &pos);
    if (is_case_ignorable(c)) continue;
    cased_before = is_char(c, CharClass::kCased);
    break;
  }
  for (size_t pos = end; cased_before && pos < text.size();) {
    const char32_t c = decode(text, &pos);
    if (is_case_ignorable(c)) continue;
    return !is_char(c, CharClass::kCased);
  }
  return cased_before;
}

void append_lower(std::string* out, std::string_view text, size_t begin, size_t end, char32_t c) {
  if (c == 0x130) {
    append_all(out, U"i\u0307");
  } else if (c == 0x3a3 && is_final_sigma(text, begin, end)) {
    append_utf8(out, 0x3c2);
  } else {
    append_utf8(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

// What strip() removes: white space, or the code points of an argument.
class StripSet {
 public:
  explicit StripSet(const std::string_view* chars) : white_space_(chars == nullptr) {
    for (size_t pos = 0; chars != nullptr && pos < chars->size();) {
      const char32_t c = next_code_point(*chars, &pos);
      if (c < 128) {
        ascii_[c] = true;
      } else {
        others_.push_back(c);
      }
    }
    std::sort(others_.begin(), others_.end());
  }

  bool contains(char32_t c) const {
    if (white_space_) return is_space(c);
    return c < 128 ? ascii_[c] : std::binary_search(others_.begin(), others_.end(), c);
  }

 private:
  bool white_space_;
  std::array<bool, 128> ascii_ = {};
  std::u32string others_;
};

}  // namespace

bool is_valid_utf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    if (static_cast<unsigned char>(text[pos]) < 0x80) {
      ++pos;
    } else if (decode(text, &pos) == kInvalid) {
      return false;
    }
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const char32_t c = decode(text, &pos);
    append_utf8(&out, c == kInvalid ? kReplacement : c);
  }
  return out;
}

size_t count_code_points(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](unsigned char c) { return (c & 0xC0) != 0x80; }));
}

size_t code_point_offset(std::string_view text, size_t index) {
  size_t pos = 0;
  while (pos < text.size()) {
    if ((static_cast<unsigned char>(text[pos]) & 0xC0) != 0x80 && index-- == 0) return pos;
    ++pos;
  }
  return text.size();
}

char32_t next_code_point(std::string_view text, size_t* pos) {
  const auto byte = static_cast<unsigned char>(text[*pos]);
  if (byte < 0x80) {
    ++*pos;
    return byte;
  }
  const char32_t c = decode(text, pos);
  return c == kInvalid ? kReplacement : c;
}

void append_utf8(std::string* out, char32_t c) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) c = kReplacement;
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

bool is_char(char32_t c, CharClass char_class) {
  const auto code = static_cast<utf8proc_int32_t>(c);
  const auto group = category(c);
  switch (char_class) {
    case CharClass::kSpace:
      return is_space(c);
    case CharClass::kAlpha:
      return group >= UTF8PROC_CATEGORY_LU && group <= UTF8PROC_CATEGORY_LO;
    case CharClass::kDecimal:
      return group == UTF8PROC_CATEGORY_ND;
    case CharClass::kDigit:
      return group == UTF8PROC_CATEGORY_ND || is_other_digit(c);
    case CharClass::kNumeric:
      return group >= UTF8PROC_CATEGORY_ND && group <= UTF8PROC_CATEGORY_NO;
    case CharClass::kPrintable:
      return is_printable(c);
    case CharClass::kUpper:
      return utf8proc_isupper(code) != 0;
    case CharClass::kLower:
      return utf8proc_islower(code) != 0;
    case CharClass::kTitle:
      return group == UTF8PROC_CATEGORY_LT;
    case CharClass::kCased:
      return group == UTF8PROC_CATEGORY_LT || utf8proc_isupper(code) || utf8proc_islower(code);
    case CharClass::kIdStart:
      return is_identifier_start(c);
    case CharClass::kIdContinue:
      return is_identifier_continue(c);
  }
  return false;
}

std::string to_upper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) append_upper(&out, next_code_point(text, &pos));
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, &pos);
    append_lower(&out, text, begin, pos, c);
  }
  return out;
}

std::string to_casefold(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    utf8proc_int32_t folded[8];
    const auto c = static_cast<utf8proc_int32_t>(next_code_point(text, &pos));
    int boundary = 0;
    const auto count = utf8proc_decompose_char(c, folded, 8, UTF8PROC_CASEFOLD, &boundary);
    for (utf8proc_ssize_t i = 0; i < count && i < 8; ++i) {
      append_utf8(&out, static_cast<char32_t>(folded[i]));
    }
  }
  return out;
}

std::string to_capitalized(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, &pos);
    if (begin == 0) {
      append_title(&out, c);
    } else {
      append_lower(&out, text, begin, pos, c);
    }
  }
  return out;
}

std::string to_title(std::string_view text) {
  std::string out;
  bool in_word = false;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, &pos);
    if (in_word) {
      append_lower(&out, text, begin, pos, c);
    } else {
      append_title(&out, c);
    }
    in_word = is_char(c, CharClass::kCased);
  }
  return out;
}

std::string swap_case(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    const char32_t c = next_code_point(text, &pos);
    if (is_char(c, CharClass::kUpper)) {
      append_lower(&out, text, begin, pos, c);
    } else if (is_char(c, CharClass::kLower)) {
      append_upper(&out, c);
    } else {
      append_utf8(&out, c);
    }
  }
  return out;
}

std::string_view strip(std::string_view text, const std::string_view* chars, bool left,
                       bool right) {
  const StripSet set(chars);
  while (left && !text.empty()) {
    size_t pos = 0;
    if (!set.contains(next_code_point(text, &pos))) break;
    text.remove_prefix(pos);
  }
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    size_t pos = begin;
    if (!set.contains(next_code_point(text, &pos))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

}  // namespace volley::jinja
