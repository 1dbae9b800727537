#include "text/pretokenizer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "text/pretokenizer_regex.h"
#include "text/unicode.h"

namespace volley {

PreTokenizerScratch::PreTokenizerScratch() = default;
PreTokenizerScratch::PreTokenizerScratch(PreTokenizerScratch&&) noexcept = default;
PreTokenizerScratch& PreTokenizerScratch::operator=(PreTokenizerScratch&&) noexcept = default;
PreTokenizerScratch::~PreTokenizerScratch() = default;

namespace {

// Steps through valid UTF-8 by character class.
class Scanner {
 public:
  Scanner(const CodePointTable& table, const char* end) : table_(table), end_(end) {}

  struct Char {
    uint8_t flags;
    uint8_t num_bytes;
  };

  const char* end() const { return end_; }

  // The class of the character at p; no flags at the end of the text.
  Char at(const char* p) const {
    if (p == end_) return {0, 0};
    const auto byte = static_cast<uint8_t>(*p);
    if (byte < 0x80) return {table_.ascii(byte), 1};
    const DecodedChar c = decode_valid_utf8(p);
    return {table_.flags(c.code_point), static_cast<uint8_t>(c.num_bytes)};
  }

  bool is(const char* p, uint8_t any_of) const { return at(p).flags & any_of; }
  // Neither space nor letter nor number.
  bool is_other(const char* p) const {
    return p != end_ && !(at(p).flags & (kSpace | kLetter | kNumber));
  }

  const char* skip(const char* p, uint8_t any_of) const {
    for (Char c = at(p); c.flags & any_of; c = at(p)) p += c.num_bytes;
    return p;
  }
  const char* skip_other(const char* p) const {
    while (p != end_) {
      const Char c = at(p);
      if (c.flags & (kSpace | kLetter | kNumber)) break;
      p += c.num_bytes;
    }
    return p;
  }

  // \s+(?!\S)|\s+ at a space: a run of spaces leaves its last one to the word that follows.
  const char* skip_spaces_but_last(const char* p) const {
    const char* last = p;
    const char* q = p;
    for (Char c = at(q); c.flags & kSpace; c = at(q)) {
      last = q;
      q += c.num_bytes;
    }
    return q == end_ || last == p ? q : last;
  }

