#pragma once

// Products with int8 and int4 weights on AMX-INT8. Include after simd_avx512.h, from one unit.
//
// A block is 256 of k by 32 columns. 4 KiB of int8 take 260 ns to come from memory, of int4 130 ns,
// and the tile products of 16 rows take 17. What has to be cheap is the rest: a panel's int8 codes
// are B tiles as they lie in memory; four bits of int4 and the two of their multiplier are looked
// up as int8 in one permutation of bytes (29 ns for codes that make 4 KiB of tiles); sums leave the
// tiles once for 256 of k (half of 21 ns).
//
// Memory idles wherever fetches pause, and products, decoding and sums hardly overlap: together
// they take the sum of each alone. So fetches are spread over all three.
//
// Rows become int8 too, with a scale for each kBlockK of them, the largest magnitude / 127. (16
// bits as two int8 would be far below what rounding to bf16 loses, but a prompt took 1.5 times as
// long.)
//
// Order of sums: within a block of kBlockK integers, which is exact in any order; block by block in
// f32. Nothing depends on other rows.

#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/kernels.h"

namespace volley::cpu {
namespace {

constexpr int64_t kIntTileBytes = 1024;
constexpr int64_t kIntGroupRows = 16;
constexpr int64_t kIntQuarters = kBlockK / 64;
// Of 16 rows and one block: [4 quarters of k][16 rows][64].
constexpr int64_t kIntRowsBytes = kIntQuarters * kIntTileBytes;
// Of 32 columns and half a block, as tiles: [2 quarters of k][2 halves of the columns][16][16][4].
constexpr int64_t kIntHalfBytes = 4 * kIntTileBytes;

inline int64_t num_int_blocks(int64_t k) {
  return (k + kBlockK - 1) / kBlockK;
}

// Packed rows: per 16 rows, their scales [blocks][16] and then their tiles, block by block.
inline int64_t int_group_bytes(int64_t k) {
  return num_int_blocks(k) * (kIntGroupRows * 4 + kIntRowsBytes);
}

// 256 floats (`count` of them, then zeros) to int8; returns their scale. Where one is infinite or
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

// Fetches weights into L2, some lines at a time.
struct Fetcher {
  const char* at;

  void lines(int64_t count) {
    for (int64_t i = 0; i < count; ++i, at += 64)
      asm volatile("prefetcht1 %0" : : "m"(*at) : "memory");
  }
};
constexpr int64_t kIntFetchBytes = 16384;  // ahead of their use

// The int8 of each code and multiplier: [4 multipliers][16 codes].
struct alignas(64) Int4Table {
  int8_t bytes[64];
};
constexpr Int4Table make_int4_table(int offset) {
  Int4Table table = {};
  for (int i = 0; i < 64; ++i)
    table.bytes[i] =
        static_cast<int8_t>(kInt4Levels[i % 16] * (kLeastInt4Multiplier + i / 16) + offset);
  return table;
}

// Looks up the codes of 64 of k and 16 columns, a line at a time.
class Int4Decoder {
 public:
  explicit Int4Decoder(const Int4Table& table) : table_(_mm512_load_si512(table.bytes)) {}

  // Calls body(line, low, high) for the lines of `codes`: the bytes of the low and of the high four
  // bits.
  template <class F>
  void decode(const char* block, int64_t quarter, int64_t columns, F body) const {
    const char* codes =
        block + block_header_bytes(WeightFormat::kInt4) + (quarter * 2 + columns) * 512;
    // Byte `quarter` of each column, four times.
    const __m512i pick = _mm512_add_epi8(_mm512_set1_epi8(static_cast<char>(quarter)),
                                         _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0));
    const __m512i runs = _mm512_shuffle_epi8(_mm512_load_si512(block + 64 + columns * 64), pick);
    // The multiplier of a run moves to bits 4 and 5. The permutation looks at six.
    const __m512i multipliers[4] = {_mm512_slli_epi16(runs, 4), _mm512_slli_epi16(runs, 2), runs,
                                    _mm512_srli_epi16(runs, 2)};
    const __m512i code = _mm512_set1_epi8(15);
    const auto look_up = [&](__m512i codes_here, __m512i multiplier) {
      // code ? codes_here : multiplier, bit by bit
      const __m512i index = _mm512_ternarylogic_epi32(code, codes_here, multiplier, 0xCA);
      return _mm512_permutexvar_epi8(index, table_);
    };
#pragma GCC unroll 8
    for (int64_t line = 0; line < 8; ++line) {
      const __m512i both = _mm512_load_si512(codes + line * 64);
      body(line, look_up(both, multipliers[line / 2]),
           look_up(_mm512_srli_epi16(both, 4), multipliers[line / 2]));
    }
  }

