#pragma once

// Sixteen floats in two AVX2 registers, with the arithmetic of simd_avx512.h lane by lane, so that
// both units compute the same bits.

#include <immintrin.h>

#include <cstdint>

#include "tensor/weight_format.h"

namespace volley::cpu {
namespace {

struct F16 {
  __m256 lo, hi;
};
struct M16 {
  __m256 lo, hi;
};

// Lanes i with begin <= i < end.
inline M16 lanes_between(int64_t begin, int64_t end) {
  const auto clamp = [](int64_t x) { return static_cast<int>(x < 0 ? 0 : x > 16 ? 16 : x); };
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto half = [&](int first) {
    const __m256i from = _mm256_set1_epi32(clamp(begin) - first);
    const __m256i to = _mm256_set1_epi32(clamp(end) - first);
    return _mm256_castsi256_ps(
        _mm256_andnot_si256(_mm256_cmpgt_epi32(from, lane), _mm256_cmpgt_epi32(to, lane)));
  };
  return {half(0), half(8)};
}
inline M16 first_lanes(int64_t count) {
  return lanes_between(0, count);
}

inline F16 zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
inline F16 set1(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline F16 load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, F16 x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
// The first `count` lanes; the others read as zero.
inline F16 load_first(const float* p, int64_t count) {
  const M16 mask = first_lanes(count);
  return {_mm256_maskload_ps(p, _mm256_castps_si256(mask.lo)),
          _mm256_maskload_ps(p + 8, _mm256_castps_si256(mask.hi))};
}
inline void store_first(float* p, int64_t count, F16 x) {
  const M16 mask = first_lanes(count);
  _mm256_maskstore_ps(p, _mm256_castps_si256(mask.lo), x.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(mask.hi), x.hi);
}

inline F16 add(F16 a, F16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F16 sub(F16 a, F16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F16 mul(F16 a, F16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F16 div(F16 a, F16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
// a / b for b of at least 1.
inline F16 quotient(F16 a, F16 b) {
  return div(a, b);
}
inline F16 fma(F16 a, F16 b, F16 c) {  // a b + c
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 fnma(F16 a, F16 b, F16 c) {  // c - a b
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
// Where either is NaN, b.
inline F16 max(F16 a, F16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F16 min(F16 a, F16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

inline M16 greater(F16 a, F16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_GT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_GT_OQ)};
}
inline M16 equal(F16 a, F16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_EQ_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_EQ_OQ)};
}
inline M16 both(M16 a, M16 b) {
  return {_mm256_and_ps(a.lo, b.lo), _mm256_and_ps(a.hi, b.hi)};
}
inline M16 either(M16 a, M16 b) {
  return {_mm256_or_ps(a.lo, b.lo), _mm256_or_ps(a.hi, b.hi)};
}
inline F16 select(M16 mask, F16 yes, F16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, mask.lo), _mm256_blendv_ps(no.hi, yes.hi, mask.hi)};
}

// bits(x) + (bits(steps) << 23): multiplies x by a power of two held in the low bits of `steps`.
inline F16 scale_by_exponent(F16 x, F16 steps) {
  const auto half = [](__m256 a, __m256 b) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(b), 23)));
  };
  return {half(x.lo, steps.lo), half(x.hi, steps.hi)};
}

inline F16 widen_bf16(const uint16_t* p) {
  const auto half = [](const uint16_t* q) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  };
  return {half(p), half(p + 8)};
}

// One k of a WeightLayout::kPairs panel: columns 0-15 and 16-31.
inline void load_panel_row(const uint16_t* p, F16& low, F16& high) {
  const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(p + 16));
  const __m256i mask = _mm256_set1_epi32(int(0xFFFF0000u));
  low.lo = _mm256_castsi256_ps(_mm256_slli_epi32(first, 16));
  low.hi = _mm256_castsi256_ps(_mm256_slli_epi32(second, 16));
  high.lo = _mm256_castsi256_ps(_mm256_and_si256(first, mask));
  high.hi = _mm256_castsi256_ps(_mm256_and_si256(second, mask));
}

// ---- Quantised weights: lines of codes (kernels.h).

struct Codes {
  __m256i lo, hi;
};
inline Codes load_codes(const char* p) {
  return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_load_si256(reinterpret_cast<const __m256i*>(p) + 1)};
}
// int8 as the code plus 128.
inline Codes load_codes_plus_128(const char* p) {
  const Codes codes = load_codes(p);
  const __m256i top = _mm256_set1_epi8(char(0x80));
  return {_mm256_xor_si256(codes.lo, top), _mm256_xor_si256(codes.hi, top)};
}

