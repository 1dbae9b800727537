// The AMX bf16 unit.
//
// A tile product C[16, 16] += A[16, 32] B[32, 16] takes 16 cycles whatever it multiplies, and
// decoding waits for weights to come from memory: 1 KiB of B at 8 bytes a cycle is 128 cycles. So
// up to 32 rows of A ride along with one, which is what makes verifying a drafted block nearly
// free.
//
// Order of sums. Matmul: TDPBF16PS adds pairs of k in order within a tile, tiles in order of k,
// into one f32 sum that never leaves the tile. Rows of A do not meet, so a row's bits are the same
// alone and among many. Scores likewise over head_dim. Values: tiles of 32 keys in order, within
// chunks of kKeyChunk absolute positions, upon the rescaled sum of the chunks before. A masked key
// has weight zero, and adding zeros is exact.

#include "ops/cpu/simd_avx512.h"
// after simd
#include "ops/cpu/amx_int_kernels.h"
#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/quant_kernels.h"
#include "ops/cpu/row_kernels.h"

namespace volley::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileK = 32;
constexpr int64_t kTileSize = kTileRows * kTileK;  // elements of an A or a B tile
constexpr int64_t kLine = 64;                      // bytes of a tile row

// Configures the tiles while it lives. Sums and A tiles have as many rows as there are.
class TileScope {
 public:
  // Tiles 0-1 are sums, 4-5 are A, 2-3 and 6-7 are B.
  static TileScope one_group(int64_t rows) {
    return TileScope(Rows{{rows, rows, kTileRows, kTileRows, rows, rows, kTileRows, kTileRows}});
  }
  // Tiles 0-3 are sums, 4-5 are A, 6-7 are B. Tiles 2, 3 and 5 belong to the second group.
  static TileScope two_groups(int64_t second) {
    return TileScope(
        Rows{{kTileRows, kTileRows, second, second, kTileRows, second, kTileRows, kTileRows}});
  }
  // Tiles 0-3 are sums, 4-5 are A, 6-7 are B.
  static TileScope four_sums(int64_t rows) {
    return TileScope(Rows{{rows, rows, rows, rows, rows, rows, kTileRows, kTileRows}});
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  struct Rows {
    int64_t of_tile[8];
  };
  explicit TileScope(const Rows& rows) {
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t column_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.column_bytes[i] = kLine;
      config.rows[i] = static_cast<uint8_t>(rows.of_tile[i]);
    }
    // GCC 12 believes that the instruction reads only the first bytes of it.
    asm volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
};

inline __m256i to_bf16(F16 x) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
}

// ---- Matmul.

// See "FP8 weights" below.
constexpr int kRowExponent = 64;
constexpr float kRowFactor = 0x1p64f;
constexpr float kSumFactor = 0x1p48f;
static_assert(112 - kRowExponent == 48);

