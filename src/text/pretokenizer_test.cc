#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "text/pretokenizer_regex.h"
#include "text/unicode.h"

namespace volley {
namespace {

std::vector<std::string> split_with(std::unique_ptr<PatternFinder> finder, SplitBehavior behavior,
                                    bool invert, std::string_view text) {
  PreTokenizer pre_tokenizer;
  pre_tokenizer.add_stage(std::move(finder), behavior, invert);
  PreTokenizerScratch scratch;
  std::vector<TextSpan> spans;
  pre_tokenizer.split(text, scratch, spans);
  std::vector<std::string> words;
  for (const TextSpan& s : spans) words.emplace_back(text.substr(s.begin, s.end - s.begin));
  return words;
}

using Words = std::vector<std::string>;

TEST(Splitter, KnownWords) {
  const auto qwen = [](std::string_view text) {
    return split_with(*make_regex_finder(kQwenPattern), SplitBehavior::kIsolated, false, text);
  };
  EXPECT_EQ(qwen("Hello, I'LL pay 12 $\n\n  ok  "),
            (Words{"Hello", ",", " I", "'LL", " pay", " ", "1", "2", " $\n\n", " ", " ok", "  "}));
  EXPECT_EQ(qwen(" \n \n x"), (Words{" \n \n", " x"}));
  const auto llama = [](std::string_view text) {
    return split_with(*make_regex_finder(kLlama3Pattern), SplitBehavior::kIsolated, false, text);
  };
  EXPECT_EQ(llama("a 12345"), (Words{"a", " ", "123", "45"}));
  const auto gpt2 = [](std::string_view text) {
    return split_with(*make_regex_finder(kGpt2Pattern), SplitBehavior::kIsolated, false, text);
  };
  EXPECT_EQ(gpt2("it's IT'S 123!?\n\nx"),
            (Words{"it", "'s", " IT", "'", "S", " 123", "!?", "\n", "\n", "x"}));
}

// The examples in the documentation of `tokenizers`.
TEST(Splitter, Behaviors) {
  const auto dash = [](SplitBehavior behavior, bool invert = false) {
    return split_with(make_literal_finder("-"), behavior, invert, "the-final--countdown");
  };
  EXPECT_EQ(dash(SplitBehavior::kRemoved), (Words{"the", "final", "countdown"}));
  EXPECT_EQ(dash(SplitBehavior::kIsolated), (Words{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(dash(SplitBehavior::kMergedWithPrevious), (Words{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(dash(SplitBehavior::kMergedWithNext), (Words{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(dash(SplitBehavior::kContiguous), (Words{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(dash(SplitBehavior::kRemoved, true), (Words{"-", "-", "-"}));
}

TEST(Splitter, Digits) {
  EXPECT_EQ(split_with(make_numeric_finder(), SplitBehavior::kContiguous, false, "a12b\xC2\xBD"),
            (Words{"a", "12", "b", "\xC2\xBD"}));
}

TEST(Regex, EmptyMatchesCut) {
  auto finder = make_pcre2_finder(R"((?=b)|c*)");
  ASSERT_TRUE(finder);
  EXPECT_EQ(split_with(std::move(*finder), SplitBehavior::kIsolated, false, "abcca"),
            (Words{"a", "b", "cc", "a"}));
}

TEST(Regex, RefusesWhatTheEnginesReadDifferently) {
  for (const char* pattern :
       {R"(\h+)", R"(\bx)", R"([a[bc]])", R"([a&&b])", R"((?m)x)", R"((?<n>x))", R"(a{,3})",
        R"(a{2}?)", R"(a{2,3}+)", R"([\W])", R"(\1)", R"((*LIMIT_MATCH=1)x)", R"(\pL)", R"(\)",
        "[a", R"(\u0041)", R"(\R)", R"(\K)", "[]a]"}) {
    const auto made = make_pcre2_finder(pattern);
    ASSERT_FALSE(made) << pattern;
    EXPECT_EQ(made.error().kind, ErrorKind::kUnsupported) << pattern;
  }
  EXPECT_EQ(make_pcre2_finder("(a").error().kind, ErrorKind::kInvalidInput);
  EXPECT_EQ(make_pcre2_finder(R"(\p{Nonsense})").error().kind, ErrorKind::kInvalidInput);
  EXPECT_FALSE(make_pcre2_finder(std::string(100'000, 'a')));
  EXPECT_FALSE(make_pcre2_finder(std::string(5000, '(') + std::string(5000, ')')));
}

// Patterns of other families: DeepSeek V3 and cl100k.
TEST(Regex, AcceptsOtherFamilies) {
  const std::string deepseek =
      R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
      R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  auto made = make_pcre2_finder(deepseek);
  ASSERT_TRUE(made) << made.error().message;
  EXPECT_EQ(split_with(std::move(*made), SplitBehavior::kIsolated, false,
                       "a.b \xF0\x9F\xA9\xB7\xF0\x9F\xA9\xB7! x"),  // an emoji of Unicode 15
            (Words{"a", ".b", " \xF0\x9F\xA9\xB7\xF0\x9F\xA9\xB7!", " x"}));
  EXPECT_TRUE(make_pcre2_finder(
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"));
  EXPECT_TRUE(make_pcre2_finder(R"([\d\s_]\D\S\P{Lu}\p{Han})"));
}

// Code points on which PCRE2 and the tables agree.
std::vector<uint32_t> agreed_code_points() {
  std::string all;
  std::vector<uint32_t> point_at;  // by the byte where the character starts in `all`
  std::vector<uint32_t> points;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    point_at.resize(all.size() + 1);
    point_at.back() = c;
    points.push_back(c);
    append_utf8(c, all);
  }
  std::vector<uint8_t> pcre2_flags(0x110000);
  PreTokenizerScratch scratch;
  for (const auto& [pattern, flag] : {std::pair{R"(\p{L})", kLetter},
                                      std::pair{R"(\p{N})", kNumber}, std::pair{R"(\s)", kSpace}}) {
    auto finder = make_pcre2_finder(pattern);
    std::vector<PatternSpan> spans;
    (*finder)->find(all, scratch, spans);
    for (const PatternSpan& s : spans) {
      if (s.is_match) pcre2_flags[point_at[s.begin]] |= flag;
    }
  }
  std::vector<uint32_t> agreed;
  for (const uint32_t c : points) {
    const uint8_t ours = CodePointTable::instance().flags(c) & (kLetter | kNumber | kSpace);
    if (ours == pcre2_flags[c]) agreed.push_back(c);
  }
  return agreed;
}

TEST(Splitter, EqualsPcre2OnRandomUnicode) {
  const std::vector<uint32_t> agreed = agreed_code_points();
  // All but the surrogates: the rewritten pattern makes up for an older Unicode version.
  ASSERT_EQ(agreed.size(), 0x110000u - 0x800u);
  std::mt19937 rng(3);
  static constexpr std::string_view kCommon = " \n\r\t'sStTlLdmrve1239.!-_aZ";
  for (const std::string_view pattern : {kGpt2Pattern, kLlama3Pattern, kQwenPattern}) {
    const auto ours = make_regex_finder(pattern);
    const auto oracle = make_pcre2_finder(pattern);
    ASSERT_TRUE(ours && oracle);
    PreTokenizerScratch scratch;
    for (int round = 0; round < 20000; ++round) {
      std::string text;
      for (size_t i = 0, n = 1 + rng() % 24; i < n; ++i) {
        const unsigned kind = rng() % 8;
        if (kind < 5) {
          text.push_back(kCommon[rng() % kCommon.size()]);
        } else if (kind == 5) {
          static constexpr uint32_t kOdd[] = {0x17F, 0x85,   0xA0,   0x2003, 0x3000, 0x301,
                                              0xBD,  0x2163, 0x4E2D, 0xE9,   0x200B, 0x1F600};
          append_utf8(kOdd[rng() % std::size(kOdd)], text);
        } else {
          append_utf8(agreed[rng() % (kind == 6 ? 0x3000 : agreed.size())], text);
        }
      }
      std::vector<PatternSpan> got;
      std::vector<PatternSpan> want;
      (*ours)->find(text, scratch, got);
      (*oracle)->find(text, scratch, want);
      ASSERT_EQ(got.size(), want.size()) << pattern << "\n" << testing::PrintToString(text);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_EQ(got[i].end, want[i].end) << pattern << "\n" << testing::PrintToString(text);
        ASSERT_TRUE(want[i].is_match);
      }
    }
  }
}

}  // namespace
}  // namespace volley
