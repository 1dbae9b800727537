#pragma once

// How a backend holds weights, and the quantisers that make them from a checkpoint.
//
//   bf16   rounded to nearest even.
//   fp8    e4m3 with an f32 scale. A checkpoint's own FP8 weights keep their bits and their 128x128
//          scales; other weights get a scale for each 128 of k, amax / 448.
//   int8   -127..127 with a bf16 scale for each 128 of k.
//   int4   -8..7 with a scale for each 32 of k. The scale has 5 significant bits, so that code
//   times
//          scale has at most 8 and is a bf16: units that multiply bf16 and units that multiply f32
//          see the same weight.
//
// A quant_group is a run of one row of the matrix [n, k]; the last of a row may be shorter.

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

// Codes of one quant_group, at most 128 elements: e4m3 bits for fp8, two's complement for int8 and
// int4. Returns the scale; element i is then code(i) * scale. A group of zeros has scale 1.
// Infinite and NaN elements count as the largest and as zero.
float quantize_group(WeightFormat format, std::span<const float> values, uint8_t* codes);
// Codes for int8 or int4 with a scale that is given.
void quantize_group_with(WeightFormat format, std::span<const float> values, float scale,
                         uint8_t* codes);
// code * scale, in one float multiplication.
float dequantize(WeightFormat format, uint8_t code, float scale);

}  // namespace volley
