#pragma once

// How a backend holds weights, and the quantisers that make them from a checkpoint.
//
//   bf16   rounded to nearest even.
//   fp8    e4m3 with an f32 scale. A checkpoint's own FP8 weights keep their bits and their 128x128
//          scales; other weights get a scale for each 128 of k, amax / 448.
//   int8   -127..127 with a bf16 scale for each 128 of k.
//   int4   a bf16 scale for each 128 of k; for each 32 of them a step of 1 to 15 scales, and 16
//          multiples of it, from -8 to 7 or from -7 to 8. The int8 that a weight is a scale times
//          of lies in -120..120.
//
// A quant_group is a run of one row of the matrix [n, k]; the last of a row may be shorter.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace volley {

enum class WeightFormat : uint8_t {
  kAuto,  // fp8 where the checkpoint is, bf16 elsewhere
  kBf16,
  kFp8,
  kInt8,
  kInt4,
};

std::string_view weight_format_name(WeightFormat format);  // "auto", "bf16", "fp8", "int8", "int4"
std::optional<WeightFormat> weight_format_from_name(std::string_view name);

// Elements of k that share a scale; 0 for formats without scales.
int64_t quant_group_size(WeightFormat format);

// Codes of one quant_group, at most 128 elements: e4m3 bits for fp8, two's complement for int8, and
// for int4 the int8 that its 4 bits stand for. Returns the scale; element i is then
// code(i) * scale. A group of zeros has scale 1. Infinite and NaN elements count as the largest and
// as zero.
float quantize_group(WeightFormat format, std::span<const float> values, uint8_t* codes);

// A quant_group of int4: code i stands for (codes[i] - zero) * step, of run i / 32.
struct Int4Group {
  static constexpr size_t kRun = 32;
  float scale = 1;
  std::array<uint8_t, 4> steps = {1, 1, 1, 1};
  std::array<uint8_t, 4> zeros = {8, 8, 8, 8};  // 8 or 7
  std::array<uint8_t, 128> codes = {};          // 0 to 15; past the values they stand for zero

  int8_t product(size_t i) const {
    return static_cast<int8_t>((codes[i] - zeros[i / kRun]) * steps[i / kRun]);
  }
};
Int4Group quantize_int4_group(std::span<const float> values);

// code * scale, in one float multiplication.
float dequantize(WeightFormat format, uint8_t code, float scale);

}  // namespace volley
