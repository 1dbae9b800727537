#pragma once

// Pre-tokenization: cuts normalized text into the words that BPE sees. The patterns of the GPT-2,
// Llama 3 and Qwen families are coded by hand; other patterns run on PCRE2 (pretokenizer_regex.h).

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley {

struct TextSpan {
  size_t begin;
  size_t end;
};

struct PatternSpan {
  size_t begin;
  size_t end;
  bool is_match;
};

class RegexScratch;

// Buffers that one encoding thread reuses.
struct PreTokenizerScratch {
  PreTokenizerScratch();
  PreTokenizerScratch(PreTokenizerScratch&&) noexcept;
  PreTokenizerScratch& operator=(PreTokenizerScratch&&) noexcept;
  ~PreTokenizerScratch();

  std::vector<PatternSpan> matches;
  std::vector<TextSpan> spans;
  std::unique_ptr<RegexScratch> regex;  // made on first use
};

// Finds the matches of one pattern.
class PatternFinder {
 public:
  virtual ~PatternFinder() = default;
  // Appends to `out` spans that cover `text` (valid UTF-8) without gaps: matches, left to right,
  // and what lies between them. Empty spans may appear; they still end the span before.
  virtual void find(std::string_view text, PreTokenizerScratch& scratch,
                    std::vector<PatternSpan>& out) const = 0;
};

inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The finder for `pattern`: hand-coded when it is one of the three above, else PCRE2.
Result<std::unique_ptr<PatternFinder>> make_regex_finder(std::string_view pattern);
// Matches `literal` (not empty).
std::unique_ptr<PatternFinder> make_literal_finder(std::string literal);
// Matches every numeric character on its own (the Digits pre-tokenizer).
std::unique_ptr<PatternFinder> make_numeric_finder();

// What becomes of a match: the names and meanings of `tokenizers`.
enum class SplitBehavior {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous,
};

// The stages before the byte-level one, applied in order, each to the spans of the one before.
class PreTokenizer {
 public:
  void add_stage(std::unique_ptr<PatternFinder> finder, SplitBehavior behavior, bool invert);

  // Replaces the content of `out` with the words of `text`, none of them empty.
  void split(std::string_view text, PreTokenizerScratch& scratch, std::vector<TextSpan>& out) const;

 private:
  struct Stage {
    std::unique_ptr<PatternFinder> finder;
    SplitBehavior behavior;
    bool invert;
  };
  std::vector<Stage> stages_;
};

}  // namespace volley
