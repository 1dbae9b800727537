#pragma once

// D[m, n] = A[m, k] B[n, k]^T on Hopper: one kernel template for FP8 with 1x128 and 128x128 scales
// and for BF16, dense and grouped, for many tokens and for few.
//
// The problem. Tensor cores take 8192 FP8 flops a clock and SM (half for BF16), L2 gives an SM a
// few tens of bytes a clock. A tile of 128x128 reads 256 bytes for each of K and does 32768 flops
// with them: 64 bytes a clock at the FP8 peak, more than L2 has. So tiles are large (256x128), or
// neighbouring CTAs share what they read (multicast), or, for few tokens, the weight's read from
// device memory is the floor and the only aim is to keep enough of it in flight.
//
// Two-level accumulation. The FP8 tensor core keeps about 14 bits of a sum; after every 128 of K
// the raw sum leaves it and is added, scaled, to a float (DeepSeek-V3, arXiv 2412.19437,
// section 3.3.2). The scales change every 128 of K, so the two happen together: sum += (a_scale *
// b_scale) * raw.
//
// Roles. One thread of the last warpgroup feeds the copy engine; one or two warpgroups in front of
// it multiply. While one warpgroup promotes a block, the other one's wgmma runs. A ring of stages,
// each with a full and an empty mbarrier, lies between; the ring keeps turning across tiles, so the
// next tile's first loads run under this tile's epilogue. Skeleton after CUTLASS's and DeepGEMM's
// warp-specialised persistent kernels; the code is our own.
//
// Few tokens (swap_ab). wgmma's M side is 64 rows whatever the need, its N side any multiple of 8.
// With weights on the M side, 16 tokens cost 16 columns. Where the weight has too few rows to
// occupy the chip, its K is cut into segments, one on each CTA of a cluster; their float sums meet
// in distributed shared memory and are added in segment order, each octet of columns by one rank.
//
// Law 1. The order in which products of a row are added is: 128-byte blocks of K in order within a
// segment, starting from zero; segments in order. Segments belong to the weight (n, k). Kernels for
// many tokens keep the segments' sums apart too (serial_segments), so every configuration gives a
// row the same bits.

#include "gemm/device/fragment.h"
#include "gemm/device/gemm_config.h"
#include "gemm/device/sm90/ptx.h"
#include "gemm/device/sm90/wgmma_instruction.h"
#include "gemm/device/tile_scheduler.h"

namespace volley::gemm {

// With two math warpgroups a CTA that has its SM to itself starts with 168 registers a thread; the
// producer hands most of its own over. 2 * 128 * 224 + 128 * 56 = 64512 of 65536.
inline constexpr int kMathRegisters = 224;
inline constexpr int kProducerRegisters = 56;

// Through a shuffle, so that the compiler knows it to be uniform over the warp.
__device__ __forceinline__ int warpgroup_index() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
}

// Position in the ring of stages.
template <int kStages>
struct RingPosition {
  int stage = 0;
  u32 phase = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

template <GemmConfig C>
struct GemmKernel {
  static constexpr SmemLayout kSmem = smem_layout(C);
  static constexpr int kN = C.mma_n();
  static constexpr int kAccum = kN / 2;  // floats of one 64 x kN fragment a thread
  static constexpr int kOctets = kN / 8;
  static constexpr int kWaves = C.waves();
  static constexpr int kMathWarpgroups = C.math_warpgroups();
  static constexpr int kMathWarps = 4 * kMathWarpgroups;
  static constexpr bool kFp8 = C.mma == MmaKind::kFp8;
  static constexpr int kPartialReady = 2 * C.num_stages;
  static constexpr int kPartialFree = kPartialReady + 1;
  static constexpr u32 kStageBytes = kSmem.stage_bytes + kSmem.scale_bytes;  // that TMA brings
  using Ring = RingPosition<C.num_stages>;

  u32 smem;  // 1024-byte aligned
  u32 rank;  // in the cluster
  const GemmParams& params;

