#pragma once

// A scoring kernel's configuration is one value; what follows from it (threads, shared memory) is
// computed here by the same functions on host and device. The essay is in sm90/scoring_kernel.h.

#include "gemm/device/gemm_config.h"
#include "gemm/device/portable.h"

namespace volley::gemm {

enum class KeyKind : int {
  kFp8,    // e4m3, one float scale a key
  kMxFp4,  // e2m1, a power of two (UE8M0) for each 32 values of a key
};

inline constexpr int kKeyTile = 64;        // keys of one tile: a page, and the M side of one wgmma
inline constexpr int kMaxQueries = 8;      // query rows of one tile
inline constexpr int kMaxScoreCols = 256;  // heads times queries: wgmma's N side
inline constexpr int kScoringMathWarpgroups = 2;
inline constexpr int kScoringThreads = kWarpgroup * (kScoringMathWarpgroups + 1);
// Three warpgroups start with 168 registers a thread: 2 * 128 * 224 + 128 * 56 = 128 * 3 * 168.
inline constexpr int kScoringMathRegisters = 224;
inline constexpr int kScoringOtherRegisters = 56;

struct ScoringConfig {
  KeyKind keys = KeyKind::kFp8;
  bool paged = false;
  int heads = 64;
  int head_dim = 128;
  int queries = 4;      // query rows that one read of a key tile serves
  int num_stages = 16;  // key tiles on their way, even: each math warpgroup takes every second one

  constexpr bool operator==(const ScoringConfig&) const = default;

  VOLLEY_HD constexpr bool fp4() const { return keys == KeyKind::kMxFp4; }
  VOLLEY_HD constexpr int cols() const { return heads * queries; }
  VOLLEY_HD constexpr int steps() const { return head_dim / 32; }  // wgmma of one tile
  // Bytes of a key's values, of its scales, and of a tile of each in shared memory. FP8 rows stand
  // 128 bytes apart there, whatever the head_dim.
  VOLLEY_HD constexpr int key_bytes() const { return fp4() ? head_dim / 2 : head_dim; }
  VOLLEY_HD constexpr int scale_bytes() const { return fp4() ? head_dim / 32 : 4; }
  VOLLEY_HD constexpr int tile_bytes() const {
    return kKeyTile * (fp4() ? head_dim / 2 : kStageRowBytes);
  }
  VOLLEY_HD constexpr int tile_scale_bytes() const { return kKeyTile * scale_bytes(); }
  // Products of a tile that are summed apart: wide ones in two parts, the first of which has the
  // larger half of the queries.
  VOLLEY_HD constexpr int parts() const { return cols() > kMaxScoreCols / 2 ? 2 : 1; }
  VOLLEY_HD constexpr int part_queries(int part) const {
    return parts() == 1 ? queries : part == 0 ? ceil_div(queries, 2) : queries / 2;
  }
  // Weights stay in registers where sums and decoded keys leave room; else they are read anew for
  // each tile.
  VOLLEY_HD constexpr bool weights_in_registers() const {
    const int sums = parts() == 1 ? cols() : cols() / 2;
    return sums + cols() / 4 + (fp4() ? 8 * steps() : 0) <= (fp4() ? 160 : 192);
  }

  VOLLEY_HD constexpr bool valid() const {
    return heads >= 16 && heads <= 128 && heads % 16 == 0 && (head_dim == 64 || head_dim == 128) &&
           queries >= 1 && queries <= kMaxQueries && cols() <= kMaxScoreCols && num_stages >= 4 &&
           num_stages % 2 == 0;
  }
};

// Byte offsets in a CTA's dynamic shared memory, whose base is aligned to 1024.
struct ScoringSmem {
  int q = 0;  // two query tiles [cols][128 bytes], swizzled
  int q_bytes = 0;
  int keys = 0;  // num_stages tiles, key_stride bytes apart
  int key_stride = 0;
  int scales = 0;  // num_stages runs of scale_stride bytes
  int scale_stride = 0;
  int weights = 0;  // two of [cols] floats
  int weight_bytes = 0;
  int weight_run = 0;  // bytes
  int items = 0;       // two of kItemBytes: what the producer says of each query tile
  int scratch = 0;
  int barriers = 0;  // full[stages], empty[stages], q_full[2], q_empty[2], turn[2]
  int total_bytes = 0;
};

// row, rows, first tile, number of tiles; then each query's first key and end.
inline constexpr int kItemBytes = 16 + 8 * kMaxQueries;
inline constexpr int kScratchBytes = 128;

VOLLEY_HD constexpr ScoringSmem scoring_smem(const ScoringConfig& c) {
  ScoringSmem s;
  s.q_bytes = c.cols() * kStageRowBytes;
  s.keys = 2 * s.q_bytes;
  // FP4, a tile's scales follow its values, as in a page.
  s.key_stride = c.fp4() ? c.tile_bytes() + c.tile_scale_bytes() : c.tile_bytes();
  s.scales = s.keys + (c.fp4() ? c.tile_bytes() : c.num_stages * c.tile_bytes());
  s.scale_stride = c.fp4() ? s.key_stride : c.tile_scale_bytes();
  s.weights = s.keys + c.num_stages * (c.tile_bytes() + c.tile_scale_bytes());
  // Where they are read anew for each tile, each lane of four has a run of its own, 16 bytes apart
  // from the next in banks.
  s.weight_run = c.cols() + 16;
  s.weight_bytes = round_up(4 * s.weight_run, 128);
  s.items = s.weights + 2 * s.weight_bytes;
  s.scratch = s.items + 2 * round_up(kItemBytes, 128);
  s.barriers = s.scratch + kScratchBytes;
  s.total_bytes = s.barriers + (2 * c.num_stages + 6) * 8;
  return s;
}

}  // namespace volley::gemm
