#include "kv/page_pool.h"

#include "base/check.h"

namespace volley {

PagePool::PagePool(int num_pages) : num_pages_(num_pages), in_use_(num_pages, false) {
  CHECK_GE(num_pages, 0);
  free_.reserve(num_pages);
  for (int i = num_pages - 1; i >= 0; --i) free_.push_back(PageId{i});
}

bool PagePool::allocate(int count, std::vector<PageId>& out) {
  CHECK_GE(count, 0);
  if (count > num_free()) return false;
  for (int i = 0; i < count; ++i) {
    const PageId page = free_.back();
    free_.pop_back();
    in_use_[static_cast<int32_t>(page)] = true;
    out.push_back(page);
  }
  return true;
}

void PagePool::release(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    const auto idx = static_cast<int32_t>(page);
    CHECK(idx >= 0 && idx < num_pages_ && in_use_[idx]);
    in_use_[idx] = false;
    free_.push_back(page);
  }
}

int PageTable::pages_missing(int64_t num_positions) const {
  const int64_t needed = (num_positions + page_size_ - 1) / page_size_;
  return static_cast<int>(std::max<int64_t>(0, needed - num_pages()));
}

bool PageTable::grow(int64_t num_positions, PagePool& pool) {
  return pool.allocate(pages_missing(num_positions), pages_);
}

void PageTable::trim(int64_t num_positions, PagePool& pool) {
  CHECK_GE(num_positions, 0);
  const auto kept = static_cast<size_t>((num_positions + page_size_ - 1) / page_size_);
  if (kept >= pages_.size()) return;
  pool.release(std::span(pages_).subspan(kept));
  pages_.resize(kept);
}

}  // namespace volley
