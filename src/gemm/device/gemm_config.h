#pragma once

// A kernel's configuration is one value, and what follows from it (threads, roles, shared memory)
// is computed here by the same functions on host and device.

#include "gemm/device/fp4_format.h"
#include "gemm/device/portable.h"

namespace volley::gemm {

enum class MmaKind : int {
  kFp8,    // e4m3 x e4m3, one float scale for each 1x128 of A and each 128x128 of B
  kBf16,   // bf16 x bf16, no scales
  kMxFp4,  // e4m3 (1x128 scales) x e2m1, a power of two for each 1x32 of B
  kNvFp4,  // e4m3 (1x128 scales) x e2m1, an e4m3 scale for each 1x16 of B and a float for all of it
  kFp8Rows,  // e4m3 x e4m3, one float scale for each 1x128 of A and of B (weight gradients)
};

// B is e4m3.
VOLLEY_HD constexpr bool is_fp8(MmaKind mma) {
  return mma == MmaKind::kFp8 || mma == MmaKind::kFp8Rows;
}

// Weights packed as fp4_format.h says, decoded to e4m3 on the way to the tensor cores.
VOLLEY_HD constexpr bool has_fp4_weights(MmaKind mma) {
  return mma == MmaKind::kMxFp4 || mma == MmaKind::kNvFp4;
}
// Token rows are e4m3 with one float scale for each 1x128.
VOLLEY_HD constexpr bool has_fp8_tokens(MmaKind mma) {
  return mma != MmaKind::kBf16;
}

enum class OutKind : int { kBf16, kF32 };

// Where a tile's rows and its weight come from; gemm.h describes the layouts.
enum class Grouping : int {
  kDense,      // one weight
  kRowIndex,   // the group of each row, -1 for padding
  kPrefixSum,  // the end row of each group
  kMasked,     // a slab of rows for each group, and how many of them count
  kAlongK,     // a product for each group of columns of A and B, and where each group ends
};

// D is a slab of m rows for each group.
VOLLEY_HD constexpr bool has_slabs(Grouping grouping) {
  return grouping == Grouping::kMasked || grouping == Grouping::kAlongK;
}

// One stage of the pipeline holds 128 bytes of K for every row: the width of the widest swizzle
// and, for FP8, one quant_group.
inline constexpr int kStageRowBytes = 128;
inline constexpr int kMmaRows = 64;  // of one wgmma: 16 rows for each warp of a warpgroup
inline constexpr int kWarpgroup = 128;
inline constexpr int kQuantGroup = 128;
inline constexpr int kMaxAccumulators = 200;  // floats of a thread that has its SM to itself
// With two math warpgroups a CTA that has its SM to itself starts with 168 registers a thread; the
// producer hands most of its own over. 2 * 128 * 232 + 128 * 40 = 64512 of 65536; FP4: 224 and 56.
inline constexpr int kMathRegisters = 232;
inline constexpr int kProducerRegisters = 40;
inline constexpr int kFp4MathRegisters = 224;
inline constexpr int kFp4ProducerRegisters = 56;
// FP4: of a math thread, beside its sums and its decoded weights.
inline constexpr int kFp4OtherRegisters = 64;
inline constexpr int kFp4DecodedBlocks = 2;  // blocks of decoded weights in shared memory
inline constexpr int kStoreRowBytes = 128;   // of one store box, 64 rows high

struct GemmConfig {
  MmaKind mma = MmaKind::kFp8;
  OutKind out = OutKind::kBf16;
  Grouping grouping = Grouping::kDense;
  // false: token rows are the M side of wgmma, weight rows its N side. true: the other way round,
  // so that few tokens fill a narrow N side instead of a wasted M side of 64.
  bool swap_ab = false;
  int tile_m = 128;      // token rows of a tile
  int tile_n = 128;      // weight rows of a tile
  int num_stages = 4;    // of the TMA pipeline
  int segments = 1;      // the weight's plan: K is summed in this many runs, then the runs in order
  bool split_k = false;  // each segment on its own CTA of a cluster
  int multicast = 1;     // CTAs of a cluster that share an operand: see shares_b()
  int raster = 8;        // m tiles of a band; a band's tiles are visited column by column
  int store_chunks = 1;  // boxes a warpgroup may have on their way to memory
  int ctas_per_sm = 1;

  constexpr bool operator==(const GemmConfig&) const = default;