// Packed rows: per 16 rows, A tiles in order of k.
int64_t amx_group_bytes(WeightFormat format, int64_t k) {
  if (has_blocks(format)) return int_group_bytes(k);
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
// One line, at this place of the code: the compiler gathers _mm_prefetch into bursts.
inline void prefetch_here(const char* line) {
  asm volatile("prefetcht1 %0" : : "m"(*line) : "memory");
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
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwoGroups) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

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

// Hands on the sums of all rows. Memory would idle meanwhile, so it fetches what the first step
// from `next` on would: without this, 16 rows took 0.3 us longer for each panel than one.
inline void finish_panel(const MatmulTask& task, int64_t panel, const float* sums, const char* next,
                         ThreadScratch& scratch) {
  const F16 factor = sum_factor(task, panel);
  ArgmaxState* best = scratch.best + task.first_row;
  const int64_t lines_per_row = next != nullptr ? (32 + task.num_rows - 1) / task.num_rows : 0;
  with_epilogue(task, [&]<Epilogue kEpilogue>() {
    for (int64_t row = 0; row < task.num_rows; ++row, sums += kPanelCols) {
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
    finish_panel(task, panel, sums, bytes + task.panel_bytes, scratch);
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

void amx_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                ThreadScratch& scratch) {
  with_format(task, [&]<WeightFormat kFormat>() {
    if constexpr (has_blocks(kFormat)) {
      const auto finish = [&](int64_t panel, const float* sums) {
        finish_panel(task, panel, sums, nullptr, scratch);
      };
      if constexpr (kFormat == WeightFormat::kInt4) {
        if (task.num_rows == 1 && num_int_blocks(task.k) <= kMaxVectorBlocks)
          return int4_vector_matmul(task, panel_begin, panel_end, scratch, finish);
      }
      if (task.num_rows <= kIntGroupRows) {
        const TileScope tiles = TileScope::one_group(task.num_rows);
        return int_matmul<kFormat, false>(task, panel_begin, panel_end, scratch, finish);
      }
      if (task.num_rows <= 2 * kIntGroupRows) {
        const TileScope tiles = TileScope::four_sums(kIntGroupRows);
        return int_matmul<kFormat, true>(task, panel_begin, panel_end, scratch, finish);
      }
      const TileScope tiles = TileScope::four_sums(kIntGroupRows);
      return int_matmul_many<kFormat>(task, panel_begin, panel_end, scratch,
                                      [&](int64_t panel, int64_t num_panels) {
                                        finish_panels(task, panel, num_panels, scratch);
                                      });
    }
    task.num_rows <= 2 * kTileRows
        ? amx_matmul_few<kFormat>(task, panel_begin, panel_end, scratch)
        : amx_matmul_many<kFormat>(task, panel_begin, panel_end, scratch);
  });
}

int64_t amx_multiply_registers(int64_t count) {
  const TileScope tiles = TileScope::two_groups(kTileRows);
  for (int64_t round = 0; round < count; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return count * 4 * 2 * kTileRows * kTileRows * kTileK;
}

// ---- KV cache and attention.

static_assert(kKeyRun == kTileK);  // a run of keys is one step of the values' sum

inline int32_t padded_dim(int32_t head_dim) {
  return (head_dim + 31) / 32 * 32;
}

void amx_rope_and_store(const RopeStoreTask& task, const RopeShare& share) {
  const int32_t d = task.kv.head_dim;
  rope_rows(task, share, [&](char* head, int32_t slot, const float* key, const float* value) {
    // Keys: pair (2i, 2i + 1) of head_dim is one 32-bit element of column slot % 16.
    auto* keys =
        reinterpret_cast<uint32_t*>(head) + slot / 16 * (padded_dim(d) / 2) * 16 + slot % 16;
    alignas(64) uint32_t pairs[kMaxHeadDim / 2];
    for (int32_t c = 0; c < d; c += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + c / 2), to_bf16(load(key + c)));
    for (int32_t i = 0; i < d / 2; ++i) keys[i * 16] = pairs[i];
    // Values: every other 16-bit element of a row of the tile.
    auto* values = reinterpret_cast<uint16_t*>(head + task.kv.values_offset) +
                   slot / kKeyRun * kKeyRun * d + slot % kKeyRun / 2 * kTileK;
    const __mmask32 mask = slot % 2 == 0 ? 0x55555555u : 0xAAAAAAAAu;
    const __m512 limit = _mm512_set1_ps(3.38953139e38f);  // the largest bf16
    for (int32_t c = 0; c < d; c += 16, values += kTileSize) {
      const __m512 x = _mm512_loadu_ps(value + c);
      const __m512 finite =
          _mm512_maskz_max_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), _mm512_min_ps(x, limit),
                              _mm512_sub_ps(_mm512_setzero_ps(), limit));
      __m512i bits = _mm512_cvtepu16_epi32(to_bf16({finite}));
      if (slot % 2 != 0) bits = _mm512_slli_epi32(bits, 16);
      _mm512_mask_storeu_epi16(values, mask, bits);
    }
  });
}

// Sixteen queries on their way over the keys. Rows past `count` are never read.
struct Queries {
  int32_t count;
  int32_t begin[kTileRows];  // keys of each
  int32_t end[kTileRows];
  SoftmaxState softmax[kTileRows];
  alignas(64) uint16_t q[kMaxHeadDim / kTileK][kTileSize];  // A tiles
  alignas(64) float scores[kTileRows][kKeyChunk];
  alignas(64) uint16_t weights[kKeyChunk / kKeyRun][kTileSize];  // A tiles
  alignas(64) float out[kMaxHeadDim / 16][kTileRows][16];        // tiles of sums
};

inline KeySpan load_queries(const AttentionTask& task, const QueryBlock& block, int32_t kv_head,
                            Queries& queries) {
  const int32_t d = task.kv.head_dim;
  KeySpan span;
  queries.count = block.num_queries;
  for (int32_t i = 0; i < queries.count; ++i) {
    const auto [row, column] = query_place(task, block, kv_head, i);
    queries.begin[i] = task.key_begin[row];
    queries.end[i] = task.key_end[row];
    span.add(queries.begin[i], queries.end[i]);
    const float* q = task.qkv + row * task.qkv_stride + column;
    for (int32_t x = 0; x < padded_dim(d); x += 16) {
      auto* out = reinterpret_cast<__m256i*>(queries.q[x / kTileK] + i * kTileK + x % kTileK);
      _mm256_storeu_si256(out, x < d ? to_bf16(load(q + x)) : _mm256_setzero_si256());
    }
    for (int32_t x = 0; x < d; x += 16) store(queries.out[x / 16][i], zero());
  }
  return span;
}

// Fetches the keys and then the values of a chunk into L2, a quarter of a run at a time. Memory
// would idle during the softmax otherwise, and pages end where the hardware would fetch on.
class KeyFetcher {
 public:
  static constexpr int32_t kParts = 16;  // of a run
  static constexpr int32_t kAhead = 2 * kParts;

  KeyFetcher() = default;
  // Positions [first, last) of the chunk.
  KeyFetcher(const KvLayer& kv, const int32_t* pages, int32_t kv_head, int32_t chunk, int32_t first,
             int32_t last)
      : begin_((first - chunk) / kKeyRun), end_((last - chunk + kKeyRun - 1) / kKeyRun) {
    const int32_t d = kv.head_dim;
    key_bytes_ = padded_dim(d) * 2;
    value_bytes_ = d * 2;
    find_places(kv, pages, kv_head, chunk, first, last, key_bytes_, value_bytes_, places_);
    num_left_ = 2 * kParts * (end_ - begin_);
  }

  const ChunkPlaces& places() const { return places_; }
  int32_t num_left() const { return num_left_; }

  void fetch(int32_t num_parts) {
    for (; num_parts > 0 && num_left_ > 0; --num_parts, --num_left_) {
      const int32_t num_runs = end_ - begin_;
      const int32_t part = 2 * kParts * num_runs - num_left_;
      const int32_t run = part / kParts;
      const bool is_key = run < num_runs;
      const int64_t bytes = (is_key ? key_bytes_ : value_bytes_) * kKeyRun / kParts;
      const char* at =
          (is_key ? places_.keys[begin_ + run] : places_.values[begin_ + run - num_runs]) +
          part % kParts * bytes;
      for (int64_t line = 0; line < bytes; line += kLine) prefetch_here(at + line);
    }
  }

 private:
  ChunkPlaces places_;
  int32_t begin_ = 0, end_ = 0;  // runs
  int32_t num_left_ = 0;         // parts
  int64_t key_bytes_ = 0, value_bytes_ = 0;
};

// scores[.][c] for kRuns times 32 keys from offset c on. A product waits for the one before upon
// the same sums, so two runs at once take little longer than one.
template <int kRuns>
inline void score_keys(const ChunkPlaces& places, int32_t head_dim, int32_t c, Queries& queries,
                       KeyFetcher* fetcher) {
  static_assert(kRuns == 1 || kRuns == 2);
  const int32_t num_steps = padded_dim(head_dim) / kTileK;
  const int64_t high = num_steps * kTileSize;
  const int32_t parts = (KeyFetcher::kParts / 2 + num_steps - 1) / num_steps;
  const auto* first = reinterpret_cast<const uint16_t*>(places.keys[c / kKeyRun]);
  const auto* second = reinterpret_cast<const uint16_t*>(places.keys[c / kKeyRun + kRuns - 1]);
  zero_sums<kRuns == 2>();
  for (int32_t step = 0; step < num_steps; ++step) {
    _tile_loadd(4, queries.q[step], kLine);
    _tile_loadd(6, first + step * kTileSize, kLine);
    if (fetcher != nullptr) fetcher->fetch(parts);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, first + high + step * kTileSize, kLine);
    if (fetcher != nullptr) fetcher->fetch(parts);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRuns == 2) {
      _tile_loadd(6, second + step * kTileSize, kLine);
      if (fetcher != nullptr) fetcher->fetch(parts);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, second + high + step * kTileSize, kLine);
      if (fetcher != nullptr) fetcher->fetch(parts);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, queries.scores[0] + c, kKeyChunk * 4);
  _tile_stored(1, queries.scores[0] + c + 16, kKeyChunk * 4);
  if constexpr (kRuns == 2) {
    _tile_stored(2, queries.scores[0] + c + 32, kKeyChunk * 4);
    _tile_stored(3, queries.scores[0] + c + 48, kKeyChunk * 4);
  }
}

