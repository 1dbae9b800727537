#include "base/content_hash.h"

#include <bit>
#include <cstring>
#include <vector>

#include "base/thread_pool.h"

namespace volley {
namespace {

// Odd constants without structure: digits of pi.
constexpr uint64_t kMix[8] = {0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1,
                              0x082EFA98EC4E6C89, 0x452821E638D01377, 0xBE5466CF34E90C6D,
                              0xC0AC29B7C97C50DD, 0x3F84D5B5B5470917};

uint64_t read(const std::byte* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof(word));
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  return word;
}

__extension__ using Wide = unsigned __int128;

// Both halves of a product, folded, as in wyhash.
uint64_t fold(uint64_t a, uint64_t b) {
  const Wide product = Wide{a} * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// Four chains of products, so that they overlap. The rotation keeps what came before even where a
// factor happens to be zero.
struct Lanes {
  uint64_t state[4];

  explicit Lanes(uint64_t seed) {
    for (int i = 0; i < 4; ++i) state[i] = seed ^ kMix[i];
  }
  void add(const std::byte* at) {
    for (int i = 0; i < 4; ++i) {
      const uint64_t a = read(at + 16 * i), b = read(at + 16 * i + 8);
      state[i] = std::rotl(state[i], 29) + fold(a ^ state[i], b ^ kMix[4 + i]);
    }
  }
  uint64_t finish(uint64_t salt) const {
    uint64_t all = salt;
    for (int i = 0; i < 4; ++i) all = fold(all ^ state[i], kMix[i] ^ salt) + std::rotl(all, 17);
    return fold(all ^ kMix[5], all ^ kMix[7]);
  }
};

}  // namespace

ContentHash content_hash(std::span<const std::byte> bytes, uint64_t seed) {
  Lanes lanes(seed);
  const std::byte* at = bytes.data();
  size_t rest = bytes.size();
  for (; rest >= 64; rest -= 64, at += 64) lanes.add(at);
  if (rest > 0) {
    std::byte tail[64] = {};
    std::memcpy(tail, at, rest);
    lanes.add(tail);
  }
  return {lanes.finish(bytes.size() ^ kMix[6]), lanes.finish(~bytes.size())};
}

ContentHash content_hash_of_pieces(std::span<const ContentHash> pieces, size_t num_bytes) {
  return content_hash(std::as_bytes(pieces), num_bytes);
}

namespace {

// Calls body(piece, its bytes) for all pieces, each thread a share of neighbours.
template <class F>
ContentHash hash_pieces(std::span<const std::byte> bytes, ThreadPool& pool, F body) {
  std::vector<ContentHash> pieces((bytes.size() + kHashPieceBytes - 1) / kHashPieceBytes);
  pool.split(static_cast<int64_t>(pieces.size()), 1, [&](ItemRange range, int) {
    for (int64_t i = range.begin; i < range.end; ++i) {
      const size_t first = static_cast<size_t>(i) * kHashPieceBytes;
      pieces[i] =
          body(first, bytes.subspan(first, std::min(kHashPieceBytes, bytes.size() - first)));
    }
  });
  return content_hash_of_pieces(pieces, bytes.size());
}

}  // namespace

ContentHash content_hash(std::span<const std::byte> bytes, ThreadPool& pool) {
  return hash_pieces(bytes, pool,
                     [](size_t, std::span<const std::byte> piece) { return content_hash(piece); });
}

ContentHash copy_and_hash(std::span<const std::byte> bytes, std::byte* to, ThreadPool& pool) {
  return hash_pieces(bytes, pool, [&](size_t first, std::span<const std::byte> piece) {
    std::memcpy(to + first, piece.data(), piece.size());
    return content_hash({to + first, piece.size()});
  });
}

}  // namespace volley