  __device__ __forceinline__ u32 full(int stage) const { return barrier(stage); }
  __device__ __forceinline__ u32 empty(int stage) const { return barrier(C.num_stages + stage); }
  __device__ __forceinline__ u32 barrier(int index) const {
    return smem + kSmem.barriers + 8 * index;
  }
  __device__ __forceinline__ u32 stage_a(int stage) const {
    return smem + stage * kSmem.stage_bytes;
  }
  __device__ __forceinline__ u32 stage_b(int stage) const { return stage_a(stage) + kSmem.a_bytes; }
  __device__ __forceinline__ u32 stage_scales(int stage) const {
    return smem + kSmem.scales + stage * kSmem.scale_stride;
  }

  __device__ __forceinline__ TileScheduler scheduler() const {
    return TileScheduler(C, params, static_cast<int>(rank),
                         static_cast<int>(blockIdx.x) / C.cluster(),
                         static_cast<int>(gridDim.x) / C.cluster());
  }

  // Whether weights and their scales are read before the kernel in front has ended. Which tile
  // comes first must not depend on that kernel.
  __device__ __forceinline__ bool early_weights() const {
    return C.grouping == Grouping::kDense && params.weights_ready != 0;
  }

  __device__ __forceinline__ int num_blocks() const { return params.k / C.k_per_stage(); }
  // The blocks of K that this CTA multiplies.
  __device__ __forceinline__ int first_block() const {
    return C.split_k ? segment_begin(num_blocks(), C.segments, rank) : 0;
  }
  __device__ __forceinline__ int end_block() const {
    return C.split_k ? segment_begin(num_blocks(), C.segments, rank + 1) : num_blocks();
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C.num_stages; ++i) {
      mbarrier_init(full(i), 1);
      mbarrier_init(empty(i), kMathWarps * C.multicast);
    }
    mbarrier_init(barrier(kPartialReady), kMathWarps * (C.segments > 1 ? C.segments - 1 : 1));
    mbarrier_init(barrier(kPartialFree), kMathWarps * (C.segments > 1 ? C.segments - 1 : 1));
    fence_mbarrier_init();
  }

  // The producer: one thread
  // -----------------------------------------------------------------------

  // Fills the ring with the first tile's weights, which need not wait for the kernel in front;
  // then waits for it. Returns how many stages.
  __device__ __forceinline__ int load_weights_early(const TensorMap& b_map) const {
    if (!early_weights()) return 0;
    int count = 0;
    TileScheduler tiles = scheduler();
    if (Tile tile; tiles.next(C, params, tile)) {
      const int first = first_block();
      count = min_of(C.num_stages, end_block() - first);
      for (int stage = 0; stage < count; ++stage) {
        mbarrier_expect_bytes(full(stage), kStageBytes);
        tma_load(b_map, full(stage), stage_b(stage), (first + stage) * C.k_per_stage(), tile.col,
                 tile.group);
      }
    }
    wait_for_kernel_in_front();
    return count;
  }

  __device__ __forceinline__ void produce(const TensorMap& a_map, const TensorMap& b_map,
                                          const TensorMap& scale_map) const {
    constexpr int kShare =
        C.tile_m / C.multicast;  // rows of A that this CTA fetches for its cluster
    TileScheduler tiles = scheduler();
    Ring ring;
    int num_early = load_weights_early(b_map);
    for (Tile tile; tiles.next(C, params, tile);) {
      for (int block = first_block(); block < end_block(); ++block, ring.advance()) {
        const int stage = ring.stage;
        const int k = block * C.k_per_stage();
        if (num_early > 0) {
          --num_early;
        } else {
          mbarrier_wait(empty(stage), ring.phase ^ 1);
          mbarrier_expect_bytes(full(stage), kStageBytes);
          tma_load(b_map, full(stage), stage_b(stage), k, tile.col, tile.group);
        }
        if constexpr (C.multicast > 1) {
          const int first = static_cast<int>(rank) * kShare;
          tma_load_multicast(a_map, full(stage), stage_a(stage) + first * kStageRowBytes, k,
                             tile.row + first, tile.slab, (1 << C.multicast) - 1);
        } else {
          tma_load(a_map, full(stage), stage_a(stage), k, tile.row, tile.slab);
        }
        if constexpr (kFp8) {
          tma_load(scale_map, full(stage), stage_scales(stage), tile.row, block, tile.slab);
        }
      }
    }
  }

