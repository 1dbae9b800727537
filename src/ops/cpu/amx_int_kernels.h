#pragma once

// Products with int8 and int4 weights on AMX-INT8. Include after simd_avx512.h, from one unit.
//
// Decoding weights into bf16 tiles cost 24 to 28 ns for 1,024 of them, as long as they take to
// arrive, and the two did not overlap. Here a panel's int8 codes are B tiles as they lie in memory,
// and int4 codes become such tiles in seven operations for 128 of them, where bf16 took twenty: 4
// bits times a step of 4 bits is a byte, so one 16-bit product scales two.
//
// Rows become int8 too, with a scale for each kBlockK of them, the largest magnitude / 127. (16
// bits as two int8 would be far below what rounding to bf16 loses, but a prompt took 1.5 times as
// long.)
//
// Order of sums: within a block of kBlockK integers, which is exact in any order; block by block in
// f32. Nothing depends on other rows.

#include "ops/cpu/kernels.h"

namespace volley::cpu {
namespace {

constexpr int64_t kIntTileBytes = 1024;
constexpr int64_t kIntGroupRows = 16;
// Of 16 rows and one block: [2 halves of k][16 rows][64].
constexpr int64_t kIntRowsBytes = 2 * kIntTileBytes;
// Of 32 columns and one block, as tiles: [2 halves of k][2 halves of the columns][16][16][4].
constexpr int64_t kIntWeightsBytes = 4 * kIntTileBytes;

inline int64_t num_int_blocks(int64_t k) {
  return (k + kBlockK - 1) / kBlockK;
}

// Packed rows: per 16 rows, their scales [blocks][16] and then their tiles, block by block.
inline int64_t int_group_bytes(int64_t k) {
  return num_int_blocks(k) * (kIntGroupRows * 4 + kIntRowsBytes);
}

// 128 floats (`count` of them, then zeros) to int8; returns their scale. Where one is infinite or
// NaN the scale is NaN.
inline float pack_int_block(const float* a, int64_t count, char* tile) {
  constexpr float kInfinity = __builtin_inff();
  F16 x[kBlockK / 16];
  __m512i largest = _mm512_setzero_si512();  // as bits, which are in the order of magnitudes
  for (int64_t i = 0; i < kBlockK / 16; ++i) {
    x[i] = load_first(a + (16 * i < count ? 16 * i : 0), count - 16 * i);
    largest = _mm512_max_epu32(
        largest, _mm512_and_si512(_mm512_castps_si512(x[i].v), _mm512_set1_epi32(0x7FFFFFFF)));
  }
  const uint32_t largest_bits = _mm512_reduce_max_epu32(largest);
  float magnitude;
  __builtin_memcpy(&magnitude, &largest_bits, 4);
  const bool is_finite = magnitude < kInfinity;
  // Far from where 127 / magnitude overflows.
  if (magnitude < 0x1p-100f) magnitude = 0x1p-100f;
  const __m512 inverse = _mm512_set1_ps(127.0f / magnitude);
  for (int64_t i = 0; i < kBlockK / 16; ++i) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x[i].v, inverse));
    _mm_store_si128(reinterpret_cast<__m128i*>(tile + i / 4 * kIntTileBytes + i % 4 * 16),
                    _mm512_cvtepi32_epi8(q));
  }
  return is_finite ? magnitude * (1.0f / 127.0f) : __builtin_nanf("");
}

void pack_int_blocks(const PackRowsTask& task) {
  const int64_t num_blocks = num_int_blocks(task.k);
  // Beyond one group tiles are whole.
  const int64_t num_rows = task.num_rows <= kIntGroupRows ? task.num_rows
                                                          : (task.num_rows + kIntGroupRows - 1) /
                                                                kIntGroupRows * kIntGroupRows;
  for (int64_t row = 0; row < num_rows; ++row) {
    char* packed =
        static_cast<char*>(task.packed_rows) + row / kIntGroupRows * int_group_bytes(task.k);
    auto* scales = reinterpret_cast<float*>(packed) + row % kIntGroupRows;
    char* tiles = packed + num_blocks * kIntGroupRows * 4 + row % kIntGroupRows * 64;
    for (int64_t block = task.block_begin; block < task.block_end; ++block) {
      const int64_t rest = row < task.num_rows ? task.k - block * kBlockK : 0;
      const float* a = rest > 0 ? task.a + row * task.a_stride + block * kBlockK : task.a;
      scales[block * kIntGroupRows] =
          pack_int_block(a, rest < kBlockK ? rest : kBlockK, tiles + block * kIntRowsBytes);
    }
  }
}

