#pragma once

// Products with int8 and int4 weights on AMX-INT8. Include after simd_avx512.h, from one unit.
//
// Decoding weights into bf16 tiles cost 24 to 28 ns for 1,024 of them, as long as they take to
// arrive, and the two did not overlap. Here a panel's int8 codes are B tiles as they lie in memory,
// and int4 codes become such tiles in six operations for 128 of them (a quarter of what bf16
// took): 4 bits times a step of 4 bits is a byte, so one 16-bit product scales two.
//
// Rows become int8 too, with a scale for each kBlockK of them, the largest magnitude / 127. (16
// bits as two int8 would be far below what rounding to bf16 loses, at twice the products and sums:
// 16 rows of int8 then cost 1.3 times one, and a prompt 1.9 times as long.)
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

inline void pack_int_rows(const PackRowsTask& task, int64_t group_begin, int64_t group_end) {
  const int64_t num_blocks = num_int_blocks(task.k);
  for (int64_t group = group_begin; group < group_end; ++group) {
    char* packed = static_cast<char*>(task.packed_rows) + group * int_group_bytes(task.k);
    auto* scales = reinterpret_cast<float*>(packed);
    char* tiles = packed + num_blocks * kIntGroupRows * 4;
    for (int64_t r = 0; r < kIntGroupRows; ++r) {
      const int64_t row = group * kIntGroupRows + r;
      if (row >= task.num_rows && task.num_rows <= kIntGroupRows) break;  // short tiles
      for (int64_t block = 0; block < num_blocks; ++block) {
        const float* a = task.a + row * task.a_stride + block * kBlockK;
        const int64_t rest = row < task.num_rows ? task.k - block * kBlockK : 0;
        scales[block * kIntGroupRows + r] =
            pack_int_block(rest > 0 ? a : task.a, rest < kBlockK ? rest : kBlockK,
                           tiles + block * kIntRowsBytes + r * 64);
      }
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
  int64_t per_product = 0;  // of 4, for each group of rows
};

// The codes of one block of int4 become tiles. 32 of k and 16 columns share the steps of a column:
// a byte is code * step - zero.
inline void decode_int4_block(const char* steps, const char* codes, char* tiles,
                              const FetchPlan& plan, Fetcher& fetcher) {
  const __m512i nibbles = _mm512_set1_epi8(15);
  for (int64_t part = 0; part < 4; ++part) {  // [2 halves of k][2 halves of the columns]
    const __m512i column_steps = _mm512_load_si512(steps + part % 2 * 64);
    for (int64_t run = 0; run < 2; ++run) {
      // Byte 2 * (part / 2) + run of each lane, four times.
      const int byte = static_cast<int>(part / 2 * 2 + run);
      const __m512i pick =
          _mm512_add_epi8(_mm512_set1_epi8(static_cast<char>(byte)),
                          _mm512_set_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0, 0x0C0C0C0C,
                                           0x08080808, 0x04040404, 0, 0x0C0C0C0C, 0x08080808,
                                           0x04040404, 0, 0x0C0C0C0C, 0x08080808, 0x04040404, 0));
      const __m512i all = _mm512_shuffle_epi8(column_steps, pick);
      const __m512i step = _mm512_and_si512(all, nibbles);
      const __m512i eight = _mm512_slli_epi16(step, 3);
      const __m512i zero = _mm512_mask_sub_epi8(eight, _mm512_movepi8_mask(all), eight, step);
      const __m512i word_step = _mm512_and_si512(step, _mm512_set1_epi16(15));
      for (int64_t line = 0; line < 4; ++line, codes += 64, tiles += 128) {
        fetcher.lines(plan.per_decoded_line);
        const __m512i both = _mm512_load_si512(codes);
        const __m512i low = _mm512_and_si512(both, nibbles);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibbles);
        _mm512_store_si512(tiles, _mm512_sub_epi8(_mm512_mullo_epi16(low, word_step), zero));
        _mm512_store_si512(tiles + 64, _mm512_sub_epi8(_mm512_mullo_epi16(high, word_step), zero));
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
    _tile_loadd(6, weights + half * 2 * kIntTileBytes, 64);
    _tile_dpbssd(0, 4, 6);
    fetcher.lines(plan.per_product);
    _tile_loadd(7, weights + half * 2 * kIntTileBytes + kIntTileBytes, 64);
    _tile_dpbssd(1, 4, 7);
    fetcher.lines(plan.per_product);
    if constexpr (kTwoGroups) {
      _tile_loadd(5, rows + group_bytes + half * kIntTileBytes, 64);
      _tile_dpbssd(2, 5, 6);
      fetcher.lines(plan.per_product);
      _tile_dpbssd(3, 5, 7);
      fetcher.lines(plan.per_product);
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

inline FetchPlan plan_fetches(WeightFormat format, int64_t num_groups) {
  FetchPlan plan;
  plan.per_decoded_line = format == WeightFormat::kInt4;
  const int64_t lines = block_bytes(format) / 64 + 1 - 16 * plan.per_decoded_line;
  plan.per_product = (lines + 4 * num_groups - 1) / (4 * num_groups);
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

}  // namespace
}  // namespace volley::cpu
