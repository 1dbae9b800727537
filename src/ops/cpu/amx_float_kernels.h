#pragma once

// Products with bf16 and fp8 weights on AMX-BF16, and what becomes of the sums of every format.
// Include after simd_avx512.h, from one unit.
//
// Order of sums: TDPBF16PS adds pairs of k in order within a tile, tiles in order of k, into one
// f32 sum that never leaves the tile. Rows of A do not meet, so a row's bits are the same alone and
// among many.

#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/quant_kernels.h"
#include "ops/cpu/row_kernels.h"

namespace volley::cpu {
namespace {

// See "FP8 weights become bf16 tiles" below.
constexpr int kRowExponent = 64;
constexpr float kRowFactor = 0x1p64f;
constexpr float kSumFactor = 0x1p48f;
static_assert(112 - kRowExponent == 48);

// Packed rows: per 16 rows, A tiles in order of k.
inline int64_t float_group_bytes(int64_t k) {
  return (k + kTileK - 1) / kTileK * kTileSize * 2;
}

void amx_pack_rows(const PackRowsTask& task, int64_t group_begin, int64_t group_end) {
  const int64_t num_steps = (task.k + kTileK - 1) / kTileK;
  const F16 factor = set1(task.format == WeightFormat::kFp8 ? kRowFactor : 1.0f);
  for (int64_t group = group_begin; group < group_end; ++group) {
    uint16_t* tiles = static_cast<uint16_t*>(task.packed_rows) + group * num_steps * kTileSize;
    for (int64_t r = 0; r < kTileRows; ++r) {
      const int64_t row = group * kTileRows + r;
      if (row >= task.num_rows) {
        // Whole tiles are multiplied only beyond two groups.
        if (task.num_rows <= 2 * kTileRows) break;
        for (int64_t step = 0; step < num_steps; ++step)
          _mm512_storeu_si512(tiles + step * kTileSize + r * kTileK, _mm512_setzero_si512());
        continue;
      }
      const float* a = task.a + (row - task.a_row) * task.a_stride;
      for (int64_t step = 0; step < num_steps; ++step) {
        const int64_t rest = task.k - step * kTileK;
        const F16 low = load_upto(a + step * kTileK, rest < 16 ? rest : 16);
        const F16 high =
            rest > 16 ? load_upto(a + step * kTileK + 16, rest < 32 ? rest - 16 : 16) : zero();
        auto* out = reinterpret_cast<__m256i*>(tiles + step * kTileSize + r * kTileK);
        _mm256_storeu_si256(out, to_bf16(mul(low, factor)));
        _mm256_storeu_si256(out + 1, to_bf16(mul(high, factor)));
      }
    }
  }
}

// As amx_pack_rows() would have it of the same values in f32.
inline void store_packed(const MatmulTask& task, int64_t row, int64_t c, F16 x) {
  const int64_t num_steps = (task.n + kTileK - 1) / kTileK;
  auto* line = static_cast<uint16_t*>(task.packed_out) +
               (row / kTileRows * num_steps + c / kTileK) * kTileSize + row % kTileRows * kTileK;
  const float factor = task.packed_format == WeightFormat::kFp8 ? kRowFactor : 1.0f;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + c % kTileK), to_bf16(mul(x, set1(factor))));
  const bool is_half = c % kTileK == 0 && c + 16 >= task.n;
  if (is_half) _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + 16), _mm256_setzero_si256());
  if (row + 1 < task.num_rows || task.out_rows <= 2 * kTileRows) return;
  // Whole tiles will be multiplied: nothing below the last row.
  for (int64_t r = row % kTileRows + 1; r < kTileRows; ++r) {
    line += kTileK;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + c % kTileK), _mm256_setzero_si256());
    if (is_half) _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + 16), _mm256_setzero_si256());
  }
}

// Weights are fetched into L2 this far ahead of their use. Within a huge page the hardware does as
// well; this carries over page boundaries and small pages.
constexpr int64_t kPrefetchBytes = 16384;

inline void prefetch_lines(const char* weights, int64_t num_lines) {
  for (int64_t line = 0; line < num_lines; ++line)
    _mm_prefetch(weights + line * kLine, _MM_HINT_T1);
}
inline void prefetch_step(const uint16_t* weights) {
  prefetch_lines(reinterpret_cast<const char*>(weights) + kPrefetchBytes, 32);
}

