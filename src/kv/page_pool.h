#pragma once

// Pages of KV positions, as integers. A page holds `page_size` consecutive absolute positions of one
// sequence, for every layer of the target and of the drafter alike: one index addresses both.

#include <cstdint>
#include <span>
#include <vector>

namespace volley {

enum class PageId : int32_t {};

// Hands out page ids [0, num_pages). Not thread-safe: one engine thread owns it.
class PagePool {
 public:
  explicit PagePool(int num_pages);

  int num_pages() const { return num_pages_; }
  int num_free() const { return static_cast<int>(free_.size()); }

  // Moves `count` pages to `out`, or none at all when fewer are free.
  bool allocate(int count, std::vector<PageId>& out);
  void release(std::span<const PageId> pages);

 private:
  int num_pages_;
  std::vector<PageId> free_;
  std::vector<bool> in_use_;
};

// The pages of one sequence, in the order of its positions.
class PageTable {
 public:
  explicit PageTable(int page_size) : page_size_(page_size) {}

  // Pages missing before positions [0, num_positions) have a home.
  int pages_missing(int64_t num_positions) const;

  // Makes room for positions [0, num_positions). False, and nothing changed, when the pool is short.
  bool grow(int64_t num_positions, PagePool& pool);

  // Gives back the pages past positions [0, num_positions): the rollback of a rejected draft.
  void trim(int64_t num_positions, PagePool& pool);

  int num_pages() const { return static_cast<int>(pages_.size()); }
  // Ids as ops take them (ops/ops.h RowPlaces). Valid until the next grow() or trim().
  const int32_t* data() const { return reinterpret_cast<const int32_t*>(pages_.data()); }

 private:
  int page_size_;
  std::vector<PageId> pages_;
};

}  // namespace volley
