#pragma once

// Quantised matrices on disk, one file a matrix, named by a hash of what it was packed from: the
// bytes of its parts, their shapes and dtypes, the format and the layout. A checkpoint that changes
// is therefore a miss, never a stale hit, and models that share a matrix share its file. A file
// appears whole or not at all (written beside its name, then renamed). Its contents are hashed
// while they are copied into place, so one that a crash or a disk spoiled is a miss, and the next
// store() replaces it.
//
// Files are mapped and copied rather than used in place: a file's pages are 4 KiB, and a pass over
// memory in pages of 2 MiB is faster by more than the copy takes.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "base/content_hash.h"
#include "base/result.h"
#include "ops/cpu/packing.h"

namespace volley::cpu {

struct PackKey {
  ContentHash source;
  bool operator==(const PackKey&) const = default;
};

// What stands before the panels in a file.
struct PackHeader {
  static constexpr size_t kBytes = 128;
  static constexpr size_t kPanelsOffset = 4096;

  PackKey key;
  WeightFormat format = WeightFormat::kBf16;
  Bf16Layout layout = Bf16Layout::kTiles;
  int64_t num_panels = 0;
  int64_t panel_bytes = 0;
  ContentHash panels;  // content_hash() of them
  bool operator==(const PackHeader&) const = default;
};
std::string pack_header_text(const PackHeader& header);  // kBytes long
// Errors: not such a header, another version, a checksum that does not fit, sizes that are not
// those of `file_bytes`.
Result<PackHeader> parse_pack_header(std::span<const std::byte> start, size_t file_bytes);

// What a matrix is packed from, hashed by all threads. `kind` tells stacks from gate and up.
PackKey pack_key(std::span<const HostMatrix> parts, std::string_view kind, WeightFormat format,
                 Bf16Layout layout, ThreadPool& pool);

class PackCache {
 public:
  struct Options {
    std::filesystem::path dir;                // made when missing
    int64_t max_bytes = int64_t{32} << 30;    // the files used longest ago go beyond this
    int64_t least_bytes = int64_t{64} << 10;  // smaller matrices are packed every time
  };
  struct Counts {
    int hits = 0;
    int misses = 0;
    int corrupt = 0;  // of the misses, a file was there and not what was stored
    int stored = 0;
    std::string store_error;  // the first; a full disk fails no load
  };

  // Errors: the folder cannot be made.
  static Result<PackCache> open(const Options& options);

  // Panels of this key, if a sound file holds them.
  std::optional<PackedPanels> find(const PackKey& key, const PackedPanels& wanted,
                                   Bf16Layout layout, ThreadPool& pool);
  void store(const PackKey& key, const PackedPanels& packed, Bf16Layout layout, ThreadPool& pool);

  bool takes(int64_t num_bytes) const {
    return num_bytes >= options_.least_bytes && num_bytes <= options_.max_bytes;
  }
  const Counts& counts() const { return counts_; }
  const std::filesystem::path& dir() const { return options_.dir; }
  std::filesystem::path path_of(const PackKey& key) const;

 private:
  explicit PackCache(Options options);
  Status write(const PackKey& key, const PackedPanels& packed, Bf16Layout layout, ThreadPool& pool);

  Options options_;
  std::filesystem::file_time_type opened_;
  Counts counts_;
};

}  // namespace volley::cpu
