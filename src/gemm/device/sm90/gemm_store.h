#pragma once

// The way of a tile's sums to memory: + C, as floats or bf16, by the copy engine or by the threads
// that have them; and, where K is cut over a cluster, to the ranks that add them up.

#include "gemm/device/sm90/gemm_products.h"

namespace volley::gemm {

template <GemmConfig C>
struct GemmStore : GemmProducts<C> {
  using Base = GemmProducts<C>;
  using Base::barrier;
  using Base::kAccum;
  using Base::kMathWarpgroups;
  using Base::kN;
  using Base::kOctets;
  using Base::kOwners;
  using Base::kPartialFree;
  using Base::kPartialReady;
  using Base::kSmem;
  using Base::kWaves;
  using Base::other_owners;
  using Base::params;
  using Base::rank;
  using Base::smem;
  using Base::wave_col;
  using Base::wave_row;
  using typename Base::Thread;

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

  // One octet's partial sums of one warpgroup, and where its owner keeps those of segment
  // `segment`.
  static constexpr int kPartialBytes = kWarpgroup * 16;
  __device__ __forceinline__ static int partial_slot(int octet, u32 segment) {
    return (octet / C.segments * C.segments + static_cast<int>(segment)) * kPartialBytes;
  }
};

}  // namespace volley::gemm