// ---- FP8 weights become bf16 tiles in a buffer that stays in L1.
//
// Decoding has to cost less than the 70 ns that the codes of a step take to arrive. Codes become
// f16, 32 at a time, and a f16 a bf16 by moving its bits three places and cutting out the copies of
// its sign: exponent and mantissa are then those of a bf16 2^112 times smaller. Rows are packed
// 2^64 times larger, which keeps products far from underflow, and the end of the panel multiplies
// by the rest. (Through f32 decoding took 56 ns a step instead of 25, more than the products.)
inline __m512i as_words(__m512h x) {
  return _mm512_castph_si512(x);
}
inline __m512h as_halves(__m512i x) {
  return _mm512_castsi512_ph(x);
}

// f16 to bf16 times 2^-112, to nearest, halves away from zero; denormals count as zero.
inline __m512i small_bf16(__m512h x) {
  // (x + 4) >> 3
  const __m512i moved = _mm512_mulhrs_epi16(as_words(x), _mm512_set1_epi16(1 << 12));
  return _mm512_and_si512(moved, _mm512_set1_epi16(int16_t(0x8FFF)));
}

// Pair kPair of k (of 2 that share a line) of 16 columns.
template <int kPair>
inline __m512i decode_fp8_pair(__m512i codes, __m512h scale) {
  // Exponent and mantissa of e4m3 are those of a f16 2^8 times smaller.
  const __m512i top = kPair == 0 ? _mm512_slli_epi16(codes, 8) : codes;
  const __m512i x = _mm512_and_si512(_mm512_srai_epi16(top, 1), _mm512_set1_epi16(int16_t(0xBF80)));
  return small_bf16(_mm512_mul_ph(as_halves(x), scale));
}

inline float panel_factor(const char* panel) {
  float factor;
  __builtin_memcpy(&factor, panel, sizeof(factor));
  return factor;
}

// Walks over the steps of one panel of fp8. With kFetches, what is read kPrefetchBytes later is on
// its way. Weights come without the panel's factor, and 2^-112 times as large.
template <bool kFetches>
class PanelDecoder {
 public:
  // `step` is a multiple of steps_per_group().
  PanelDecoder(const char* panel, int64_t step)
      : at_(panel + step_offset(WeightFormat::kFp8, step)),
        to_half_(set1(256.0f / panel_factor(panel))) {}

  // The next step's two B tiles.
  void next(uint16_t* tiles) {
    if (step_++ % steps_per_group(WeightFormat::kFp8) == 0) {
      if (kFetches) prefetch_lines(at_ + kPrefetchBytes, scales_bytes(WeightFormat::kFp8) / kLine);
      low_ = load_scales(0);
      high_ = load_scales(1);
      at_ += scales_bytes(WeightFormat::kFp8);
    }
    decode_half(at_, low_, tiles);
    decode_half(at_ + kLine, high_, tiles + kTileSize);
    at_ += step_bytes(WeightFormat::kFp8);
  }

 private:
  // Of 16 columns, each twice: for the two k of a pair.
  __m512h load_scales(int half) const {
    const F16 scales = mul(load(reinterpret_cast<const float*>(at_) + 16 * half), to_half_);
    const __m512i wide =
        _mm512_cvtepu16_epi32(_mm512_cvtps_ph(scales.v, _MM_FROUND_TO_NEAREST_INT));
    return as_halves(_mm512_or_si512(wide, _mm512_slli_epi32(wide, 16)));
  }

  // Fetches what it will read some steps later, a line at a time: a burst would fill the line fill
  // buffers, and loads wait behind them.
  static void decode_half(const char* codes, __m512h scale, uint16_t* tile) {
    for (int64_t i = 0; i < kTileK / 4; ++i, codes += 2 * kLine, tile += 2 * kTileK) {
      if (kFetches) prefetch_here(codes + kPrefetchBytes);
      const __m512i lanes = load_codes(codes).v;
      _mm512_store_si512(tile, decode_fp8_pair<0>(lanes, scale));
      _mm512_store_si512(tile + kTileK, decode_fp8_pair<1>(lanes, scale));
    }
  }

  const char* at_;
  int64_t step_ = 0;
  F16 to_half_;
  __m512h low_, high_;
};

