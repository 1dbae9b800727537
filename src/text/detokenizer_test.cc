#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "text/tokenizer_testing.h"

namespace volley {
namespace {

Tokenizer small() {
  Json json = testing_text::small_tokenizer();
  testing_text::add_token(json, "<|end|>", {.special = true});
  return *Tokenizer::from_json(dump_json(json), "small");
}

TEST(Detokenizer, HoldsBackHalfACharacter) {
  const Tokenizer tokenizer = small();
  IncrementalDetokenizer detokenizer(tokenizer);
  EXPECT_EQ(detokenizer.push('a'), "a");
  EXPECT_EQ(detokenizer.push(0xF0), "");
  EXPECT_EQ(detokenizer.push(0x9F), "");
  EXPECT_EQ(detokenizer.push(0x98), "");
  EXPECT_TRUE(detokenizer.has_pending());
  EXPECT_EQ(detokenizer.push(0x80), "\xF0\x9F\x98\x80");
  EXPECT_FALSE(detokenizer.has_pending());
  EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, ReplacesInvalidBytesOnceCertain) {
  const Tokenizer tokenizer = small();
  IncrementalDetokenizer detokenizer(tokenizer);
  EXPECT_EQ(detokenizer.push(0xE2), "");
  EXPECT_EQ(detokenizer.push('b'),
            "\xEF\xBF\xBD"
            "b");
  EXPECT_EQ(detokenizer.push(0xFF), "\xEF\xBF\xBD");
  EXPECT_EQ(detokenizer.push(0xE2), "");
  EXPECT_EQ(detokenizer.push(0x82), "");
  EXPECT_EQ(detokenizer.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(detokenizer.push('c'), "c");
}

TEST(Detokenizer, SkipsSpecialAndUnknownIds) {
  const Tokenizer tokenizer = small();
  const int32_t end = *tokenizer.id_of("<|end|>");
  IncrementalDetokenizer skipping(tokenizer);
  EXPECT_EQ(skipping.push(std::vector<int32_t>{'a', end, -5, 1 << 30, 'b'}), "ab");
  IncrementalDetokenizer showing(tokenizer, false);
  EXPECT_EQ(showing.push(std::vector<int32_t>{'a', end, 'b'}), "a<|end|>b");
}

TEST(Detokenizer, JoinsToDecode) {
  const Tokenizer tokenizer = small();
  std::mt19937 rng(4);
  for (int round = 0; round < 5000; ++round) {
    std::vector<int32_t> ids;
    for (size_t i = 0, n = rng() % 20; i < n; ++i) {
      static constexpr int32_t kLikely[] = {0xE4, 0xB8, 0xAD, 0xF0, 0x9F,
                                            0x98, 0x80, 0xC3, 0xA9, 'x'};
      ids.push_back(
          rng() % 4 ? kLikely[rng() % 10]
                    : static_cast<int32_t>(rng() % static_cast<uint32_t>(tokenizer.vocab_size())));
    }
    IncrementalDetokenizer detokenizer(tokenizer);
    std::string joined;
    for (size_t i = 0; i < ids.size();) {
      const size_t n = std::min<size_t>(1 + rng() % 4, ids.size() - i);
      const std::string text = detokenizer.push(std::span(ids).subspan(i, n));
      ASSERT_TRUE(is_valid_utf8(text));
      joined += text;
      i += n;
    }
    joined += detokenizer.flush();
    ASSERT_EQ(joined, tokenizer.decode(ids));
  }
}

}  // namespace
}  // namespace volley
