#pragma once

// A bundle: compiled kernels in one file that ships with an install. Opening one maps the file and
// reads its index, no kernel; a kernel's bytes are checked when it is taken. Every number in the
// file is checked against the file before use: a damaged or hostile bundle is an error, never a
// fault.
//
// The file, integers little-endian:
//   0   "VLYBNDL1"
//   8   u32 num_entries, u32 info_bytes
//   16  u64 file_bytes
//   24  SHA-256 of everything from byte 56 to the first kernel
//   56  num_entries entries of 96 bytes, sorted by key:
//         key[32], SHA-256 of the kernel[32], u64 offset, u64 bytes, u32 name_offset, u32
//         name_bytes, u64 0
//       info_bytes of info: "key=value" lines (arch, compiler), then the names
//   ... the kernels

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "jit/kernel_source.h"

namespace volley::jit {

struct BundleEntry {
  KernelKey key;
  std::string name;
  std::string cubin;
};

struct BundleInfo {
  std::string arch;
  std::string compiler;
};

// The bundle's bytes. Equal entries and info give equal bytes. kInvalidInput when two entries share
// a key or a text of `info` holds a line break.
Result<std::string> make_bundle(std::vector<BundleEntry> entries, const BundleInfo& info);

class Bundle {
 public:
  static Result<Bundle> open(const std::filesystem::path& path);
  // A view of `bytes`, which outlive it; `what` names them in errors.
  static Result<Bundle> parse(std::string_view bytes, std::string_view what);

  const BundleInfo& info() const { return info_; }
  size_t size() const { return num_entries_; }
  std::string_view name(size_t index) const;
  // The kernel's bytes, checked; nullopt when the bundle has none of that key.
  Result<std::optional<std::string>> find(const KernelKey& key) const;

 private:
  KernelKey key_at(size_t index) const;

  MappedFile file_;
  std::string what_;
  std::string_view bytes_;
  size_t num_entries_ = 0;
  size_t names_offset_ = 0;
  size_t names_bytes_ = 0;
  BundleInfo info_;
};

}  // namespace volley::jit