// Byte kPlace of each column: as the float 256 + byte, in which it fills the mantissa.
template <int kPlace>
inline F16 byte_plus_256(Codes codes) {
  const auto half = [](__m256i x) {
    constexpr int kShift = 15 - 8 * kPlace;
    const __m256i moved = kShift >= 0 ? _mm256_slli_epi32(x, kShift >= 0 ? kShift : 0)
                                      : _mm256_srli_epi32(x, kShift < 0 ? -kShift : 0);
    return _mm256_castsi256_ps(_mm256_or_si256(
        _mm256_and_si256(moved, _mm256_set1_epi32(0x007F8000)), _mm256_set1_epi32(0x43800000)));
  };
  return {half(codes.lo), half(codes.hi)};
}

// The level of int4 that four bits of each column stand for.
template <int kPlace>
inline F16 int4_level(Codes codes) {
  const auto* all = reinterpret_cast<const __m128i*>(kInt4Levels);
  const __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(all)));
  const __m256 second =
      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(_mm_loadu_si128(all), 8)));
  const auto half = [&](__m256i x) {
    // A permutation looks at three bits of each index, a blend at the highest bit.
    const __m256i index = _mm256_srli_epi32(x, 4 * kPlace);
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(x, 28 - 4 * kPlace));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, index),
                            _mm256_permutevar8x32_ps(second, index), fourth);
  };
  return {half(codes.lo), half(codes.hi)};
}
// The multiplier of run kRun of a quarter, of byte `quarter` of each column.
template <int kRun>
inline F16 int4_multiplier(Codes quarters, int quarter) {
  const auto half = [&](__m256i x) {
    const __m256i bits = _mm256_srl_epi32(x, _mm_cvtsi32_si128(8 * quarter + 2 * kRun));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(3)),
                                               _mm256_set1_epi32(kLeastInt4Multiplier)));
  };
  return {half(quarters.lo), half(quarters.hi)};
}

// e4m3 code kIndex of each column, times 2^-8: as f16, which has its denormals too, and then wider.
template <int kIndex>
inline F16 e4m3_over_256(Codes codes) {
  const __m256i words = kIndex % 2 == 0 ? codes.lo : codes.hi;
  const __m256i top = kIndex < 2 ? _mm256_slli_epi16(words, 8) : words;
  const __m256i half =
      _mm256_and_si256(_mm256_srai_epi16(top, 1), _mm256_set1_epi16(int16_t(0xBF80)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}

inline F16 widen_f16(const uint16_t* p) {
  const auto* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

// ---- Rooflines.

uint64_t read_lines(const char* data, int64_t num_bytes) {
  __m256i mixed[4] = {};
  for (int64_t at = 0; at + 128 <= num_bytes; at += 128) {
    _mm_prefetch(data + at + 16384, _MM_HINT_T1);
    _mm_prefetch(data + at + 16384 + 64, _MM_HINT_T1);
    const auto* line = reinterpret_cast<const __m256i*>(data + at);
    for (int i = 0; i < 4; ++i) mixed[i] = _mm256_xor_si256(mixed[i], _mm256_load_si256(line + i));
  }
  const __m256i all =
      _mm256_xor_si256(_mm256_xor_si256(mixed[0], mixed[1]), _mm256_xor_si256(mixed[2], mixed[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 1) ^
                               _mm256_extract_epi64(all, 2) ^ _mm256_extract_epi64(all, 3));
}

// Lanes i and i + 8 first, then i and i + 4, 2, 1: the same tree in every unit.
inline float reduce_add(F16 x) {
  const __m256 sum8 = _mm256_add_ps(x.lo, x.hi);
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
}
inline float reduce_max(F16 x) {
  const __m256 max8 = _mm256_max_ps(x.lo, x.hi);
  const __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max8), _mm256_extractf128_ps(max8, 1));
  const __m128 max2 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
  return _mm_cvtss_f32(_mm_max_ss(max2, _mm_movehdup_ps(max2)));
}

// Sixteen registers hold 2 rows x 32 columns of sums beside the weights.
constexpr int kMatmulRows = 2;
constexpr int kAttentionRows = 4;

}  // namespace
}  // namespace volley::cpu