// Fetches weights into L2, some lines at a time, evenly: memory idles wherever a hundred
// nanoseconds pass without a request, and a burst fills the line fill buffers, behind which loads
// wait.
struct Fetcher {
  const char* at;

  void lines(int64_t count) {
    for (int64_t i = 0; i < count; ++i, at += 64)
      asm volatile("prefetcht1 %0" : : "m"(*at) : "memory");
  }
};
constexpr int64_t kIntFetchBytes = 16384;  // ahead of their use

// How many lines of the block to come are fetched where.
struct FetchPlan {
  int64_t per_decoded_line = 0;
  int64_t per_slot = 0;  // of 8, for each group of rows
};

// What 32 of k and 16 columns of int4 share: a byte is code * step - zero, and steps[column] holds
// the step of each run.
struct Int4Steps {
  __m512i words;  // in every 16 bits
  __m512i zeros;  // in every byte

  Int4Steps(__m512i steps, int64_t run) {
    // Byte `run` of each lane, four times.
    const __m512i pick = _mm512_add_epi8(_mm512_set1_epi8(static_cast<char>(run)),
                                         _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0));
    const __m512i all = _mm512_shuffle_epi8(steps, pick);
    const __m512i step = _mm512_and_si512(all, _mm512_set1_epi8(15));
    const __m512i eight = _mm512_slli_epi16(step, 3);
    words = _mm512_and_si512(step, _mm512_set1_epi16(15));
    zeros = _mm512_mask_sub_epi8(eight, _mm512_movepi8_mask(all), eight, step);
  }
};
// code * step of the low and the high four bits of a line.
inline __m512i low_products(__m512i codes, const Int4Steps& steps) {
  return _mm512_mullo_epi16(_mm512_and_si512(codes, _mm512_set1_epi8(15)), steps.words);
}
inline __m512i high_products(__m512i codes, const Int4Steps& steps) {
  return low_products(_mm512_srli_epi16(codes, 4), steps);
}

// The codes of one block of int4 become tiles.
inline void decode_int4_block(const char* steps, const char* codes, char* tiles,
                              const FetchPlan& plan, Fetcher& fetcher) {
  for (int64_t part = 0; part < 4; ++part) {  // [2 halves of k][2 halves of the columns]
    const __m512i column_steps = _mm512_load_si512(steps + part % 2 * 64);
    for (int64_t run = 0; run < 2; ++run) {
      const Int4Steps step(column_steps, part / 2 * 2 + run);
      for (int64_t line = 0; line < 4; ++line, codes += 64, tiles += 128) {
        fetcher.lines(plan.per_decoded_line);
        const __m512i both = _mm512_load_si512(codes);
        _mm512_store_si512(tiles, _mm512_sub_epi8(low_products(both, step), step.zeros));
        _mm512_store_si512(tiles + 64, _mm512_sub_epi8(high_products(both, step), step.zeros));
      }
    }
  }
}

// Sums of one or two groups of rows by 32 columns over one block: [groups][2 halves of the columns]
// tiles.
template <bool kTwoGroups>
inline void multiply_int_block(const char* rows, int64_t group_bytes, const char* weights,
                               int32_t* products, const FetchPlan& plan, Fetcher& fetcher) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwoGroups) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t half = 0; half < 2; ++half) {
    _tile_loadd(4, rows + half * kIntTileBytes, 64);
    fetcher.lines(plan.per_slot);
    _tile_loadd(6, weights + half * 2 * kIntTileBytes, 64);
    _tile_dpbssd(0, 4, 6);
    fetcher.lines(plan.per_slot);
    _tile_loadd(7, weights + half * 2 * kIntTileBytes + kIntTileBytes, 64);
    fetcher.lines(plan.per_slot);
    _tile_dpbssd(1, 4, 7);
    fetcher.lines(plan.per_slot);
    if constexpr (kTwoGroups) {
      _tile_loadd(5, rows + group_bytes + half * kIntTileBytes, 64);
      fetcher.lines(plan.per_slot);
      _tile_dpbssd(2, 5, 6);
      fetcher.lines(plan.per_slot);
      _tile_dpbssd(3, 5, 7);
      fetcher.lines(2 * plan.per_slot);
    }
  }
  _tile_stored(0, products, 64);
  _tile_stored(1, products + 256, 64);
  if constexpr (kTwoGroups) {
    _tile_stored(2, products + 512, 64);
    _tile_stored(3, products + 768, 64);
  }
}

