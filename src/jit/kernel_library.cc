#include "jit/kernel_library.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/log.h"

namespace volley::jit {

Result<const std::string*> KernelLibrary::cubin(const KernelSource& source) {
  VOLLEY_TRY(const KernelKey key, source_key(source, options_.arch));
  std::unique_lock lock(mutex_);
  for (;;) {
    const auto [entry, is_ours] = cubins_.try_emplace(key);
    if (is_ours) break;
    if (entry->second != nullptr) return entry->second.get();
    made_.wait(lock);  // then look again: the other thread may have failed and left no entry
  }
  lock.unlock();
  Result<std::string> made = make(source, key);
  lock.lock();
  made_.notify_all();
  if (!made) {
    cubins_.erase(key);
    return tl::unexpected<Error>(std::move(made.error()));
  }
  auto& slot = cubins_[key];
  slot = std::make_unique<std::string>(std::move(*made));
  return slot.get();
}

Result<std::string> KernelLibrary::make(const KernelSource& source, const KernelKey& key) {
  const auto count = [this](auto change) {
    const std::lock_guard lock(mutex_);
    change(stats_);
  };
  if (bundle_ && bundle_->info().arch == options_.arch) {
    VOLLEY_TRY(std::optional<std::string> bundled, bundle_->find(key));
    if (bundled) {
      count([](Stats& stats) { ++stats.num_bundled; });
      return std::move(*bundled);
    }
  }
  if (compiler_ == nullptr) {
    return make_error(ErrorKind::kUnsupported,
                      "kernel {} for {} is in no bundle, and there is no compiler to make it",
                      source.name, options_.arch);
  }
  const KernelKey cache_key = compiled_key(key, compiler_->id());
  if (cache_) {
    DiskCache::Found found = cache_->find(cache_key);
    if (found.was_corrupt) {
      log_warning("kernel cache: {} is damaged, compiling it anew", source.name);
      count([](Stats& stats) { ++stats.num_corrupt; });
    }
    if (found.cubin) {
      count([](Stats& stats) { ++stats.num_cached; });
      return std::move(*found.cubin);
    }
  }
  const auto start = std::chrono::steady_clock::now();
  VOLLEY_TRY(Compiled compiled, compiler_->compile(source, options_.arch));
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  count([&](Stats& stats) {
    ++stats.num_compiled;
    stats.compile_s += elapsed.count();
  });
  if (cache_) {
    // A cache that cannot be written costs time, not the answer.
    if (const Status stored = cache_->store(cache_key, compiled.cubin); !stored) {
      log_warning("kernel cache: {}", stored.error().message);
    }
  }
  return std::move(compiled.cubin);
}

Status KernelLibrary::warm_up(std::span<const KernelSource> sources, int num_threads,
                              const Progress& progress) {
  std::vector<Status> outcomes(sources.size());
  std::atomic<size_t> next{0};
  std::mutex progress_mutex;
  int64_t num_done = 0;
  const auto work = [&] {
    for (size_t i = next++; i < sources.size(); i = next++) {
      if (const auto made = cubin(sources[i]); !made) {
        outcomes[i] = tl::unexpected<Error>(made.error());
      }
      const std::lock_guard lock(progress_mutex);
      ++num_done;
      if (progress) progress(num_done, static_cast<int64_t>(sources.size()), sources[i].name);
    }
  };
  const auto num_workers = std::clamp<int64_t>(num_threads, 1, std::max<size_t>(sources.size(), 1));
  std::vector<std::jthread> workers;
  for (int64_t i = 1; i < num_workers; ++i) workers.emplace_back(work);
  work();
  workers.clear();
  for (Status& outcome : outcomes) {
    if (!outcome) return std::move(outcome);
  }
  return {};
}

KernelLibrary::Stats KernelLibrary::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

}  // namespace volley::jit
