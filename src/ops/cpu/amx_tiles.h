#pragma once

// AMX tiles, what products with weights of every format and attention share. Include after
// simd_avx512.h, from one unit.

#include "ops/cpu/kernels.h"

namespace volley::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileK = 32;
constexpr int64_t kTileSize = kTileRows * kTileK;  // elements of an A or a B tile
constexpr int64_t kLine = 64;                      // bytes of a tile row

// Configures the tiles while it lives. Sums and A tiles have as many rows as there are.
class TileScope {
 public:
  // Tiles 0-1 are sums, 4-5 are A, 2-3 and 6-7 are B.
  static TileScope one_group(int64_t rows) {
    return TileScope(Rows{{rows, rows, kTileRows, kTileRows, rows, rows, kTileRows, kTileRows}});
  }
  // Tiles 0-3 are sums, 4-5 are A, 6-7 are B. Tiles 2, 3 and 5 belong to the second group.
  static TileScope two_groups(int64_t second) {
    return TileScope(
        Rows{{kTileRows, kTileRows, second, second, kTileRows, second, kTileRows, kTileRows}});
  }
  // Tiles 0-3 are sums, 4-5 are A, 6-7 are B.
  static TileScope four_sums(int64_t rows) {
    return TileScope(Rows{{rows, rows, rows, rows, rows, rows, kTileRows, kTileRows}});
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  struct Rows {
    int64_t of_tile[8];
  };
  explicit TileScope(const Rows& rows) {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t column_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.column_bytes[i] = kLine;
      config.rows[i] = static_cast<uint8_t>(rows.of_tile[i]);
    }
    // GCC 12 believes that the instruction reads only the first bytes of it.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
};

inline __m256i to_bf16(F16 x) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
}

// One line, at this place of the code: the compiler gathers _mm_prefetch into bursts.
inline void prefetch_here(const char* line) {
  asm volatile("prefetcht1 %0" : : "m"(*line) : "memory");
}

// The sums of one or two groups of rows by 32 columns, in tiles 0 to 3.
template <bool kTwoGroups>
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwoGroups) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

}  // namespace
}  // namespace volley::cpu
