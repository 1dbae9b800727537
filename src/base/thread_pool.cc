#include "base/thread_pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace volley {
namespace {

// Waking a sleeping thread takes 100 us and more on a virtual machine. A limit near that feeds
// itself: while one side wakes, the other falls asleep, and every dispatch pays twice (measured:
// 240 us instead of 1). So the limit is many times longer, yet an idle process is asleep before
// top(1) can notice. After the first part of it, waiters offer their core to others.
constexpr int64_t kSpinNs = 2'000'000;
constexpr int64_t kPoliteAfterNs = 50'000;

int64_t now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
}

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until ready() or until the time is up; returns the last answer.
template <class F>
bool spin_until(int64_t spin_ns, F ready) {
  if (ready()) return true;
  if (spin_ns == 0) return false;
  const int64_t start = now_ns();
  for (int64_t waited = 0; waited < spin_ns; waited = now_ns() - start) {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      relax();
    }
    if (waited > kPoliteAfterNs) std::this_thread::yield();
  }
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads <= static_cast<int>(std::thread::hardware_concurrency())) spin_ns_ = kSpinNs;
  for (int thread_idx = 1; thread_idx < num_threads; ++thread_idx)
    workers_.emplace_back([this, thread_idx] { work(thread_idx); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  job_posted_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_job(Job job) {
  if (workers_.empty()) {
    job.call(job.context, 0);
    return;
  }
  job_ = job;
  num_running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  // Both this pair and the one in wait_for_job are sequentially consistent: either the worker sees
  // the new count before it sleeps, or we see that it sleeps and wake it.
  job_count_.fetch_add(1);
  if (num_asleep_.load() > 0) {
    { std::lock_guard lock(mutex_); }  // a worker between its check and its wait has the lock
    job_posted_.notify_all();
  }
  job.call(job.context, 0);
  wait_for_workers();
}

void ThreadPool::work(int thread_idx) {
  uint64_t last_job = 0;
  while (wait_for_job(last_job)) {
    ++last_job;
    job_.call(job_.context, thread_idx);
    if (num_running_.fetch_sub(1) == 1 && caller_asleep_.load()) {
      { std::lock_guard lock(mutex_); }
      workers_done_.notify_one();
    }
  }
}

bool ThreadPool::wait_for_job(uint64_t last_job) {
  const auto posted = [&] { return job_count_.load() != last_job; };
  if (spin_until(spin_ns_, [&] { return posted() || stopping_.load(std::memory_order_relaxed); }))
    return posted();
  std::unique_lock lock(mutex_);
  num_asleep_.fetch_add(1);
  job_posted_.wait(lock, [&] { return posted() || stopping_.load(); });
  num_asleep_.fetch_sub(1);
  return posted();
}

void ThreadPool::wait_for_workers() {
  const auto done = [&] { return num_running_.load() == 0; };
  if (spin_until(spin_ns_, done)) return;
  std::unique_lock lock(mutex_);
  caller_asleep_.store(true);
  workers_done_.wait(lock, done);
  caller_asleep_.store(false);
}

}  // namespace volley
