#pragma once

// D[m, n] = A[m, k] B[n, k]^T on Hopper with FP8 tokens and FP4 weights, for few tokens and for
// many.
//
// The problem. Hopper's tensor cores know no FP4, and a product of few tokens is limited by the
// weight's bytes: at 4.25 bits a value (MX; 4.5 for NV) instead of 8 its floor is 0.53 (0.56) of
// the FP8 product's. So weights stay FP4 up to the registers of the warps that multiply, and become
// e4m3 there.
//
// Decoding. e2m1 has eight magnitudes. A group's scale code c (fp4_format.h) and eight constants
// make the eight e4m3 bytes "magnitude times scale": exponents are added as integers, two multiply-
// adds for a table of two registers. One byte permutation then looks up four values, and the packed
// word is its own selector: ten instructions for eight weights. wgmma takes its M side from
// registers, so the bytes go nowhere else; the tokens are the N side, from shared memory.
//
//   MX: magnitude times a power of two is an e4m3 number: one table, one product.
//   NV: magnitude times an e4m3 scale has up to six significant bits, e4m3 keeps four. But every
//   magnitude is p + q, p a power of two (or 0) and q half of it (or 0), and p times the scale and
//   q times the scale are e4m3 numbers: two tables, two products into one sum. Exact, at twice the
//   tensor core's work, which few tokens do not notice.
//
// Scales. A group's code is relative to its row; what is left is a float for each row, multiplied
// once, at the end. So the sum over K needs the tokens' scales alone: sum = fma(a_scale, raw, sum).
//
// Pipeline. One warp feeds the copy engine. A math warpgroup decodes block b+1 while the tensor
// cores multiply its block b, adds block b to the sum, and goes on; the other warpgroup's products
// run under its promotion. Ring, tiles, clusters and epilogues are gemm_kernel.h's.
//
// Law 1. As in gemm_kernel.h: blocks of 128 in order from zero, segments in order, then the row's
// scale. Every configuration of one kind of weight gives a row the same bits.

#include "gemm/device/sm90/gemm_kernel.h"

namespace volley::gemm {

template <GemmConfig C>
struct Fp4Kernel : GemmKernel<C> {
  using Base = GemmKernel<C>;
  using Thread = typename Base::Thread;
  using Ring = typename Base::Ring;
  using Base::kAccum;
  using Base::kOctets;
  using Base::kSmem;

  static constexpr bool kNv = C.mma == MmaKind::kNvFp4;
  static constexpr int kTileBytes = fp4_tile_bytes(kNv);
  static constexpr int kStrips = C.tile_n / kFp4StripRows;
  static constexpr int kSteps = kFp4BlockCols / 32;
  static constexpr int kProducts = kNv ? 2 * kSteps : kSteps;  // wgmma of one block

  __device__ __forceinline__ int num_strips() const {
    return ceil_div(this->params.n, kFp4StripRows);
  }
  // Strips past the last one (of a tile, or a cluster, that n does not fill) read the last one and
  // store nothing.
  __device__ __forceinline__ long long strip_index(const Tile& tile, int strip) const {
    return static_cast<long long>(tile.group) * num_strips() +
           min_of(tile.col / kFp4StripRows + strip, num_strips() - 1);
  }

  // The producer: one thread ---------------------------------------------------------------------

  // The packed tiles of block 0 of this CTA's strips.
  struct Strips {
    const unsigned char* first[kStrips];
  };
  __device__ __forceinline__ Strips strips_of(const Tile& tile) const {
    Strips strips;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      strips.first[s] = this->params.b + strip_index(tile, s) * this->num_blocks() * kTileBytes;
    }
    return strips;
  }

  __device__ __forceinline__ void load_weights(const Strips& strips, int block, int stage) const {
    constexpr u32 kBytes = kSmem.a_bytes + kSmem.b_bytes + kSmem.scale_bytes;
    const u32 full = this->full(stage);
    mbarrier_expect_bytes(full, kBytes);
    const long long offset = static_cast<long long>(block) * kTileBytes;
#pragma unroll
    for (int s = 0; s < kStrips; ++s) {
      bulk_load(strips.first[s] + offset, full, this->stage_b(stage) + s * kTileBytes, kTileBytes);
    }
  }

