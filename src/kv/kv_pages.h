#pragma once

// Pages of KV positions, as integers. A page holds `page_size` consecutive absolute positions of
// one sequence, for every layer of the target and of the drafter alike: one index addresses both.
// Pages are counted by reference; whole pages whose tokens are known are published, so that a later
// sequence with the same prefix shares them instead of computing them again.

#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

namespace volley {

enum class PageId : int32_t {};

// A published page: the end of a chain of pages from position 0. kRootNode is the empty chain.
enum class PrefixNode : uint64_t {};
inline constexpr PrefixNode kRootNode{0};

struct PrefixMatch {
  std::vector<PageId> pages;    // each with one more reference, the caller's
  PrefixNode node = kRootNode;  // of the last page
};

// Not thread-safe: one engine thread owns it.
class KvPages {
 public:
  KvPages(int num_pages, int page_size);

  int num_pages() const { return static_cast<int>(refs_.size()); }
  int page_size() const { return page_size_; }
  // Pages that allocate() can hand out: never used ones and published ones that nobody holds.
  int num_available() const { return static_cast<int>(free_.size() + idle_.size()); }

  // Appends `count` pages to `out`, one reference each, forgetting the published pages that were
  // idle longest where needed. False, and nothing changed, when too few are available.
  bool allocate(int count, std::vector<PageId>& out);

  // Drops one reference from each page, the last page first: of a chain, the tail is forgotten
  // before its head.
  void release(std::span<const PageId> pages);

  // The longest chain of published pages holding a prefix of `tokens`, of at most `max_pages`.
  // Chains of different `salt` never meet. With needs_draft_kv, only pages published with it count.
  PrefixMatch match(std::span<const int32_t> tokens, int max_pages, uint64_t salt,
                    bool needs_draft_kv);

  // `page`, which the caller holds, now has the KV of `tokens` (page_size of them) after the chain
  // that ends at `parent`. Returns the node that stands for it; where an equal page was published
  // before, that one's node.
  PrefixNode publish(PrefixNode parent, std::span<const int32_t> tokens, uint64_t salt, PageId page,
                     bool has_draft_kv);

  int num_published() const { return static_cast<int>(nodes_.size()); }

 private:
  struct Node {
    PrefixNode parent;
    uint64_t salt;
    uint64_t hash;
    std::vector<int32_t> tokens;
    PageId page;
    bool has_draft_kv;
  };

  static uint64_t hash_of(PrefixNode parent, uint64_t salt, std::span<const int32_t> tokens);
  // kRootNode when there is none.
  PrefixNode find(PrefixNode parent, std::span<const int32_t> tokens, uint64_t salt) const;
  void forget(PageId page);
  void add_reference(PageId page);

  int page_size_;
  std::vector<PageId> free_;
  std::vector<int32_t> refs_;                 // [num_pages]
  std::vector<PrefixNode> node_of_page_;      // [num_pages], kRootNode: not published
  std::vector<uint64_t> idle_since_;          // [num_pages], a key of idle_
  std::map<uint64_t, PageId> idle_;           // published, unreferenced, the longest idle first
  std::unordered_map<uint64_t, Node> nodes_;  // by PrefixNode
  std::unordered_multimap<uint64_t, PrefixNode> by_hash_;
  uint64_t next_node_ = 1;
  uint64_t next_tick_ = 1;
};

// The pages of one sequence, in the order of its positions.
class PageTable {
 public:
  // Pages missing before positions [0, num_positions) have a home.
  int pages_missing(int64_t num_positions, const KvPages& pages) const;

  // Makes room for positions [0, num_positions). False, and nothing changed, when pages are short.
  bool grow(int64_t num_positions, KvPages& pages);

  // Gives back the pages past positions [0, num_positions): the rollback of a rejected draft.
  void trim(int64_t num_positions, KvPages& pages);

  // Starts an empty table with shared pages.
  void adopt(std::vector<PageId> shared);

  int num_pages() const { return static_cast<int>(ids_.size()); }
  PageId page(int page_idx) const { return ids_[page_idx]; }
  // Ids as ops take them (ops/ops.h RowPlaces). Valid until the table changes.
  const int32_t* data() const { return reinterpret_cast<const int32_t*>(ids_.data()); }

 private:
  std::vector<PageId> ids_;
};

}  // namespace volley
