#pragma once

// The safetensors format (huggingface/safetensors, README "Format"): eight bytes of little-endian
// header length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes.
// Everything in a header is checked before a view of the data exists.

#include <cstddef>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "tensor/host_tensor.h"

namespace volley {

struct SafetensorsLimits {
  size_t max_header_bytes = size_t{100} << 20;  // the format's own limit
  size_t max_index_bytes = size_t{64} << 20;
  size_t max_shards = 4096;
  size_t max_name_bytes = 1024;
};

struct NamedTensor {
  std::string name;
  HostTensor tensor;  // borrows the file's bytes
};

// The tensors of one file held in memory, in the header's order. `what` names the file in errors.
// Checked: header length, JSON, duplicate names, dtype, rank, shape times dtype against the offsets
// without overflow, and that the tensors tile the data exactly: no overlap, no gap, nothing past
// the end. Offsets need not be aligned: the format never promised it and HostTensor reads any
// address.
Result<std::vector<NamedTensor>> parse_safetensors(std::span<const std::byte> file,
                                                   std::string_view what,
                                                   const SafetensorsLimits& limits = {});

// The tensors that model.safetensors.index.json places in each shard. Shards are plain file names:
// an index cannot reach outside its folder.
using ShardMap = std::map<std::string, std::set<std::string>>;
Result<ShardMap> parse_safetensors_index(std::string_view text, std::string_view what,
                                         const SafetensorsLimits& limits = {});

// The tensors of a model folder: model.safetensors, or the shards that model.safetensors.index.json
// lists. Files are memory-mapped; the tensors live as long as this object, moves included.
class Checkpoint {
 public:
  // Also checks that index and shards agree on every name.
  static Result<Checkpoint> open(const std::filesystem::path& folder,
                                 const SafetensorsLimits& limits = {});

  const HostTensor* find(std::string_view name) const;  // nullptr: no such tensor
  std::vector<std::string_view> names() const;          // sorted
  size_t num_tensors() const { return tensors_.size(); }
  size_t num_files() const { return files_.size(); }
  int64_t num_bytes() const;
  const std::filesystem::path& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
  std::vector<MappedFile> files_;
  std::map<std::string, HostTensor, std::less<>> tensors_;
};

}  // namespace volley
