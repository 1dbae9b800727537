#pragma once

// The math warpgroups' part of a matrix kernel: waits for blocks of K, multiplies them, and adds
// their products to float sums. See gemm_kernel.h for the two levels of the sum and its order.

#include "gemm/device/sm90/gemm_tile.h"
#include "gemm/device/sm90/wgmma_instruction.h"

namespace volley::gemm {

template <GemmConfig C>
struct GemmProducts : GemmTile<C> {
  using Base = GemmTile<C>;
  using Base::end_block;
  using Base::first_block;
  using Base::full;
  using Base::kAccum;
  using Base::kFp8;
  using Base::kOctets;
  using Base::kRows;
  using Base::kSmem;
  using Base::kWaves;
  using Base::m_side;
  using Base::n_side;
  using Base::num_blocks;
  using Base::params;
  using Base::release;
  using Base::stage_a;
  using Base::stage_scales;
  using Base::wave_row;
  using typename Base::Ring;
  using typename Base::Thread;

  // Scales of B along K, 32 blocks in the registers of a warp and 32 more on their way.
  struct BScales {
    u32 row;  // into b_scale: an offset costs one register, a pointer two
    float now;
    float coming;
    bool middle_is_next;  // of three runs of 64 columns, the second has the next group's scales
  };
  __device__ __forceinline__ float fetch(const BScales& b, int block) const {
    return block < end_block() ? __ldg(params.b_scale + b.row + block) : 0.0f;
  }

  __device__ __forceinline__ u32 b_scale_row(const Tile& tile, int warpgroup, int wave) const {
    const int groups_n = ceil_div(params.n, kQuantGroup);
    const int col = tile.col + (C.swap_ab ? warpgroup * kMmaRows : wave * kQuantGroup);
    const int group_n = min_of(col / kQuantGroup, groups_n - 1);  // tiles past n store nothing
    return static_cast<u32>(tile.group * groups_n + group_n) *
           static_cast<u32>(params.k / kQuantGroup);
  }

