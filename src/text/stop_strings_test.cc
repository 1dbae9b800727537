#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace volley {
namespace {

StopStringMatcher matcher_of(const std::vector<std::string>& stops) {
  auto matcher = StopStringMatcher::create(stops);
  EXPECT_TRUE(matcher.has_value());
  return std::move(*matcher);
}

TEST(StopStrings, WithoutAnyAllTextPasses) {
  StopStringMatcher matcher;
  EXPECT_EQ(matcher.push("hello"), "hello");
  EXPECT_EQ(matcher.flush(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopStrings, TextIsCutBeforeTheStop) {
  StopStringMatcher matcher = matcher_of({"\n\n"});
  EXPECT_EQ(matcher.push("one\ntwo\n\nthree"), "one\ntwo");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.matched(), "\n\n");
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStringMatcher matcher = matcher_of({"END"});
  EXPECT_EQ(matcher.push("a E"), "a ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("x"), "ENx");
  EXPECT_EQ(matcher.push("EE"), "E");
  EXPECT_EQ(matcher.flush(), "E");
}

TEST(StopStrings, FindsAStopThatOverlapsItsOwnBeginning) {
  StopStringMatcher matcher = matcher_of({"aab"});
  EXPECT_EQ(matcher.push("aaaa"), "aa");
  EXPECT_EQ(matcher.push("b!"), "");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopStrings, TheFirstCompleteOneWinsAndOfTwoTheLonger) {
  StopStringMatcher inner = matcher_of({"abcd", "bc"});
  EXPECT_EQ(inner.push("xabcd"), "xa");
  EXPECT_EQ(inner.matched(), "bc");
  StopStringMatcher suffix = matcher_of({"d", "bcd"});
  EXPECT_EQ(suffix.push("abcd"), "a");
  EXPECT_EQ(suffix.matched(), "bcd");
}

TEST(StopStrings, RefusesEmptyTooManyAndTooLong) {
  EXPECT_FALSE(StopStringMatcher::create({""}).has_value());
  EXPECT_FALSE(StopStringMatcher::create(std::vector<std::string>(65, "x")).has_value());
  EXPECT_FALSE(StopStringMatcher::create({std::string(5000, 'x')}).has_value());
}

TEST(StopStrings, ResetBeginsANewAnswer) {
  StopStringMatcher matcher = matcher_of({"ab"});
  matcher.push("ab");
  matcher.reset();
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.push("ba"), "b");
}

// The same text in any pieces is cut at the same byte, where a plain search cuts it.
TEST(StopStrings, CutsWhereAPlainSearchDoesHoweverTheTextIsSplit) {
  std::mt19937 random(7);
  const auto random_text = [&](size_t max_size) {
    std::string text(random() % max_size + 1, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    const std::vector<std::string> stops = {random_text(5), random_text(6)};
    const std::string text = random_text(30);
    size_t first_end = std::string::npos;
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at != std::string::npos) first_end = std::min(first_end, at + stop.size());
    }
    std::string expected = text;
    if (first_end != std::string::npos) {
      size_t longest = 0;
      for (const std::string& stop : stops) {
        if (std::string_view(text).substr(0, first_end).ends_with(stop)) {
          longest = std::max(longest, stop.size());
        }
      }
      expected = text.substr(0, first_end - longest);
    }

    StopStringMatcher matcher = matcher_of(stops);
    std::string got;
    for (size_t at = 0; at < text.size();) {
      const size_t size = std::min(text.size() - at, size_t{random() % 4});
      got += matcher.push(std::string_view(text).substr(at, size));
      at += size;
    }
    got += matcher.flush();
    ASSERT_EQ(got, expected) << text << " / " << stops[0] << " / " << stops[1];
    ASSERT_EQ(matcher.stopped(), first_end != std::string::npos);
  }
}

}  // namespace
}  // namespace volley
