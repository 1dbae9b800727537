#include "text/pretokenizer_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "text/unicode.h"
#include "text/unicode_tables.h"

namespace volley {
namespace {

constexpr size_t kMaxPatternBytes = 16384;
// Steps of one match. A megabyte of spaces needs about two million.
constexpr uint32_t kMatchLimit = 20'000'000;
constexpr uint32_t kHeapLimitKiB = 64 << 10;
constexpr size_t kJitStackBytes = size_t{1} << 20;

struct FreeCode {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct FreeCompileContext {
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};
struct FreeJitStack {
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

// \s as Oniguruma has it; PCRE2's takes U+180E in.
constexpr std::string_view kSpaceClass =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// The code points of a general category ("L", "Nd") that PCRE2's Unicode version may not know, as
// class ranges.
std::string young_ranges(std::string_view category) {
  std::string out;
  for (size_t i = 0; i < unicode_tables::kYoungCount; ++i) {
    const unicode_tables::CategoryRange& range = unicode_tables::kYoung[i];
    if (!std::string_view(range.category).starts_with(category)) continue;
    out += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
  }
  return out;
}

// The inside of a class that matches the category.
std::string category_class(std::string_view category) {
  return fmt::format("\\p{{{}}}{}", category, young_ranges(category));
}

// \w as Oniguruma has it; PCRE2's leaves marks out.
std::string word_class() {
  return category_class("L") + category_class("M") + category_class("Nd") + category_class("Pc");
}

// Rewrites an Oniguruma pattern for PCRE2 and refuses what the two read differently.
class PatternTranslator {
 public:
  explicit PatternTranslator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\') {
        VOLLEY_TRY_STATUS(escape(false));
      } else if (c == '[') {
        VOLLEY_TRY_STATUS(char_class());
      } else if (c == '(') {
        VOLLEY_TRY_STATUS(group());
      } else if (c == '{') {
        VOLLEY_TRY_STATUS(repeat());
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  tl::unexpected<Error> refuse(std::string_view what) const {
    return make_error(ErrorKind::kUnsupported,
                      "split pattern: {} at byte {} is not supported (the pattern is {})", what,
                      pos_, in_);
  }
  bool looking_at(std::string_view s) const { return in_.substr(pos_).starts_with(s); }
  void copy(size_t n) {
    out_.append(in_.substr(pos_, n));
    pos_ += n;
  }

  Status escape(bool in_class) {
    if (pos_ + 1 >= in_.size()) return refuse("a backslash at the end");
    const char c = in_[pos_ + 1];
    if (c == 'w' || (c == 'W' && !in_class)) {
      put_class(word_class(), c == 'W', in_class);
      pos_ += 2;
    } else if (c == 's' || (c == 'S' && !in_class)) {
      put_class(kSpaceClass, c == 'S', in_class);
      pos_ += 2;
    } else if (c == 'd' || (c == 'D' && !in_class)) {
      put_class(category_class("Nd"), c == 'D', in_class);
      pos_ += 2;
    } else if (c == 'p' || c == 'P') {
      return property(c == 'P', in_class);
    } else if (c == 'x') {
      const size_t close = in_.find('}', pos_);
      if (!in_.substr(pos_ + 2).starts_with('{') || close == std::string_view::npos) {
        return refuse("\\x without {digits}");
      }
      copy(close + 1 - pos_);
    } else if (std::string_view("SDrntf").find(c) != std::string_view::npos ||
               std::string_view(R"(!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~ )").find(c) !=
                   std::string_view::npos) {
      copy(2);
    } else {
      return refuse(fmt::format("\\{}", c >= ' ' && c <= '~' ? c : '?'));
    }
    return {};
  }

  // \p{name} or \P{name}. Scripts and other properties follow PCRE2's Unicode version.
  Status property(bool negated, bool in_class) {
    const size_t close = in_.find('}', pos_);
    if (!in_.substr(pos_ + 2).starts_with('{') || close == std::string_view::npos) {
      return refuse("\\p without {name}");
    }
    const std::string_view name = in_.substr(pos_ + 3, close - pos_ - 3);
    const bool is_category = !name.empty() && name.size() <= 2 &&
                             std::string_view("LMNPS").find(name[0]) != std::string_view::npos;
    if (!is_category || young_ranges(name).empty() || (negated && in_class)) {
      copy(close + 1 - pos_);
    } else {
      put_class(category_class(name), negated, in_class);
      pos_ = close + 1;
    }
    return {};
  }

  void put_class(std::string_view inside, bool negated, bool in_class) {
    out_ += in_class ? std::string(inside) : fmt::format("[{}{}]", negated ? "^" : "", inside);
  }

  Status char_class() {
    copy(1);
    if (looking_at("^")) copy(1);
    if (looking_at("]")) return refuse("an empty or ]-first class");
    while (true) {
      if (pos_ >= in_.size()) return refuse("an unclosed class");
      const char c = in_[pos_];
      if (c == ']') break;
      if (c == '[') return refuse("a nested or POSIX class");
      if (looking_at("&&")) return refuse("a class intersection");
      if (c == '\\') {
        VOLLEY_TRY_STATUS(escape(true));
      } else {
        copy(1);
      }
    }
    copy(1);
    return {};
  }

  Status group() {
    if (!looking_at("(?")) {
      if (looking_at("(*")) return refuse("a verb");
      copy(1);
      return {};
    }
    if (pos_ == 0 && looking_at("(?i)")) {
      copy(4);
      return {};
    }
    for (const std::string_view opening : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (looking_at(opening)) {
        copy(opening.size());
        return {};
      }
    }
    return refuse("this kind of group");
  }

  Status repeat() {
    const size_t close = in_.find('}', pos_);
    if (close == std::string_view::npos) return refuse("an unclosed repeat");
    const std::string_view body = in_.substr(pos_ + 1, close - pos_ - 1);
    if (body.empty() || body[0] < '0' || body[0] > '9' ||
        body.find_first_not_of("0123456789,") != std::string_view::npos) {
      return refuse("a brace that is no {n}, {n,} or {n,m}");
    }
    copy(close + 1 - pos_);
    // Ruby reads {n}? and {n,m}+ unlike Perl.
    if (looking_at("+") || (looking_at("?") && body.find(',') == std::string_view::npos)) {
      return refuse("a modified repeat");
    }
    return {};
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::string out_;
};

}  // namespace

struct RegexScratch::State {
  std::unique_ptr<pcre2_match_data, FreeMatchData> match_data;
  std::unique_ptr<pcre2_match_context, FreeMatchContext> context;
  std::unique_ptr<pcre2_jit_stack, FreeJitStack> jit_stack;
};

RegexScratch::RegexScratch() : state_(std::make_unique<State>()) {
  state_->match_data.reset(pcre2_match_data_create(1, nullptr));
  state_->context.reset(pcre2_match_context_create(nullptr));
  CHECK(state_->match_data != nullptr && state_->context != nullptr);
  pcre2_set_match_limit(state_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(state_->context.get(), kHeapLimitKiB);
  state_->jit_stack.reset(pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr));
  if (state_->jit_stack) {
    pcre2_jit_stack_assign(state_->context.get(), nullptr, state_->jit_stack.get());
  }
}

RegexScratch::~RegexScratch() = default;

namespace {

class Pcre2Finder final : public PatternFinder {
 public:
  explicit Pcre2Finder(std::unique_ptr<pcre2_code, FreeCode> code) : code_(std::move(code)) {}

