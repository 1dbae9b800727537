#include "kv/kv_pages.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace volley {
namespace {

std::vector<int32_t> tokens_of(int count, int seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = rng() % 50;
  return tokens;
}

TEST(KvPages, AllocatesAllOrNothing) {
  KvPages pages(3, 4);
  std::vector<PageId> held;
  EXPECT_FALSE(pages.allocate(4, held));
  EXPECT_TRUE(held.empty());
  EXPECT_TRUE(pages.allocate(3, held));
  EXPECT_EQ(pages.num_available(), 0);
  pages.release(held);
  EXPECT_EQ(pages.num_available(), 3);
}

TEST(KvPagesDeath, ReleasingTwiceIsABug) {
  KvPages pages(2, 4);
  std::vector<PageId> held;
  ASSERT_TRUE(pages.allocate(1, held));
  pages.release(held);
  EXPECT_DEATH(pages.release(held), "internal error");
}

TEST(KvPages, SharesAPublishedPrefix) {
  KvPages pages(8, 4);
  const auto tokens = tokens_of(12, 1);
  std::vector<PageId> held;
  ASSERT_TRUE(pages.allocate(3, held));
  PrefixNode node = kRootNode;
  for (int i = 0; i < 3; ++i) {
    node = pages.publish(node, std::span(tokens).subspan(4 * i, 4), 0, held[i], true);
  }
  pages.release(held);
  EXPECT_EQ(pages.num_available(), 8);

  PrefixMatch match = pages.match(tokens, 99, 0, true);
  EXPECT_EQ(match.pages, held);
  EXPECT_EQ(match.node, node);
  EXPECT_EQ(pages.num_available(), 5);
  pages.release(match.pages);

  auto other = tokens;
  other[5] += 1;
  EXPECT_EQ(pages.match(other, 99, 0, true).pages.size(), 1u);
  EXPECT_EQ(pages.match(tokens, 99, 7, true).pages.size(), 0u) << "another salt";
  EXPECT_EQ(pages.match(tokens, 2, 0, true).pages.size(), 2u);
}

TEST(KvPages, DraftKvIsPartOfAHit) {
  KvPages pages(4, 4);
  const auto tokens = tokens_of(4, 2);
  std::vector<PageId> held;
  ASSERT_TRUE(pages.allocate(2, held));
  pages.publish(kRootNode, tokens, 0, held[0], false);
  EXPECT_TRUE(pages.match(tokens, 1, 0, true).pages.empty());
  // A page with the drafter's keys takes the place of one without.
  pages.publish(kRootNode, tokens, 0, held[1], true);
  EXPECT_EQ(pages.match(tokens, 1, 0, true).pages, std::vector<PageId>{held[1]});
  EXPECT_EQ(pages.num_published(), 1);
}

// When pages run out, what was idle longest goes, tails before heads.
TEST(KvPages, ForgetsTheLongestIdleTailFirst) {
  KvPages pages(4, 4);
  const auto tokens = tokens_of(16, 3);
  std::vector<PageId> held;
  ASSERT_TRUE(pages.allocate(4, held));
  PrefixNode node = kRootNode;
  for (int i = 0; i < 4; ++i) {
    node = pages.publish(node, std::span(tokens).subspan(4 * i, 4), 0, held[i], true);
  }
  pages.release(held);
  std::vector<PageId> taken;
  ASSERT_TRUE(pages.allocate(1, taken));
  EXPECT_EQ(taken[0], held[3]);
  EXPECT_EQ(pages.match(tokens, 99, 0, true).pages.size(), 3u);
}

// Random growth, rollback, publishing and sharing of many sequences. A model of page contents
// checks that a match only ever returns pages whose tokens, and all before them, are the asked
// ones.
TEST(KvPages, RandomTraffic) {
  constexpr int kPageSize = 8;
  for (int seed = 0; seed < 30; ++seed) {
    std::mt19937 rng(seed);
    KvPages pages(40, kPageSize);
    struct Live {
      std::vector<int32_t> tokens;
      PageTable table;
      PrefixNode node = kRootNode;
      int published = 0;
    };
    std::vector<Live> live;
    std::map<int32_t, std::vector<int32_t>> content;  // page -> all tokens up to its end
    for (int step = 0; step < 800; ++step) {
      const uint32_t action = rng() % 10;
      if (action < 4 || live.empty()) {
        Live added;
        added.tokens = tokens_of(1 + rng() % 60, rng() % 6);  // few streams: prefixes recur
        PrefixMatch match = pages.match(added.tokens, 99, 0, true);
        for (size_t i = 0; i < match.pages.size(); ++i) {
          const std::vector<int32_t> want(added.tokens.begin(),
                                          added.tokens.begin() + (i + 1) * kPageSize);
          ASSERT_EQ(content.at(static_cast<int32_t>(match.pages[i])), want) << "seed " << seed;
        }
        added.published = static_cast<int>(match.pages.size());
        added.node = match.node;
        added.table.adopt(std::move(match.pages));
        if (added.table.grow(added.tokens.size(), pages)) {
          for (int i = added.published; i < added.table.num_pages(); ++i) {
            const size_t end = std::min<size_t>((i + 1) * kPageSize, added.tokens.size());
            content[static_cast<int32_t>(added.table.page(i))].assign(added.tokens.begin(),
                                                                      added.tokens.begin() + end);
          }
          live.push_back(std::move(added));
        } else {
          added.table.trim(0, pages);
        }
      } else if (action < 7) {
        Live& one = live[rng() % live.size()];
        const int whole = static_cast<int>(one.tokens.size()) / kPageSize;
        while (one.published < whole) {
          one.node = pages.publish(
              one.node, std::span(one.tokens).subspan(one.published * kPageSize, kPageSize), 0,
              one.table.page(one.published), true);
          ++one.published;
        }
      } else {
        const size_t i = rng() % live.size();
        live[i].table.trim(0, pages);
        live.erase(live.begin() + i);
      }
      std::set<int32_t> held;
      for (const Live& one : live) {
        for (int p = 0; p < one.table.num_pages(); ++p) held.insert(one.table.data()[p]);
      }
      ASSERT_EQ(static_cast<int>(held.size()) + pages.num_available(), 40) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace volley