// Scores of query i become bf16 weights; what was summed before is rescaled.
inline void weigh_keys(int32_t head_dim, int32_t chunk, int32_t first, int32_t last, int32_t i,
                       Queries& queries) {
  const KeyWindow keys = {first, last, queries.begin[i] - chunk, queries.end[i] - chunk};
  const float factor =
      soften_scores(queries.scores[i], keys, inverse_sqrt(static_cast<float>(head_dim)),
                    queries.softmax[i], [&](int32_t c, F16 weight) {
                      uint16_t* tile = queries.weights[c / kKeyRun] + i * kTileK + c % kKeyRun;
                      _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile), to_bf16(weight));
                    });
  if (factor == 1.0f) return;
  for (int32_t tile = 0; tile < head_dim / 16; ++tile)
    store(queries.out[tile][i], mul(load(queries.out[tile][i]), set1(factor)));
}

// out += weights . values over offsets [first, last), kTiles tiles of head_dim at once.
template <int kTiles>
inline void add_values(const ChunkPlaces& places, int32_t first, int32_t last, int32_t tile,
                       Queries& queries) {
  constexpr int64_t kStride = 64;
  _tile_loadd(0, queries.out[tile], kStride);
  if constexpr (kTiles > 1) _tile_loadd(1, queries.out[tile + 1], kStride);
  if constexpr (kTiles > 2) _tile_loadd(2, queries.out[tile + 2], kStride);
  if constexpr (kTiles > 3) _tile_loadd(3, queries.out[tile + 3], kStride);
  for (int32_t run = first / kKeyRun; run < last / kKeyRun; ++run) {
    const auto* values = reinterpret_cast<const uint16_t*>(places.values[run]) + tile * kTileSize;
    _tile_loadd(4, queries.weights[run], kLine);
    _tile_loadd(6, values, kLine);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTiles > 1) {
      _tile_loadd(7, values + kTileSize, kLine);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTiles > 2) {
      _tile_loadd(6, values + 2 * kTileSize, kLine);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (kTiles > 3) {
      _tile_loadd(7, values + 3 * kTileSize, kLine);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, queries.out[tile], kStride);
  if constexpr (kTiles > 1) _tile_stored(1, queries.out[tile + 1], kStride);
  if constexpr (kTiles > 2) _tile_stored(2, queries.out[tile + 2], kStride);
  if constexpr (kTiles > 3) _tile_stored(3, queries.out[tile + 3], kStride);
}

void amx_attend(const AttentionTask& task, const QueryBlock& block, int32_t kv_head) {
  const int32_t d = task.kv.head_dim;
  Queries queries;
  const KeySpan span = load_queries(task, block, kv_head, queries);
  const int32_t* pages = task.page_tables[task.sequences[block.first_row]];
  const TileScope tiles = TileScope::four_sums(queries.count);
  // Of few queries the tile loads alone are faster: 8,192 keys of one row took 8% longer with
  // fetches.
  const bool is_busy = queries.count >= kTileRows / 2;
  const bool fetches = is_busy && block.fetches;
  KeyFetcher here, ahead;
  for_chunks(span, kKeyRun, [&](int32_t chunk, int32_t first, int32_t last) {
    const bool is_first = chunk <= span.begin;
    here = is_first ? KeyFetcher(task.kv, pages, kv_head, chunk, first, last) : ahead;
    const int32_t next = chunk + kKeyChunk;
    ahead = next < span.end ? KeyFetcher(task.kv, pages, kv_head, next, next,
                                         span.end < next + kKeyChunk ? span.end : next + kKeyChunk)
            : block.next_kv_head >= 0
                ? KeyFetcher(task.kv, pages, block.next_kv_head, chunk, first, last)
                : KeyFetcher();
    KeyFetcher* fetcher = fetches ? &here : nullptr;
    if (is_first && fetcher != nullptr) fetcher->fetch(KeyFetcher::kAhead);
    const ChunkPlaces& places = here.places();
    first -= chunk;
    last -= chunk;
    int32_t c = first;
    for (; c + 2 * kKeyRun <= last; c += 2 * kKeyRun) score_keys<2>(places, d, c, queries, fetcher);
    if (c < last) score_keys<1>(places, d, c, queries, fetcher);
    const int32_t per_query = (here.num_left() + queries.count - 1) / queries.count;
    for (int32_t i = 0; i < queries.count; ++i) {
      if (fetcher != nullptr) fetcher->fetch(per_query);
      weigh_keys(d, chunk, first, last, i, queries);
    }
    int32_t tile = 0;
    const auto fetch_ahead = [&] {
      if (is_busy && (block.fetches || next >= span.end)) ahead.fetch(KeyFetcher::kAhead / 2);
    };
    for (; tile + 4 <= d / 16; tile += 4) {
      fetch_ahead();
      add_values<4>(places, first, last, tile, queries);
    }
    for (; tile + 2 <= d / 16; tile += 2) add_values<2>(places, first, last, tile, queries);
    if (tile < d / 16) add_values<1>(places, first, last, tile, queries);
  });
  for (int32_t i = 0; i < queries.count; ++i) {
    const auto [row, column] = query_place(task, block, kv_head, i);
    const F16 scale = set1(1.0f / queries.softmax[i].sum);
    // Adding zero turns -0 into 0: a masked key may have added -0 or 0.
    for (int32_t x = 0; x < d; x += 16)
      store(task.out + row * task.out_stride + column + x,
            add(mul(load(queries.out[x / 16][i]), scale), zero()));
  }
}

}  // namespace

const KernelTable* amx_bf16_kernels() {
  static constexpr KernelTable kTable = {.weight_layout = Bf16Layout::kTiles,
                                         .kv_is_bf16 = true,
                                         .rows_per_group = kTileRows,
                                         .queries_per_block = kTileRows,
                                         .packs_swiglu = true,
                                         .packed_group_bytes = amx_group_bytes,
                                         .pack_rows = amx_pack_rows,
                                         .pack_blocks = pack_int_blocks,
                                         .matmul = amx_matmul,
                                         .rms_norm = rms_norm_row,
                                         .add_candidates = add_candidates_row,
                                         .finish_candidates = finish_candidates_row,
                                         .widen_bf16 = widen_bf16_row,
                                         .rope_and_store = amx_rope_and_store,
                                         .attend = amx_attend,
                                         .read_lines = read_lines,
                                         .multiply_registers = amx_multiply_registers};
  return &kTable;
}

}  // namespace volley::cpu
