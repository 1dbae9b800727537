#include "kv/kv_pages.h"

#include <algorithm>

#include "base/check.h"

namespace volley {
namespace {

size_t index_of(PageId page) {
  return static_cast<size_t>(page);
}

int64_t pages_for(int64_t num_positions, int page_size) {
  return (num_positions + page_size - 1) / page_size;
}

}  // namespace

KvPages::KvPages(int num_pages, int page_size)
    : page_size_(page_size),
      refs_(num_pages, 0),
      node_of_page_(num_pages, kRootNode),
      idle_since_(num_pages, 0) {
  CHECK_GT(page_size, 0);
  free_.reserve(num_pages);
  for (int i = num_pages - 1; i >= 0; --i) free_.push_back(PageId{i});
}

bool KvPages::allocate(int count, std::vector<PageId>& out) {
  CHECK_GE(count, 0);
  if (count > num_available()) return false;
  for (int i = 0; i < count; ++i) {
    if (free_.empty()) forget(idle_.begin()->second);
    const PageId page = free_.back();
    free_.pop_back();
    refs_[index_of(page)] = 1;
    out.push_back(page);
  }
  return true;
}

void KvPages::release(std::span<const PageId> pages) {
  for (auto it = pages.rbegin(); it != pages.rend(); ++it) {
    const size_t idx = index_of(*it);
    CHECK(idx < refs_.size() && refs_[idx] > 0);
    if (--refs_[idx] > 0) continue;
    if (node_of_page_[idx] == kRootNode) {
      free_.push_back(*it);
    } else {
      idle_since_[idx] = next_tick_++;
      idle_.emplace(idle_since_[idx], *it);
    }
  }
}

void KvPages::add_reference(PageId page) {
  const size_t idx = index_of(page);
  if (refs_[idx]++ == 0) idle_.erase(idle_since_[idx]);
}

// Unpublishes a page; one that nobody holds becomes free. Chains through it end before it now; the
// pages behind it are forgotten in their turn.
void KvPages::forget(PageId page) {
  const size_t idx = index_of(page);
  const auto node = nodes_.find(static_cast<uint64_t>(node_of_page_[idx]));
  CHECK(node != nodes_.end());
  const auto [first, last] = by_hash_.equal_range(node->second.hash);
  for (auto it = first; it != last; ++it) {
    if (it->second != node_of_page_[idx]) continue;
    by_hash_.erase(it);
    break;
  }
  nodes_.erase(node);
  node_of_page_[idx] = kRootNode;
  if (refs_[idx] == 0) {
    idle_.erase(idle_since_[idx]);
    free_.push_back(page);
  }
}

uint64_t KvPages::hash_of(PrefixNode parent, uint64_t salt, std::span<const int32_t> tokens) {
  // Equality is checked token by token, so the hash need not resist anyone.
  uint64_t hash = static_cast<uint64_t>(parent) * 0x9e3779b97f4a7c15u + salt;
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0xbf58476d1ce4e5b9u;
    hash ^= hash >> 29;
  }
  return hash;
}

PrefixNode KvPages::find(PrefixNode parent, std::span<const int32_t> tokens, uint64_t salt) const {
  const auto [first, last] = by_hash_.equal_range(hash_of(parent, salt, tokens));
  for (auto it = first; it != last; ++it) {
    const Node& node = nodes_.at(static_cast<uint64_t>(it->second));
    if (node.parent == parent && node.salt == salt &&
        std::equal(tokens.begin(), tokens.end(), node.tokens.begin(), node.tokens.end())) {
      return it->second;
    }
  }
  return kRootNode;
}

PrefixMatch KvPages::match(std::span<const int32_t> tokens, int max_pages, uint64_t salt,
                           bool needs_draft_kv) {
  PrefixMatch match;
  for (int i = 0; i < max_pages; ++i) {
    const auto first = static_cast<size_t>(i) * page_size_;
    if (first + page_size_ > tokens.size()) break;
    const PrefixNode next = find(match.node, tokens.subspan(first, page_size_), salt);
    if (next == kRootNode) break;
    const Node& node = nodes_.at(static_cast<uint64_t>(next));
    if (needs_draft_kv && !node.has_draft_kv) break;
    add_reference(node.page);
    match.pages.push_back(node.page);
    match.node = next;
  }
  return match;
}

PrefixNode KvPages::publish(PrefixNode parent, std::span<const int32_t> tokens, uint64_t salt,
                            PageId page, bool has_draft_kv) {
  CHECK_EQ(static_cast<int>(tokens.size()), page_size_);
  const size_t idx = index_of(page);
  CHECK_GT(refs_[idx], 0);
  const PrefixNode known = find(parent, tokens, salt);
  if (known != kRootNode) {
    Node& node = nodes_.at(static_cast<uint64_t>(known));
    if (node.page == page || node.has_draft_kv || !has_draft_kv ||
        node_of_page_[idx] != kRootNode) {
      return known;
    }
    // The same tokens, now with the drafter's keys too: this page takes the other's place.
    const size_t old_idx = index_of(node.page);
    node_of_page_[old_idx] = kRootNode;
    if (refs_[old_idx] == 0) {
      idle_.erase(idle_since_[old_idx]);
      free_.push_back(node.page);
    }
    node.page = page;
    node.has_draft_kv = true;
    node_of_page_[idx] = known;
    return known;
  }
  CHECK(node_of_page_[idx] == kRootNode);
  const PrefixNode node{next_node_++};
  const uint64_t hash = hash_of(parent, salt, tokens);
  nodes_.emplace(static_cast<uint64_t>(node),
                 Node{parent, salt, hash, {tokens.begin(), tokens.end()}, page, has_draft_kv});
  by_hash_.emplace(hash, node);
  node_of_page_[idx] = node;
  return node;
}

int PageTable::pages_missing(int64_t num_positions, const KvPages& pages) const {
  return static_cast<int>(
      std::max<int64_t>(0, pages_for(num_positions, pages.page_size()) - num_pages()));
}

bool PageTable::grow(int64_t num_positions, KvPages& pages) {
  return pages.allocate(pages_missing(num_positions, pages), ids_);
}

void PageTable::trim(int64_t num_positions, KvPages& pages) {
  CHECK_GE(num_positions, 0);
  const auto kept = static_cast<size_t>(pages_for(num_positions, pages.page_size()));
  if (kept >= ids_.size()) return;
  pages.release(std::span(ids_).subspan(kept));
  ids_.resize(kept);
}

void PageTable::adopt(std::vector<PageId> shared) {
  CHECK(ids_.empty());
  ids_ = std::move(shared);
}

}  // namespace volley
