#include "tensor/weight_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "tensor/float_formats.h"

namespace volley {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"auto", "bf16", "fp8", "int8", "int4"};
constexpr float kLargest = 3.3895314e38f;  // of bf16

float finite(float x) {
  if (std::isnan(x)) return 0.0f;
  return std::clamp(x, -kLargest, kLargest);
}

// x > 0 with `bits` significant bits, rounded up, so that nothing is clipped.
float rounded_up(float x, int bits) {
  const uint32_t low = (1u << (24 - bits)) - 1u;
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + low) & ~low);
}

// Smallest scales: their products with codes stay normal.
constexpr float kLeastScale = 0x1p-100f;

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float x : values) largest = std::max(largest, std::abs(finite(x)));
  return largest;
}

float quantize_fp8(std::span<const float> values, uint8_t* codes) {
  const float largest = largest_magnitude(values);
  const float scale = largest == 0 ? 1.0f : std::max(largest / 448.0f, kLeastScale);
  for (size_t i = 0; i < values.size(); ++i) codes[i] = float_to_e4m3(finite(values[i]) / scale);
  return scale;
}

// Codes to nearest, in [low, high]; returns the sum of squared errors.
float round_codes(std::span<const float> values, float scale, float low, float high,
                  uint8_t* codes) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float inverse = 1.0f / scale;
  float error = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const float x = values[i] * inverse;
    const float clamped = std::min(std::max(x, low), high);
    const float code = (clamped + kRound) - kRound;
    codes[i] = static_cast<uint8_t>(static_cast<int8_t>(code));
    const float off = values[i] - code * scale;
    error += off * off;
  }
  return error;
}

float quantize_int8(std::span<const float> values, uint8_t* codes) {
  const float largest = largest_magnitude(values);
  const float scale =
      largest == 0 ? 1.0f : std::max(rounded_up(std::min(largest, 1e38f) / 127.0f, 8), kLeastScale);
  round_codes(values, scale, -127.0f, 127.0f, codes);
  return scale;
}

// The code whose level is nearest to x, of floor(2 x) + kLevelOffset: halfway between two levels is
// a multiple of a half.
constexpr int kLevelOffset = 2 * 20 + 1;
constexpr auto kNearestCodes = [] {
  std::array<uint8_t, 2 * kLevelOffset> codes = {};
  for (int i = 0; i < 2 * kLevelOffset; ++i) {
    const int twice = i - kLevelOffset;
    size_t code = 0;
    while (code + 1 < std::size(kInt4Levels) && kInt4Levels[code] + kInt4Levels[code + 1] <= twice)
      ++code;
    codes[static_cast<size_t>(i)] = static_cast<uint8_t>(code);
  }
  return codes;
}();
constexpr auto kLevelsAsFloats = [] {
  std::array<float, 2 * kLevelOffset> levels = {};
  for (size_t i = 0; i < levels.size(); ++i) levels[i] = kInt4Levels[kNearestCodes[i]];
  return levels;
}();

// Where x / step finds its level in the tables above.
size_t level_index(float x, float inverse_step) {
  constexpr float kLast = 2 * kLevelOffset - 1;
  const float twice = x * (2 * inverse_step) + kLevelOffset;
  return static_cast<size_t>(static_cast<int>(std::min(std::max(twice, 0.0f), kLast)));
}

float int4_error(std::span<const float> values, float step) {
  const float inverse = 1.0f / step;
  float error = 0;
  for (const float x : values) {
    const float off = x - kLevelsAsFloats[level_index(x, inverse)] * step;
    error += off * off;
  }
  return error;
}

// Chooses the multipliers that suit a scale best; returns the sum of squared errors.
float choose_multipliers(std::span<const float> values, float scale, Int4Group& group) {
  float all = 0;
  for (size_t first = 0; first < values.size(); first += Int4Group::kRun) {
    const auto run = values.subspan(first, std::min(Int4Group::kRun, values.size() - first));
    float least = INFINITY;
    for (uint8_t multiplier = 0; multiplier < 4; ++multiplier) {
      const float error =
          int4_error(run, scale * static_cast<float>(kLeastInt4Multiplier + multiplier));
      if (error < least) least = error, group.multipliers[first / Int4Group::kRun] = multiplier;
    }
    all += least;
  }
  return all;
}

}  // namespace

std::string_view weight_format_name(WeightFormat format) {
  return kNames[static_cast<size_t>(format)];
}

std::optional<WeightFormat> weight_format_from_name(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end()) return std::nullopt;
  return static_cast<WeightFormat>(found - kNames.begin());
}

int64_t quant_group_size(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8:
      return 128;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
      return 256;
    case WeightFormat::kAuto:
    case WeightFormat::kBf16:
      return 0;
  }
  return 0;
}

float quantize_group(WeightFormat format, std::span<const float> values, uint8_t* codes) {
  std::array<float, kMaxQuantGroup> tame;
  CHECK_LE(values.size(), tame.size());
  std::transform(values.begin(), values.end(), tame.begin(), finite);
  const std::span<const float> all(tame.data(), values.size());
  switch (format) {
    case WeightFormat::kFp8:
      return quantize_fp8(all, codes);
    case WeightFormat::kInt8:
      return quantize_int8(all, codes);
    case WeightFormat::kInt4: {
      const Int4Group group = quantize_int4_group(all);
      for (size_t i = 0; i < all.size(); ++i) codes[i] = static_cast<uint8_t>(group.product(i));
      return group.scale;
    }
    case WeightFormat::kAuto:
    case WeightFormat::kBf16:
      break;
  }
  CHECK(false);
  return 0;
}

Int4Group quantize_int4_group(std::span<const float> values) {
  CHECK_LE(values.size(), kMaxQuantGroup);
  std::array<float, kMaxQuantGroup> tame = {};
  std::transform(values.begin(), values.end(), tame.begin(), finite);
  const std::span<const float> all(tame.data(), values.size());
  Int4Group group;
  group.codes.fill(kInt4ZeroCode);
  float largest = 0;
  for (const float x : all) {
    if (std::abs(x) > std::abs(largest)) largest = x;
  }
  if (largest == 0) return group;
  // One scale clips nothing; a smaller one, which clips the largest element, can be better for the
  // others. Both have the largest element's sign.
  constexpr int kTop = 20 * (kLeastInt4Multiplier + 3);
  const float widest =
      std::max(rounded_up(std::min(std::abs(largest), 1e37f) / kTop, 8), kLeastScale);
  const float narrow = std::max(rounded_up(widest * 0.92f, 8), kLeastScale);
  Int4Group other = group;
  group.scale = std::copysign(widest, largest);
  other.scale = std::copysign(narrow, largest);
  if (choose_multipliers(all, other.scale, other) < choose_multipliers(all, group.scale, group))
    group = other;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto multiplier =
        static_cast<float>(kLeastInt4Multiplier + group.multipliers[i / Int4Group::kRun]);
    group.codes[i] = kNearestCodes[level_index(all[i], 1.0f / (group.scale * multiplier))];
  }
  return group;
}

float dequantize(WeightFormat format, uint8_t code, float scale) {
  if (format == WeightFormat::kFp8) return e4m3_to_float(code) * scale;
  return static_cast<float>(static_cast<int8_t>(code)) * scale;
}

}  // namespace volley