  // As GemmKernel::load_weights_early.
  __device__ __forceinline__ int load_weights_early() const {
    if (!this->early_weights()) return 0;
    int count = 0;
    TileScheduler tiles = this->scheduler();
    if (Tile tile; tiles.next(C, this->params, tile)) {
      const int first = this->first_block();
      count = min_of(C.num_stages, this->end_block() - first);
      const Strips strips = strips_of(tile);
      for (int stage = 0; stage < count; ++stage) load_weights(strips, first + stage, stage);
    }
    wait_for_kernel_in_front();
    return count;
  }

  __device__ __forceinline__ void produce(const TensorMap& a_map,
                                          const TensorMap& scale_map) const {
    TileScheduler tiles = this->scheduler();
    Ring ring;
    int num_early = load_weights_early();
    for (Tile tile; tiles.next(C, this->params, tile);) {
      const Strips strips = strips_of(tile);
      for (int block = this->first_block(); block < this->end_block(); ++block, ring.advance()) {
        const int stage = ring.stage;
        const u32 full = this->full(stage);
        if (num_early > 0) {
          --num_early;
        } else {
          mbarrier_wait(this->empty(stage), ring.phase ^ 1);
          load_weights(strips, block, stage);
        }
        this->load_a(a_map, stage, block, tile);
        tma_load(scale_map, full, this->stage_scales(stage), tile.row, block, tile.slab);
      }
    }
  }

  // Decoding -------------------------------------------------------------------------------------

  // What a thread holds of a packed tile: for each step and row half one word of eight values, and
  // the scale codes of its two rows, one after the other.
  struct Packed {
    u32 words[2 * kSteps];
    u32 codes[kNv ? 4 : 2];
  };
  // The same as wgmma's A operand: [product][register].
  struct Fragments {
    u32 of[kProducts][4];
  };

  __device__ __forceinline__ void load_packed(Packed& packed, int stage, const Thread& me) const {
    const u32 tile = this->stage_b(stage) + me.warpgroup * kTileBytes;
    const uint4 low = load_shared_16(tile + me.index * 16);
    const uint4 high = load_shared_16(tile + 2048 + me.index * 16);
    const u32 words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) packed.words[i] = words[i];
    const u32 codes = tile + kFp4ValueBytes + (me.warp * 8 + me.lane / 4) * (kNv ? 16 : 8);
    if constexpr (kNv) {
      const uint4 rows = load_shared_16(codes);
      packed.codes[0] = rows.x;
      packed.codes[1] = rows.y;
      packed.codes[2] = rows.z;
      packed.codes[3] = rows.w;
    } else {
      const uint2 rows = load_shared_8(codes);
      packed.codes[0] = rows.x;
      packed.codes[1] = rows.y;
    }
  }

  // The e4m3 magnitudes of a group, looked up by index (fp4_format.h): two registers, one product;
  // NV: p from `low` and `high`, q from 0 and `low`. A byte is the code plus 8 for each doubling
  // and 4 for a half more; the byte of 0 is 0. None carries into the next (kFp4MinCode, max).
  struct Table {
    u32 low, high;
  };
  __device__ __forceinline__ static Table table_of(u32 codes, int group) {
    const u32 code = permute_bytes(codes, 0, 0x4440 + group);
    // Multiply-adds, for whole-number operations of other kinds are what bounds decoding.
    const u32 low = code * 0x01010100u, high = code * 0x01010101u;
    if constexpr (kNv) return {low + 0x07FFF800u, high + 0x10080010u};
    return {low + 0x03FFF800u, high + 0x14100C08u};
  }

  __device__ __forceinline__ static void decode_step(Fragments& out, const Packed& packed,
                                                     int step) {
    constexpr u32 kSigns = 0x80808080u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const u32 word = packed.words[2 * step + half];
      const u32 selector = word & 0x77777777u;
      const u32 shifted = word * 16u;
      if constexpr (kNv) {
#pragma unroll
        for (int quad = 0; quad < 2; ++quad) {
          const u32 select = quad == 0 ? selector : selector >> 16;
          const u32 signs = quad == 0 ? word : shifted;
          const int group = 2 * step + quad;
          const Table table = table_of(packed.codes[2 * half + group / 4], group % 4);
          const u32 p = permute_bytes(table.low, table.high, select);
          const u32 q = permute_bytes(0, table.low, select);
          out.of[2 * step][2 * quad + half] = or_masked(p, signs, kSigns);
          out.of[2 * step + 1][2 * quad + half] = or_masked(q, signs, kSigns);
        }
      } else {
        const Table table = table_of(packed.codes[half], step);
        const u32 first = permute_bytes(table.low, table.high, selector);
        const u32 second = permute_bytes(table.low, table.high, selector >> 16);
        out.of[step][half] = or_masked(first, word, kSigns);
        out.of[step][2 + half] = or_masked(second, shifted, kSigns);
      }
    }
  }

  // The math warpgroups --------------------------------------------------------------------------

  // Multiplies the block in `now` and adds it to `sum`. In the meantime the block after it, which
  // is in `packed`, is decoded to `next` (which may be `now`: then afterwards), and the one after
  // that is read when there is one (`more`).
  template <bool kTwo>
  __device__ __forceinline__ void multiply_block(float (&sum)[kAccum], float (&accum)[kAccum],
                                                 Fragments& now, Fragments& next, Packed& packed,
                                                 Ring& ring, Ring& ahead, bool more,
                                                 const Thread& me) const {
    constexpr bool kEarlyScales = kAccum <= 32;  // registers for them while wgmma runs
    const int stage = ring.stage;
    pin(accum);
#pragma unroll
    for (int i = 0; i < kProducts; ++i) pin(now.of[i]);
    wgmma_fence();
    const u64 tokens = matrix_descriptor(this->stage_a(stage));
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      wgmma_a_in_registers(accum, now.of[i], tokens + 2 * (kNv ? i / 2 : i), i > 0);
    }
    wgmma_commit();
    pin(accum);
    float a_scales[2 * kOctets];
    if constexpr (kEarlyScales) this->read_a_scales(a_scales, stage, 0, me);
    if constexpr (kTwo) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) decode_step(next, packed, step);
      if (more) read_ahead(packed, ahead, me);
    }
    wgmma_wait<0>();
    pin(accum);
    // Their registers were in use until here.