 private:
  __m512i table_;
};

// Half of a block of int4 becomes tiles.
inline void decode_int4_half(const char* block, int64_t half, char* tiles, int64_t lines_per_line,
                             Fetcher& fetcher) {
  alignas(64) static constexpr Int4Table kTable = make_int4_table(0);
  const Int4Decoder decoder(kTable);
  for (int64_t part = 0; part < 4; ++part) {  // [2 quarters of k][2 halves of the columns]
    decoder.decode(block, half * 2 + part / 2, part % 2,
                   [&](int64_t line, __m512i low, __m512i high) {
                     fetcher.lines(lines_per_line);
                     _mm512_store_si512(tiles + part * kIntTileBytes + line * 128, low);
                     _mm512_store_si512(tiles + part * kIntTileBytes + line * 128 + 64, high);
                   });
  }
}

// Adds half a block to the sums of one or two groups of rows by 32 columns, in tiles 0 to 3. Of one
// group no tile is loaded twice: the processor does not rename tiles deeply enough to load the next
// one during a product.
template <bool kTwoGroups>
inline void multiply_int_half(const char* rows, int64_t group_bytes, const char* weights,
                              int64_t lines_per_slot, Fetcher& fetcher) {
  _tile_loadd(4, rows, 64);
  fetcher.lines(lines_per_slot);
  _tile_loadd(6, weights, 64);
  fetcher.lines(lines_per_slot);
  _tile_dpbssd(0, 4, 6);
  fetcher.lines(lines_per_slot);
  if constexpr (kTwoGroups) {
    _tile_loadd(5, rows + group_bytes, 64);
    _tile_dpbssd(2, 5, 6);
  } else {
    _tile_loadd(5, rows + kIntTileBytes, 64);
  }
  fetcher.lines(lines_per_slot);
  _tile_loadd(7, weights + kIntTileBytes, 64);
  fetcher.lines(lines_per_slot);
  _tile_dpbssd(1, 4, 7);
  fetcher.lines(lines_per_slot);
  if constexpr (kTwoGroups) {
    _tile_dpbssd(3, 5, 7);
    _tile_loadd(4, rows + kIntTileBytes, 64);
    fetcher.lines(lines_per_slot);
    _tile_loadd(6, weights + 2 * kIntTileBytes, 64);
    fetcher.lines(lines_per_slot);
    _tile_dpbssd(0, 4, 6);
    fetcher.lines(lines_per_slot);
    _tile_loadd(5, rows + group_bytes + kIntTileBytes, 64);
    _tile_dpbssd(2, 5, 6);
    fetcher.lines(lines_per_slot);
    _tile_loadd(7, weights + 3 * kIntTileBytes, 64);
    fetcher.lines(lines_per_slot);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(3, 5, 7);
    fetcher.lines(lines_per_slot);
  } else {
    _tile_loadd(2, weights + 2 * kIntTileBytes, 64);
    fetcher.lines(2 * lines_per_slot);
    _tile_dpbssd(0, 5, 2);
    fetcher.lines(lines_per_slot);
    _tile_loadd(3, weights + 3 * kIntTileBytes, 64);
    fetcher.lines(2 * lines_per_slot);
    _tile_dpbssd(1, 5, 3);
    fetcher.lines(lines_per_slot);
  }
}

// [groups][2 halves of the columns] tiles.
template <bool kTwoGroups>
inline void store_int_sums(int32_t* products) {
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

  // Fetches `lines` on the way.
  void add_up(int64_t lines, Fetcher& fetcher) const {
    constexpr int64_t kTurn = 4;
    const F16 low = widen_bf16(reinterpret_cast<const uint16_t*>(weight_scales));
    const F16 high = widen_bf16(reinterpret_cast<const uint16_t*>(weight_scales) + 16);
    const int64_t lines_per_turn = num_rows <= kTurn ? lines : lines * kTurn / num_rows;
    const auto add_row = [&](int64_t r) {
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
    };
    int64_t r = 0;
    for (; r + kTurn <= num_rows; r += kTurn) {
      fetcher.lines(lines_per_turn);
      add_row(r);
      add_row(r + 1);
      add_row(r + 2);
      add_row(r + 3);
    }
    if (r < num_rows) fetcher.lines(lines_per_turn);
    for (; r < num_rows; ++r) add_row(r);
  }
};

// ---- One row of int4 without tiles: codes are multiplied in the registers that they were looked
// up in. They are 128 more there, since one side of a product has no sign, and 128 times the row's
// sum goes off. Integers are exact, so the bits are those of tiles. (Two rows are faster in tiles.)
constexpr int64_t kMaxVectorBlocks = 256;  // of k: larger matrices take tiles

inline int32_t sum_of_block(const char* row) {
  __m512i fours = _mm512_setzero_si512();
  for (int64_t quarter = 0; quarter < kIntQuarters; ++quarter)
    fours = _mm512_dpbusd_epi32(fours, _mm512_set1_epi8(1),
                                _mm512_load_si512(row + quarter * kIntTileBytes));
  return _mm512_reduce_add_epi32(fours);
}

// 32 columns over one block. The low and the high four bits have sums of their own, which are
// shorter chains.
inline void multiply_int4_block(const char* row, int32_t block_sum, const char* block,
                                __m512i (&sums)[2], Fetcher& fetcher) {
  alignas(64) static constexpr Int4Table kTable = make_int4_table(-128);
  const Int4Decoder decoder(kTable);
  __m512i high_sums[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  sums[0] = sums[1] = _mm512_set1_epi32(-128 * block_sum);
  fetcher.lines(3);
#pragma GCC unroll 4
  for (int64_t quarter = 0; quarter < kIntQuarters; ++quarter) {
#pragma GCC unroll 2
    for (int64_t columns = 0; columns < 2; ++columns) {
      const char* a = row + quarter * kIntTileBytes;
      decoder.decode(block, quarter, columns, [&](int64_t line, __m512i low, __m512i high) {
        fetcher.lines(1);
        int32_t quads[2];
        __builtin_memcpy(quads, a + line * 8, sizeof(quads));
        sums[columns] = _mm512_dpbusd_epi32(sums[columns], low, _mm512_set1_epi32(quads[0]));
        high_sums[columns] =
            _mm512_dpbusd_epi32(high_sums[columns], high, _mm512_set1_epi32(quads[1]));
      });
    }
  }
  for (int columns = 0; columns < 2; ++columns)
    sums[columns] = _mm512_add_epi32(sums[columns], high_sums[columns]);
}

// As int_matmul().
template <class Finish>
inline void int4_vector_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                               ThreadScratch& scratch, Finish finish) {
  const int64_t num_blocks = num_int_blocks(task.k);
  const auto* scales = static_cast<const float*>(task.packed_rows);
  const char* row = static_cast<const char*>(task.packed_rows) + num_blocks * kIntGroupRows * 4;
  int32_t block_sums[kMaxVectorBlocks];
  for (int64_t block = 0; block < num_blocks; ++block)
    block_sums[block] = sum_of_block(row + block * kIntRowsBytes);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const char* block = task.weights + panel * task.panel_bytes;
    F16 sums[2] = {volley::cpu::zero(), volley::cpu::zero()};
    for (int64_t i = 0; i < num_blocks; ++i, block += block_bytes(WeightFormat::kInt4)) {
      Fetcher fetcher = {block + kIntFetchBytes};
      __m512i products[2];
      multiply_int4_block(row + i * kIntRowsBytes, block_sums[i], block, products, fetcher);
      const F16 scale = set1(scales[i * kIntGroupRows]);
      for (int half = 0; half < 2; ++half) {
        const F16 weight = widen_bf16(reinterpret_cast<const uint16_t*>(block) + 16 * half);
        sums[half] =
            volley::cpu::fma({_mm512_cvtepi32_ps(products[half])}, mul(weight, scale), sums[half]);
      }
    }
    store(scratch.sums[0], sums[0]);
    store(scratch.sums[0] + 16, sums[1]);
    finish(panel, scratch.sums[0]);
  }
}

