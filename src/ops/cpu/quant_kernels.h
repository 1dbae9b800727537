#pragma once

// Quantised panels (kernels.h) to floats. Include after one simd_*.h. A code times its scale is
// rounded once, so every unit that multiplies f32 sees the same weight.

#include "ops/cpu/kernels.h"

namespace volley::cpu {
namespace {

// What a code is multiplied by, and what is added: the scales of 16 columns, prepared.
struct ScaleLanes {
  F16 factor;
  F16 offset;  // int8 only
};

inline float panel_factor(const char* panel) {
  float factor;
  __builtin_memcpy(&factor, panel, sizeof(factor));
  return factor;
}

// `factor` is the panel's.
template <WeightFormat kFormat>
inline ScaleLanes load_scales(const char* scales, int half, float factor) {
  if constexpr (kFormat == WeightFormat::kFp8) {
    const F16 scale = load(reinterpret_cast<const float*>(scales) + 16 * half);
    return {mul(scale, set1(256.0f)), zero()};
  } else {
    const F16 stored = widen_f16(reinterpret_cast<const uint16_t*>(scales) + 16 * half);
    if constexpr (kFormat == WeightFormat::kInt4) return {mul(stored, set1(factor)), zero()};
    const F16 scale = mul(stored, set1(factor * 0x1p-8f));
    // Exact: the scale has 8 significant bits.
    return {scale, mul(scale, set1(-384.0f))};
  }
}

template <WeightFormat kFormat>
inline constexpr int kCodesPerLane = kFormat == WeightFormat::kInt4 ? 8 : 4;

// Code kIndex of 16 columns, times their scales.
template <WeightFormat kFormat, int kIndex>
inline F16 decode(Codes codes, const ScaleLanes& scales) {
  constexpr int kPlace = code_place(kFormat, kIndex);
  if constexpr (kFormat == WeightFormat::kFp8)
    return mul(e4m3_over_256<kIndex>(codes), scales.factor);
  // (256 + 128 + code) * scale - 384 * scale, rounded once.
  if constexpr (kFormat == WeightFormat::kInt8)
    return fma(byte_plus_256<kPlace>(codes), scales.factor, scales.offset);
  if constexpr (kFormat == WeightFormat::kInt4) return mul(nibble<kPlace>(codes), scales.factor);
}

}  // namespace
}  // namespace volley::cpu
