#include "text/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace volley {
namespace {

TEST(BytesToId, FindsWhatWasInserted) {
  BytesToId map;
  EXPECT_EQ(map.find("x"), -1);
  for (int i = 0; i < 5000; ++i) ASSERT_TRUE(map.insert("key" + std::to_string(i * 7), i));
  EXPECT_FALSE(map.insert("key7", 9));
  for (int i = 0; i < 5000; ++i) ASSERT_EQ(map.find("key" + std::to_string(i * 7)), i);
  EXPECT_EQ(map.find("key1"), -1);
}

TEST(ByteAlphabet, Decodes) {
  EXPECT_EQ(decode_byte_alphabet("\xC4\xA0the"), " the");
  EXPECT_EQ(decode_byte_alphabet("\xC4\x8A\xC3\xA9"), "\n\xE9");
  EXPECT_EQ(decode_byte_alphabet("a b"), std::nullopt);
  EXPECT_EQ(decode_byte_alphabet("\xE4\xB8\xAD"), std::nullopt);
}

// A random vocabulary over four letters, and the textbook algorithm as the oracle.
struct RandomBpe {
  std::vector<int32_t> byte_ids = std::vector<int32_t>(256, -1);
  std::vector<BpeMerge> merges;
  std::vector<std::string> tokens;
  std::map<std::pair<int32_t, int32_t>, std::pair<size_t, int32_t>> rank_of;

  explicit RandomBpe(uint32_t seed) {
    std::mt19937 rng(seed);
    for (const char c : std::string("abcd")) {
      byte_ids[static_cast<uint8_t>(c)] = static_cast<int32_t>(tokens.size());
      tokens.emplace_back(1, c);
    }
    while (merges.size() < 60) {
      const auto left = static_cast<int32_t>(rng() % tokens.size());
      const auto right = static_cast<int32_t>(rng() % tokens.size());
      const std::string merged =
          tokens[static_cast<size_t>(left)] + tokens[static_cast<size_t>(right)];
      if (merged.size() > 12 || rank_of.contains({left, right})) continue;
      const auto found = std::find(tokens.begin(), tokens.end(), merged);
      const auto id = static_cast<int32_t>(found - tokens.begin());
      if (found == tokens.end()) tokens.push_back(merged);
      rank_of[{left, right}] = {merges.size(), id};
      merges.push_back({left, right, id});
    }
    // Ranks in random order: a merge may come before those that build its parts.
    std::shuffle(merges.begin(), merges.end(), rng);
    for (size_t i = 0; i < merges.size(); ++i) {
      rank_of[{merges[i].left, merges[i].right}] = {i, merges[i].merged};
    }
  }

  Bpe make(BpeOptions options = {}) const {
    BytesToId words;
    for (size_t i = 0; i < tokens.size(); ++i) words.insert(tokens[i], static_cast<int32_t>(i));
    return Bpe(byte_ids, std::move(words), merges, static_cast<int32_t>(tokens.size()), options);
  }

  std::vector<int32_t> oracle(std::string_view word) const {
    std::vector<int32_t> ids;
    for (const char c : word) ids.push_back(byte_ids[static_cast<uint8_t>(c)]);
    while (true) {
      size_t best = ids.size();
      size_t best_rank = merges.size();
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto it = rank_of.find({ids[i], ids[i + 1]});
        if (it != rank_of.end() && it->second.first < best_rank) {
          best = i;
          best_rank = it->second.first;
        }
      }
      if (best == ids.size()) return ids;
      ids[best] = merges[best_rank].merged;
      ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
  }
};

TEST(Bpe, EqualsTheTextbookAlgorithm) {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    const RandomBpe random(seed);
    const Bpe bpe = random.make();
    BpeScratch scratch;
    std::mt19937 rng(seed + 1000);
    for (int round = 0; round < 300; ++round) {
      // Both the scan (short) and the heap (long), and words that repeat in the cache.
      const size_t length = 1 + rng() % (round % 3 == 0 ? 200 : 12);
      std::string word;
      for (size_t i = 0; i < length; ++i) word.push_back("abcd"[rng() % (1 + round % 4)]);
      const std::vector<int32_t> want = random.oracle(word);
      for (int again = 0; again < 2; ++again) {
        std::vector<int32_t> got;
        bpe.encode_word(word, scratch, got);
        ASSERT_EQ(got, want) << word;
      }
    }
  }
}

TEST(Bpe, IgnoreMergesTakesTheWholeWord) {
  RandomBpe random(1);
  random.tokens.push_back("dddddddddddddd");
  const auto id = static_cast<int32_t>(random.tokens.size()) - 1;
  BpeScratch scratch;
  std::vector<int32_t> ids;
  random.make({.ignore_merges = true}).encode_word("dddddddddddddd", scratch, ids);
  EXPECT_EQ(ids, std::vector<int32_t>{id});
  ids.clear();
  BpeScratch other;
  random.make().encode_word("dddddddddddddd", other, ids);
  EXPECT_EQ(ids, random.oracle("dddddddddddddd"));
}

TEST(Bpe, UnknownBytes) {
  RandomBpe random(1);
  random.byte_ids['d'] = -1;
  random.tokens.push_back("<unk>");
  const auto unk = static_cast<int32_t>(random.tokens.size()) - 1;
  const auto encode = [&](BpeOptions options) {
    BpeScratch scratch;
    std::vector<int32_t> ids;
    random.make(options).encode_word("addb", scratch, ids);
    return ids;
  };
  const int32_t a = random.byte_ids['a'];
  const int32_t b = random.byte_ids['b'];
  EXPECT_EQ(encode({.unk_id = unk}), (std::vector<int32_t>{a, unk, unk, b}));
  EXPECT_EQ(encode({.fuse_unk = true, .unk_id = unk}), (std::vector<int32_t>{a, unk, b}));
  EXPECT_EQ(encode({}), random.oracle("ab"));
}

TEST(Bpe, OneLongWordTakesNoQuadraticTime) {
  const RandomBpe random(2);
  const Bpe bpe = random.make();
  for (const std::string_view unit : {"a", "ab", "abcd", "dcba"}) {
    std::string word;
    while (word.size() < 1'000'000) word += unit;
    BpeScratch scratch;
    std::vector<int32_t> ids;
    const auto start = std::chrono::steady_clock::now();
    bpe.encode_word(word, scratch, ids);
    // A tenth of this without sanitizers and neighbours; the quadratic loop takes hours.
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
    EXPECT_FALSE(ids.empty());
  }
}

}  // namespace
}  // namespace volley
