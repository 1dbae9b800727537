#pragma once

// FP8 tokens times FP4 weights, for many tokens.
//
// The problem. Decoding costs about a hundred whole-number operations a thread for 64x128 weights,
// of which an SM does 64 a clock: 130 to 200 clocks of every scheduler. In registers
// (fp4_kernel.h) each decoded weight meets at most 128 tokens, 256 clocks of the tensor cores, and
// the warps that decode are those that multiply: decoding and tensor cores take turns.
//
// So here the third warpgroup decodes each tile of weights once into shared memory, a block ahead
// of the two that multiply, and up to 256 tokens use it. Those two do what gemm_kernel.h's do:
// tokens on the M side, weights on the N side, both from shared memory, two runs of 64 rows each.
// Between them and the decoders lies a ring of two decoded blocks; a stage of the copy engine's
// ring holds tokens, packed weights and token scales. One thread of a fourth warpgroup feeds the
// copy engine: when the decoders did that too, in turns, it took 290 of the 1830 clocks they spent
// on a block.
//
// Sums are those of fp4_kernel.h to the bit: the same products in the same order into the same raw
// sum, the tensor core rounding alike on either side of wgmma.

#include "gemm/device/sm90/fp4_kernel.h"

namespace volley::gemm {

// 128 * (2 * 216 + 48 + 32) = 65536.
inline constexpr int kWideMathRegisters = 216;
inline constexpr int kWideDecoderRegisters = 48;
inline constexpr int kWideProducerRegisters = 32;

template <GemmConfig C>
struct Fp4WideKernel : Fp4Kernel<C> {
  using Base = Fp4Kernel<C>;
  using Thread = typename Base::Thread;
  using Ring = typename Base::Ring;
  using Packed = typename Base::Packed;
  using Fragments = typename Base::Fragments;
  using Base::kAccum;
  using Base::kNv;
  using Base::kOctets;
  using Base::kSmem;
  using Base::kSteps;
  using Base::kStrips;
  using Base::kWaves;
  using DecodedRing = RingPosition<kFp4DecodedBlocks>;

  static constexpr int kTerms = kNv ? 2 : 1;                    // products of one step
  static constexpr int kTermBytes = C.tile_n * kStageRowBytes;  // one term of a decoded block
  static constexpr int kDecodedFull = 2 * C.num_stages + 2;
  static constexpr int kDecodedEmpty = kDecodedFull + kFp4DecodedBlocks;

  __device__ __forceinline__ u32 decoded(int block) const {
    return this->smem + kSmem.decoded + block * kSmem.decoded_bytes;
  }

  __device__ __forceinline__ void init_wide_barriers() const {
    this->init_barriers();
    for (int i = 0; i < kFp4DecodedBlocks; ++i) {
      mbarrier_init(this->barrier(kDecodedFull + i), 4);
      mbarrier_init(this->barrier(kDecodedEmpty + i), Base::kMathWarps);
    }
    fence_mbarrier_init();
  }

  // The third warpgroup -------------------------------------------------------------------------

  // One step of one strip, as rows of 128 bytes of K under the 128-byte swizzle. stmatrix takes the
  // four registers of wgmma's A operand as they are: rows +0 and +8 of one 16-byte chunk, then of
  // the next.
  __device__ __forceinline__ void store_step(const Fragments& fragments, int step, u32 strip,
                                             int thread) const {
    const int matrix = thread % 32 / 8;
    const int row = 16 * (thread / 32) + 8 * (matrix % 2) + thread % 8;
    const u32 at = strip + swizzled(row, 2 * step + matrix / 2);
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      const u32(&part)[4] = fragments.of[kTerms * step + term];
      store_matrices_x4(at + term * kTermBytes, part[0], part[1], part[2], part[3]);
    }
  }

  __device__ __forceinline__ void decode_block(int stage, u32 out, int thread) const {
    constexpr int kTogether = kNv ? 1 : kStrips;  // as many strips at a time as registers allow
#pragma unroll 1
    for (int first = 0; first < kStrips; first += kTogether) {
      Packed packed[kTogether];
#pragma unroll
      for (int s = 0; s < kTogether; ++s) {
        this->load_packed(packed[s], stage, {first + s, thread / 32, thread % 32, thread});
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int s = 0; s < kTogether; ++s) {
          Fragments fragments;
          this->decode_step(fragments, packed[s], step);
          store_step(fragments, step, out + (first + s) * (kFp4StripRows * kStageRowBytes), thread);
        }
      }
    }
  }

  __device__ __forceinline__ void decode() const {
    const int thread = static_cast<int>(threadIdx.x) % kWarpgroup;
    if (!this->early_weights()) wait_for_kernel_in_front();
    TileScheduler tiles = this->scheduler();
    Ring ring;
    DecodedRing out;
    for (Tile tile; tiles.next(C, this->params, tile);) {
#pragma unroll 1
      for (int block = 0; block < this->num_blocks(); ++block) {
        mbarrier_wait(this->full(ring.stage), ring.phase);
        mbarrier_wait(this->barrier(kDecodedEmpty + out.stage), out.phase ^ 1);
        decode_block(ring.stage, decoded(out.stage), thread);
        fence_to_async();
        warp_barrier();
        // What this warp read of the stage is released by the math warps, which wait for it.
        if (thread % 32 == 0) mbarrier_arrive(this->barrier(kDecodedFull + out.stage));
        ring.advance();
        out.advance();
      }
    }
  }

  // The math warpgroups --------------------------------------------------------------------------

  // Waits for a block's tokens and reads their scales.
  __device__ __forceinline__ void open_block(float (&scales)[kWaves][2], const Ring& ring,
                                             const Thread& me) const {
    mbarrier_wait(this->full(ring.stage), ring.phase);
#pragma unroll
    for (int w = 0; w < kWaves; ++w) this->read_a_scales(scales[w], ring.stage, w, me);
  }

  // Multiplies one tile into sum, from zero. As GemmKernel::multiply_fp8_simply, but for decoded
  // weights, which are awaited when this block's place has been given back to the decoders.
  __device__ __forceinline__ void multiply_decoded(float (&sum)[kWaves][kAccum], Ring& ring,
                                                   DecodedRing& in, const Thread& me) const {
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
#pragma unroll
      for (int i = 0; i < kAccum; ++i) sum[w][i] = 0.0f;
    }
    float coming[kWaves][2];
    open_block(coming, ring, me);