  // The four wgmma of one block; `accumulate` false starts from zero.
  __device__ __forceinline__ static void multiply(float (&accum)[kAccum], u64 m_side, u64 n_side,
                                                  bool accumulate) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // 32 bytes along K, in the descriptor's units of 16.
      wgmma(accum, m_side + 2 * i, n_side + 2 * i, i > 0 || accumulate);
    }
  }

  // sum += (a_scale * b_scale) * accum, the product of the scales rounded first, then one fused
  // multiply-add. Every configuration does exactly this. `scale_of(j, e)` is that product for
  // element e of octet j; those of one scale follow each other, so that it is read once.
  template <class ScaleOf>
  __device__ __forceinline__ static void add_scaled(float (&sum)[kAccum],
                                                    const float (&accum)[kAccum],
                                                    ScaleOf scale_of) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int j = 0; j < kOctets; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int e = C.swap_ab ? 2 * i + half : 2 * half + i;
          sum[4 * j + e] = __fmaf_rn(scale_of(j, e), accum[4 * j + e], sum[4 * j + e]);
        }
      }
    }
  }
  // Which of a thread's scales. Unswapped: one for rows +0 and +8, of each run of columns. Swapped:
  // one for each column.
  __device__ __forceinline__ static constexpr int a_scale_of(int j, int e) {
    return C.swap_ab ? 2 * j + e % 2 : e / 2;
  }
  __device__ __forceinline__ static constexpr int scale_of(int j, int e) {
    return C.swap_ab ? a_scale_of(j, e) : 8 * j / C.scale_cols() * 2 + e / 2;
  }
  __device__ __forceinline__ void promote(float (&sum)[kAccum], const float (&accum)[kAccum],
                                          const float* a_scales, const float* b_scales) const {
    add_scaled(sum, accum, [&](int j, int e) {
      return __fmul_rn(a_scales[a_scale_of(j, e)], b_scales[kRows ? 2 * j + e % 2 : 0]);
    });
  }

  // Scales of B at a time: one for each wave along N, or two for columns of two groups.
  static constexpr int kBScales = C.scale_runs() > 1 ? 2 : C.n_waves();

  // A block's products on their way, and what its promotion needs.
  struct Raw {
    float accum[kAccum];
    float a_scales[C.swap_ab ? 2 * kOctets : 2];
    float b_scales[kRows ? 2 * kOctets : 1];
    int stage;
  };

  __device__ __forceinline__ float next_b_scale(BScales& b, int first, int block,
                                                const Thread& me) const {
    const int ahead = (block - first) % 32;
    if (ahead == 0) {
      b.now = b.coming;
      b.coming = fetch(b, block + 32 + me.lane);
    }
    return __shfl_sync(0xffffffffu, b.now, ahead);
  }

  // kFp8Rows: two for each octet of columns.
  __device__ __forceinline__ void read_b_scales(float (&scales)[2 * kOctets], int stage,
                                                const Thread& me) const {
    const u32 columns = stage_scales(stage) + kSmem.b_scales + 4 * fragment_col(me.index, 0);
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      const float2 pair = load_shared_2(columns + 32 * j);
      scales[2 * j] = pair.x;
      scales[2 * j + 1] = pair.y;
    }
  }

  // Multiplies blocks [begin, end) of one tile into sum, from zero.
  __device__ __forceinline__ void multiply_fp8(float (&sum)[kWaves][kAccum], Ring& ring,
                                               BScales (&b)[kBScales], int first, int begin,
                                               int end, const Thread& me) const {
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; ++i) sum[w][i] = 0.0f;
    }
    if constexpr (C.n_waves() > 1) {
      multiply_fp8_wide(sum, ring, b, first, begin, end, me);
    } else if constexpr (C.pipelined()) {
      multiply_fp8_pipelined(sum[0], ring, b[0], first, begin, end, me);
    } else {
      multiply_fp8_simply(sum, ring, b, first, begin, end, me);
    }
  }

  // Two accumulators: the tensor cores work on one block while the block before is promoted.
  __device__ __forceinline__ void multiply_fp8_pipelined(float (&sum)[kAccum], Ring& ring,
                                                         BScales& b, int first, int begin, int end,
                                                         const Thread& me) const {
    Raw even, odd;
    const auto start = [&](Raw& raw, int block) {
      if constexpr (!kRows) raw.b_scales[0] = next_b_scale(b, first, block, me);
      raw.stage = ring.stage;
      mbarrier_wait(full(raw.stage), ring.phase);
      read_a_scales(raw.a_scales, raw.stage, 0, me);
      if constexpr (kRows) read_b_scales(raw.b_scales, raw.stage, me);
      pin(raw.accum);
      wgmma_fence();
      multiply(raw.accum, m_side(raw.stage, me, 0), n_side(raw.stage), false);
      wgmma_commit();
      ring.advance();
    };
    const auto finish = [&](Raw& raw) {
      pin(raw.accum);
      release(raw.stage, me);
      promote(sum, raw.accum, raw.a_scales, raw.b_scales);
    };
    if (C.grouping == Grouping::kAlongK && begin == end) return;
    start(even, begin);
    int block = begin + 1;
#pragma unroll 1
    for (; block + 1 < end; block += 2) {
      start(odd, block);
      wgmma_wait<1>();
      finish(even);
      start(even, block + 1);
      wgmma_wait<1>();
      finish(odd);
    }
    if (block < end) {
      start(odd, block);
      wgmma_wait<1>();
      finish(even);
      wgmma_wait<0>();
      finish(odd);
    } else {
      wgmma_wait<0>();
      finish(even);
    }
  }

  // A thread's scales of one wave: products of both sides', or, with kFp8Rows, A's.
  static constexpr int kAScales = C.swap_ab ? 2 * kOctets : 2;
  static constexpr int kScales = C.swap_ab ? kAScales : 2 * C.scale_runs();
  __device__ __forceinline__ void read_scales(float (&scales)[kScales], int stage, int wave,
                                              const float (&b_scales)[kBScales], const BScales& b,
                                              const Thread& me) const {
    float a_scales[kAScales];
    read_a_scales(a_scales, stage, wave, me);
#pragma unroll
    for (int i = 0; i < kScales; ++i) {
      float b_scale = b_scales[0];
      if constexpr (C.scale_runs() > 1) {
        const int run = i / 2;  // of 64 columns; the last is of the second group
        if (run == C.scale_runs() - 1 || (run > 0 && b.middle_is_next)) b_scale = b_scales[1];
      }
      scales[i] = __fmul_rn(a_scales[C.swap_ab ? i : i % 2], b_scale);
    }
  }
  // Whether they are few enough to be held from the block before.
  static constexpr bool kHoldsScales = !kRows && !C.swap_ab;
  // Waits for a block; reads its scales if they are held.
  __device__ __forceinline__ void open_block(float (&scales)[kWaves][kScales], const Ring& ring,
                                             BScales (&b)[kBScales], int first, int block,
                                             const Thread& me) const {
    float b_scales[kBScales];
    if constexpr (kHoldsScales) {
#pragma unroll
      for (int i = 0; i < kBScales; ++i) b_scales[i] = next_b_scale(b[i], first, block, me);
    }
    mbarrier_wait(full(ring.stage), ring.phase);
    if constexpr (kHoldsScales) {
#pragma unroll
      for (int w = 0; w < kWaves; ++w) read_scales(scales[w], ring.stage, w, b_scales, b[0], me);
    }
  }

  // One accumulator: what hides a warpgroup's promotion is the other warpgroup's products. The time
  // between its own must be no longer than those take, so the next block is awaited, and its scales
  // are read, while the last products of this one run.
  __device__ __forceinline__ void multiply_fp8_simply(float (&sum)[kWaves][kAccum], Ring& ring,
                                                      BScales (&b)[kBScales], int first, int begin,
                                                      int end, const Thread& me) const {
    if (C.grouping == Grouping::kAlongK && begin == end) return;
    float coming[kWaves][kScales];
    open_block(coming, ring, b, first, begin, me);
#pragma unroll 1
    for (int block = begin; block < end; ++block) {
      const int stage = ring.stage;
      ring.advance();
      float accum[kAccum];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        float scales[kScales], b_scales[kRows ? 2 * kOctets : 1];
        pin(accum);
        wgmma_fence();
        multiply(accum, m_side(stage, me, w), n_side(stage), false);
        wgmma_commit();
        pin(accum);
        if constexpr (kRows) {
          read_a_scales(scales, stage, w, me);
          // With two waves there are registers for them only once the products are done.
          if constexpr (kWaves == 1) read_b_scales(b_scales, stage, me);
        } else if constexpr (!kHoldsScales) {
          read_scales(scales, stage, w, {next_b_scale(b[0], first, block, me)}, b[0], me);
        } else {
#pragma unroll
          for (int i = 0; i < kScales; ++i) scales[i] = coming[w][i];
        }
        if (w == kWaves - 1 && block + 1 < end) open_block(coming, ring, b, first, block + 1, me);
        wgmma_wait<0>();
        pin(accum);
        if constexpr (kRows && kWaves > 1) read_b_scales(b_scales, stage, me);
        if (w == kWaves - 1) release(stage, me);
        if constexpr (kRows) {
          promote(sum[w], accum, scales, b_scales);
        } else {
          add_scaled(sum[w], accum, [&](int j, int e) { return scales[scale_of(j, e)]; });
        }
      }
    }
  }

  // A's 64 rows of this warpgroup in one stage, as wgmma takes them from registers: for each 32
  // bytes of K, four registers of four bytes (PTX ISA, wgmma register fragments, A of .e4m3), which
  // are four 8x16-byte matrices to ldmatrix.
  struct AFragment {
    u32 k32[4][4];
  };
  __device__ __forceinline__ void load_a_fragment(AFragment& a, int stage, const Thread& me) const {
    const int row = wave_row(me.warpgroup, 0) + 16 * me.warp + me.lane % 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load_matrices_x4(a.k32[i], stage_a(stage) + swizzled(row, 2 * i + me.lane / 16));
    }
  }

  // Two waves along N, with A in registers, so that it is read from shared memory once. For groups
  // whose rows forbid tiles of 256; elsewhere 256x128 is faster (docs/gemm.md).
  __device__ __forceinline__ void multiply_fp8_wide(float (&sum)[kWaves][kAccum], Ring& ring,
                                                    BScales (&b)[kBScales], int first, int begin,
                                                    int end, const Thread& me) const {
    AFragment a;
    float a_scales[2];
    float accum[kAccum];
    mbarrier_wait(full(ring.stage), ring.phase);
    load_a_fragment(a, ring.stage, me);
    read_a_scales(a_scales, ring.stage, 0, me);
#pragma unroll 1
    for (int block = begin; block < end; ++block) {
      const int stage = ring.stage;
      float now[2] = {a_scales[0], a_scales[1]};
      ring.advance();
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        pin(accum);
        wgmma_fence();
        const u64 n_side_of_wave = n_side(stage, w);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          wgmma_a_in_registers(accum, a.k32[i], n_side_of_wave + 2 * i, i > 0);
        }
        wgmma_commit();
        pin(accum);
        const float b_scale = next_b_scale(b[w], first, block, me);
        float scales[2] = {__fmul_rn(now[0], b_scale), __fmul_rn(now[1], b_scale)};
        pin(scales);
        const bool opens = w == kWaves - 1 && block + 1 < end;
        if (opens) mbarrier_wait(full(ring.stage), ring.phase);
        wgmma_wait<0>();
        pin(accum);
        if (w == kWaves - 1) release(stage, me);
        if (opens) {
          load_a_fragment(a, ring.stage, me);
          read_a_scales(a_scales, ring.stage, 0, me);
        }
        add_scaled(sum[w], accum, [&](int, int e) { return scales[e / 2]; });
      }
    }
  }

  template <int kSize>
  __device__ __forceinline__ void read_a_scales(float (&scales)[kSize], int stage, int wave,
                                                const Thread& me) const {
    if constexpr (C.swap_ab) {
#pragma unroll
      for (int j = 0; j < kOctets; ++j) {
        const float2 pair = load_shared_2(stage_scales(stage) + 4 * fragment_col(me.index, 4 * j));
        scales[2 * j] = pair.x;
        scales[2 * j + 1] = pair.y;
      }
    } else {
      const u32 row = wave_row(me.warpgroup, wave) + fragment_row(me.index, 0);
      scales[0] = load_shared(stage_scales(stage) + 4 * row);
      scales[1] = load_shared(stage_scales(stage) + 4 * (row + 8));
    }
  }

  // The tensor core's own float sum is the sum: products of bf16 need no scale.
  __device__ __forceinline__ void multiply_bf16(float (&sum)[kWaves][kAccum], Ring& ring, int begin,
                                                int end, const Thread& me) const {
    int last_stage = -1;
#pragma unroll 1
    for (int block = begin; block < end; ++block, ring.advance()) {
      const int stage = ring.stage;
      mbarrier_wait(full(stage), ring.phase);
#pragma unroll
      for (int w = 0; w < kWaves; ++w) pin(sum[w]);
      wgmma_fence();
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        multiply(sum[w], m_side(stage, me, w), n_side(stage), block > begin);
      }
      wgmma_commit();
      // The block before this one is done when only this one is pending.
      wgmma_wait<1>();
      if (last_stage >= 0) release(last_stage, me);
      last_stage = stage;
    }
    wgmma_wait<0>();
