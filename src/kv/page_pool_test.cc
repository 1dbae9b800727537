#include "kv/page_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace volley {
namespace {

TEST(PagePool, AllocatesAllOrNothing) {
  PagePool pool(3);
  std::vector<PageId> pages;
  EXPECT_FALSE(pool.allocate(4, pages));
  EXPECT_TRUE(pages.empty());
  EXPECT_TRUE(pool.allocate(3, pages));
  EXPECT_EQ(pool.num_free(), 0);
  pool.release(pages);
  EXPECT_EQ(pool.num_free(), 3);
}

TEST(PagePoolDeath, ReleasingTwiceIsABug) {
  PagePool pool(2);
  std::vector<PageId> pages;
  ASSERT_TRUE(pool.allocate(1, pages));
  pool.release(pages);
  EXPECT_DEATH(pool.release(pages), "internal error");
}

// Random growth and rollback of many sequences: no page has two owners and none is lost.
TEST(PageTable, RandomGrowthAndRollback) {
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 rng(seed);
    PagePool pool(64);
    std::vector<PageTable> tables(6, PageTable(16));
    std::vector<int64_t> lengths(6, 0);
    for (int step = 0; step < 500; ++step) {
      const size_t s = rng() % tables.size();
      const int64_t target = rng() % 400;
      if (target > lengths[s]) {
        if (tables[s].grow(target, pool)) lengths[s] = target;
      } else {
        tables[s].trim(target, pool);
        lengths[s] = target;
      }
      std::set<int32_t> seen;
      int owned = 0;
      for (size_t i = 0; i < tables.size(); ++i) {
        ASSERT_EQ(tables[i].num_pages(), (lengths[i] + 15) / 16);
        for (int p = 0; p < tables[i].num_pages(); ++p) seen.insert(tables[i].data()[p]);
        owned += tables[i].num_pages();
      }
      ASSERT_EQ(static_cast<int>(seen.size()), owned);
      ASSERT_EQ(owned + pool.num_free(), 64);
    }
  }
}

}  // namespace
}  // namespace volley
