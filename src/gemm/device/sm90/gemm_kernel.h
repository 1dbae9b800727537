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
  static constexpr bool kFp8 = is_fp8(C.mma);
  static constexpr bool kRows = C.mma == MmaKind::kFp8Rows;
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
  // The blocks of K that this CTA multiplies, of products that are not along K.
  __device__ __forceinline__ int first_block() const {
    return C.split_k ? segment_begin(num_blocks(), C.segments, rank) : 0;
  }
  __device__ __forceinline__ int end_block() const {
    return C.split_k ? segment_begin(num_blocks(), C.segments, rank + 1) : num_blocks();
  }
  // Of any.
  __device__ __forceinline__ int first_block(const Tile& tile) const {
    return C.grouping == Grouping::kAlongK ? tile.k_begin / C.k_per_stage() : first_block();
  }
  __device__ __forceinline__ int end_block(const Tile& tile) const {
    return C.grouping == Grouping::kAlongK ? tile.k_end / C.k_per_stage() : end_block();
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C.num_stages; ++i) {
      mbarrier_init(full(i), 1);
      mbarrier_init(empty(i), kMathWarps * C.multicast * kReleases);
    }
    mbarrier_init(barrier(kPartialReady), 1);
    mbarrier_init(barrier(kPartialFree), max_of(kMathWarps * other_owners(), 1));
    fence_mbarrier_init();
  }

  // The producer: one thread
  // -----------------------------------------------------------------------

  // A's and B's rows of one stage; a shared operand in equal parts by the CTAs of the cluster.
  __device__ __forceinline__ void load_a(const TensorMap& map, int stage, int block,
                                         const Tile& tile) const {
    const int k = block * C.k_per_stage();
    if constexpr (C.multicast > 1 && !C.shares_b()) {
      const int first = static_cast<int>(rank) * C.a_box_rows();
      tma_load_multicast(map, full(stage), stage_a(stage) + first * kStageRowBytes, k,
                         tile.row + first, tile.slab, (1 << C.multicast) - 1);
    } else {
      tma_load(map, full(stage), stage_a(stage), k, tile.row, tile.slab);
    }
  }
  __device__ __forceinline__ void load_b(const TensorMap& map, int stage, int block,
                                         const Tile& tile) const {
    const int k = block * C.k_per_stage();
    if constexpr (C.shares_b()) {
      if (tile.shared) {
        const int first = static_cast<int>(rank) * C.b_box_rows();
        tma_load_multicast(map, full(stage), stage_b(stage) + first * kStageRowBytes, k,
                           tile.col + first, tile.group, (1 << C.multicast) - 1);
      } else {
        for (int first = 0; first < C.tile_n; first += C.b_box_rows()) {
          tma_load(map, full(stage), stage_b(stage) + first * kStageRowBytes, k, tile.col + first,
                   tile.group);
        }
      }
    } else {
      tma_load(map, full(stage), stage_b(stage), k, tile.col, tile.group);
    }
  }

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
        load_b(b_map, stage, first + stage, tile);
      }
    }
    wait_for_kernel_in_front();
    return count;
  }

  __device__ __forceinline__ void produce(const TensorMap& a_map, const TensorMap& b_map,
                                          const TensorMap& scale_map,
                                          const TensorMap& b_scale_map) const {
    TileScheduler tiles = scheduler();
    Ring ring;
    int num_early = load_weights_early(b_map);
    for (Tile tile; tiles.next(C, params, tile);) {
      const int end = end_block(tile);
      for (int block = first_block(tile); block < end; ++block, ring.advance()) {
        const int stage = ring.stage;
        if (num_early > 0) {
          --num_early;
        } else {
          mbarrier_wait(empty(stage), ring.phase ^ 1);
          mbarrier_expect_bytes(full(stage), kStageBytes);
          load_b(b_map, stage, block, tile);
        }
        load_a(a_map, stage, block, tile);
        if constexpr (kFp8) {
          tma_load(scale_map, full(stage), stage_scales(stage), tile.row, block, tile.slab);
        }
        if constexpr (kRows) {
          tma_load(b_scale_map, full(stage), stage_scales(stage) + kSmem.b_scales, tile.col, block,
                   tile.group);
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

  // First row of this warpgroup's wave, on the M side of the tile, and its first column.
  __device__ __forceinline__ static int wave_row(int warpgroup, int wave) {
    return ((C.n_waves() > 1 ? 0 : wave) * kMathWarpgroups + warpgroup) * kMmaRows;
  }
  __device__ __forceinline__ static int wave_col(int wave) {
    return C.n_waves() > 1 ? wave * kN : 0;
  }

  // Arrivals of a warp at a stage it has read. Packed weights are read by all lanes as plain words:
  // each says for itself that it has them, for a __syncwarp in front of one lane's arrival is no
  // instruction in a converged warp, and racecheck sees none.
  static constexpr int kReleases = C.fp4() && C.swap_ab ? 32 : 1;
  __device__ __forceinline__ void release(int stage, const Thread& me) const {
    if constexpr (kReleases > 1) {
      mbarrier_arrive(empty(stage));
      return;
    }
    __syncwarp();
    if constexpr (C.multicast > 1) {
      // Every CTA of the cluster writes into every stage: each producer waits for all of them.
      if (me.lane < C.multicast) mbarrier_arrive_remote(map_to_rank(empty(stage), me.lane));
    } else {
      if (me.lane == 0) mbarrier_arrive(empty(stage));
    }
  }

  __device__ __forceinline__ u64 m_side(int stage, const Thread& me, int wave) const {
    return side(C.swap_ab ? kSmem.a_bytes : 0, wave_row(me.warpgroup, wave), stage);
  }
  __device__ __forceinline__ u64 n_side(int stage, int wave = 0) const {
    return side(C.swap_ab ? 0 : kSmem.a_bytes, wave_col(wave), stage);
  }
  // Of an operand `offset` bytes into a stage, from `row` on. Shared memory's addresses fit the
  // descriptor's field, so that stages are steps of one number.
  __device__ __forceinline__ u64 side(int offset, int row, int stage) const {
    static_assert(kSmem.stage_bytes % 1024 == 0);
    const u32 first = matrix_descriptor_low(smem + offset + row * kStageRowBytes);
    return matrix_descriptor_of(first + stage * (kSmem.stage_bytes / 16));
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

  // Epilogues
  // ----------------------------------------------------------------------------------------

  // Boxes of 64 rows of 128 bytes through shared memory to the copy engine, which clips them to D.
  // `add`: adds them to D, floats.
  __device__ __forceinline__ void store_boxes(const float (&sum)[kWaves][kAccum],
                                              const TensorMap& d_map, const Tile& tile,
                                              const Thread& me, int& num_stored, bool add) const {
    constexpr int kCols = C.store_cols(), kBoxes = kWaves * kN / kCols;
    // One loop: of two, nested, the compiler keeps the outer one, and the sums in local memory.
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const int w = box / (kBoxes / kWaves), c = box % (kBoxes / kWaves);
      const u32 chunk = smem + kSmem.store + me.warpgroup * kSmem.store_bytes +
                        num_stored % C.store_chunks * (kMmaRows * kStoreRowBytes);
      ++num_stored;
      if (me.index == 0) tma_store_wait_read<C.store_chunks - 1>();
      warpgroup_barrier(1 + me.warpgroup);
      const float* of_box = sum[w] + c * (kCols / 2);
      if constexpr (C.out == OutKind::kF32) {
#pragma unroll
        for (int i = 0; i < kCols / 2; i += 2) {
          store_shared_2(chunk + store_offset_f32(me.index, i), of_box[i], of_box[i + 1]);
        }
      } else {
        pack_box(chunk, of_box, me.warp, me.lane);
      }
      fence_to_async();
      warpgroup_barrier(1 + me.warpgroup);
      if (me.index == 0) {
        const int x = tile.col + wave_col(w) + c * kCols;
        const int y = tile.row + wave_row(me.warpgroup, w);
        if (C.out == OutKind::kF32 && add) {
          tma_add(d_map, chunk, x, y, tile.d_slab);
        } else {
          tma_store(d_map, chunk, x, y, tile.d_slab);
        }
      }
    }
  }

  // The 16 rows that a warp has of a box of 64 columns, as bf16.
  __device__ __forceinline__ static void pack_box(u32 chunk, const float* sums, int warp,
                                                  int lane) {
#pragma unroll
    for (int p = 0; p < C.store_cols() / 16; ++p) {
      const float* s = sums + 8 * p;
      store_matrices_x4(chunk + store_offset(warp, lane, p), pack_bf16(s[0], s[1]),
                        pack_bf16(s[2], s[3]), pack_bf16(s[4], s[5]), pack_bf16(s[6], s[7]));
    }
  }

  // bf16: each warp takes its 16 rows of a box through shared memory, then stores 16 bytes a
  // thread. It waits for no other warp and for no copy engine: with one box's room, that took 3500
  // clocks a tile of 256x128, in which the tensor cores stood still.
  __device__ __forceinline__ void store_bf16_boxes(const float (&sum)[kWaves][kAccum],
                                                   const Tile& tile, const Thread& me) const {
    constexpr int kCols = C.store_cols(), kBoxes = kWaves * kN / kCols;
    const u32 staging = smem + kSmem.store + me.warpgroup * kSmem.store_bytes;
    // Addresses computed anew for each tile: kept, they would take registers from the sums.
    int lane = me.lane;
    pin(lane);
    const int first_row = 16 * me.warp + lane / 8, octet = lane % 8;
    u16* d = static_cast<u16*>(params.d) +
             static_cast<long long>(tile.d_slab) * params.m * params.d_stride;
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const int w = box / (kBoxes / kWaves), c = box % (kBoxes / kWaves);
      __syncwarp();  // the last box has been read
      pack_box(staging, sum[w] + c * (kCols / 2), me.warp, lane);
      __syncwarp();
      const int row = tile.row + wave_row(me.warpgroup, w) + first_row;
      const int col = tile.col + wave_col(w) + c * kCols + 8 * octet;
      u16* at = d + row * params.d_stride + col;
#pragma unroll
      for (int i = 0; i < 16; i += 4) {
        if (row + i < tile.row_end && col < params.n) {
          *reinterpret_cast<uint4*>(at) = load_shared_16(staging + swizzled(first_row + i, octet));
        }
        at += 4 * params.d_stride;
        pin(at);
      }
    }
  }

  // Tiles narrower than a box: pairs of columns, straight to memory.
  __device__ __forceinline__ void store_bf16_narrow(const float (&sum)[kWaves][kAccum],
                                                    const Tile& tile, const Thread& me) const {
    u16* d = static_cast<u16*>(params.d) +
             static_cast<long long>(tile.d_slab) * params.m * params.d_stride;
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
             static_cast<long long>(tile.d_slab) * params.m * params.d_stride;
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
               static_cast<long long>(tile.d_slab) * params.m * params.d_stride;
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; i += 2) {
        const int on_m = wave_row(me.warpgroup, w) + fragment_row(me.index, i);
        const int on_n = wave_col(w) + fragment_col(me.index, i);
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

  // sum = C + sum. Past L1: the kernel in front may have written C.
  __device__ __forceinline__ void add_c(float (&sum)[kWaves][kAccum], const Tile& tile,
                                        const Thread& me) const {
    const float* c = params.c + static_cast<long long>(tile.d_slab) * params.m * params.c_stride;
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; i += 2) {
        const int on_m = wave_row(me.warpgroup, w) + fragment_row(me.index, i);
        const int on_n = wave_col(w) + fragment_col(me.index, i);
        if (!owns(i / 4, rank)) continue;
        float* s = sum[w] + i;
        if constexpr (C.swap_ab) {
          const int col = tile.col + on_m;
          for (int e = 0; e < 2; ++e) {
            const int row = tile.row + on_n + e;
            if (row < tile.row_end && col < params.n) {
              s[e] = __fadd_rn(__ldcg(c + row * params.c_stride + col), s[e]);
            }
          }
        } else {
          const int row = tile.row + on_m, col = tile.col + on_n;
          if (row < tile.row_end && col < params.n) {
            const float2 more =
                __ldcg(reinterpret_cast<const float2*>(c + row * params.c_stride + col));
            s[0] = __fadd_rn(more.x, s[0]);
            s[1] = __fadd_rn(more.y, s[1]);
          }
        }
      }
    }
  }

  // The finished tile, + C, to D: by the copy engine,
  __device__ __forceinline__ void store(float (&sum)[kWaves][kAccum], const TensorMap& d_map,
                                        const Tile& tile, const Thread& me, int& num_stored) const {
    if constexpr (C.stores_boxes()) {
      bool add_in_place = false;
      if constexpr (C.out == OutKind::kF32 && C.simple_rows()) {
        add_in_place = params.c == params.d;
        if (params.c != nullptr && !add_in_place) add_c(sum, tile, me);
      }
      store_boxes(sum, d_map, tile, me, num_stored, add_in_place);
    } else {
      store_directly(sum, tile, me);
    }
  }
  // or by this thread.
  __device__ __forceinline__ void store_directly(float (&sum)[kWaves][kAccum], const Tile& tile,
                                                 const Thread& me) const {
    if constexpr (C.out == OutKind::kF32) {
      if constexpr (C.simple_rows()) {
        if (params.c != nullptr) add_c(sum, tile, me);
      }
      store_f32(sum, tile, me);
    } else if constexpr (C.swap_ab) {
      store_bf16_swapped(sum[0], tile, me);
    } else if constexpr (C.has_boxes()) {
      store_bf16_boxes(sum, tile, me);
    } else {
      store_bf16_narrow(sum, tile, me);
    }
  }

  // Adds the cluster's segments in order; afterwards the octets that this rank owns are whole. Each
  // rank's partial sums of another's octets go straight into that one's shared memory, and count
  // themselves on its barrier (st.async): an arrival that releases plain stores to the cluster is a
  // MEMBAR.ALL.GPU. Every thread meets the threads of its own index in the other CTAs.
  __device__ __forceinline__ void add_segments(float (&sum)[kAccum], const Thread& me, u32& phase,
                                               bool is_last) const {
    const u32 mine = smem + kSmem.partial + me.warpgroup * kSmem.partial_bytes + me.index * 16;
    // Only owners signal and are signalled: what holds a rank's warps within one tile of each other
    // is that an owner needs what they send.
    const bool is_owner = static_cast<int>(rank) < kOwners;
    const int owned = (kOctets + C.segments - 1 - static_cast<int>(rank)) / C.segments;
    if (is_owner && threadIdx.x == 0) {
      mbarrier_expect_bytes(barrier(kPartialReady),
                            owned * (C.segments - 1) * kPartialBytes * kMathWarpgroups);
    }
    // What the others own of the last tile has been read.
    if (other_owners() > 0) mbarrier_wait_cluster(barrier(kPartialFree), phase ^ 1);
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      const int owner = split_owner(j, C.segments);
      if (owner != static_cast<int>(rank)) {
        store_async_4(map_to_rank(mine + partial_slot(j, rank), owner), sum[4 * j], sum[4 * j + 1],
                      sum[4 * j + 2], sum[4 * j + 3], map_to_rank(barrier(kPartialReady), owner));
      }
    }
    if (is_owner) mbarrier_wait_cluster(barrier(kPartialReady), phase);
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      if (!owns(j, rank)) continue;
      float4 whole;
#pragma unroll
      for (int s = 0; s < C.segments; ++s) {
        float4 part = make_float4(sum[4 * j], sum[4 * j + 1], sum[4 * j + 2], sum[4 * j + 3]);
        if (s != static_cast<int>(rank)) part = load_shared_4(mine + partial_slot(j, s));
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
    // One arrival of this warp at every other CTA: what it sent has been read. None after the last
    // tile: it might come to a CTA that has ended.
    if (is_owner && !is_last && me.lane < C.segments && me.lane != static_cast<int>(rank)) {
      mbarrier_arrive_remote(map_to_rank(barrier(kPartialFree), me.lane));
    }
    phase ^= 1;
  }

  // Ranks that own octets of columns.
  static constexpr int kOwners = kOctets < C.segments ? kOctets : C.segments;
  __device__ __forceinline__ int other_owners() const {
    return kOwners - (static_cast<int>(rank) < kOwners ? 1 : 0);
  }

  // One octet's partial sums of one warpgroup, and where its owner keeps those of segment
  // `segment`.
  static constexpr int kPartialBytes = kWarpgroup * 16;
  __device__ __forceinline__ static int partial_slot(int octet, u32 segment) {
    return (octet / C.segments * C.segments + static_cast<int>(segment)) * kPartialBytes;
  }

  // Two warpgroups that begin together end their tiles together, and the tensor cores wait while
  // both store. So with short tiles the second one begins a little later, if it has more than one
  // to do; the distance keeps. (4096x32768x512: 5% faster; from 56 blocks of K on, nothing.)
  static constexpr bool kStaggers = C.mma == MmaKind::kFp8 && !C.swap_ab && kMathWarpgroups == 2;
  static constexpr int kStaggeredBlocks = 32;  // of a tile, at most
  static constexpr u32 kStaggerClocks = 700;
  __device__ __forceinline__ void stagger(const TileScheduler& tiles, const Tile& first,
                                          const Thread& me) const {
    if (me.warpgroup == 0 || end_block(first) - first_block(first) > kStaggeredBlocks) return;
    TileScheduler rest = tiles;
    Tile second;
    if (!rest.next(C, params, second)) return;
    mbarrier_wait(full(0), 0);
    wait_clocks(kStaggerClocks);
  }

  __device__ __forceinline__ void consume(const TensorMap& d_map) const {
    const int thread = static_cast<int>(threadIdx.x);
    const Thread me = {warpgroup_index(), thread % kWarpgroup / 32, thread % 32,
                       thread % kWarpgroup};
    if (!early_weights()) wait_for_kernel_in_front();
    TileScheduler tiles = scheduler();
    Ring ring;
    BScales b[kBScales];
    int num_stored = 0;
    u32 partial_phase = 0;
    Tile tile;
    bool more = tiles.next(C, params, tile);
    if (more) fetch_b_scales(b, tile, me);
    if (kStaggers && more) stagger(tiles, tile, me);
    while (more) {
      if (C.grouping == Grouping::kAlongK && tile.k_begin == tile.k_end && params.c == params.d) {
        more = tiles.next(C, params, tile);  // an empty group leaves C as it is
        continue;
      }
      float sum[kWaves][kAccum];
      multiply_tile(sum, ring, b, tile, me);
      const bool stores = !C.shares_b() || tile.live;
      if constexpr (C.split_k || (kFp8 && !kRows)) {
        // Scales that come from device memory are asked for before this tile is stored.
        Tile next;
        more = tiles.next(C, params, next);
        if (more) fetch_b_scales(b, next, me);
        if constexpr (C.split_k) add_segments(sum[0], me, partial_phase, !more);
        if (stores) store(sum, d_map, tile, me, num_stored);
        tile = next;
      } else {
        if (stores) store(sum, d_map, tile, me, num_stored);
        more = tiles.next(C, params, tile);
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
                                         const TensorMap& scale_map, const TensorMap& b_scale_map,
                                         const TensorMap& d_map, const GemmParams& params) {
  static_assert(C.valid());
  extern __shared__ __align__(1024) unsigned char dynamic_smem[];
  const u32 smem = smem_address(dynamic_smem);
  const GemmKernel<C> gemm = {smem, C.cluster() > 1 ? cluster_rank() : 0, params};
  const int warpgroup = warpgroup_index();
  launch_dependents();
  if (threadIdx.x == 0) gemm.init_barriers();
  if (C.cluster() > 1) {
    cluster_meet();
  } else {
    __syncthreads();
  }

  if (warpgroup == C.math_warpgroups()) {
    if constexpr (C.moves_registers()) release_registers<kProducerRegisters>();
    if (threadIdx.x == C.math_warpgroups() * kWarpgroup) {
      prefetch_map(a_map);
      prefetch_map(b_map);
      if constexpr (is_fp8(C.mma)) prefetch_map(scale_map);
      if constexpr (C.mma == MmaKind::kFp8Rows) prefetch_map(b_scale_map);
      if (!gemm.early_weights()) wait_for_kernel_in_front();
      gemm.produce(a_map, b_map, scale_map, b_scale_map);
    }
    __syncwarp();
  } else {
    if constexpr (C.moves_registers()) claim_registers<kMathRegisters>();
    gemm.consume(d_map);
  }
  // Others of the cluster may still write into this CTA's stages or arrive on its barriers: it
  // stays until they are done. A cluster along K has received all that was sent to it by now.
  if constexpr (C.split_k) {
    cluster_meet();
  } else if constexpr (C.cluster() > 1) {
    cluster_sync();
  }
}

}  // namespace volley::gemm
