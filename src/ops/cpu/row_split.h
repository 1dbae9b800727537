#pragma once

// Row-by-row work on activations, shared out among threads.

#include <algorithm>

#include "base/thread_pool.h"

namespace volley::cpu {

// Less stays on the calling thread: a dispatch costs about as much.
inline constexpr int64_t kSerialRowElements = 32 * 1024;

inline int64_t rows_per_share(int64_t cols) {
  return std::max<int64_t>(1, kSerialRowElements / std::max<int64_t>(1, cols));
}

// Calls body(row).
template <class F>
void for_rows(ThreadPool& pool, int64_t num_rows, int64_t cols, F body) {
  pool.split(num_rows, rows_per_share(cols), [&](ItemRange range, int) {
    for (int64_t row = range.begin; row < range.end; ++row) body(row);
  });
}

}  // namespace volley::cpu
