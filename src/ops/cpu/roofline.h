#pragma once

// What this machine can do at best, measured with a unit's own instructions: how fast its threads
// read memory together, and how fast they multiply when nothing has to be read.

#include <memory>

#include "base/thread_pool.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/memory.h"

namespace volley::cpu {

struct KernelTable;

class Roofline {
 public:
  // `buffer_bytes` should be several times the last cache. Errors: the unit cannot run here; no
  // memory.
  static Result<Roofline> create(const CpuOpsConfig& config, int64_t buffer_bytes);

  // One pass of all threads over the buffer, each over its share: bytes a second.
  double read_bandwidth();
  // Multiply-adds on registers, about a hundredth of a second: FLOP a second.
  double multiply_rate();

 private:
  Roofline(const KernelTable& kernels, int num_threads, Buffer buffer);

  const KernelTable* kernels_;
  std::unique_ptr<ThreadPool> pool_;
  Buffer buffer_;
  uint64_t sink_ = 0;
};

}  // namespace volley::cpu
