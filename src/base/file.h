#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace volley {

// Reads a whole regular file of at most `max_bytes`.
Result<std::string> read_file(const std::filesystem::path& path,
                              size_t max_bytes = size_t{256} << 20);

// Writes `bytes` to a temporary file beside `path`, then renames it: readers see all or nothing.
Status write_file_atomic(const std::filesystem::path& path, std::string_view bytes);
// The parts one after the other.
Status write_file_atomic(const std::filesystem::path& path,
                         std::span<const std::string_view> parts);

// Makes room for `incoming_bytes` in a cache folder that may hold `max_bytes`: removes files with
// `extension` in their names (what killed writers left has it too), those written longest ago
// first, but none written at `keep_from` or later. False where that is not enough. Other processes
// may add and remove files meanwhile.
bool remove_oldest_files(
    const std::filesystem::path& dir, std::string_view extension, int64_t incoming_bytes,
    int64_t max_bytes,
    std::filesystem::file_time_type keep_from = std::filesystem::file_time_type::max());

// A regular file mapped read-only for the lifetime of the object. Move-only.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::filesystem::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace volley
