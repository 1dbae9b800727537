#pragma once

// Compiled kernels on disk, one file a kernel, shared by any number of processes. A file appears
// whole or not at all (written beside its name, then renamed); its content carries a checksum, so a
// file that a crash or a disk spoiled is a miss, and the next store() replaces it. Two processes
// that compile the same kernel at once both store it: the files are equal, the later rename wins.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "jit/kernel_source.h"

namespace volley::jit {

struct DiskCacheOptions {
  std::filesystem::path dir;  // made when missing
  int64_t max_bytes =
      int64_t{1} << 30;  // store() removes the files written longest ago beyond this
};

class DiskCache {
 public:
  static Result<DiskCache> open(const DiskCacheOptions& options);

  struct Found {
    std::optional<std::string> cubin;
    bool was_corrupt = false;  // a file was there, and was not what was stored
  };
  Found find(const KernelKey& key) const;
  Status store(const KernelKey& key, std::string_view cubin) const;

  std::filesystem::path path_of(const KernelKey& key) const;

 private:
  explicit DiskCache(DiskCacheOptions options) : options_(std::move(options)) {}

  DiskCacheOptions options_;
};

}  // namespace volley::jit
