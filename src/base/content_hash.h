#pragma once

// A 128-bit hash of much data at the speed of memory: whether bytes are the ones they were. It
// guards against mistakes and failing disks; names that others could aim at take sha256.h.

#include <cstddef>
#include <cstdint>
#include <span>

namespace volley {

class ThreadPool;

struct ContentHash {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const ContentHash&) const = default;
};

// One pass on this thread. Different seeds give unrelated hashes.
ContentHash content_hash(std::span<const std::byte> bytes, uint64_t seed = 0);

// Long data in pieces of this size, each with a hash of its own, and a hash of those: the same
// whatever the number of threads.
inline constexpr size_t kHashPieceBytes = size_t{1} << 20;
ContentHash content_hash_of_pieces(std::span<const ContentHash> pieces, size_t num_bytes);
ContentHash content_hash(std::span<const std::byte> bytes, ThreadPool& pool);
// The same, while `bytes` are copied to `to`: what is hashed is what arrived there.
ContentHash copy_and_hash(std::span<const std::byte> bytes, std::byte* to, ThreadPool& pool);

}  // namespace volley