// What the products left of one or two groups of rows, on its way into the f32 sums.
struct IntProducts {
  const int32_t* products;
  const float* row_scales;  // [16]; of the second group group_bytes further on
  int64_t group_bytes;
  const char* weight_scales;
  float* sums;  // [rows][32]
  int64_t num_rows = 0;
  bool is_first;

  void add_up() const {
    const F16 low = widen_bf16(reinterpret_cast<const uint16_t*>(weight_scales));
    const F16 high = widen_bf16(reinterpret_cast<const uint16_t*>(weight_scales) + 16);
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t group = r / kIntGroupRows, row = r % kIntGroupRows;
      const F16 scale = set1(row_scales[group * (group_bytes / 4) + row]);
      const auto add_columns = [&](int64_t half, F16 weight) {
        const __m512i sum_of_block =
            _mm512_load_si512(products + (2 * group + half) * 256 + row * 16);
        float* sum = sums + r * kPanelCols + half * 16;
        store(sum, volley::cpu::fma({_mm512_cvtepi32_ps(sum_of_block)}, mul(weight, scale),
                                    is_first ? volley::cpu::zero() : load(sum)));
      };
      add_columns(0, low);
      add_columns(1, high);
    }
  }
};

// ---- A few rows of int4 without tiles: codes are multiplied in the registers that they were
// scaled in, which halves the time of a block. Integers are exact, so the bits are those of tiles.
constexpr int64_t kVectorRows = 3;
constexpr int64_t kMaxVectorBlocks = 256;  // of k: larger matrices take tiles

// Sums over runs of 32 of a row's block.
inline void sum_runs(const char* row, int32_t* sums) {
  for (int64_t half = 0; half < 2; ++half) {
    const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1),
                                              _mm512_load_si512(row + half * kIntTileBytes));
    sums[2 * half] = _mm512_mask_reduce_add_epi32(0x00FF, fours);
    sums[2 * half + 1] = _mm512_mask_reduce_add_epi32(0xFF00, fours);
  }
}

// Adds up kRows rows by 32 columns over one block.
template <int kRows>
inline void multiply_int4_block(const char* rows, const int32_t* run_sums, const char* block,
                                __m512i (&sums)[kRows][2], Fetcher& fetcher) {
  const char* codes = block + block_header_bytes(WeightFormat::kInt4);
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_si512();
  fetcher.lines(3);
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t columns = 0; columns < 2; ++columns) {
      const __m512i column_steps = _mm512_load_si512(block + 64 + columns * 64);
      for (int64_t run = 0; run < 2; ++run) {
        const Int4Steps step(column_steps, half * 2 + run);
        const char* a = rows + half * kIntTileBytes + run * 32;
        for (int64_t line = 0; line < 4; ++line, codes += 64, a += 8) {
          fetcher.lines(1);
          const __m512i both = _mm512_load_si512(codes);
          const __m512i low = low_products(both, step), high = high_products(both, step);
          for (int r = 0; r < kRows; ++r) {
            int32_t quads[2];
            __builtin_memcpy(quads, a + r * 64, sizeof(quads));
            __m512i& sum = sums[r][columns];
            sum = _mm512_dpbusd_epi32(sum, low, _mm512_set1_epi32(quads[0]));
            sum = _mm512_dpbusd_epi32(sum, high, _mm512_set1_epi32(quads[1]));
          }
        }
        const __m512i zeros = _mm512_and_si512(step.zeros, _mm512_set1_epi32(0xFF));
        for (int r = 0; r < kRows; ++r) {
          const __m512i run_sum = _mm512_set1_epi32(run_sums[r * 4 + half * 2 + run]);
          sums[r][columns] = _mm512_sub_epi32(sums[r][columns], _mm512_mullo_epi32(zeros, run_sum));
        }
      }
    }
  }
}

