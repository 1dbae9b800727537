#pragma once

// logits[i, j] = k_scale[j] * sum over heads h of weights[i, h] * relu(q[i, h] . k[j]) on Hopper:
// the scores by which DeepSeek-V3.2's lightning indexer chooses keys (DeepSeek-V3.2-Exp report,
// section 2.1), for FP8 and FP4 keys, in one run or in pages.
//
// The problem. A pair of a query and a key costs 2 heads head_dim flops in the tensor cores (16384
// for 64 heads of 128: 2 clocks of an SM) and 2 heads float operations beside them (a maximum at
// half rate, a multiply-add: 1 clock). It moves 4 bytes of output, and a key of 132 bytes for as
// many queries as share it. With many queries the tensor cores are the floor; with one query a
// sequence, reading the keys is.
//
// The tile. 64 keys are the M side of a wgmma, the heads of up to 8 queries side by side its N side
// (at most 256 columns). So a thread holds, for two keys, a quarter of each query's heads: it sums
// those alone, and two exchanges between four lanes end the sum. With heads on the M side the sum
// would cross warps. Queries and their weights stay where they are (shared memory, registers) while
// keys stream past.
//
// Roles. Two math warpgroups take key tiles in turns, so that the products of one run under the
// sums of the other. One warp feeds the copy engine; a tile is 64 keys and their scales, a page
// when paged, so both kinds differ in a coordinate alone. Page numbers are read 32 at a time, ahead
// of need. The producer's three neighbours write -infinity where rows see no key, if asked to.
//
// FP4. Keys are the operand that wgmma takes from registers, so they are decoded there, and
// nowhere else. A thread reads 32 consecutive values of a key, one group: columns are taken in
// another order than they are stored in, and the query tile is put into the same order once, in
// shared memory. A group's eight magnitudes, times the power of two by which its scale is below
// the key's largest, are eight e4m3 bytes in two registers; one byte permutation looks up four.
//
// The schedule (scoring_schedule.h) is found by every CTA for itself, at the start, from the arrays
// of lengths: no second kernel, no workspace, and a captured graph follows the lengths.
//
// Law 1. A logit's raw dot products are the tensor core's, of all head_dim; lane c of four sums
// heads 8j + 2c, 8j + 2c + 1 in order of j, from zero, by fused multiply-adds; then (lane 0 + lane
// 1) + (lane 2 + lane 3), times the key's scale. None of it depends on the tile, the page, the
// schedule or the number of queries.

#include "gemm/device/fragment.h"
#include "gemm/device/scoring_schedule.h"
#include "gemm/device/sm90/ptx.h"
#include "gemm/device/sm90/wgmma_instruction.h"

namespace volley::gemm {

template <ScoringConfig C>
struct ScoringKernel {
  static constexpr ScoringSmem kSmem = scoring_smem(C);
  static constexpr int kN = C.cols();
  static constexpr int kAccum = kN / 2;
  static constexpr int kOctets = C.heads / 8;  // of one query
  static constexpr int kQueries = C.queries;
  static constexpr int kSteps = C.steps();
  static constexpr int kWarps = kScoringThreads / 32;
  static constexpr u32 kTileBytes = C.tile_bytes() + C.tile_scale_bytes();
  static constexpr u32 kEveryLane = 0xffffffffu;

  u32 smem;  // 1024-byte aligned
  const ScoringParams& params;

  // Position in a ring, of key tiles or of query tiles.
  template <int kStages>
  struct Ring {
    int stage = 0;
    u32 phase = 0;

    __device__ __forceinline__ void advance(int by = 1) {
      stage += by;
      if (stage >= kStages) {
        stage -= kStages;
        phase ^= 1;
      }
    }
  };

