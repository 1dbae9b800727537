#pragma once

// Attention of one call: its queries are cut into blocks, and the blocks shared out among threads.

#include <atomic>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"

namespace volley::cpu {

class Attention {
 public:
  // Both outlive it.
  Attention(const KernelTable& kernels, ThreadPool& pool);

  // Rows of a sequence follow one another.
  void run(const AttentionTask& task, int32_t num_rows);

 private:
  // Units of attention that one thread begins with: from `next` - 1 down to `begin`.
  struct alignas(64) Share {
    std::atomic<int64_t> next = 0;
    int64_t begin = 0;
  };

  int64_t list_query_blocks(const AttentionTask& task, int32_t num_rows);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<QueryBlock> blocks_;
  std::unique_ptr<Share[]> shares_;  // one for each thread
};

}  // namespace volley::cpu