// As int_matmul().
template <int kRows, class Finish>
inline void int4_vector_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                               ThreadScratch& scratch, Finish finish) {
  const int64_t num_blocks = num_int_blocks(task.k);
  const auto* scales = static_cast<const float*>(task.packed_rows);
  const char* rows = static_cast<const char*>(task.packed_rows) + num_blocks * kIntGroupRows * 4;
  int32_t run_sums[kMaxVectorBlocks][kRows * 4];
  for (int64_t block = 0; block < num_blocks; ++block) {
    for (int r = 0; r < kRows; ++r)
      sum_runs(rows + block * kIntRowsBytes + r * 64, run_sums[block] + r * 4);
  }
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* block = task.weights + panel * task.panel_bytes;
    F16 sums[kRows][2];
    for (auto& row : sums) row[0] = row[1] = volley::cpu::zero();
    for (int64_t i = 0; i < num_blocks; ++i, block += block_bytes(WeightFormat::kInt4)) {
      Fetcher fetcher = {block + kIntFetchBytes};
      __m512i products[kRows][2];
      multiply_int4_block<kRows>(rows + i * kIntRowsBytes, run_sums[i], block, products, fetcher);
      for (int half = 0; half < 2; ++half) {
        const F16 weight = widen_bf16(reinterpret_cast<const uint16_t*>(block) + 16 * half);
        for (int r = 0; r < kRows; ++r)
          sums[r][half] =
              volley::cpu::fma({_mm512_cvtepi32_ps(products[r][half])},
                               mul(weight, set1(scales[i * kIntGroupRows + r])), sums[r][half]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      store(scratch.sums[0] + r * kPanelCols, sums[r][0]);
      store(scratch.sums[0] + r * kPanelCols + 16, sums[r][1]);
    }
    finish(panel, scratch.sums[0]);
  }
}

// ---- Any rows.

inline FetchPlan plan_fetches(WeightFormat format, int64_t num_groups) {
  FetchPlan plan;
  plan.per_decoded_line = format == WeightFormat::kInt4;
  const int64_t lines = block_bytes(format) / 64 + 1 - 16 * plan.per_decoded_line;
  plan.per_slot = (lines + 8 * num_groups - 1) / (8 * num_groups);
  return plan;
}

// Hands the f32 sums of each panel to finish(panel, sums).
template <WeightFormat kFormat, class Finish>
inline void int_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                       ThreadScratch& scratch, Finish finish) {
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  const int64_t num_blocks = num_int_blocks(task.k);
  const int64_t num_groups = (task.num_rows + kIntGroupRows - 1) / kIntGroupRows;
  const int64_t group_bytes = int_group_bytes(task.k);
  const FetchPlan plan = plan_fetches(kFormat, num_groups);
  const auto* rows = static_cast<const char*>(task.packed_rows);
  char* decoded = reinterpret_cast<char*>(scratch.decoded);
  float* sums = scratch.sums[0];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* start = task.weights + panel * task.panel_bytes;
    IntProducts last = {.group_bytes = group_bytes, .weight_scales = start};
    int64_t turn = 0;
    Fetcher fetcher = {start + kIntFetchBytes};
    const auto decode = [&](int64_t block) {
      const char* at = start + block * block_bytes(kFormat);
      decode_int4_block(at + 64, at + block_header_bytes(kFormat),
                        decoded + block % 2 * kIntWeightsBytes, plan, fetcher);
    };
    if constexpr (kIsInt4) decode(0);
    for (int64_t block = 0; block < num_blocks; ++block) {
      const char* at = start + block * block_bytes(kFormat);
      const char* weights = kIsInt4 ? decoded + block % 2 * kIntWeightsBytes : at + 64;
      fetcher.at = at + kIntFetchBytes;
      // A block ahead: tile loads wait for the stores before them.
      if (kIsInt4 && block + 1 < num_blocks) decode(block + 1);
      for (int64_t group = 0; group < num_groups; group += 2, ++turn) {
        const char* packed = rows + group * group_bytes;
        int32_t* products = scratch.products[turn % 2];
        const char* tiles = packed + num_blocks * kIntGroupRows * 4 + block * kIntRowsBytes;
        if (group + 1 < num_groups)
          multiply_int_block<true>(tiles, group_bytes, weights, products, plan, fetcher);
        else
          multiply_int_block<false>(tiles, 0, weights, products, plan, fetcher);
        last.add_up();  // while the tiles are busy
        const int64_t rest = task.num_rows - group * kIntGroupRows;
        last.products = products;
        last.row_scales = reinterpret_cast<const float*>(packed) + block * kIntGroupRows;
        last.weight_scales = at;
        last.sums = sums + group * kIntGroupRows * kPanelCols;
        last.num_rows = rest < 2 * kIntGroupRows ? rest : 2 * kIntGroupRows;
        last.is_first = block == 0;
      }
    }
    last.add_up();
    finish(panel, sums);
  }
}