  // The math warpgroups
  // ------------------------------------------------------------------------------

  struct Thread {
    int warpgroup;  // 0 or 1
    int warp;       // in the warpgroup
    int lane;
    int index;  // in the warpgroup
  };

  // Scales of B along K, 32 blocks in the registers of a warp and 32 more on their way.
  struct BScales {
    const float* row;
    int end;
    float now;
    float coming;

    __device__ __forceinline__ float fetch(int block) const {
      return block < end ? __ldg(row + block) : 0.0f;
    }
  };

  __device__ __forceinline__ const float* b_scale_row(const Tile& tile, int warpgroup) const {
    const int groups_n = ceil_div(params.n, kQuantGroup);
    const int col = tile.col + (C.swap_ab ? warpgroup * kMmaRows : 0);
    const int group_n = min_of(col / kQuantGroup, groups_n - 1);  // tiles past n store nothing
    return params.b_scale +
           (static_cast<long long>(tile.group) * groups_n + group_n) * (params.k / kQuantGroup);
  }

  // First row of this warpgroup's wave, on the M side of the tile.
  __device__ __forceinline__ static int wave_row(int warpgroup, int wave) {
    return (wave * kMathWarpgroups + warpgroup) * kMmaRows;
  }

  __device__ __forceinline__ void release(int stage, const Thread& me) const {
    __syncwarp();
    if constexpr (C.multicast > 1) {
      // Every CTA of the cluster writes into every stage: each producer waits for all of them.
      if (me.lane < C.multicast) mbarrier_arrive_remote(map_to_rank(empty(stage), me.lane));
    } else {
      if (me.lane == 0) mbarrier_arrive(empty(stage));
    }
  }