  __device__ __forceinline__ u32 barrier(int index) const {
    return smem + kSmem.barriers + 8 * index;
  }
  __device__ __forceinline__ u32 full(int stage) const { return barrier(stage); }
  __device__ __forceinline__ u32 empty(int stage) const { return barrier(C.num_stages + stage); }
  __device__ __forceinline__ u32 q_full(int i) const { return barrier(2 * C.num_stages + i); }
  __device__ __forceinline__ u32 q_empty(int i) const { return barrier(2 * C.num_stages + 2 + i); }
  __device__ __forceinline__ u32 turn(int i) const { return barrier(2 * C.num_stages + 4 + i); }
  __device__ __forceinline__ u32 q_tile(int i) const { return smem + kSmem.q + i * kSmem.q_bytes; }
  __device__ __forceinline__ u32 weights(int i) const {
    return smem + kSmem.weights + i * kSmem.weight_bytes;
  }
  __device__ __forceinline__ u32 item(int i) const {
    return smem + kSmem.items + i * round_up(kItemBytes, 128);
  }
  __device__ __forceinline__ u32 key_tile(int stage) const {
    return smem + kSmem.keys + stage * kSmem.key_stride;
  }
  __device__ __forceinline__ u32 key_scales(int stage) const {
    return smem + kSmem.scales + stage * kSmem.scale_stride;
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < C.num_stages; ++i) {
      mbarrier_init(full(i), 1);
      mbarrier_init(empty(i), 4);  // the warps of the warpgroup that takes this stage
    }
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(q_full(i), 32);                                    // each thread that wrote
      mbarrier_init(q_empty(i), kScoringMathWarpgroups * kWarpgroup);  // and that read
      mbarrier_init(turn(i), 4);
    }
    fence_mbarrier_init();
  }

  // All threads: the CTA's part of the line, left in `scratch` as a WorkCursor. Each thread counts
  // the tiles of some runs; where the part begins is found by the thread in whose runs it does.
  __device__ __forceinline__ void find_share() const {
    const ScoringWork& work = params.work;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
    const int per_thread = ceil_div(work.num_runs, kScoringThreads);
    const int first = thread * per_thread;
    const int end = min_of(first + per_thread, work.num_runs);
    int mine = 0;
    for (int run = first; run < end; ++run) mine += tiles_of_run(work, C, run);
    int up_to = mine;  // of this warp's lanes up to this one
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_sync(kEveryLane, up_to, max_of(lane - step, 0));
      if (lane >= step) up_to += below;
    }
    const u32 scratch = smem + kSmem.scratch;
    if (lane == 31) store_shared_word(scratch + 16 + 4 * warp, up_to);
    __syncthreads();
    int before = up_to - mine, total = 0;
    for (int w = 0; w < kWarps; ++w) {
      const int tiles = static_cast<int>(load_shared_word(scratch + 16 + 4 * w));
      if (w < warp) before += tiles;
      total += tiles;
    }
    const int cta = static_cast<int>(blockIdx.x), num_ctas = static_cast<int>(gridDim.x);
    const int begin = share_begin(total, cta, num_ctas);
    const int count = share_begin(total, cta + 1, num_ctas) - begin;
    if (count == 0 ? thread == 0 : before <= begin && begin < before + mine) {
      WorkCursor cursor = {first, 0, 0, count};
      if (count > 0) cursor.skip(work, C, begin - before);
      store_shared_word(scratch, cursor.run);
      store_shared_word(scratch + 4, cursor.query_tile);
      store_shared_word(scratch + 8, cursor.tile);
      store_shared_word(scratch + 12, cursor.left);
    }
    __syncthreads();
  }

  __device__ __forceinline__ WorkCursor share() const {
    const uint4 words = load_shared_16(smem + kSmem.scratch);
    return {static_cast<int>(words.x), static_cast<int>(words.y), static_cast<int>(words.z),
            static_cast<int>(words.w)};
  }

  // The producer: one warp -----------------------------------------------------------------------

  // A query tile's rows, weights and what the math warpgroups must know of it. A tile without key
  // tiles ends their work.
  __device__ __forceinline__ void load_queries(const TensorMap& q_map, const QueryTile& tile,
                                               int run, int buffer, int lane) const {
    const u32 words = item(buffer);
    if (lane == 0) {
      store_shared_16(words, {static_cast<u32>(tile.row), static_cast<u32>(tile.num_rows),
                              static_cast<u32>(tile.first_tile), static_cast<u32>(tile.num_tiles)});
    }
    if (lane < kQueries) {
      KeyRange range = {0, 0};
      if (lane < tile.num_rows && tile.num_tiles > 0) {
        range = range_of(params.work, C, run, run_of(params.work, C, run), tile.row + lane);
      }
      store_shared_word(words + 16 + 8 * lane, range.begin);
      store_shared_word(words + 20 + 8 * lane, range.end);
    }
    if (lane != 0 || tile.num_tiles == 0) {
      mbarrier_arrive(q_full(buffer));
      return;
    }
    mbarrier_expect_bytes(q_full(buffer), kSmem.q_bytes + tile.num_rows * C.heads * 4);
    tma_load(q_map, q_full(buffer), q_tile(buffer), 0, 0, tile.row);
    for (int i = 0; i < tile.num_rows; ++i) {
      bulk_load(params.weights + (tile.row + i) * params.weights_stride, q_full(buffer),
                weights(buffer) + i * C.heads * 4, C.heads * 4);
    }
  }

  __device__ __forceinline__ int fetch_page(int run, int tile, int end) const {
    return tile < end ? params.block_table[run * params.table_stride + tile] : 0;
  }

  // A key tile and its scales. FP4: one run of bytes, or, not paged, one of values and a box of
  // scales, which the map clips.
  __device__ __forceinline__ void load_keys(const TensorMap& key_map, const TensorMap& scale_map,
                                            const Ring<C.num_stages>& ring, int tile,
                                            int page) const {
    const int stage = ring.stage;
    const u32 full = this->full(stage);
    mbarrier_wait(empty(stage), ring.phase ^ 1);
    if constexpr (!C.fp4()) {
      mbarrier_expect_bytes(full, kTileBytes);
      tma_load(key_map, full, key_tile(stage), 0, C.paged ? 0 : tile * kKeyTile, page);
      tma_load(scale_map, full, key_scales(stage), C.paged ? 0 : tile * kKeyTile, page, 0);
    } else if constexpr (C.paged) {
      const int known = page >= 0 && page < params.num_pages ? page : 0;
      mbarrier_expect_bytes(full, kTileBytes);
      bulk_load(params.keys + known * params.page_stride, full, key_tile(stage), kTileBytes);
    } else {
      const int count = min_of(kKeyTile, params.work.num_keys - tile * kKeyTile);
      const u32 bytes = count * C.key_bytes();
      mbarrier_expect_bytes(full, bytes + C.tile_scale_bytes());
      bulk_load(params.keys + static_cast<long long>(tile) * C.tile_bytes(), full, key_tile(stage),
                bytes);
      tma_load(scale_map, full, key_scales(stage), tile * C.tile_scale_bytes(), 0, 0);
    }
  }

  __device__ __forceinline__ void produce(const TensorMap& q_map, const TensorMap& key_map,
                                          const TensorMap& scale_map, int lane) const {
    WorkCursor cursor = share();
    Ring<C.num_stages> ring;
    Ring<2> q_ring;
    QueryTile tile;
    int run = 0;
    while (cursor.next(params.work, C, tile, run)) {
      mbarrier_wait(q_empty(q_ring.stage), q_ring.phase ^ 1);
      load_queries(q_map, tile, run, q_ring.stage, lane);
      q_ring.advance();
      if constexpr (!C.paged) {
        if (lane == 0) {
#pragma unroll 1
          for (int i = 0; i < tile.num_tiles; ++i, ring.advance()) {
            load_keys(key_map, scale_map, ring, tile.first_tile + i, 0);
          }
        }
        __syncwarp();
        continue;
      }
      const int end = tile.first_tile + tile.num_tiles;
      int pages = 0, coming = 0;
      if constexpr (C.paged) coming = fetch_page(run, tile.first_tile + lane, end);
      for (int i = 0; i < tile.num_tiles; ++i, ring.advance()) {
        const int key_tile_idx = tile.first_tile + i;
        int page = 0;
        if constexpr (C.paged) {
          if (i % 32 == 0) {
            pages = coming;
            coming = fetch_page(run, key_tile_idx + 32 + lane, end);
          }
          page = __shfl_sync(kEveryLane, pages, i % 32);
        }
        if (lane == 0) load_keys(key_map, scale_map, ring, key_tile_idx, page);
      }
    }
    mbarrier_wait(q_empty(q_ring.stage), q_ring.phase ^ 1);
    load_queries(q_map, {0, 0, 0, 0}, 0, q_ring.stage, lane);
  }

  // -infinity where rows see no key: `num_warps` warps of each CTA, 4096 columns of a row at a
  // time.
  __device__ __forceinline__ void fill_outside(int warp, int num_warps, int lane) const {
    constexpr int kRun = 4096;
    const ScoringWork& work = params.work;
    const int pieces = ceil_div(work.num_keys, kRun);
    const long long count = static_cast<long long>(work.num_rows) * pieces;
    const long long step = static_cast<long long>(gridDim.x) * num_warps;
    for (long long i = static_cast<long long>(blockIdx.x) * num_warps + warp; i < count;
         i += step) {
      const int row = static_cast<int>(i / pieces);
      const int begin = static_cast<int>(i % pieces) * kRun;
      const int end = min_of(begin + kRun, work.num_keys);
      const KeyRange seen = range_of_any(row);
      float* out = params.logits + row * params.logits_stride;
      const float nothing = -__int_as_float(0x7F800000);
      for (int key = begin + lane; key < min_of(end, seen.begin); key += 32) out[key] = nothing;
      for (int key = max_of(begin, seen.end) + lane; key < end; key += 32) out[key] = nothing;
    }
  }

  // The range of a row whose run is yet to be found. Rows of no run see nothing.
  __device__ __forceinline__ KeyRange range_of_any(int row) const {
    const ScoringWork& work = params.work;
    int run = 0;
    if constexpr (C.paged) {
      if (work.query_starts == nullptr) {
        run = row / work.next_n;
      } else {
        // The last run that begins at or before the row.
        int low = 0, high = work.num_runs;
        while (low + 1 < high) {
          const int middle = (low + high) / 2;
          (work.query_starts[middle] <= row ? low : high) = middle;
        }
        run = low;
      }
      if (run >= work.num_runs) return {0, 0};
      const RowRun rows = run_of(work, C, run);
      if (row < rows.first || row >= rows.first + rows.count) return {0, 0};
      return range_of(work, C, run, rows, row);
    }
    return range_of(work, C, 0, {0, 0}, row);
  }

  // FP4 ------------------------------------------------------------------------------------------

  // Column 32 s + 16 half + 4 c + i of the decoded keys is column head_dim/4 c + 8 s + 4 half + i
  // of the stored ones: lane c of four then decodes head_dim/4 consecutive values of a key. Puts
  // the query tile into the same order; each thread its own rows; and the weights, a run for each
  // lane.
  __device__ __forceinline__ void reorder_queries(int buffer, int thread) const {
    const u32 tile = q_tile(buffer);
    if constexpr (!C.weights_in_registers()) {
      static_assert(kN <= kScoringMathWarpgroups * kWarpgroup);
      const float weight = thread < kN ? load_shared(weights(buffer) + 4 * thread) : 0.0f;
      math_barrier();
      const u32 to =
          weights(buffer) + thread % 8 / 2 * kSmem.weight_run + thread / 8 * 8 + thread % 2 * 4;
      if (thread < kN) store_shared_word(to, __float_as_uint(weight));
    }
    constexpr int kChunks = C.head_dim / 16;
    for (int row = thread; row < kN; row += kScoringMathWarpgroups * kWarpgroup) {
      uint4 in[kChunks];
#pragma unroll
      for (int i = 0; i < kChunks; ++i) in[i] = load_shared_16(tile + swizzled(row, i));
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        u32 out[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int word = C.head_dim / 16 * c + i;
          const uint4& from = in[word / 4];
          out[c] = word % 4 == 0   ? from.x
                   : word % 4 == 1 ? from.y
                   : word % 4 == 2 ? from.z
                                   : from.w;
        }
        store_shared_16(tile + swizzled(row, i), {out[0], out[1], out[2], out[3]});
      }
    }
    fence_to_async();
    math_barrier();
  }

  __device__ __forceinline__ static void math_barrier() {
    named_barrier(1, kScoringMathWarpgroups * kWarpgroup);
  }

  struct Thread {
    int warpgroup;  // 0 or 1
    int warp;       // in the warpgroup
    int lane;
    int index;  // in the warpgroup
  };

  // 64 keys as wgmma's A operand, and the scales of this thread's two.
  struct Fragments {
    u32 of[C.fp4() ? kSteps : 1][4];
    float scales[2];
  };

  // The e4m3 bytes of 0, 1/2, 1, 3/2 and of 2, 3, 4, 6, times 2^(6 + exponent), exponent <= 0.
  struct Table {
    u32 low, high;
  };
  __device__ __forceinline__ static Table table_of(int exponent) {
    if (exponent >= -11) {
      // Normal numbers: 1/2 is the code 96 + 8 exponent, a doubling 8 more, a half more 4 more.
      const u32 code = 96 + 8 * exponent;
      return {code * 0x01010100u + 0x0C080000u, code * 0x01010101u + 0x1C181410u};
    }
    // 2^(6 + exponent), 0 from where all magnitudes round to 0.
    const float unit = exponent < -60 ? 0.0f : __int_as_float((133 + exponent) << 23);
    return {pack_e4m3(0.0f, 0.5f * unit) | pack_e4m3(unit, 1.5f * unit) << 16,
            pack_e4m3(2.0f * unit, 3.0f * unit) | pack_e4m3(4.0f * unit, 6.0f * unit) << 16};
  }

  __device__ __forceinline__ void decode(Fragments& out, int stage, const Thread& me) const {
    const int c = me.lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = 16 * me.warp + me.lane / 4 + 8 * half;
      u32 words[4];
      const u32 values = key_tile(stage) + key * (C.head_dim / 2) + c * (C.head_dim / 8);
      if constexpr (C.head_dim == 128) {
        const uint4 all = load_shared_16(values);
        words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
      } else {
        const uint2 all = load_shared_8(values);
        words[0] = all.x, words[1] = all.y;
      }
      const int code = static_cast<int>(
          load_shared_byte(key_scales(stage) + key * C.scale_bytes() + c * C.scale_bytes() / 4));
      int most = max_of(code, __shfl_sync(kEveryLane, code, me.lane ^ 1));
      most = max_of(most, __shfl_sync(kEveryLane, most, me.lane ^ 2));
      // 2^(most - 127), less the 2^6 of the table; 255 is NaN.
      out.scales[half] = __fmul_rn(__int_as_float(most == 255 ? 0x7FC00000
                                                  : most == 0 ? 0x00400000
                                                              : most << 23),
                                   0.015625f);
      const Table table = table_of(code - most);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        // Nibble i is value i: its low bits select a magnitude. A selector whose bit 3 is set
        // copies the sign of a byte over it: 0x80 becomes 0xFF, whose bit 6, doubled, is the sign.
        const u32 word = words[s], upper = word >> 16;
        const u32 signs_low = permute_bytes_signed(0x80808080u, 0x80808080u, word) * 2;
        const u32 signs_high = permute_bytes_signed(0x80808080u, 0x80808080u, upper) * 2;
        out.of[s][half] =
            or_masked(permute_bytes(table.low, table.high, word & 0x7777u), signs_low, 0x80808080u);
        out.of[s][2 + half] = or_masked(permute_bytes(table.low, table.high, upper & 0x7777u),
                                        signs_high, 0x80808080u);
      }
    }
  }

  // The math warpgroups --------------------------------------------------------------------------

  // Of part `kPart`: its first query, how many, and of how many a lane stores logits.
  template <int kPart>
  struct Part {
    static constexpr int kCount = C.part_queries(kPart);
    static constexpr int kFirst = kPart == 0 ? 0 : C.part_queries(0);
    static constexpr int kAccum = kCount * C.heads / 2;
    static constexpr int kStored = (kCount + 1) / 2;
    static constexpr int kFirstStored = kPart == 0 ? 0 : (C.part_queries(0) + 1) / 2;
  };
  static constexpr int kLast = C.parts() - 1;
  static constexpr int kAllStored = Part<kLast>::kFirstStored + Part<kLast>::kStored;

  // What a thread knows of the query tile it works on.
  struct Queries {
    int buffer;
    u32 n_side;  // matrix_descriptor_low
    float weights[C.weights_in_registers() ? 2 * kOctets * kQueries : 1];
    float* out[kAllStored];  // the rows whose logits this lane stores
    KeyRange ranges[kAllStored];
  };

  __device__ __forceinline__ void load(Queries& queries, int buffer, int row,
                                       const Thread& me) const {
    queries.buffer = buffer;
    queries.n_side = matrix_descriptor_low(q_tile(buffer));
    if constexpr (C.weights_in_registers()) {
#pragma unroll
      for (int j = 0; j < kOctets * kQueries; ++j) {
        const float2 pair = read_weights(queries.buffer, j, me.lane);
        queries.weights[2 * j] = pair.x;
        queries.weights[2 * j + 1] = pair.y;
      }
    }
    load_rows<0>(queries, row, me);
    if constexpr (C.parts() == 2) load_rows<1>(queries, row, me);
  }
  template <int kPart>
  __device__ __forceinline__ void load_rows(Queries& queries, int row, const Thread& me) const {
    using P = Part<kPart>;
#pragma unroll
    for (int i = 0; i < P::kStored; ++i) {
      // Lanes 2 and 3 of four store the odd ones.
      const int in_part = 2 * i + (me.lane >> 1 & 1);
      const int query = P::kFirst + min_of(in_part, P::kCount - 1);
      const uint2 range = load_shared_8(item(queries.buffer) + 16 + 8 * query);
      const int slot = P::kFirstStored + i;
      queries.ranges[slot] = {static_cast<int>(range.x), static_cast<int>(range.y)};
      if (in_part >= P::kCount) queries.ranges[slot] = {0, 0};
      queries.out[slot] = params.logits + (row + query) * params.logits_stride;
      // Else the compiler multiplies anew for every tile; more of them would be too many registers.
      if constexpr (kAllStored <= 2) pin(queries.out[slot]);
    }
  }

  // Of heads 8j + 2c and 8j + 2c + 1, j counting through the tile's queries.
  __device__ __forceinline__ float2 read_weights(int buffer, int j, int lane) const {
    return load_shared_2(weights(buffer) + 32 * j + 8 * (lane % 4));
  }

  // The weighted sums over heads: of a part's queries for this thread's two keys, this lane's heads
  // only.
  template <int kPart>
  __device__ __forceinline__ void sum_heads(float (&sums)[Part<kPart>::kCount][2],
                                            const float (&accum)[Part<kPart>::kAccum],
                                            const Queries& queries, const Thread& me) const {
    using P = Part<kPart>;
#pragma unroll
    for (int q = 0; q < P::kCount; ++q) {
      sums[q][0] = 0.0f;
      sums[q][1] = 0.0f;
    }
#pragma unroll
    for (int pair = 0; pair < kOctets / 2; ++pair) {
#pragma unroll
      for (int q = 0; q < P::kCount; ++q) {
        const int octet = (P::kFirst + q) * kOctets + 2 * pair;
        float w[4];
        if constexpr (C.weights_in_registers()) {
#pragma unroll
          for (int i = 0; i < 4; ++i) w[i] = queries.weights[2 * octet + i];
        } else {
          const float4 four =
              load_shared_4(weights(queries.buffer) + me.lane % 4 * kSmem.weight_run + 8 * octet);
          w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int element = 4 * (q * kOctets + 2 * pair + i / 2) + i % 2;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            sums[q][half] = __fmaf_rn(w[i], relu(accum[element + 2 * half]), sums[q][half]);
          }
        }
      }
    }
  }

  // Ends the sums across four lanes: afterwards this lane has, of key half `lane % 2`, the i-th
  // query that it stores. Two exchanges, each of which halves what is left to add.
  template <int kPart>
  __device__ __forceinline__ void meet(float (&out)[Part<kPart>::kStored],
                                       const float (&sums)[Part<kPart>::kCount][2],
                                       int lane) const {
    using P = Part<kPart>;
    const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
    float whole[P::kCount];
#pragma unroll
    for (int q = 0; q < P::kCount; ++q) {
      const float keep = odd ? sums[q][1] : sums[q][0], give = odd ? sums[q][0] : sums[q][1];
      whole[q] = __fadd_rn(keep, __shfl_sync(kEveryLane, give, lane ^ 1));
    }
#pragma unroll
    for (int i = 0; i < P::kStored; ++i) {
      const int last = min_of(2 * i + 1, P::kCount - 1);  // an odd last query stays with both
      const float keep = upper ? whole[last] : whole[2 * i];
      const float give = upper ? whole[2 * i] : whole[last];
      out[i] = __fadd_rn(keep, __shfl_sync(kEveryLane, give, lane ^ 2));
    }
  }

  // From a part's finished products to logits in memory.
  template <int kPart>
  __device__ __forceinline__ void finish(const float (&accum)[Part<kPart>::kAccum],
                                         const Queries& queries, float scale, int tile,
                                         const Thread& me) const {
    using P = Part<kPart>;
    float sums[P::kCount][2];
    sum_heads<kPart>(sums, accum, queries, me);
    float whole[P::kStored];
    meet<kPart>(whole, sums, me.lane);
    const int key = tile * kKeyTile + 16 * me.warp + me.lane / 4 + 8 * (me.lane % 2);
#pragma unroll
    for (int i = 0; i < P::kStored; ++i) {
      const int slot = P::kFirstStored + i;
      if (queries.ranges[slot].has(key)) {
        store_global(queries.out[slot] + key, __fmul_rn(scale, whole[i]));
      }
    }
  }

  // A key tile of this warpgroup on its way through.
  struct KeyTile {
    int stage;
    int index;
    float scale;  // of the key whose logits this lane stores
    Fragments keys;
  };

  // Waits for the next tile of the ring; FP4, decodes it and gives its stage back.
  __device__ __forceinline__ void prepare(KeyTile& tile, Ring<C.num_stages>& ring, int index,
                                          const Thread& me) const {
    tile.stage = ring.stage;
    tile.index = index;
    mbarrier_wait(full(ring.stage), ring.phase);
    if constexpr (C.fp4()) {
      decode(tile.keys, ring.stage, me);
      tile.scale = me.lane % 2 == 0 ? tile.keys.scales[0] : tile.keys.scales[1];
      release(ring.stage, me);
    } else {
      tile.scale = load_shared(key_scales(ring.stage) +
                               4 * (16 * me.warp + me.lane / 4 + 8 * (me.lane % 2)));
    }
    ring.advance(2);
  }

  // Starts a part's products.
  template <int kPart>
  __device__ __forceinline__ void start(float (&accum)[Part<kPart>::kAccum], KeyTile& tile,
                                        const Queries& queries) const {
    const u32 n_side = queries.n_side + (Part<kPart>::kFirst * C.heads * kStageRowBytes >> 4);
    pin(accum);
    if constexpr (C.fp4()) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) pin(tile.keys.of[s]);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        wgmma_a_in_registers(accum, tile.keys.of[s], matrix_descriptor_of(n_side + 2 * s), s > 0);
      }
    } else {
      wgmma_fence();
      const u32 m_side = matrix_descriptor_low(key_tile(0)) + tile.stage * (kSmem.key_stride >> 4);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        wgmma(accum, matrix_descriptor_of(m_side + 2 * s), matrix_descriptor_of(n_side + 2 * s),
              s > 0);
      }
    }
    wgmma_commit();
    pin(accum);
  }

  // After the wait for the last products of a tile.
  __device__ __forceinline__ void end_products(KeyTile& tile, const Thread& me) const {
    if constexpr (C.fp4()) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) pin(tile.keys.of[s]);  // in use until here
    } else {
      release(tile.stage, me);
    }
  }

  // The first part of `now` is on its way in `first`. Finishes `now`; and, if there is more, leaves
  // the first part of `next` on its way: in `first` too, or, of one part, in `second`.
  template <bool kMore, int kFirstAccum, int kSecondAccum>
  __device__ __forceinline__ void step(KeyTile& now, KeyTile& next, float (&first)[kFirstAccum],
                                       float (&second)[kSecondAccum], const Queries& queries,
                                       Ring<C.num_stages>& ring, const Thread& me) const {
    if constexpr (C.parts() == 2) {
      start<1>(second, now, queries);
      if constexpr (kMore) prepare(next, ring, now.index + 2, me);
      wgmma_wait<1>();
      pin(first);
      finish<0>(first, queries, now.scale, now.index, me);
      if constexpr (kMore) {
        start<0>(first, next, queries);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      pin(second);
      end_products(now, me);
      finish<1>(second, queries, now.scale, now.index, me);
    } else {
      if constexpr (kMore) {
        prepare(next, ring, now.index + 2, me);
        start<0>(second, next, queries);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      pin(first);
      end_products(now, me);
      finish<0>(first, queries, now.scale, now.index, me);
    }
  }

  // `count` of this warpgroup's tiles, at least one, from tile `index` on.
  __device__ __forceinline__ void score(const Queries& queries, Ring<C.num_stages>& ring, int index,
                                        int count, const Thread& me) const {
    KeyTile even, odd;
    float first[Part<0>::kAccum], second[Part<kLast>::kAccum];
    prepare(even, ring, index, me);
    start<0>(first, even, queries);
#pragma unroll 1
    for (; count > 2; count -= 2) {
      step<true>(even, odd, first, second, queries, ring, me);
      odd_step<true>(odd, even, first, second, queries, ring, me);
    }
    if (count == 2) {
      step<true>(even, odd, first, second, queries, ring, me);
      odd_step<false>(odd, even, first, second, queries, ring, me);
    } else {
      step<false>(even, odd, first, second, queries, ring, me);
    }
  }
  // Of one part, the accumulators change places with the tiles.
  template <bool kMore, int kFirstAccum, int kSecondAccum>
  __device__ __forceinline__ void odd_step(KeyTile& now, KeyTile& next, float (&first)[kFirstAccum],
                                           float (&second)[kSecondAccum], const Queries& queries,
                                           Ring<C.num_stages>& ring, const Thread& me) const {
    if constexpr (C.parts() == 2) {
      step<kMore>(now, next, first, second, queries, ring, me);
    } else {
      step<kMore>(now, next, second, first, queries, ring, me);
    }
  }

  __device__ __forceinline__ void release(int stage, const Thread& me) const {
    __syncwarp();
    if (me.lane == 0) mbarrier_arrive(empty(stage));
  }

  __device__ __forceinline__ void consume() const {
    const int thread = static_cast<int>(threadIdx.x);
    const Thread me = {warpgroup_of(thread), thread % kWarpgroup / 32, thread % 32,
                       thread % kWarpgroup};
    // This warpgroup's tiles, counted over all that the CTA does: every second one.
    Ring<C.num_stages> ring;
    ring.stage = me.warpgroup;
    int next = me.warpgroup, base = 0;
    Ring<2> q_ring;
    Queries queries;
    for (;; q_ring.advance()) {
      const int buffer = q_ring.stage;
      mbarrier_wait(q_full(buffer), q_ring.phase);
      const uint4 head = load_shared_16(item(buffer));
      const int row = static_cast<int>(head.x), first_tile = uniform(head.z),
                num_tiles = uniform(head.w);
      if (num_tiles == 0) break;
      if constexpr (C.fp4()) reorder_queries(buffer, thread);
      load(queries, buffer, row, me);
      const int count = (base + num_tiles - next + 1) / 2;
      if (count > 0) {
        score(queries, ring, first_tile + next - base, count, me);
        next += 2 * count;
      }
      base += num_tiles;
      mbarrier_arrive(q_empty(buffer));
    }
  }

  // Through a shuffle, so that the compiler knows it to be uniform over the warp.
  __device__ __forceinline__ static int uniform(u32 value) {
    return __shfl_sync(kEveryLane, static_cast<int>(value), 0);
  }
  __device__ __forceinline__ static int warpgroup_of(int thread) {
    return uniform(thread / kWarpgroup);
  }
};

template <ScoringConfig C>
__device__ __forceinline__ void run_scoring(const TensorMap& q_map, const TensorMap& key_map,
                                            const TensorMap& scale_map,
                                            const ScoringParams& params) {
  static_assert(C.valid());
  extern __shared__ __align__(1024) unsigned char dynamic_smem[];
  const ScoringKernel<C> kernel = {smem_address(dynamic_smem), params};
  const int thread = static_cast<int>(threadIdx.x);
  const int warpgroup = ScoringKernel<C>::warpgroup_of(thread);
  launch_dependents();
  if (thread == 0) kernel.init_barriers();
  wait_for_kernel_in_front();
  kernel.find_share();
  if (warpgroup == kScoringMathWarpgroups) {
    release_registers<kScoringOtherRegisters>();
    const int warp = thread % kWarpgroup / 32, lane = thread % 32;
    if (warp == 0) {
      kernel.produce(q_map, key_map, scale_map, lane);
    } else if (params.fill_outside != 0) {
      kernel.fill_outside(warp - 1, 3, lane);
    }
    __syncwarp();
  } else {
    claim_registers<kScoringMathRegisters>();
    kernel.consume();
  }
}

}  // namespace volley::gemm