  // Rows on the M and N side of wgmma.
  VOLLEY_HD constexpr int mma_m() const { return swap_ab ? tile_n : tile_m; }
  VOLLEY_HD constexpr int mma_n() const { return swap_ab ? tile_m : tile_n / n_waves(); }
  // FP8 tiles wider than one scale of B are computed 128 columns after 128, A in registers.
  VOLLEY_HD constexpr int n_waves() const {
    return !swap_ab && mma == MmaKind::kFp8 && tile_n > kQuantGroup ? tile_n / kQuantGroup : 1;
  }
  // Columns of an FP8 tile that have one scale of B wherever the tile begins, and how many such
  // runs.
  VOLLEY_HD constexpr int scale_cols() const {
    const bool one = mma != MmaKind::kFp8 || swap_ab || kQuantGroup % mma_n() == 0;
    return one ? mma_n() : kQuantGroup / 2;
  }
  VOLLEY_HD constexpr int scale_runs() const { return mma_n() / scale_cols(); }
  VOLLEY_HD constexpr int math_warpgroups() const { return mma_m() >= 2 * kMmaRows ? 2 : 1; }
  // 64 x mma_n parts of the tile that one warpgroup computes one after the other.
  VOLLEY_HD constexpr int waves() const {
    return mma_m() / (kMmaRows * math_warpgroups()) * n_waves();
  }
  // Of a cluster's neighbouring tiles: along m, with one B tile; else along n, with one A tile. The
  // larger one.
  VOLLEY_HD constexpr bool shares_b() const { return multicast > 1 && !swap_ab && tile_n > tile_m; }
  // Rows that one copy brings.
  VOLLEY_HD constexpr int a_box_rows() const { return shares_b() ? tile_m : tile_m / multicast; }
  VOLLEY_HD constexpr int b_box_rows() const { return shares_b() ? tile_n / multicast : tile_n; }
  // The producer is a warpgroup, or, with FP4 weights and no registers to hand over, one warp.
  // Decoders are one more.
  VOLLEY_HD constexpr int num_threads() const {
    const bool one_warp = fp4() && swap_ab && !moves_registers();
    return kWarpgroup * (math_warpgroups() + (decodes_to_smem() ? 1 : 0)) +
           (one_warp ? 32 : kWarpgroup);
  }
  VOLLEY_HD constexpr int k_per_stage() const { return has_fp8_tokens(mma) ? 128 : 64; }
  VOLLEY_HD constexpr bool fp4() const { return has_fp4_weights(mma); }
  // Whether output leaves in boxes of 64 rows of 128 bytes: floats by the copy engine, which can
  // add them to C; bf16 by the warp that has them, or, where sums are accumulators and two boxes
  // have room, by the copy engine.
  VOLLEY_HD constexpr bool has_boxes() const { return !swap_ab && tile_n >= 64; }
  VOLLEY_HD constexpr bool may_store_boxes() const {
    return has_boxes() && (out == OutKind::kF32 || mma == MmaKind::kBf16);
  }
  VOLLEY_HD constexpr bool stores_boxes() const {
    return may_store_boxes() && (out == OutKind::kF32 || store_chunks >= 2);
  }
  VOLLEY_HD constexpr int store_cols() const {
    return kStoreRowBytes / (out == OutKind::kBf16 ? 2 : 4);
  }
  VOLLEY_HD constexpr int cluster() const { return split_k ? segments : multicast; }
  // Segments that one CTA sums, and must keep apart.
  VOLLEY_HD constexpr int serial_segments() const { return split_k ? 1 : segments; }
  // Whether the producer hands registers to the math warpgroups (setmaxnreg). The pool is the CTA's
  // own: a CTA that shares its SM starts with too few to give, and would wait for them for ever.
  VOLLEY_HD constexpr bool moves_registers() const {
    return math_warpgroups() == 2 && ctas_per_sm == 1;
  }
  // FP8: whether a block's products run while the block before is promoted, in accumulators of
  // their own. Two warpgroups with wide tiles do without: each one's work hides the other's.
  VOLLEY_HD constexpr bool pipelined() const {
    const int limit = ctas_per_sm == 1 ? 128 : 65536 / (ctas_per_sm * num_threads()) / 2;
    return is_fp8(mma) && waves() == 1 && mma_n() / 2 * (2 + sums()) <= limit;
  }
  // Sums a thread holds apart, each of mma_n/2 floats: one for each wave, twice where segments are
  // summed one after the other.
  VOLLEY_HD constexpr int sums() const { return (serial_segments() > 1 ? 2 : 1) * waves(); }
  // Floats a math thread holds: the accumulators wgmma writes, the promoted sum (FP8), the sum over
  // finished segments.
  VOLLEY_HD constexpr int accumulator_floats() const {
    const int raw = has_fp8_tokens(mma) ? (pipelined() ? 2 : 1) : 0;
    return mma_n() / 2 * (raw + (fp4() ? 1 : sums()));
  }
  // FP4: finished segments wait in shared memory, registers hold decoded weights instead.
  VOLLEY_HD constexpr bool parks_segments() const { return fp4() && serial_segments() > 1; }
  // FP4, many tokens: weights are decoded to shared memory (sm90/fp4_wide_kernel.h).
  VOLLEY_HD constexpr bool decodes_to_smem() const { return fp4() && !swap_ab; }
  // FP4: decoded blocks of weights a math thread holds: with two, one is decoded while the tensor
  // cores read the other.
  VOLLEY_HD constexpr int fp4_fragments() const {
    return accumulator_floats() + 2 * fp4_block_registers() + kFp4OtherRegisters <= math_registers()
               ? 2
               : 1;
  }
  VOLLEY_HD constexpr int fp4_block_registers() const { return mma == MmaKind::kNvFp4 ? 32 : 16; }
  // Registers of a math thread. Each quarter of an SM has a quarter of them: warps count by fours.
  VOLLEY_HD constexpr int math_registers() const {
    const int shared = 65536 / round_up(num_threads() * ctas_per_sm, kWarpgroup) / 8 * 8;
    return moves_registers() ? kFp4MathRegisters : min_of(shared, 255);
  }