#pragma unroll
    for (int i = 0; i < kProducts; ++i) pin(now.of[i]);
    if constexpr (!kTwo) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) decode_step(next, packed, step);
      if (more) read_ahead(packed, ahead, me);
    }
    if constexpr (!kEarlyScales) this->read_a_scales(a_scales, stage, 0, me);
    this->release(stage, me);
    ring.advance();
#pragma unroll
    for (int i = 0; i < kAccum; ++i) {
      sum[i] = __fmaf_rn(a_scales[i / 4 * 2 + i % 2], accum[i], sum[i]);
    }
  }

  __device__ __forceinline__ void read_ahead(Packed& packed, Ring& ahead, const Thread& me) const {
    mbarrier_wait(this->full(ahead.stage), ahead.phase);
    load_packed(packed, ahead.stage, me);
    ahead.advance();
  }

  // Multiplies blocks [begin, end), at least one, of one tile into sum, from zero.
  __device__ __forceinline__ void multiply_blocks(float (&sum)[kAccum], Ring& ring, int begin,
                                                  int end, const Thread& me) const {
#pragma unroll
    for (int i = 0; i < kAccum; ++i) sum[i] = 0.0f;
    float accum[kAccum];
    Packed packed;
    Fragments even;
    Ring ahead = ring;
    read_ahead(packed, ahead, me);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) decode_step(even, packed, step);
    if (begin + 1 < end) read_ahead(packed, ahead, me);
    if constexpr (C.fp4_fragments() == 2) {
      Fragments odd;
#pragma unroll 1
      for (int block = begin; block < end; block += 2) {
        multiply_block<true>(sum, accum, even, odd, packed, ring, ahead, block + 2 < end, me);
        if (block + 1 >= end) break;
        multiply_block<true>(sum, accum, odd, even, packed, ring, ahead, block + 3 < end, me);
      }
    } else {
#pragma unroll 1
      for (int block = begin; block < end; ++block) {
        multiply_block<false>(sum, accum, even, even, packed, ring, ahead, block + 2 < end, me);
      }
    }
  }

  // Finished segments wait in shared memory, each thread's own; the last one joins them in `sum`.
  __device__ __forceinline__ void add_parked(float (&sum)[kAccum], int segment,
                                             const Thread& me) const {
    const u32 mine =
        this->smem + kSmem.partial + me.warpgroup * kSmem.partial_bytes + me.index * 16;
#pragma unroll
    for (int j = 0; j < kOctets; ++j) {
      const u32 at = mine + j * kWarpgroup * 16;
      float* part = sum + 4 * j;
      if (segment > 0) {
        const float4 whole = load_shared_4(at);
        part[0] = __fadd_rn(whole.x, part[0]);
        part[1] = __fadd_rn(whole.y, part[1]);
        part[2] = __fadd_rn(whole.z, part[2]);
        part[3] = __fadd_rn(whole.w, part[3]);
      }
      if (segment + 1 < C.segments) store_shared_4(at, part[0], part[1], part[2], part[3]);
    }
  }

  __device__ __forceinline__ void multiply_tile(float (&sum)[kAccum], Ring& ring,
                                                const Thread& me) const {
    if constexpr (C.parks_segments()) {
#pragma unroll 1
      for (int s = 0; s < C.segments; ++s) {
        multiply_blocks(sum, ring, segment_begin(this->num_blocks(), C.segments, s),
                        segment_begin(this->num_blocks(), C.segments, s + 1), me);
        add_parked(sum, s, me);
      }
    } else {
      multiply_blocks(sum, ring, this->first_block(), this->end_block(), me);
    }
  }

  __device__ __forceinline__ void consume() const {
    const int thread = static_cast<int>(threadIdx.x);
    const Thread me = {warpgroup_index(), thread % kWarpgroup / 32, thread % 32,
                       thread % kWarpgroup};
    if (!this->early_weights()) wait_for_kernel_in_front();
    TileScheduler tiles = this->scheduler();
    Ring ring;
    u32 partial_phase = 0;
    Tile tile;
    bool more = tiles.next(C, this->params, tile);
    while (more) {
      const float* rows = this->params.b_scale + strip_index(tile, me.warpgroup) * kFp4StripRows;
      const float row_scales[2] = {__ldg(rows + fragment_row(me.index, 0)),
                                   __ldg(rows + fragment_row(me.index, 2))};
      Tile next;
      more = tiles.next(C, this->params, next);
      float sum[1][kAccum];
      multiply_tile(sum[0], ring, me);
      if constexpr (C.split_k) this->add_segments(sum[0], me, partial_phase, !more);
#pragma unroll
      for (int i = 0; i < kAccum; ++i) sum[0][i] = __fmul_rn(sum[0][i], row_scales[i % 4 / 2]);
      this->store_directly(sum, tile, me);
      tile = next;
    }
  }
};