  void find(std::string_view text, PreTokenizerScratch& scratch,
            std::vector<PatternSpan>& out) const override {
    if (!scratch.regex) scratch.regex = std::make_unique<RegexScratch>();
    RegexScratch::State& state = scratch.regex->state();
    size_t covered = 0;
    size_t start = 0;
    bool has_match = false;
    while (start <= text.size()) {
      const int rc =
          pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                      PCRE2_NO_UTF_CHECK, state.match_data.get(), state.context.get());
      if (rc < 0) break;  // no match, or a limit: the rest is one span
      const PCRE2_SIZE* const ends = pcre2_get_ovector_pointer(state.match_data.get());
      const size_t begin = ends[0];
      const size_t end = ends[1];
      if (begin > end || begin < covered) break;
      if (begin == end && has_match && end == covered) {
        // No empty match right after a match: step over one character.
        start += start < text.size() ? decode_valid_utf8(text.data() + start).num_bytes : 1;
        continue;
      }
      if (begin != covered) out.push_back({covered, begin, false});
      out.push_back({begin, end, true});
      covered = end;
      start = end;
      has_match = true;
    }
    if (covered != text.size()) out.push_back({covered, text.size(), false});
  }

 private:
  std::unique_ptr<pcre2_code, FreeCode> code_;
};

}  // namespace

Result<std::unique_ptr<PatternFinder>> make_pcre2_finder(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return invalid("split pattern: {} bytes, at most {} are accepted", pattern.size(),
                   kMaxPatternBytes);
  }
  VOLLEY_TRY(const std::string translated, PatternTranslator(pattern).run());
  std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(
      pcre2_compile_context_create(nullptr));
  CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 64);
  int error_code = 0;
  PCRE2_SIZE error_offset = 0;
  // Ruby's ^ and $ always match at line ends, hence PCRE2_MULTILINE.
  std::unique_ptr<pcre2_code, FreeCode> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error_code,
                    &error_offset, context.get()));
  if (!code) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error_code, message, sizeof(message));
    return invalid("split pattern {}: {} at byte {}", translated,
                   reinterpret_cast<const char*>(message), error_offset);
  }
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without it, matching is merely slower
  return std::make_unique<Pcre2Finder>(std::move(code));
}

}  // namespace volley
