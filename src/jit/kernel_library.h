#pragma once

// Where machine code comes from: memory, then a bundle, then the disk cache, then a compiler. Each
// of the last three is optional. Thread-safe; a kernel that several threads ask for at once is made
// once.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>

#include "jit/bundle.h"
#include "jit/compiler.h"
#include "jit/disk_cache.h"

namespace volley::jit {

struct KernelLibraryOptions {
  std::string arch = "sm_90a";
};

class KernelLibrary {
 public:
  struct Stats {
    int64_t num_bundled = 0;   // taken from the bundle
    int64_t num_cached = 0;    // taken from the disk cache
    int64_t num_compiled = 0;  // compiled by this process
    int64_t num_corrupt = 0;   // damaged files of the cache, compiled anew
    double compile_s = 0;      // summed over threads
  };

  KernelLibrary(const KernelLibraryOptions& options, std::optional<Bundle> bundle,
                std::optional<DiskCache> cache, std::unique_ptr<Compiler> compiler)
      : options_(options),
        bundle_(std::move(bundle)),
        cache_(std::move(cache)),
        compiler_(std::move(compiler)) {}

  // The cubin of `source`; stays valid as long as the library. kUnsupported when no place has it
  // and there is no compiler. A failure is not remembered: the next call tries again.
  Result<const std::string*> cubin(const KernelSource& source);

  // Makes every kernel of `sources`, on `num_threads` threads; after it cubin() compiles none of
  // them. `progress`, if any, is called after each kernel, one call at a time. Returns the first
  // error, in the order of `sources`, after all have been tried.
  using Progress = std::function<void(int64_t done, int64_t total, const std::string& name)>;
  Status warm_up(std::span<const KernelSource> sources, int num_threads, const Progress& progress);

  Stats stats() const;
  const std::string& arch() const { return options_.arch; }
  // Who compiles; empty when nobody does.
  std::string compiler_id() const { return compiler_ ? compiler_->id() : std::string(); }

 private:
  Result<std::string> make(const KernelSource& source, const KernelKey& key);

  KernelLibraryOptions options_;
  std::optional<Bundle> bundle_;
  std::optional<DiskCache> cache_;
  std::unique_ptr<Compiler> compiler_;

  mutable std::mutex mutex_;
  std::condition_variable made_;
  // Null while some thread makes it. Nodes stay where they are, so cubin() may hand out pointers.
  std::map<KernelKey, std::unique_ptr<std::string>> cubins_;
  Stats stats_;
};

}  // namespace volley::jit