template <GemmConfig C>
__device__ __forceinline__ void run_fp4_gemm(const TensorMap& a_map, const TensorMap& scale_map,
                                             const GemmParams& params) {
  static_assert(C.valid() && C.fp4());
  extern __shared__ __align__(1024) unsigned char dynamic_smem[];
  const u32 smem = smem_address(dynamic_smem);
  const Fp4Kernel<C> gemm = {{{{{smem, C.cluster() > 1 ? cluster_rank() : 0, params}}}}};
  launch_dependents();
  if (threadIdx.x == 0) gemm.init_barriers();
  if (C.cluster() > 1) {
    cluster_meet();
  } else {
    __syncthreads();
  }
  if (warpgroup_index() == C.math_warpgroups()) {
    if constexpr (C.moves_registers()) release_registers<kFp4ProducerRegisters>();
    if (threadIdx.x == C.math_warpgroups() * kWarpgroup) {
      prefetch_map(a_map);
      prefetch_map(scale_map);
      if (!gemm.early_weights()) wait_for_kernel_in_front();
      gemm.produce(a_map, scale_map);
    }
    __syncwarp();
  } else {
    if constexpr (C.moves_registers()) claim_registers<kFp4MathRegisters>();
    gemm.consume();
  }
  // A cluster along K has received all that was sent to it by now.
  if constexpr (C.split_k) cluster_meet();
}

}  // namespace volley::gemm