constexpr int64_t kSumsStride = kPanelCols * 4;  // bytes; sums are [rows][32] f32
template <bool kTwoGroups>
inline void load_sums(const float* sums) {
  _tile_loadd(0, sums, kSumsStride);
  _tile_loadd(1, sums + 16, kSumsStride);
  if constexpr (kTwoGroups) {
    _tile_loadd(2, sums + kTileRows * kPanelCols, kSumsStride);
    _tile_loadd(3, sums + kTileRows * kPanelCols + 16, kSumsStride);
  }
}

template <bool kTwoGroups>
inline void store_sums(float* sums) {
  _tile_stored(0, sums, kSumsStride);
  _tile_stored(1, sums + 16, kSumsStride);
  if constexpr (kTwoGroups) {
    _tile_stored(2, sums + kTileRows * kPanelCols, kSumsStride);
    _tile_stored(3, sums + kTileRows * kPanelCols + 16, kSumsStride);
  }
}

// What the sums of a panel are multiplied by.
inline F16 sum_factor(const MatmulTask& task, int64_t panel) {
  if (task.format != WeightFormat::kFp8) return set1(1.0f);
  return set1(panel_factor(task.weights + panel * task.panel_bytes) * kSumFactor);
}

// Hands on the sums of all rows. Memory would idle meanwhile, so with kFetches it fetches what the
// first step from `next` on would: without this, 16 rows took 0.3 us longer for each panel than
// one.
template <bool kFetches>
inline void finish_panel(const MatmulTask& task, int64_t panel, const float* sums, const char* next,
                         ThreadScratch& scratch) {
  const F16 factor = sum_factor(task, panel);
  ArgmaxState* best = scratch.best + task.first_row;
  const int64_t lines_per_row = (32 + task.num_rows - 1) / task.num_rows;
  with_epilogue(task, [&]<Epilogue kEpilogue>() {
    for (int64_t row = 0; row < task.num_rows; ++row, sums += kPanelCols) {
      if constexpr (kFetches)
        prefetch_lines(next + kPrefetchBytes + row * lines_per_row * kLine, lines_per_row);
      finish_row<kEpilogue>(task, row, panel, mul(load(sums), factor), mul(load(sums + 16), factor),
                            best);
    }
  });
}

// The same for neighbouring panels of many rows, row by row: the columns of a row lie together, and
// those of the next row pages away.
inline void finish_panels(const MatmulTask& task, int64_t panel, int64_t num_panels,
                          ThreadScratch& scratch) {
  F16 factors[kScratchPanels];
  for (int64_t i = 0; i < num_panels; ++i) factors[i] = sum_factor(task, panel + i);
  ArgmaxState* best = scratch.best + task.first_row;
  with_epilogue(task, [&]<Epilogue kEpilogue>() {
    for (int64_t row = 0; row < task.num_rows; ++row) {
      for (int64_t i = 0; i < num_panels; ++i) {
        const float* sums = scratch.sums[i] + row * kPanelCols;
        finish_row<kEpilogue>(task, row, panel + i, mul(load(sums), factors[i]),
                              mul(load(sums + 16), factors[i]), best);
      }
    }
  });
}