  // All rows of A meet the same B.
  VOLLEY_HD constexpr bool simple_rows() const {
    return grouping == Grouping::kDense || grouping == Grouping::kAlongK;
  }

  // Whether the kernel template takes this value.
  VOLLEY_HD constexpr bool valid() const {
    const bool m_ok = mma_m() == 64 || mma_m() == 128 || (mma_m() == 256 && !swap_ab);
    const bool n_ok = mma_n() >= 8 && mma_n() <= 256 && mma_n() % 8 == 0;
    const bool waves_ok = has_fp8_tokens(mma) || out == OutKind::kBf16 || waves() == 1;
    // Whole 64-column store boxes, or fewer columns and no box.
    const bool wide_ok = swap_ab || tile_n % 64 == 0 || tile_n < 64;
    // One scale of B for a wave; of kFp8Rows as many as registers hold.
    const bool scale_ok = mma == MmaKind::kBf16 || kQuantGroup % tile_n == 0 ||
                          (n_waves() == 2 && tile_n % kQuantGroup == 0 && mma_m() == 128) ||
                          (mma == MmaKind::kFp8 && tile_n == 192);
    const bool share_ok = multicast == 1 || (multicast == 2 && !split_k && a_box_rows() % 8 == 0 &&
                                             b_box_rows() % 8 == 0);
    // Beyond these the compiler spills (KernelText.KernelsCompileWithoutSpills): wgmma writes the
    // bf16 sums behind its back, so it cannot move them about.
    const bool tight = mma == MmaKind::kBf16 && (serial_segments() > 1 || out == OutKind::kF32);
    const int limit = tight ? 128 : kMaxAccumulators;
    const bool split_ok = !split_k || (swap_ab && segments >= 2 && segments <= 8 && waves() == 1);
    const bool registers_ok = swap_ab && (tile_n == 64 || tile_n == 128) && tile_m <= 128;
    // Walking over groups takes registers that the decoders do not have.
    const bool simple = grouping == Grouping::kDense || grouping == Grouping::kRowIndex;
    const bool decoded_ok = !swap_ab && simple && tile_m == 256 && tile_n == 128 && segments == 1 &&
                            ctas_per_sm == 1 && num_stages >= 3;
    const bool fp4_ok = !fp4() || (multicast == 1 && (registers_ok || decoded_ok));
    const bool rows_ok = mma != MmaKind::kFp8Rows || (!swap_ab && segments == 1 && simple_rows());
    const bool along_k_ok =
        grouping != Grouping::kAlongK || (!swap_ab && segments == 1 && out == OutKind::kF32 &&
                                          (mma == MmaKind::kFp8Rows || mma == MmaKind::kBf16));
    return m_ok && n_ok && waves_ok && wide_ok && scale_ok && share_ok && split_ok && fp4_ok &&
           rows_ok && along_k_ok && segments >= 1 && segments <= 8 && num_stages >= 2 &&
           raster >= 1 && store_chunks >= 1 && ctas_per_sm >= 1 && accumulator_floats() <= limit;
  }
};

// Byte offsets inside a CTA's dynamic shared memory, whose base is aligned to 1024 (the period of
// the 128-byte swizzle).
struct SmemLayout {
  int a_bytes = 0;  // of one stage
  int b_bytes = 0;
  int scale_bytes = 0;  // the floats that TMA brings: of A's rows, then of B's
  int stage_bytes = 0;  // A, then B
  int decoded = 0;      // FP4, many tokens: kFp4DecodedBlocks of decoded_bytes
  int decoded_bytes = 0;
  int scales = 0;  // num_stages runs of scale_stride bytes
  int scale_stride = 0;
  int b_scales = 0;     // in such a run
  int store = 0;        // output on its way to memory
  int store_bytes = 0;  // of one math warpgroup
  // Segments of this CTA's columns from its cluster, or, with FP4 weights, its own finished ones.
  int partial = 0;
  int partial_bytes = 0;  // of one math warpgroup
  // full[num_stages], empty[num_stages], partial_ready, partial_free, decoded_full, decoded_empty
  int barriers = 0;
  int total_bytes = 0;  // what the launch asks for
};

VOLLEY_HD constexpr SmemLayout smem_layout(const GemmConfig& c) {
  SmemLayout s;
  s.a_bytes = c.tile_m * kStageRowBytes;
  s.b_bytes = c.fp4() ? c.tile_n / kFp4StripRows * fp4_tile_bytes(c.mma == MmaKind::kNvFp4)
                      : c.tile_n * kStageRowBytes;
  s.stage_bytes = round_up(s.a_bytes + s.b_bytes, 1024);
  int end = s.stage_bytes * c.num_stages;
  s.decoded = end;
  if (c.decodes_to_smem()) {
    s.decoded_bytes = c.tile_n * kStageRowBytes * (c.mma == MmaKind::kNvFp4 ? 2 : 1);
    end += kFp4DecodedBlocks * s.decoded_bytes;
  }
  s.store = end;
  if (c.has_boxes() || (c.swap_ab && c.out == OutKind::kBf16)) {
    // Swapped: [tile_m][64] bf16. Otherwise store_chunks boxes of 64 rows.
    s.store_bytes =
        c.swap_ab ? round_up(c.tile_m * 128, 1024) : c.store_chunks * kMmaRows * kStoreRowBytes;
    end += s.store_bytes * c.math_warpgroups();
  }
  s.partial = end;
  if (c.split_k || c.parks_segments()) {
    // A run of each segment's sums for every octet of columns that a rank owns.
    const int octets = c.mma_n() / 8;
    s.partial_bytes = (c.split_k ? round_up(octets, c.segments) : octets) * kWarpgroup * 16;
    end += s.partial_bytes * c.math_warpgroups();
  }
  s.scales = end;
  if (has_fp8_tokens(c.mma)) {
    const int b_rows = c.mma == MmaKind::kFp8Rows ? c.tile_n : 0;
    s.scale_bytes = (c.tile_m + b_rows) * 4;
    s.b_scales = round_up(c.tile_m * 4, 128);
    s.scale_stride = s.b_scales + round_up(b_rows * 4, 128);
    end += s.scale_stride * c.num_stages;
  }
  s.barriers = end;
  end += (2 * c.num_stages + 2 + 2 * kFp4DecodedBlocks) * 8;
  s.total_bytes = end;
  return s;
}

// What a kernel is launched with beside its tensor maps.
struct GemmParams {
  int m;                   // token rows of A: all groups together, or of one slab when masked
  int n;                   // weight rows, a multiple of 8
  int k;                   // a multiple of 128
  int num_groups;          // weights
  const unsigned char* b;  // FP4: packed tiles, which a map cannot describe
  const float* b_scale;    // [num_groups, ceil(n/128), k/128]; FP4: of each row; null for bf16
  void* d;                 // [m, n], rows d_stride elements apart; with slabs [num_groups, m, n]
  long long d_stride;
  const float* c;  // null, or what the product is added to: as d, rows c_stride elements apart
  long long c_stride;
  const int* groups;  // the grouping's device array; null when dense
  int group_align;    // rows: each group of a prefix sum begins at a multiple of it
  int weights_ready;  // not 0: B and b_scale may be read before the kernel in front has ended
};

}  // namespace volley::gemm