#pragma unroll
    for (int w = 0; w < kWaves; ++w) pin(sum[w]);
    if (last_stage >= 0) release(last_stage, me);
    if (C.grouping == Grouping::kAlongK && begin == end) {  // nothing was multiplied
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
#pragma unroll
        for (int i = 0; i < kAccum; ++i) sum[w][i] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void multiply_blocks(float (&sum)[kWaves][kAccum], Ring& ring,
                                                  BScales (&b)[kBScales], int first, int begin,
                                                  int end, const Thread& me) const {
    if constexpr (kFp8) {
      multiply_fp8(sum, ring, b, first, begin, end, me);
    } else {
      multiply_bf16(sum, ring, begin, end, me);
    }
  }

  // The first of a tile's scales of B: long before they are needed.
  __device__ __forceinline__ void fetch_b_scales(BScales (&b)[kBScales], const Tile& tile,
                                                 const Thread& me) const {
    if constexpr (kFp8 && !kRows) {
#pragma unroll
      for (int w = 0; w < kBScales; ++w) {
        b[w].row = b_scale_row(tile, me.warpgroup, w);
        b[w].coming = fetch(b[w], first_block(tile) + me.lane);
        b[w].middle_is_next = tile.col % kQuantGroup != 0;
      }
    }
  }

  __device__ __forceinline__ void multiply_tile(float (&sum)[kWaves][kAccum], Ring& ring,
                                                BScales (&b)[kBScales], const Tile& tile,
                                                const Thread& me) const {
    const int first = first_block(tile), end = end_block(tile);
    if constexpr (C.serial_segments() == 1) {
      multiply_blocks(sum, ring, b, first, first, end, me);
    } else {
      float part[kWaves][kAccum];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
#pragma unroll
        for (int i = 0; i < kAccum; ++i) sum[w][i] = 0.0f;
      }
      int segments = C.segments;
      asm volatile(
          ""
          : "+r"(segments));  // a count the compiler does not know, so that it peels nothing
#pragma unroll 1
      for (int s = 0; s < segments; ++s) {
        multiply_blocks(part, ring, b, first, segment_begin(num_blocks(), C.segments, s),
                        segment_begin(num_blocks(), C.segments, s + 1), me);
#pragma unroll
        for (int w = 0; w < kWaves; ++w) {
#pragma unroll
          for (int i = 0; i < kAccum; ++i) {
            // The first sum is taken as it is: 0 + -0 would be +0.
            sum[w][i] = s == 0 ? part[w][i] : __fadd_rn(sum[w][i], part[w][i]);
          }
        }
      }
    }
  }
};

}  // namespace volley::gemm
