#include "ops/cpu/attention.h"

#include <algorithm>

namespace volley::cpu {
namespace {

// Calls that read less stay on the calling thread: a dispatch costs about as much.
constexpr int64_t kSerialKeyElements = 16 * 1024;  // of keys and values
constexpr int64_t kBlocksPerUnit = 4;              // of queries, one after the other
constexpr size_t kReservedBlocks = 16 * 1024;

}  // namespace

Attention::Attention(const KernelTable& kernels, ThreadPool& pool)
    : kernels_(kernels),
      pool_(pool),
      shares_(std::make_unique<Share[]>(static_cast<size_t>(pool.num_threads()))) {
  blocks_.reserve(kReservedBlocks);
}

// Fills blocks_ and returns how many keys all of them read, for one kv head.
int64_t Attention::list_query_blocks(const AttentionTask& task, int32_t num_rows) {
  blocks_.clear();
  const int32_t group = task.num_heads / task.num_kv_heads;
  int64_t num_keys = 0;
  for (int32_t first = 0, last; first < num_rows; first = last) {
    for (last = first + 1; last < num_rows && task.sequences[last] == task.sequences[first];)
      ++last;
    const int32_t num_queries = (last - first) * group;
    for (int32_t query = 0; query < num_queries; query += kernels_.queries_per_block) {
      const int32_t count = std::min(kernels_.queries_per_block, num_queries - query);
      blocks_.push_back({first, query, count});
      const int32_t row = first + (query + count - 1) / group;
      num_keys += task.key_end[row] - task.key_begin[row];
    }
  }
  return num_keys;
}

void Attention::run(const AttentionTask& task, int32_t num_rows) {
  const int64_t num_keys = list_query_blocks(task, num_rows);
  const auto num_blocks = static_cast<int64_t>(blocks_.size());
  const int64_t num_tasks = num_blocks * task.num_kv_heads;
  // A thread takes neighbouring blocks of one kv head, whose keys then come from its own cache.
  const int64_t unit =
      std::clamp<int64_t>(num_tasks / pool_.num_threads(), 1,
                          std::min(kBlocksPerUnit, std::max<int64_t>(1, num_blocks)));
  const int64_t units_per_head = (num_blocks + unit - 1) / unit;
  // Which thread takes which unit does not matter. Each begins with the kv heads that it has
  // rotated and stored: lines that another core has written are as far away as memory. Who is
  // done helps the others. Of one kv head the last rows come first, since under a causal mask
  // they have the most keys, and a long unit at the end would leave the other threads waiting.
  const int num_shares = pool_.num_threads();
  for (int i = 0; i < num_shares; ++i) {
    const ItemRange heads = ItemRange::of_part(task.num_kv_heads, num_shares, i);
    shares_[i].begin = heads.begin * units_per_head;
    shares_[i].next.store(heads.end * units_per_head, std::memory_order_relaxed);
  }
  const auto attend_unit = [&](int64_t i, int64_t first_unit) {
    const auto kv_head = static_cast<int32_t>(i / units_per_head);
    const int64_t begin = i % units_per_head * unit;
    const int64_t end = std::min(begin + unit, num_blocks);
    for (int64_t j = end - 1; j >= begin; --j) {
      QueryBlock block = blocks_[j];
      block.fetches =
          units_per_head == 1 && (j == end - 1 || blocks_[j + 1].first_row != block.first_row);
      if (units_per_head == 1 && j == begin && i > first_unit) block.next_kv_head = kv_head - 1;
      kernels_.attend(task, block, kv_head);
    }
  };
  const auto work = [&](int thread_idx) {
    for (int other = 0; other < num_shares; ++other) {
      Share& share = shares_[(thread_idx + other) % num_shares];
      for (int64_t i; (i = share.next.fetch_sub(1, std::memory_order_relaxed) - 1) >= share.begin;)
        attend_unit(i, share.begin);
    }
  };
  if (num_tasks == 1 || num_keys * task.num_kv_heads * task.kv.head_dim < kSerialKeyElements)
    work(0);
  else
    pool_.run(work);
}

}  // namespace volley::cpu