// Many rows. Some blocks of a panel stay in L1 while all rows pass by, and the sums of 32 rows
// while the blocks do: with one block at a time, sums moved between L1 and L2 as much as everything
// else.
constexpr int64_t kIntStretch = 4;
static_assert(sizeof(ThreadScratch::decoded) >= kIntStretch * kIntWeightsBytes);

// Leaves the sums of some panels in scratch.sums, and calls finish(the first, how many).
template <WeightFormat kFormat, class Finish>
inline void int_matmul_many(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                            ThreadScratch& scratch, Finish finish) {
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  const int64_t num_blocks = num_int_blocks(task.k);
  const int64_t num_groups = (task.num_rows + kIntGroupRows - 1) / kIntGroupRows;
  const int64_t group_bytes = int_group_bytes(task.k);
  const auto* rows = static_cast<const char*>(task.packed_rows);
  char* decoded = reinterpret_cast<char*>(scratch.decoded);
  const int64_t lines = block_bytes(kFormat) / 64 + 1;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* start = task.weights + panel * task.panel_bytes;
    IntProducts last = {.group_bytes = group_bytes, .weight_scales = start};
    const int64_t place = (panel - panel_begin) % kScratchPanels;
    float* sums = scratch.sums[place];
    int64_t turn = 0;
    for (int64_t first = 0; first < num_blocks; first += kIntStretch) {
      const int64_t count = num_blocks - first < kIntStretch ? num_blocks - first : kIntStretch;
      const char* stretch = start + first * block_bytes(kFormat);
      Fetcher fetcher = {stretch + count * block_bytes(kFormat)};
      const FetchPlan fetch_nothing;
      if constexpr (kIsInt4) {
        for (int64_t i = 0; i < count; ++i) {
          const char* at = stretch + i * block_bytes(kFormat);
          decode_int4_block(at + 64, at + block_header_bytes(kFormat),
                            decoded + i * kIntWeightsBytes, fetch_nothing, fetcher);
        }
      }
      for (int64_t group = 0; group < num_groups; group += 2) {
        const char* packed = rows + group * group_bytes;
        const char* tiles = packed + num_blocks * kIntGroupRows * 4 + first * kIntRowsBytes;
        const int64_t rest = task.num_rows - group * kIntGroupRows;
        // A line for each of eight slots until all of the next stretch is under way.
        const FetchPlan plan = {.per_slot = group / 2 * 8 < lines};
        for (int64_t i = 0; i < count; ++i, ++turn) {
          const char* at = stretch + i * block_bytes(kFormat);
          const char* weights = kIsInt4 ? decoded + i * kIntWeightsBytes : at + 64;
          int32_t* products = scratch.products[turn % 2];
          if (group + 1 < num_groups)
            multiply_int_block<true>(tiles + i * kIntRowsBytes, group_bytes, weights, products,
                                     plan, fetcher);
          else
            multiply_int_block<false>(tiles + i * kIntRowsBytes, 0, weights, products, plan,
                                      fetcher);
          last.add_up();  // while the tiles are busy
          last.products = products;
          last.row_scales = reinterpret_cast<const float*>(packed) + (first + i) * kIntGroupRows;
          last.weight_scales = at;
          last.sums = sums + group * kIntGroupRows * kPanelCols;
          last.num_rows = rest < 2 * kIntGroupRows ? rest : 2 * kIntGroupRows;
          last.is_first = first + i == 0;
        }
      }
    }
    last.add_up();
    if (place + 1 == kScratchPanels || panel + 1 == panel_end) finish(panel - place, place + 1);
  }
}

}  // namespace
}  // namespace volley::cpu