  __device__ __forceinline__ u64 m_side(int stage, const Thread& me, int wave) const {
    return matrix_descriptor((C.swap_ab ? stage_b(stage) : stage_a(stage)) +
                             wave_row(me.warpgroup, wave) * kStageRowBytes);
  }
  __device__ __forceinline__ u64 n_side(int stage) const {
    return matrix_descriptor(C.swap_ab ? stage_a(stage) : stage_b(stage));
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
  // multiply-add. Every configuration does exactly this.
  __device__ __forceinline__ void promote(float (&sum)[kAccum], const float (&accum)[kAccum],
                                          const float* a_scales, float b_scale) const {
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        // Unswapped: one scale for rows +0 and +8. Swapped: one for each column of this thread.
        const float a_scale = C.swap_ab ? a_scales[2 * j + e % 2] : a_scales[e / 2];
        sum[4 * j + e] = __fmaf_rn(__fmul_rn(a_scale, b_scale), accum[4 * j + e], sum[4 * j + e]);
      }
    }
  }

  // A block's products on their way, and what its promotion needs.
  struct Raw {
    float accum[kAccum];
    float a_scales[C.swap_ab ? 2 * kOctets : 2];
    float b_scale;
    int stage;
  };

  __device__ __forceinline__ static float next_b_scale(BScales& b, int first, int block,
                                                       const Thread& me) {
    const int ahead = (block - first) % 32;
    if (ahead == 0) {
      b.now = b.coming;
      b.coming = b.fetch(block + 32 + me.lane);
    }
    return __shfl_sync(0xffffffffu, b.now, ahead);
  }

  // Multiplies blocks [begin, end) of one tile into sum, from zero.
  __device__ __forceinline__ void multiply_fp8(float (&sum)[kWaves][kAccum], Ring& ring, BScales& b,
                                               int first, int begin, int end,
                                               const Thread& me) const {
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; ++i) sum[w][i] = 0.0f;
    }
    if constexpr (C.pipelined()) {
      multiply_fp8_pipelined(sum[0], ring, b, first, begin, end, me);
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
      raw.b_scale = next_b_scale(b, first, block, me);
      raw.stage = ring.stage;
      mbarrier_wait(full(raw.stage), ring.phase);
      read_a_scales(raw.a_scales, raw.stage, 0, me);
      pin(raw.accum);
      wgmma_fence();
      multiply(raw.accum, m_side(raw.stage, me, 0), n_side(raw.stage), false);
      wgmma_commit();
      ring.advance();
    };
    const auto finish = [&](Raw& raw) {
      pin(raw.accum);
      release(raw.stage, me);
      promote(sum, raw.accum, raw.a_scales, raw.b_scale);
    };
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

  // One accumulator: what hides a warpgroup's promotion is the other warpgroup's work.
  __device__ __forceinline__ void multiply_fp8_simply(float (&sum)[kWaves][kAccum], Ring& ring,
                                                      BScales& b, int first, int begin, int end,
                                                      const Thread& me) const {
#pragma unroll 1
    for (int block = begin; block < end; ++block, ring.advance()) {
      const float b_scale = next_b_scale(b, first, block, me);
      const int stage = ring.stage;
      mbarrier_wait(full(stage), ring.phase);
      float a_scales[kWaves][C.swap_ab ? 2 * kOctets : 2];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) read_a_scales(a_scales[w], stage, w, me);
      float accum[kAccum];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        pin(accum);
        wgmma_fence();
        multiply(accum, m_side(stage, me, w), n_side(stage), false);
        wgmma_commit();
        pin(accum);
        wgmma_wait<0>();
        pin(accum);
        if (w == kWaves - 1) release(stage, me);
        promote(sum[w], accum, a_scales[w], b_scale);
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
  }

  __device__ __forceinline__ void multiply_blocks(float (&sum)[kWaves][kAccum], Ring& ring,
                                                  BScales& b, int first, int begin, int end,
                                                  const Thread& me) const {
    if constexpr (kFp8) {
      multiply_fp8(sum, ring, b, first, begin, end, me);
    } else {
      multiply_bf16(sum, ring, begin, end, me);
    }
  }

  __device__ __forceinline__ void multiply_tile(float (&sum)[kWaves][kAccum], Ring& ring,
                                                const Tile& tile, const Thread& me) const {
    BScales b;
    const int first = first_block();
    if constexpr (kFp8) {
      b.row = b_scale_row(tile, me.warpgroup);
      b.end = end_block();
      b.coming = b.fetch(first + me.lane);
    }
    if constexpr (C.serial_segments() == 1) {
      multiply_blocks(sum, ring, b, first, first, end_block(), me);
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

  // Epilogues
  // ----------------------------------------------------------------------------------------

  // Boxes of 64x64 bf16 through shared memory to the copy engine, which clips them to D.
  __device__ __forceinline__ void store_bf16(const float (&sum)[kWaves][kAccum],
                                             const TensorMap& d_map, const Tile& tile,
                                             const Thread& me, int& num_stored) const {
    constexpr int kChunks = C.tile_n / kStoreCols;
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const u32 chunk = smem + kSmem.store + me.warpgroup * kSmem.store_bytes +
                          num_stored % C.store_chunks * (kMmaRows * 128);
        ++num_stored;
        if (me.index == 0) tma_store_wait_read<C.store_chunks - 1>();
        warpgroup_barrier(1 + me.warpgroup);
#pragma unroll
        for (int p = 0; p < kStoreCols / 16; ++p) {
          const float* s = sum[w] + (c * kStoreCols / 16 + p) * 8;
          store_matrices_x4(chunk + store_offset(me.warp, me.lane, p), pack_bf16(s[0], s[1]),
                            pack_bf16(s[2], s[3]), pack_bf16(s[4], s[5]), pack_bf16(s[6], s[7]));
        }
        fence_to_async();
        warpgroup_barrier(1 + me.warpgroup);
        if (me.index == 0) {
          tma_store(d_map, chunk, tile.col + c * kStoreCols, tile.row + wave_row(me.warpgroup, w),
                    tile.slab);
        }
      }
    }
  }

  // Tiles narrower than a box: pairs of columns, straight to memory.
  __device__ __forceinline__ void store_bf16_narrow(const float (&sum)[kWaves][kAccum],
                                                    const Tile& tile, const Thread& me) const {
    u16* d = static_cast<u16*>(params.d) +
             static_cast<long long>(tile.slab) * params.m * params.d_stride;
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; i += 2) {
        const int row = tile.row + wave_row(me.warpgroup, w) + fragment_row(me.index, i);
        const int col = tile.col + fragment_col(me.index, i);
        if (row < tile.row_end && col < params.n) {
          *reinterpret_cast<u32*>(d + row * params.d_stride + col) =
              pack_bf16(sum[w][i], sum[w][i + 1]);
        }
      }
    }
  }

  __device__ __forceinline__ static bool owns(int octet, u32 rank) {
    return !C.split_k || split_owner(octet, C.segments) == static_cast<int>(rank);
  }

  // [tokens][64 weights] bf16 through shared memory, then 16 bytes a thread.
  __device__ __forceinline__ void store_bf16_swapped(const float (&sum)[kAccum], const Tile& tile,
                                                     const Thread& me) const {
    const u32 staging = smem + kSmem.store + me.warpgroup * kSmem.store_bytes;
    warpgroup_barrier(1 + me.warpgroup);  // the last tile's rows have been read
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      if (owns(j, rank)) {
        const float* s = sum + 4 * j;
        store_matrices_transposed_x2(staging + store_offset_swapped(me.warp, me.lane, j),
                                     pack_bf16(s[0], s[1]), pack_bf16(s[2], s[3]));
      }
    }
    warpgroup_barrier(1 + me.warpgroup);
    const int chunk = me.index % 8;
    const int col = tile.col + me.warpgroup * kMmaRows + chunk * 8;
    u16* d = static_cast<u16*>(params.d) +
             static_cast<long long>(tile.slab) * params.m * params.d_stride;
    for (int token = me.index / 8; token < C.tile_m; token += kWarpgroup / 8) {
      const int row = tile.row + token;
      if (owns(token / 8, rank) && row < tile.row_end && col < params.n) {
        *reinterpret_cast<uint4*>(d + row * params.d_stride + col) =
            load_shared_16(staging + swizzled(token, chunk));
      }
    }
  }

  __device__ __forceinline__ void store_f32(const float (&sum)[kWaves][kAccum], const Tile& tile,
                                            const Thread& me) const {
    float* d = static_cast<float*>(params.d) +
               static_cast<long long>(tile.slab) * params.m * params.d_stride;
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; i += 2) {
        const int on_m = wave_row(me.warpgroup, w) + fragment_row(me.index, i);
        const int on_n = fragment_col(me.index, i);
        if (!owns(i / 4, rank)) continue;
        if constexpr (C.swap_ab) {
          const int col = tile.col + on_m;
          for (int e = 0; e < 2; ++e) {
            const int row = tile.row + on_n + e;
            if (row < tile.row_end && col < params.n)
              d[row * params.d_stride + col] = sum[w][i + e];
          }
        } else {
          const int row = tile.row + on_m, col = tile.col + on_n;
          if (row < tile.row_end && col < params.n) {
            *reinterpret_cast<float2*>(d + row * params.d_stride + col) =
                make_float2(sum[w][i], sum[w][i + 1]);
          }
        }
      }
    }
  }

  // Adds the cluster's segments in order; afterwards the octets that this rank owns are whole.
  // Every thread meets the threads of its own index in the other CTAs.
  __device__ __forceinline__ void add_segments(float (&sum)[kAccum], const Thread& me,
                                               u32& phase) const {
    const u32 mine = smem + kSmem.partial + me.warpgroup * kSmem.partial_bytes + me.index * 16;
    constexpr int kOctetBytes = kWarpgroup * 16;
    mbarrier_wait_cluster(barrier(kPartialFree), phase ^ 1);  // the last tile's have been read
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      if (!owns(j, rank)) {
        store_shared_4(mine + j * kOctetBytes, sum[4 * j], sum[4 * j + 1], sum[4 * j + 2],
                       sum[4 * j + 3]);
      }
    }
    __syncwarp();
    signal_others<true>(kPartialReady, me);
    mbarrier_wait_cluster(barrier(kPartialReady), phase);
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      if (!owns(j, rank)) continue;
      float4 whole;