// One step of k: 32 columns of weights times one or two groups of rows.
template <bool kTwoGroups>
inline void multiply_step(const uint16_t* a, int64_t group_size, const uint16_t* w) {
  _tile_loadd(4, a, kLine);
  _tile_loadd(6, w, kLine);
  _tile_loadd(7, w + kTileSize, kLine);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kTwoGroups) {
    _tile_loadd(5, a + group_size, kLine);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// A panel times at most 32 rows, straight from memory.
template <bool kTwoGroups>
inline void stream_panel(const uint16_t* a, int64_t group_size, const uint16_t* w,
                         int64_t num_steps, float* sums) {
  zero_sums<kTwoGroups>();
  for (int64_t step = 0; step < num_steps; ++step, a += kTileSize, w += 2 * kTileSize) {
    if (step > 0) prefetch_step(w);
    multiply_step<kTwoGroups>(a, group_size, w);
  }
  store_sums<kTwoGroups>(sums);
}

// The same for one group, with the tiles of two steps in registers at once: the processor does not
// rename tiles deeply enough to load the next ones during a full product. (Measured on 16 rows:
// 1.07 of one row instead of 1.14; for few rows the plain loop is 5% faster.) Tiles 2 and 3 are B.
inline void stream_panel_double(const uint16_t* a, const uint16_t* w, int64_t num_steps,
                                float* sums) {
  zero_sums<false>();
  int64_t step = 0;
  for (; step + 2 <= num_steps; step += 2, a += 2 * kTileSize, w += 4 * kTileSize) {
    if (step > 0) prefetch_step(w);
    _tile_loadd(4, a, kLine);
    _tile_loadd(6, w, kLine);
    _tile_loadd(7, w + kTileSize, kLine);
    _tile_loadd(5, a + kTileSize, kLine);
    _tile_loadd(2, w + 2 * kTileSize, kLine);
    _tile_loadd(3, w + 3 * kTileSize, kLine);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    prefetch_step(w + 2 * kTileSize);
    _tile_dpbf16ps(0, 5, 2);
    _tile_dpbf16ps(1, 5, 3);
  }
  if (step < num_steps) multiply_step<false>(a, 0, w);
  store_sums<false>(sums);
}

// A panel of fp8 times at most 32 rows. Products and decoding hardly overlap, however far apart
// they stand: tile loads seem to wait for every store before them. Turns of two steps are best.
template <bool kTwoGroups>
inline void stream_coded_panel(const uint16_t* a, int64_t group_size, const char* w,
                               int64_t num_steps, uint16_t* decoded, float* sums) {
  constexpr int64_t kTurn = 2;
  PanelDecoder<true> decoder(w, 0);
  const auto turn = [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) decoder.next(decoded + i * 2 * kTileSize);
    for (int64_t i = 0; i < count; ++i, a += kTileSize)
      multiply_step<kTwoGroups>(a, group_size, decoded + i * 2 * kTileSize);
  };
  zero_sums<kTwoGroups>();
  int64_t step = 0;
  for (; step + kTurn <= num_steps; step += kTurn) turn(kTurn);
  if (step < num_steps) turn(num_steps - step);
  store_sums<kTwoGroups>(sums);
}

// Fewer rows than this take the plain loop.
constexpr int64_t kDoubleRows = 5;

template <WeightFormat kFormat>
void amx_matmul_few(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                    ThreadScratch& scratch) {
  const int64_t num_steps = (task.k + kTileK - 1) / kTileK;
  const auto* a = static_cast<const uint16_t*>(task.packed_rows);
  const int64_t group_size = num_steps * kTileSize;
  const bool one_group = task.num_rows <= kTileRows;
  const bool doubled = one_group && task.num_rows >= kDoubleRows;
  const TileScope tiles = one_group ? TileScope::one_group(task.num_rows)
                                    : TileScope::two_groups(task.num_rows - kTileRows);
  float* sums = scratch.sums[0];
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* bytes = task.weights + panel * task.panel_bytes;
    if constexpr (kFormat == WeightFormat::kBf16) {
      const auto* w = reinterpret_cast<const uint16_t*>(bytes);
      if (doubled) {
        stream_panel_double(a, w, num_steps, sums);
      } else if (one_group) {
        stream_panel<false>(a, 0, w, num_steps, sums);
      } else {
        stream_panel<true>(a, group_size, w, num_steps, sums);
      }
    } else if (one_group) {
      stream_coded_panel<false>(a, 0, bytes, num_steps, scratch.decoded, sums);
    } else {
      stream_coded_panel<true>(a, group_size, bytes, num_steps, scratch.decoded, sums);
    }
    finish_panel<true>(task, panel, sums, bytes + task.panel_bytes, scratch);
  }
}

// Many rows. The loops, from the outside: some panels; a stretch of k; a panel; pairs of groups of
// rows; steps. A stretch of one panel stays in L1 while all rows pass by, the rows' own stretch in
// L2 while the panels do. (Longer stretches, which leave L1, took 1.4 times as long.) Sums wait in
// memory between stretches, which does not change them. Meanwhile memory is busy with what comes
// next: the next stretch of weights, and the outputs, which other threads have read since.
constexpr int64_t kStretch = 8;  // steps of k: 16 KiB of a panel, beside as much of the rows in L1

static_assert(kStretch <= kScratchSteps && kStretch % steps_per_group(WeightFormat::kFp8) == 0);

inline void prefetch_to_write(const float* line) {
  asm volatile("prefetchw %0" : : "m"(*line) : "memory");
}

// What to fetch while rows are multiplied, some of it at each step.
struct Ahead {
  const char* weights = nullptr;
  int64_t weight_lines = 0;
  float* out = nullptr;  // columns of a panel in some rows, or null
  int64_t out_stride = 0;
  int64_t out_rows = 0;