 private:
  const CodePointTable& table_;
  const char* end_;
};

// The length of 's 't 're 've 'm 'll 'd at the apostrophe p, else 0.
size_t contraction_length(const char* p, const char* end, bool ignore_case) {
  const auto letter = [&](ptrdiff_t i) -> char {
    if (end - p <= i) return 0;
    const char c = p[i];
    return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  switch (letter(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return letter(2) == 'e' ? 3 : 0;
    case 'l':
      return letter(2) == 'l' ? 3 : 0;
    case '\xC5':  // U+017F, the long s, folds to s
      return ignore_case && letter(2) == '\xBF' ? 3 : 0;
    default:
      return 0;
  }
}

// Both families match at every position, so all their spans are matches.
template <class Rule>
class HandCodedFinder final : public PatternFinder {
 public:
  explicit HandCodedFinder(Rule rule) : rule_(rule) {}

  void find(std::string_view text, PreTokenizerScratch&,
            std::vector<PatternSpan>& out) const override {
    const char* const begin = text.data();
    const Scanner scan(CodePointTable::instance(), begin + text.size());
    for (const char* p = begin; p != scan.end();) {
      const char* const next = rule_.match_end(p, scan);
      out.push_back({static_cast<size_t>(p - begin), static_cast<size_t>(next - begin), true});
      p = next;
    }
  }

 private:
  Rule rule_;
};

struct Gpt2Rule {
  const char* match_end(const char* p, const Scanner& scan) const {
    if (*p == '\'') {
      if (const size_t n = contraction_length(p, scan.end(), false)) return p + n;
    }
    const char* word = *p == ' ' ? p + 1 : p;  // " ?"
    if (scan.is(word, kLetter)) return scan.skip(word, kLetter);
    if (scan.is(word, kNumber)) return scan.skip(word, kNumber);
    if (scan.is_other(word)) return scan.skip_other(word);
    return scan.skip_spaces_but_last(p);
  }
};

// Llama 3 and Qwen: they differ in how many digits go together.
struct ChatRule {
  int max_digits;

  const char* match_end(const char* p, const Scanner& scan) const {
    const Scanner::Char first = scan.at(p);
    if (first.flags & kLetter) return scan.skip(p, kLetter);
    if (first.flags & kNumber) {
      const char* q = p;
      Scanner::Char c = first;
      for (int i = 0; i < max_digits && (c.flags & kNumber); ++i, c = scan.at(q)) q += c.num_bytes;
      return q;
    }
    if (*p == '\'') {
      if (const size_t n = contraction_length(p, scan.end(), true)) return p + n;
    }
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if (*p != '\r' && *p != '\n' && scan.is(p + first.num_bytes, kLetter)) {
      return scan.skip(p + first.num_bytes, kLetter);
    }
    // " ?[^\s\p{L}\p{N}]+[\r\n]*"
    const char* other = *p == ' ' ? p + 1 : p;
    if (scan.is_other(other)) {
      const char* q = scan.skip_other(other);
      while (q != scan.end() && (*q == '\r' || *q == '\n')) ++q;
      return q;
    }
    return space_end(p, scan);
  }

  // \s*[\r\n]+|\s+(?!\S)|\s+
  static const char* space_end(const char* p, const Scanner& scan) {
    const char* after_newline = nullptr;
    const char* last = p;
    const char* q = p;
    for (Scanner::Char c = scan.at(q); c.flags & kSpace; c = scan.at(q)) {
      last = q;
      q += c.num_bytes;
      if (*last == '\r' || *last == '\n') after_newline = q;
    }
    if (after_newline) return after_newline;
    return q == scan.end() || last == p ? q : last;
  }
};

class NumericFinder final : public PatternFinder {
 public:
  void find(std::string_view text, PreTokenizerScratch&,
            std::vector<PatternSpan>& out) const override {
    const Scanner scan(CodePointTable::instance(), text.data() + text.size());
    size_t rest = 0;
    for (size_t i = 0; i < text.size();) {
      const Scanner::Char c = scan.at(text.data() + i);
      if (c.flags & kNumeric) {
        if (rest != i) out.push_back({rest, i, false});
        out.push_back({i, i + c.num_bytes, true});
        rest = i + c.num_bytes;
      }
      i += c.num_bytes;
    }
    if (rest != text.size()) out.push_back({rest, text.size(), false});
  }
};

class LiteralFinder final : public PatternFinder {
 public:
  explicit LiteralFinder(std::string literal) : literal_(std::move(literal)) {}

  void find(std::string_view text, PreTokenizerScratch&,
            std::vector<PatternSpan>& out) const override {
    size_t rest = 0;
    for (size_t i = text.find(literal_); i != std::string_view::npos;
         i = text.find(literal_, rest)) {
      if (rest != i) out.push_back({rest, i, false});
      rest = i + literal_.size();
      out.push_back({i, rest, true});
    }
    if (rest != text.size()) out.push_back({rest, text.size(), false});
  }

 private:
  std::string literal_;
};

// Applies `behavior` to the spans of one piece and appends the words, moved by `offset`. The rules,
// odd corners included, are those of NormalizedString::split in `tokenizers`.
void apply_behavior(const std::vector<PatternSpan>& matches, SplitBehavior behavior, bool invert,
                    size_t offset, std::vector<TextSpan>& out) {
  const size_t first = out.size();
  const auto push = [&](const PatternSpan& m) {
    out.push_back({m.begin + offset, m.end + offset});
  };
  bool previous_match = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const PatternSpan& m : matches) push(m);
      break;
    case SplitBehavior::kRemoved:
      for (const PatternSpan& m : matches) {
        if (m.is_match == invert) push(m);
      }
      break;
    case SplitBehavior::kContiguous:
    case SplitBehavior::kMergedWithPrevious:
      for (const PatternSpan& m : matches) {
        const bool is_match = m.is_match != invert;
        const bool merge = behavior == SplitBehavior::kContiguous ? is_match == previous_match
                                                                  : is_match && !previous_match;
        if (merge && out.size() > first) {
          out.back().end = m.end + offset;
        } else {
          push(m);
        }
        previous_match = is_match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = matches.size(); i-- > 0;) {
        const PatternSpan& m = matches[i];
        const bool is_match = m.is_match != invert;
        if (is_match && !previous_match && out.size() > first) {
          out.back().begin = m.begin + offset;
        } else {
          push(m);
        }
        previous_match = is_match;
      }
      std::reverse(out.begin() + static_cast<ptrdiff_t>(first), out.end());
      break;
  }
  const auto is_empty = [](const TextSpan& s) { return s.begin == s.end; };
  out.erase(std::remove_if(out.begin() + static_cast<ptrdiff_t>(first), out.end(), is_empty),
            out.end());
}

}  // namespace

Result<std::unique_ptr<PatternFinder>> make_regex_finder(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return std::make_unique<HandCodedFinder<Gpt2Rule>>(Gpt2Rule{});
  if (pattern == kLlama3Pattern) return std::make_unique<HandCodedFinder<ChatRule>>(ChatRule{3});
  if (pattern == kQwenPattern) return std::make_unique<HandCodedFinder<ChatRule>>(ChatRule{1});
  return make_pcre2_finder(pattern);
}

std::unique_ptr<PatternFinder> make_literal_finder(std::string literal) {
  CHECK(!literal.empty());
  return std::make_unique<LiteralFinder>(std::move(literal));
}

std::unique_ptr<PatternFinder> make_numeric_finder() {
  return std::make_unique<NumericFinder>();
}

void PreTokenizer::add_stage(std::unique_ptr<PatternFinder> finder, SplitBehavior behavior,
                             bool invert) {
  stages_.push_back({std::move(finder), behavior, invert});
}

void PreTokenizer::split(std::string_view text, PreTokenizerScratch& scratch,
                         std::vector<TextSpan>& out) const {
  out.clear();
  if (!text.empty()) out.push_back({0, text.size()});
  for (const Stage& stage : stages_) {
    std::swap(out, scratch.spans);
    out.clear();
    for (const TextSpan& span : scratch.spans) {
      scratch.matches.clear();
      stage.finder->find(text.substr(span.begin, span.end - span.begin), scratch, scratch.matches);
      apply_behavior(scratch.matches, stage.behavior, stage.invert, span.begin, out);
    }
  }
}

}  // namespace volley