#pragma unroll
      for (int s = 0; s < C.segments; ++s) {
        float4 part = make_float4(sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]);
        if (s != static_cast<int>(rank))
          part = load_cluster_4(map_to_rank(mine + j * kOctetBytes, s));
        whole = s == 0 ? part
                       : make_float4(__fadd_rn(whole.x, part.x), __fadd_rn(whole.y, part.y),
                                     __fadd_rn(whole.z, part.z), __fadd_rn(whole.w, part.w));
      }
      sum[4 * j] = whole.x;
      sum[4 * j + 1] = whole.y;
      sum[4 * j + 2] = whole.z;
      sum[4 * j + 3] = whole.w;
    }
    __syncwarp();
    signal_others<false>(kPartialFree, me);
    phase ^= 1;
  }

  // One arrival of this warp on barrier `index` of every other CTA; kReleases: after this warp's
  // writes.
  template <bool kReleases>
  __device__ __forceinline__ void signal_others(int index, const Thread& me) const {
    if (me.lane < C.segments && me.lane != static_cast<int>(rank)) {
      const u32 remote = map_to_rank(barrier(index), me.lane);
      if constexpr (kReleases) {
        mbarrier_arrive_cluster(remote);
      } else {
        mbarrier_arrive_remote(remote);
      }
    }
  }

  __device__ __forceinline__ void consume(const TensorMap& d_map) const {
    const int thread = static_cast<int>(threadIdx.x);
    const Thread me = {warpgroup_index(), thread % kWarpgroup / 32, thread % 32,
                       thread % kWarpgroup};
    if (!early_weights()) wait_for_kernel_in_front();
    TileScheduler tiles = scheduler();
    Ring ring;
    int num_stored = 0;
    u32 partial_phase = 0;
    for (Tile tile; tiles.next(C, params, tile);) {
      float sum[kWaves][kAccum];
      multiply_tile(sum, ring, tile, me);
      if constexpr (C.split_k) add_segments(sum[0], me, partial_phase);
      if constexpr (C.out == OutKind::kF32) {
        store_f32(sum, tile, me);
      } else if constexpr (C.swap_ab) {
        store_bf16_swapped(sum[0], tile, me);
      } else if constexpr (C.stores_boxes()) {
        store_bf16(sum, d_map, tile, me, num_stored);
      } else {
        store_bf16_narrow(sum, tile, me);
      }
    }
    // Shared memory must outlive the copy engine's reads of it.
    if constexpr (C.stores_boxes()) {
      if (me.index == 0) tma_store_wait_read<0>();
    }
  }
};

