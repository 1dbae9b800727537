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

#include "gemm/device/sm90/gemm_store.h"

namespace volley::gemm {

template <GemmConfig C>
struct GemmKernel : GemmStore<C> {
  using Base = GemmStore<C>;
  using Base::add_segments;
  using Base::early_weights;
  using Base::empty;
  using Base::end_block;
  using Base::fetch_b_scales;
  using Base::first_block;
  using Base::full;
  using Base::kAccum;
  using Base::kBScales;
  using Base::kFp8;
  using Base::kMathWarpgroups;
  using Base::kRows;
  using Base::kSmem;
  using Base::kStageBytes;
  using Base::kWaves;
  using Base::multiply_tile;
  using Base::params;
  using Base::rank;
  using Base::scheduler;
  using Base::stage_a;
  using Base::stage_b;
  using Base::stage_scales;
  using Base::store;
  using typename Base::BScales;
  using typename Base::Ring;
  using typename Base::Thread;

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
  const GemmKernel<C> gemm = {{{{smem, C.cluster() > 1 ? cluster_rank() : 0, params}}}};
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
