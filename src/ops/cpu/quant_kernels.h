#pragma once

// Quantised panels (kernels.h) to floats. Include after one simd_*.h.

#include "ops/cpu/kernels.h"

namespace volley::cpu {
namespace {

// What a code is multiplied by, and what is added: the scales of 16 columns, prepared.
struct ScaleLanes {
  F16 factor;
  F16 offset;  // int8
};

// fp8: of 16 columns.
inline ScaleLanes load_fp8_scales(const char* scales, int half) {
  const F16 scale = load(reinterpret_cast<const float*>(scales) + 16 * half);
  return {mul(scale, set1(256.0f)), zero()};
}

// int8 and int4: of 16 columns and run kRun of 16 k in a quarter of a block (kernels.h). All of it
// is exact.
template <WeightFormat kFormat, int kRun>
inline ScaleLanes load_block_scales(const char* block, int64_t quarter, int half) {
  const F16 scale = widen_bf16(reinterpret_cast<const uint16_t*>(block) + 16 * half);
  if constexpr (kFormat == WeightFormat::kInt8) return {scale, mul(scale, set1(-384.0f))};
  const Codes quarters = load_codes(block + 64 + 64 * half);
  return {mul(int4_multiplier<kRun>(quarters, static_cast<int>(quarter)), scale), zero()};
}

template <WeightFormat kFormat>
inline constexpr int kCodesPerLane = kFormat == WeightFormat::kInt4 ? 8 : 4;

// Code kIndex of 16 columns, times their scales, rounded once: every unit that multiplies f32 sees
// the same weight.
template <WeightFormat kFormat, int kIndex>
inline F16 decode(Codes codes, const ScaleLanes& scales) {
  if constexpr (kFormat == WeightFormat::kFp8)
    return mul(e4m3_over_256<kIndex>(codes), scales.factor);
  // (256 + 128 + code) * scale - 384 * scale; load_codes() left the code plus 128.
  if constexpr (kFormat == WeightFormat::kInt8)
    return fma(byte_plus_256<kIndex>(codes), scales.factor, scales.offset);
  if constexpr (kFormat == WeightFormat::kInt4)
    return mul(int4_level<kIndex % 4 * 2 + kIndex / 4>(codes), scales.factor);
}

}  // namespace
}  // namespace volley::cpu
