#include "base/content_hash.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "base/thread_pool.h"

namespace volley {
namespace {

std::vector<std::byte> numbered_bytes(size_t count) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 131 + i / 251);
  return bytes;
}

TEST(ContentHash, EveryBitCounts) {
  std::vector<std::byte> bytes = numbered_bytes(200);
  std::set<std::pair<uint64_t, uint64_t>> seen;
  const auto add = [&](ContentHash hash) {
    EXPECT_TRUE(seen.insert({hash.low, hash.high}).second);
  };
  add(content_hash(bytes));
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    add(content_hash(bytes));
    bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
  }
  for (size_t size = 0; size < bytes.size(); ++size) add(content_hash({bytes.data(), size}));
  for (uint64_t seed = 1; seed < 50; ++seed) add(content_hash(bytes, seed));
}

// Zeros of different lengths, and words that meet a constant, must not lose what came before.
TEST(ContentHash, ZerosAndSwapsDiffer) {
  std::set<std::pair<uint64_t, uint64_t>> seen;
  for (size_t size = 0; size < 300; ++size) {
    const std::vector<std::byte> zeros(size);
    const ContentHash hash = content_hash(zeros);
    EXPECT_TRUE(seen.insert({hash.low, hash.high}).second);
  }
  std::vector<std::byte> bytes = numbered_bytes(512);
  const ContentHash before = content_hash(bytes);
  for (size_t i = 64; i + 64 <= bytes.size(); i += 64) {
    std::vector<std::byte> swapped = bytes;
    std::swap_ranges(swapped.begin(), swapped.begin() + 64, swapped.begin() + static_cast<int>(i));
    EXPECT_FALSE(content_hash(swapped) == before);
  }
}

TEST(ContentHash, TheSameOnAnyNumberOfThreadsAndWhileCopying) {
  for (const size_t size : {size_t{0}, size_t{1}, kHashPieceBytes, 3 * kHashPieceBytes + 77}) {
    const std::vector<std::byte> bytes = numbered_bytes(size);
    ThreadPool one(1), three(3);
    const ContentHash hash = content_hash(bytes, one);
    EXPECT_EQ(content_hash(bytes, three), hash);
    std::vector<std::byte> copy(size);
    EXPECT_EQ(copy_and_hash(bytes, copy.data(), three), hash);
    EXPECT_EQ(copy, bytes);
  }
}

}  // namespace
}  // namespace volley
