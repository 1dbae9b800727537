#include "jit/disk_cache.h"

#include <cstring>

#include "base/file.h"
#include "jit/little_endian.h"

namespace volley::jit {
namespace {

namespace fs = std::filesystem;

// A file: the magic, the cubin's size (u64), its SHA-256, the cubin.
constexpr std::string_view kMagic = "VLYCUBN1";
constexpr size_t kHeaderBytes = 8 + 8 + 32;
constexpr size_t kMaxFileBytes = size_t{64} << 20;
constexpr std::string_view kExtension = ".cubin";

std::optional<std::string> unwrap(std::string file) {
  if (file.size() < kHeaderBytes || !file.starts_with(kMagic)) return std::nullopt;
  if (read_u64(file, 8) != file.size() - kHeaderBytes) return std::nullopt;
  Sha256Digest stored;
  std::memcpy(stored.data(), file.data() + 16, stored.size());
  file.erase(0, kHeaderBytes);
  if (sha256(file) != stored) return std::nullopt;
  return file;
}

}  // namespace

Result<DiskCache> DiskCache::open(const DiskCacheOptions& options) {
  std::error_code error;
  fs::create_directories(options.dir, error);
  if (error) {
    return make_error(ErrorKind::kIo, "{}: cannot make the kernel cache: {}", options.dir.string(),
                      error.message());
  }
  return DiskCache(options);
}

fs::path DiskCache::path_of(const KernelKey& key) const {
  return options_.dir / (to_hex(key) + std::string(kExtension));
}

DiskCache::Found DiskCache::find(const KernelKey& key) const {
  auto file = read_file(path_of(key), kMaxFileBytes);
  if (!file) return {.was_corrupt = file.error().kind != ErrorKind::kNotFound};
  Found found;
  found.cubin = unwrap(std::move(*file));
  found.was_corrupt = !found.cubin;
  return found;
}

Status DiskCache::store(const KernelKey& key, std::string_view cubin) const {
  if (cubin.size() > kMaxFileBytes - kHeaderBytes) {
    return make_error(ErrorKind::kExhausted, "a kernel of {} bytes, the cache takes {}",
                      cubin.size(), kMaxFileBytes);
  }
  std::string file(kMagic);
  append_u64(file, cubin.size());
  const Sha256Digest digest = sha256(cubin);
  file.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  file.append(cubin);
  remove_oldest_files(options_.dir, kExtension, static_cast<int64_t>(file.size()),
                      options_.max_bytes);
  return write_file_atomic(path_of(key), file);
}

}  // namespace volley::jit
