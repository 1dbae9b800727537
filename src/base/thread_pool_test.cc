#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <numeric>
#include <vector>

namespace volley {
namespace {

TEST(ItemRange, CoversEverythingOnce) {
  for (int64_t num_items : {0, 1, 2, 7, 8, 9, 1000}) {
    for (int64_t num_parts : {1, 2, 3, 8, 64}) {
      int64_t next = 0;
      for (int64_t part = 0; part < num_parts; ++part) {
        const ItemRange range = ItemRange::of_part(num_items, num_parts, part);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(range.end - range.begin, num_items / num_parts + 1);
        next = range.end;
      }
      EXPECT_EQ(next, num_items);
    }
  }
}

TEST(ThreadPool, EveryThreadRunsEveryJobOnce) {
  for (int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    ASSERT_EQ(pool.num_threads(), num_threads);
    std::vector<int> counts(num_threads);  // no atomics: run() itself must order the accesses
    for (int job = 0; job < 500; ++job) pool.run([&](int thread_idx) { ++counts[thread_idx]; });
    EXPECT_EQ(counts, std::vector<int>(num_threads, 500));
  }
}

TEST(ThreadPool, SplitsItems) {
  ThreadPool pool(3);
  for (int64_t num_items : {0, 1, 5, 6, 100}) {
    std::vector<int> hits(num_items);
    pool.split(num_items, 3, [&](ItemRange range, int) {
      for (int64_t i = range.begin; i < range.end; ++i) ++hits[i];
    });
    EXPECT_EQ(hits, std::vector<int>(num_items, 1));
  }
}

TEST(ThreadPool, WakesAfterSleeping) {
  ThreadPool pool(2);
  for (int pause_us : {0, 20, 200, 1900, 2000, 2100, 3000}) {
    for (int round = 0; round < 20; ++round) {
      std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
      std::atomic<int> sum{0};
      pool.run([&](int) { ++sum; });
      EXPECT_EQ(sum, 2);
    }
  }
}

TEST(ThreadPool, SlowWorkerIsWaitedFor) {
  ThreadPool pool(2);
  bool finished = false;
  pool.run([&](int thread_idx) {
    if (thread_idx == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    finished = true;
  });
  EXPECT_TRUE(finished);
}

TEST(ThreadPool, IdleBurnsNoCpu) {
  ThreadPool pool(2);
  pool.run([](int) {});
  const auto cpu_ms = [] {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e3 + static_cast<double>(t.tv_nsec) * 1e-6;
  };
  const double before = cpu_ms();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LT(cpu_ms() - before, 20.0);
}

}  // namespace
}  // namespace volley
