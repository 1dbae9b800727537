#pragma once

// A fixed set of threads for work that is split in advance. A dispatch costs about a microsecond
// while the workers are hot: they spin for two milliseconds after each job, then sleep, so that an
// idle process burns no CPU. The thread that calls run() takes part as thread 0.
//
// Splits depend on the number of threads; results must not. Give each thread whole outputs, never a
// part of a reduction.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace volley {

// Part `part` of `num_items` cut into `num_parts` contiguous runs whose sizes differ by at most 1.
struct ItemRange {
  int64_t begin = 0;
  int64_t end = 0;

  static ItemRange of_part(int64_t num_items, int64_t num_parts, int64_t part) {
    const int64_t size = num_items / num_parts;
    const int64_t rest = num_items % num_parts;
    const int64_t begin = part * size + (part < rest ? part : rest);
    return {begin, begin + size + (part < rest ? 1 : 0)};
  }
};

class ThreadPool {
 public:
  // Starts num_threads - 1 workers (at least 0). More threads than cores work too: nobody spins.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls job(thread_idx) once on every thread and returns when all are done. `job` must not throw.
  // One caller at a time; not from inside a job.
  template <class F>
  void run(F&& job) {
    using Fn = std::remove_reference_t<F>;
    run_job({[](void* context, int thread_idx) { (*static_cast<Fn*>(context))(thread_idx); },
             const_cast<void*>(static_cast<const void*>(std::addressof(job)))});
  }

  // Calls body(range, thread_idx) with each thread's share of [0, num_items); on the calling thread
  // alone when there are too few items for two shares of `min_items`.
  template <class F>
  void split(int64_t num_items, int64_t min_items, F&& body) {
    int64_t num_parts = num_items / (min_items > 0 ? min_items : 1);
    if (num_parts > num_threads()) num_parts = num_threads();
    if (num_parts <= 1) {
      if (num_items > 0) body(ItemRange{0, num_items}, 0);
      return;
    }
    run([&](int thread_idx) {
      if (thread_idx < num_parts)
        body(ItemRange::of_part(num_items, num_parts, thread_idx), thread_idx);
    });
  }

 private:
  struct Job {
    void (*call)(void* context, int thread_idx) = nullptr;
    void* context = nullptr;
  };

  void run_job(Job job);
  void work(int thread_idx);
  bool wait_for_job(uint64_t last_job);  // false: the pool is being destroyed
  void wait_for_workers();

  // Written by the caller before job_count_ is raised, read by workers after they saw it rise.
  Job job_;
  int64_t spin_ns_ = 0;
  alignas(64) std::atomic<uint64_t> job_count_{0};
  alignas(64) std::atomic<int> num_running_{0};
  alignas(64) std::atomic<int> num_asleep_{0};
  std::atomic<bool> caller_asleep_{false};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable job_posted_;
  std::condition_variable workers_done_;
  std::vector<std::thread> workers_;
};

}  // namespace volley