  void fetch(int64_t step) const {
    prefetch_lines(weights + step * weight_lines * kLine, weight_lines);
    if (out == nullptr) return;
    for (int64_t i = step * out_rows; i < (step + 1) * out_rows; ++i) {
      prefetch_to_write(out + i * out_stride);
      prefetch_to_write(out + i * out_stride + 16);
    }
  }
};

template <bool kTwoGroups>
inline void multiply_stretch(const uint16_t* a, int64_t group_size, const uint16_t* w,
                             int64_t num_steps, bool is_first, const Ahead& ahead, float* sums) {
  is_first ? zero_sums<kTwoGroups>() : load_sums<kTwoGroups>(sums);
  for (int64_t step = 0; step < num_steps; ++step) {
    ahead.fetch(step);
    multiply_step<kTwoGroups>(a + step * kTileSize, group_size, w + step * 2 * kTileSize);
  }
  store_sums<kTwoGroups>(sums);
}

// All rows times steps [step, step + num_steps) of one panel, as bf16 tiles in `w`. Fetches as many
// steps from `next` on.
inline void multiply_rows(const MatmulTask& task, int64_t panel, const uint16_t* w, int64_t step,
                          int64_t num_steps, const char* next, float* sums) {
  const int64_t all_steps = (task.k + kTileK - 1) / kTileK;
  const int64_t group_size = all_steps * kTileSize;
  const int64_t num_pairs = (task.num_rows + 2 * kTileRows - 1) / (2 * kTileRows);
  const int64_t lines = step_bytes(task.format) / kLine + 1;
  Ahead ahead = {.weights = next, .weight_lines = (lines + num_pairs - 1) / num_pairs};
  if (step + num_steps == all_steps && task.out != nullptr) {
    ahead.out = task.out + panel * (task.epilogue == Epilogue::kSwiglu ? kGateCols : kPanelCols);
    ahead.out_stride = task.out_stride;
    ahead.out_rows = (2 * kTileRows + num_steps - 1) / num_steps;
  }
  const auto* a = static_cast<const uint16_t*>(task.packed_rows) + step * kTileSize;
  for (int64_t row = 0; row < task.num_rows; row += 2 * kTileRows) {
    if (task.num_rows - row > kTileRows)
      multiply_stretch<true>(a, group_size, w, num_steps, step == 0, ahead, sums);
    else
      multiply_stretch<false>(a, group_size, w, num_steps, step == 0, ahead, sums);
    a += 2 * group_size;
    ahead.weights += num_steps * ahead.weight_lines * kLine;
    if (ahead.out != nullptr) ahead.out += 2 * kTileRows * task.out_stride;
    sums += 2 * kTileRows * kPanelCols;
  }
}

template <WeightFormat kFormat>
void amx_matmul_many(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                     ThreadScratch& scratch) {
  const int64_t num_steps = (task.k + kTileK - 1) / kTileK;
  const TileScope tiles = TileScope::two_groups(kTileRows);
  for (int64_t panel = panel_begin; panel < panel_end; panel += kScratchPanels) {
    const int64_t num_panels =
        panel_end - panel < kScratchPanels ? panel_end - panel : kScratchPanels;
    const char* weights = task.weights + panel * task.panel_bytes;
    for (int64_t step = 0; step < num_steps; step += kStretch) {
      const int64_t end = step + kStretch < num_steps ? step + kStretch : num_steps;
      for (int64_t i = 0; i < num_panels; ++i) {
        const char* bytes = weights + i * task.panel_bytes + step_offset(kFormat, step);
        const char* next = i + 1 < num_panels ? bytes + task.panel_bytes
                           : end < num_steps  ? weights + step_offset(kFormat, end)
                                              : weights + num_panels * task.panel_bytes;
        const auto* w = reinterpret_cast<const uint16_t*>(bytes);
        if constexpr (kFormat != WeightFormat::kBf16) {
          PanelDecoder<false> decoder(weights + i * task.panel_bytes, step);
          for (int64_t j = 0; j < end - step; ++j)
            decoder.next(scratch.decoded + j * 2 * kTileSize);
          w = scratch.decoded;
        }
        multiply_rows(task, panel + i, w, step, end - step, next, scratch.sums[i]);
      }
    }
    finish_panels(task, panel, num_panels, scratch);
  }
}
}  // namespace
}  // namespace volley::cpu
