#pragma once

// What all parts of a matrix kernel know of their CTA: its shared memory, barriers and blocks of K,
// who a thread is, and which rows and columns are its own. The parts are
//
//   gemm_products.h   the blocks' products and their sums,
//   gemm_store.h      the sums' way to memory, through the cluster if K is cut over it,
//   gemm_kernel.h     the producer, the walk over tiles, the kernel.

#include "gemm/device/fragment.h"
#include "gemm/device/gemm_config.h"
#include "gemm/device/sm90/ptx.h"
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
struct GemmTile {
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

  struct Thread {
    int warpgroup;  // 0 or 1
    int warp;       // in the warpgroup
    int lane;
    int index;  // in the warpgroup
  };

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

  // Ranks that own octets of columns.
  static constexpr int kOwners = kOctets < C.segments ? kOctets : C.segments;
  __device__ __forceinline__ int other_owners() const {
    return kOwners - (static_cast<int>(rank) < kOwners ? 1 : 0);
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
};

}  // namespace volley::gemm
