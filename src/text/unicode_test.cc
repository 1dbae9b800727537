#include "text/unicode.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <string>

namespace volley {
namespace {

std::string nfc(std::string_view text) {
  std::string out;
  return normalize_nfc(text, out) ? out : std::string(text);
}

std::string utf8(std::initializer_list<uint32_t> points) {
  std::string out;
  for (const uint32_t c : points) append_utf8(c, out);
  return out;
}

TEST(Utf8, RoundTripsEveryCodePoint) {
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    const std::string s = utf8({c});
    const DecodedChar d = decode_valid_utf8(s.data());
    ASSERT_EQ(d.code_point, c);
    ASSERT_EQ(d.num_bytes, s.size());
    const Utf8Piece piece = next_utf8_piece(s);
    ASSERT_EQ(piece.step, Utf8Step::kCharacter);
    ASSERT_EQ(piece.num_bytes, s.size());
  }
}

// The examples of Unicode 15, section 3.9, tables 3-8 to 3-11.
TEST(Utf8, ReplacesMaximalSubparts) {
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(replace_invalid_utf8("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(replace_invalid_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Utf8, TellsIncompleteFromInvalid) {
  EXPECT_EQ(next_utf8_piece("\xF0\x9F\x98").step, Utf8Step::kIncomplete);
  EXPECT_EQ(next_utf8_piece("\xF0\x9F\x98").num_bytes, 3u);
  EXPECT_EQ(next_utf8_piece("\xF0\x8F").step, Utf8Step::kInvalid);
  EXPECT_EQ(next_utf8_piece("\xED").step, Utf8Step::kIncomplete);
  EXPECT_EQ(next_utf8_piece("\xF5").step, Utf8Step::kInvalid);
}

TEST(CodePoints, Classes) {
  const CodePointTable& table = CodePointTable::instance();
  EXPECT_EQ(table.flags('a') & (kLetter | kNumber | kSpace), kLetter);
  EXPECT_EQ(table.flags('_') & kWordChar, kWordChar);
  EXPECT_EQ(table.flags(0x0663) & (kLetter | kNumber), kNumber);
  EXPECT_EQ(table.flags(0x85) & kSpace, kSpace);
  EXPECT_EQ(table.flags(0x200B) & kSpace, 0);
  EXPECT_EQ(table.flags(0x4E2D) & kLetter, kLetter);
  EXPECT_EQ(table.flags(0x1C89) & kLetter, kLetter);  // new in Unicode 16
  EXPECT_EQ(table.flags(0x10FFFF), 0);
}

TEST(Nfc, ComposesOrdersAndLeavesAlone) {
  EXPECT_EQ(nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(nfc(utf8({0x1EB, 0x304})), utf8({0x1ED}));
  EXPECT_EQ(nfc(utf8({'a', 0x315, 0x300, 0x5AE, 'b'})), utf8({0xE0, 0x5AE, 0x315, 'b'}));
  EXPECT_EQ(nfc(utf8({0xEA, 0x323})), utf8({0x1EC7}));             // ê + dot below
  EXPECT_EQ(nfc(utf8({0x1100, 0x1161, 0x11A8})), utf8({0xAC01}));  // Hangul L V T
  EXPECT_EQ(nfc(utf8({0xAC00, 0x11A8})), utf8({0xAC01}));          // LV T
  EXPECT_EQ(nfc(utf8({0x212B})), utf8({0xC5}));                    // Angstrom
  EXPECT_EQ(nfc(utf8({0x958})), utf8({0x915, 0x93C}));             // composition exclusion
  EXPECT_EQ(nfc(utf8({0x301, 'x'})), utf8({0x301, 'x'}));
  std::string untouched = "kept";
  EXPECT_FALSE(normalize_nfc("plain ASCII", untouched));
  EXPECT_FALSE(normalize_nfc(utf8({0x4E2D, 0xAC01, 0x1F600}), untouched));
  EXPECT_EQ(untouched, "kept");
}

// The package normalizes by Unicode 9: younger marks neither move nor compose.
TEST(Nfc, IgnoresWhatThePackageDoesNotKnow) {
  const std::string young = utf8({'a', 0x345, 0x1DF6, 'b'});
  EXPECT_EQ(nfc(young), young);
  const std::string pair = utf8({0x11935, 0x11930});
  EXPECT_EQ(nfc(pair), pair);
}

TEST(Nfc, IsIdempotent) {
  std::mt19937 rng(1);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (int i = 0; i < 8; ++i) {
      static constexpr uint32_t kStarts[] = {'a',    0x300, 0x1100, 0x1161,
                                             0x11A8, 0x900, 0x1E00, 0xAC00};
      append_utf8(kStarts[rng() % 8] + rng() % 112, text);
    }
    const std::string once = nfc(text);
    ASSERT_EQ(nfc(once), once);
  }
}

TEST(Nfc, ManyMarksTakeNoQuadraticTime) {
  std::string text = "a";
  for (int i = 0; i < 250'000; ++i) text += utf8({0x301, 0x316});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(nfc(text).size(), text.size() - 1);  // a + U+0301 composed
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

}  // namespace
}  // namespace volley