#pragma unroll 1
    for (int block = 0; block < this->num_blocks(); ++block) {
      const int stage = ring.stage, in_stage = in.stage;
      mbarrier_wait(this->barrier(kDecodedFull + in_stage), in.phase);
      ring.advance();
      in.advance();
      const u64 weights = matrix_descriptor(decoded(in_stage));
      float accum[kAccum];
#pragma unroll
      for (int w = 0; w < kWaves; ++w) {
        const u64 tokens = this->m_side(stage, me, w);
        pin(accum);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < kTerms * kSteps; ++i) {
          // 32 bytes along K, in the descriptor's units of 16.
          const int step = i / kTerms;
          wgmma(accum, tokens + 2 * step, weights + i % kTerms * (kTermBytes / 16) + 2 * step,
                i > 0);
        }
        wgmma_commit();
        pin(accum);
        const float scales[2] = {coming[w][0], coming[w][1]};
        if (w == kWaves - 1 && block + 1 < this->num_blocks()) open_block(coming, ring, me);
        wgmma_wait<0>();
        pin(accum);
        if (w == kWaves - 1) {
          this->release(stage, me);
          if (me.lane == 0) mbarrier_arrive(this->barrier(kDecodedEmpty + in_stage));
        }
        Base::add_scaled(sum[w], accum, [&](int, int e) { return scales[e / 2]; });
      }
    }
  }

  // Columns past n are of rows that pad the last strip, or of a strip past it: they are not stored.
  __device__ __forceinline__ void scale_columns(float (&sum)[kWaves][kAccum], const Tile& tile,
                                                const Thread& me) const {
    const long long weight =
        static_cast<long long>(tile.group) * this->num_strips() * kFp4StripRows;
    const int last = this->num_strips() * kFp4StripRows - 1;
#pragma unroll
    for (int i = 0; i < kAccum; i += 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int col = min_of(tile.col + fragment_col(me.index, i + e), last);
        const float scale = __ldg(this->params.b_scale + weight + col);
#pragma unroll
        for (int w = 0; w < kWaves; ++w) {
          sum[w][i + e] = __fmul_rn(sum[w][i + e], scale);
          sum[w][i + 2 + e] = __fmul_rn(sum[w][i + 2 + e], scale);
        }
      }
    }
  }

  __device__ __forceinline__ void consume(const TensorMap& d_map) const {
    const int thread = static_cast<int>(threadIdx.x);
    const Thread me = {warpgroup_index(), thread % kWarpgroup / 32, thread % 32,
                       thread % kWarpgroup};
    if (!this->early_weights()) wait_for_kernel_in_front();
    TileScheduler tiles = this->scheduler();
    Ring ring;
    DecodedRing in;
    int num_stored = 0;
    for (Tile tile; tiles.next(C, this->params, tile);) {
      float sum[kWaves][kAccum];
      multiply_decoded(sum, ring, in, me);
      scale_columns(sum, tile, me);
      this->store(sum, d_map, tile, me, num_stored);
    }
    // Shared memory must outlive the copy engine's reads of it.
    if constexpr (C.stores_boxes()) {
      if (me.index == 0) tma_store_wait_read<0>();
    }
  }
};

template <GemmConfig C>
__device__ __forceinline__ void run_fp4_wide_gemm(const TensorMap& a_map,
                                                  const TensorMap& scale_map,
                                                  const TensorMap& d_map,
                                                  const GemmParams& params) {
  static_assert(C.valid() && C.decodes_to_smem());
  extern __shared__ __align__(1024) unsigned char dynamic_smem[];
  const u32 smem = smem_address(dynamic_smem);
  const Fp4WideKernel<C> gemm = {{{{{{smem, 0, params}}}}}};
  const int warpgroup = warpgroup_index();
  launch_dependents();
  if (threadIdx.x == 0) gemm.init_wide_barriers();
  __syncthreads();
  if (warpgroup > C.math_warpgroups()) {
    release_registers<kWideProducerRegisters>();
    if (threadIdx.x == (C.math_warpgroups() + 1) * kWarpgroup) {
      prefetch_map(a_map);
      prefetch_map(scale_map);
      if (!gemm.early_weights()) wait_for_kernel_in_front();
      gemm.produce(a_map, scale_map);
    }
    __syncwarp();
  } else if (warpgroup == C.math_warpgroups()) {
    release_registers<kWideDecoderRegisters>();
    gemm.decode();
  } else {
    claim_registers<kWideMathRegisters>();
    gemm.consume(d_map);
  }
}

}  // namespace volley::gemm