template <GemmConfig C>
__device__ __forceinline__ void run_gemm(const TensorMap& a_map, const TensorMap& b_map,
                                         const TensorMap& scale_map, const TensorMap& d_map,
                                         const GemmParams& params) {
  static_assert(C.valid());
  extern __shared__ unsigned char dynamic_smem[];
  const u32 smem = (smem_address(dynamic_smem) + 1023) & ~1023u;
  const GemmKernel<C> gemm = {smem, C.cluster() > 1 ? cluster_rank() : 0, params};
  const int warpgroup = warpgroup_index();
  launch_dependents();
  if (threadIdx.x == 0) gemm.init_barriers();
  if (C.cluster() > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }

  if (warpgroup == C.math_warpgroups()) {
    if constexpr (C.moves_registers()) release_registers<kProducerRegisters>();
    if (threadIdx.x == C.math_warpgroups() * kWarpgroup) {
      prefetch_map(a_map);
      prefetch_map(b_map);
      if constexpr (C.mma == MmaKind::kFp8) prefetch_map(scale_map);
      if (!gemm.early_weights()) wait_for_kernel_in_front();
      gemm.produce(a_map, b_map, scale_map);
    }
    __syncwarp();
  } else {
    if constexpr (C.moves_registers()) claim_registers<kMathRegisters>();
    gemm.consume(d_map);
  }
  // Others of the cluster may still write into this CTA's stages, arrive on its barriers or read
  // its partial sums.
  if (C.cluster() > 1) cluster_sync();
}

}  // namespace volley::gemm