// ---- Up to 32 rows.

// How many lines are fetched where: a block's in all, and a few more, so that the distance grows.
struct IntFetches {
  int64_t per_slot, per_decoded_line, while_adding;
};
constexpr IntFetches int_fetches(WeightFormat format) {
  if (format == WeightFormat::kInt4) return {0, 1, 4};  // 68 of 67
  return {5, 0, 16};                                    // 136 of 129
}

// Hands the f32 sums of each panel to finish(panel, sums).
template <WeightFormat kFormat, bool kTwoGroups, class Finish>
inline void int_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                       ThreadScratch& scratch, Finish finish) {
  constexpr bool kIsInt4 = kFormat == WeightFormat::kInt4;
  constexpr IntFetches kFetches = int_fetches(kFormat);
  constexpr int64_t kBytes = block_bytes(kFormat);
  const int64_t num_blocks = num_int_blocks(task.k);
  const int64_t group_bytes = int_group_bytes(task.k);
  const auto* row_scales = static_cast<const float*>(task.packed_rows);
  const char* rows = static_cast<const char*>(task.packed_rows) + num_blocks * kIntGroupRows * 4;
  char* decoded = reinterpret_cast<char*>(scratch.decoded);
  // Blocks of one panel follow those of the one before.
  const char* block = task.weights + panel_begin * task.panel_bytes;
  const char* end = task.weights + panel_end * task.panel_bytes;
  Fetcher fetcher = {block + kIntFetchBytes};
  // Tile loads wait for the stores before them, so that the next half is decoded behind the
  // products of this one.
  const auto decode = [&](const char* at, int64_t half) {
    if (kIsInt4 && at < end)
      decode_int4_half(at, half, decoded, kFetches.per_decoded_line, fetcher);
  };
  IntProducts last = {.row_scales = row_scales,
                      .group_bytes = group_bytes,
                      .weight_scales = block,
                      .sums = scratch.sums[0]};
  decode(block, 0);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    fetcher.at = block + kIntFetchBytes;
    for (int64_t i = 0; i < num_blocks; ++i, block += kBytes) {
      int32_t* products = scratch.products[i % 2];
      zero_sums<kTwoGroups>();
      for (int64_t half = 0; half < 2; ++half) {
        const char* weights =
            kIsInt4 ? decoded : block + block_header_bytes(kFormat) + half * kIntHalfBytes;
        multiply_int_half<kTwoGroups>(rows + i * kIntRowsBytes + half * 2 * kIntTileBytes,
                                      group_bytes, weights, kFetches.per_slot, fetcher);
        half == 0 ? decode(block, 1) : decode(block + kBytes, 0);
      }
      store_int_sums<kTwoGroups>(products);
      if (i > 0) last.add_up(kFetches.while_adding, fetcher);
      last.products = products;
      last.row_scales = row_scales + i * kIntGroupRows;
      last.weight_scales = block;
      last.num_rows = task.num_rows;
      last.is_first = i == 0;
    }
    last.add_up(kFetches.while_adding, fetcher);
    finish(panel, scratch.sums[0]);
  }
}

