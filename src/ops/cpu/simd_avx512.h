#pragma once

// Sixteen floats in one AVX-512 register. Only for translation units built with AVX-512; internal
// linkage keeps the linker from handing this code to a unit for a lesser machine.

#include <immintrin.h>

#include <cstdint>

#include "tensor/weight_format.h"

namespace volley::cpu {
namespace {

struct F16 {
  __m512 v;
};
using M16 = __mmask16;

inline M16 first_lanes(int64_t count) {
  return count >= 16 ? M16{0xFFFF} : count <= 0 ? M16{0} : static_cast<M16>((1u << count) - 1u);
}
// Lanes i with begin <= i < end.
inline M16 lanes_between(int64_t begin, int64_t end) {
  return static_cast<M16>(first_lanes(end) & ~first_lanes(begin));
}

inline F16 zero() {
  return {_mm512_setzero_ps()};
}
inline F16 set1(float x) {
  return {_mm512_set1_ps(x)};
}
inline F16 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, F16 x) {
  _mm512_storeu_ps(p, x.v);
}
// The first `count` lanes; the others read as zero.
inline F16 load_first(const float* p, int64_t count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
}
inline void store_first(float* p, int64_t count, F16 x) {
  _mm512_mask_storeu_ps(p, first_lanes(count), x.v);
}

inline F16 add(F16 a, F16 b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline F16 sub(F16 a, F16 b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline F16 mul(F16 a, F16 b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline F16 div(F16 a, F16 b) {
  return {_mm512_div_ps(a.v, b.v)};
}
// a / b for b of at least 1: to 4 ulp in the AMX unit, since a division takes as long as all else
// of a silu; exact elsewhere, as in AVX2.
inline F16 quotient(F16 a, F16 b) {
#ifdef __AMX_BF16__
  const __m512 rough = _mm512_rcp14_ps(b.v);  // to 2^-14: one step of Newton's doubles the digits
  const __m512 error = _mm512_fnmadd_ps(b.v, rough, _mm512_set1_ps(1.0f));
  return {_mm512_mul_ps(a.v, _mm512_fmadd_ps(rough, error, rough))};
#else
  return div(a, b);
#endif
}
inline F16 fma(F16 a, F16 b, F16 c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}  // a b + c
inline F16 fnma(F16 a, F16 b, F16 c) {
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}  // c - a b
// Where either is NaN, b.
inline F16 max(F16 a, F16 b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline F16 min(F16 a, F16 b) {
  return {_mm512_min_ps(a.v, b.v)};
}

inline M16 greater(F16 a, F16 b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
}
inline M16 equal(F16 a, F16 b) {
  return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ);
}
inline M16 both(M16 a, M16 b) {
  return static_cast<M16>(a & b);
}
inline M16 either(M16 a, M16 b) {
  return static_cast<M16>(a | b);
}
inline F16 select(M16 mask, F16 yes, F16 no) {
  return {_mm512_mask_blend_ps(mask, no.v, yes.v)};
}

// bits(x) + (bits(steps) << 23): multiplies x by a power of two held in the low bits of `steps`.
inline F16 scale_by_exponent(F16 x, F16 steps) {
  return {_mm512_castsi512_ps(_mm512_add_epi32(
      _mm512_castps_si512(x.v), _mm512_slli_epi32(_mm512_castps_si512(steps.v), 23)))};
}

inline F16 widen_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

// One k of a WeightLayout::kPairs panel: columns 0-15 and 16-31.
inline void load_panel_row(const uint16_t* p, F16& low, F16& high) {
  const __m512i bits = _mm512_load_si512(p);
  low.v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  high.v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(int(0xFFFF0000u))));
}

// ---- Quantised weights: lines of codes (kernels.h).

struct Codes {
  __m512i v;
};
inline Codes load_codes(const char* p) {
  return {_mm512_load_si512(p)};
}
// int8 as the code plus 128.
inline Codes load_codes_plus_128(const char* p) {
  return {_mm512_xor_si512(_mm512_load_si512(p), _mm512_set1_epi8(char(0x80)))};
}

// Byte kPlace of each column: as the float 256 + byte, in which it fills the mantissa.
template <int kPlace>
inline F16 byte_plus_256(Codes codes) {
  constexpr int kShift = 15 - 8 * kPlace;
  const __m512i moved =
      kShift >= 0 ? _mm512_slli_epi32(codes.v, kShift >= 0 ? static_cast<unsigned>(kShift) : 0)
                  : _mm512_srli_epi32(codes.v, kShift < 0 ? static_cast<unsigned>(-kShift) : 0);
  // (moved & mask) | bits of 256
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(0x007F8000),
                                                        _mm512_set1_epi32(0x43800000), 0xEA))};
}

// The level of int4 that four bits of each column stand for.
template <int kPlace>
inline F16 int4_level(Codes codes) {
  // The permutation looks at four bits of each index, which spares a mask.
  const __m512 levels = _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kInt4Levels))));
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(codes.v, 4 * kPlace), levels)};
}
// The multiplier of run kRun of a quarter, of byte `quarter` of each column.
template <int kRun>
inline F16 int4_multiplier(Codes quarters, int quarter) {
  const __m512i bits = _mm512_srl_epi32(quarters.v, _mm_cvtsi32_si128(8 * quarter + 2 * kRun));
  return {_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(3)),
                                              _mm512_set1_epi32(kLeastInt4Multiplier)))};
}

// e4m3 code kIndex of each column, times 2^-8: as f16, which has its denormals too, and then wider.
// (In f32 they would be denormals, at 150 cycles each.)
template <int kIndex>
inline F16 e4m3_over_256(Codes codes) {
  const __m512i top = kIndex < 2 ? _mm512_slli_epi16(codes.v, 8) : codes.v;
  const __m512i half =
      _mm512_and_si512(_mm512_srai_epi16(top, 1), _mm512_set1_epi16(int16_t(0xBF80)));
  return {_mm512_cvtph_ps(kIndex % 2 == 0 ? _mm512_castsi512_si256(half)
                                          : _mm512_extracti64x4_epi64(half, 1))};
}

inline F16 widen_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

// ---- Rooflines.

uint64_t read_lines(const char* data, int64_t num_bytes) {
  __m512i mixed[4] = {};
  for (int64_t at = 0; at + 256 <= num_bytes; at += 256) {
    for (int i = 0; i < 4; ++i) {
      _mm_prefetch(data + at + 16384 + 64 * i, _MM_HINT_T1);
      mixed[i] = _mm512_xor_si512(mixed[i], _mm512_load_si512(data + at + 64 * i));
    }
  }
  return static_cast<uint64_t>(_mm512_reduce_add_epi64(_mm512_xor_si512(
      _mm512_xor_si512(mixed[0], mixed[1]), _mm512_xor_si512(mixed[2], mixed[3]))));
}

// Lanes i and i + 8 first, then i and i + 4, 2, 1: the same tree in every unit.
inline float reduce_add(F16 x) {
  const __m256 sum8 = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
  const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
  return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_movehdup_ps(sum2)));
}
inline float reduce_max(F16 x) {
  return _mm512_reduce_max_ps(x.v);
}

constexpr int kMatmulRows = 8;     // rows that share a load of weights
constexpr int kAttentionRows = 8;  // queries that share a load of keys or values

}  // namespace
}  // namespace volley::cpu
