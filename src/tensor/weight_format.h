#pragma once

// How a backend holds weights, and the quantisers that make them from a checkpoint.
//
//   bf16   rounded to nearest even.
//   fp8    e4m3 with an f32 scale. A checkpoint's own FP8 weights keep their bits and their 128x128
//          scales; other weights get a scale for each 128 of k, amax / 448.
//   int8   -127..127 with a bf16 scale for each 256 of k.
//   int4   a bf16 scale for each 256 of k; for each 16 of them a multiplier of 3 to 6, two bits;
//   for
//          each weight one of 16 levels, which lie denser near zero, as normal deviates do. A
//          weight is level * multiplier * scale, and the first two make an int8: a table of 64
//          bytes, which AVX-512 looks up in one instruction. 4.27 bits a weight. Normal deviates
//          come out 8% off; even levels took 4.4 bits for as much.
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

// Of all formats.
inline constexpr size_t kMaxQuantGroup = 256;

// Codes of one quant_group: e4m3 bits for fp8, two's complement for int8, and for int4 the int8
// that its 4 bits and its multiplier stand for. Returns the scale; element i is then code(i) *
// scale. A group of zeros has scale 1. Infinite and NaN elements count as the largest and as zero.
float quantize_group(WeightFormat format, std::span<const float> values, uint8_t* codes);

// The levels of int4, in order of their codes. Found by descent on normal and t-distributed
// deviates of whose groups the largest is positive.
inline constexpr int8_t kInt4Levels[16] = {-20, -14, -11, -8, -6, -4, -2, 0,
                                           1,   3,   5,   7,  9,  12, 15, 20};
inline constexpr uint8_t kInt4ZeroCode = 7;
inline constexpr int kLeastInt4Multiplier = 3;

// A quant_group of int4. The scale may be negative.
struct Int4Group {
  static constexpr size_t kRun = 16;
  float scale = 1;
  std::array<uint8_t, kMaxQuantGroup / kRun> multipliers = {};  // 0 to 3, for 3 to 6
  std::array<uint8_t, kMaxQuantGroup> codes = {};  // past the values they stand for zero

  int8_t product(size_t i) const {
    return static_cast<int8_t>(kInt4Levels[codes[i]] *
                               (kLeastInt4Multiplier + multipliers[i / kRun]));
  }
};
Int4Group quantize_int4_group(std::span<const float> values);

// code * scale, in one float multiplication.
float dequantize(WeightFormat format, uint8_t code, float scale);

}  // namespace volley