// Many rows. Some blocks of a panel stay in L1 while all rows pass by, and the sums of 32 rows
// while the blocks do: with one block at a time, sums moved between L1 and L2 as much as everything
// else.
constexpr int64_t kIntStretch = 2;
static_assert(sizeof(ThreadScratch::decoded) >= kIntStretch * 2 * kIntHalfBytes);

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
      if constexpr (kIsInt4) {
        for (int64_t half = 0; half < 2 * count; ++half)
          decode_int4_half(stretch + half / 2 * block_bytes(kFormat), half % 2,
                           decoded + half * kIntHalfBytes, 0, fetcher);
      }
      for (int64_t group = 0; group < num_groups; group += 2) {
        const char* packed = rows + group * group_bytes;
        const char* tiles = packed + num_blocks * kIntGroupRows * 4 + first * kIntRowsBytes;
        const int64_t rest = task.num_rows - group * kIntGroupRows;
        // A line for each slot until all of the next stretch is under way.
        const int64_t lines_per_slot = group / 2 * 24 < lines;
        for (int64_t i = 0; i < count; ++i, ++turn) {
          const char* at = stretch + i * block_bytes(kFormat);
          const char* weights =
              kIsInt4 ? decoded + i * 2 * kIntHalfBytes : at + block_header_bytes(kFormat);
          int32_t* products = scratch.products[turn % 2];
          const auto multiply = [&]<bool kTwoGroups>() {
            zero_sums<kTwoGroups>();
            for (int64_t half = 0; half < 2; ++half)
              multiply_int_half<kTwoGroups>(tiles + i * kIntRowsBytes + half * 2 * kIntTileBytes,
                                            group_bytes, weights + half * kIntHalfBytes,
                                            lines_per_slot, fetcher);
            store_int_sums<kTwoGroups>(products);
          };
          if (group + 1 < num_groups)
            multiply.template operator()<true>();
          else
            multiply.template operator()<false>();
          last.add_up(0, fetcher);  // while the tiles are busy
          last.products = products;
          last.row_scales = reinterpret_cast<const float*>(packed) + (first + i) * kIntGroupRows;
          last.weight_scales = at;
          last.sums = sums + group * kIntGroupRows * kPanelCols;
          last.num_rows = rest < 2 * kIntGroupRows ? rest : 2 * kIntGroupRows;
          last.is_first = first + i == 0;
        }
      }
    }
    Fetcher nothing = {start};
    last.add_up(0, nothing);
    if (place + 1 == kScratchPanels || panel + 1 == panel_end) finish(panel - place, place + 1);
  }
}

}  // namespace
}  // namespace volley::cpu
