#include "tensor/weight_format.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

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
// a multiple of a half. No element is more than 20 * 6 / (3 * 0.9) steps large, which spares a
// clamp.
constexpr int kLevelOffset = 100;
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

// The values of one run of int4 and what a step makes of them. In vectors of four, which every
// machine has: compilers unroll loops over lanes and then see none. Only the look-up is done one by
// one.
struct Int4Run {
  static constexpr size_t kSize = Int4Group::kRun;
  static constexpr size_t kLanes = 4;
  using Floats [[gnu::vector_size(16)]] = float;
  using Ints [[gnu::vector_size(16)]] = int32_t;
  const float* values;

  Floats four(size_t first) const {
    Floats x;
    std::memcpy(&x, values + first, sizeof(x));
    return x;
  }
  // Where values / step find their levels in the tables above.
  Ints level_indices(size_t first, float step) const {
    return __builtin_convertvector(four(first) * (2.0f / step) + float{kLevelOffset}, Ints);
  }
  // Sum of squares.
  float error(float step) const {
    Floats sums = {};
    for (size_t first = 0; first < kSize; first += kLanes) {
      const Ints indices = level_indices(first, step);
      Floats levels;
      for (size_t lane = 0; lane < kLanes; ++lane)
        levels[lane] = kLevelsAsFloats[static_cast<size_t>(indices[lane])];
      const Floats off = four(first) - levels * step;
      sums += off * off;
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};

constexpr size_t num_int4_runs(size_t num_values) {
  return (num_values + Int4Run::kSize - 1) / Int4Run::kSize;
}

// Chooses the multipliers that suit a scale best; returns the sum of squared errors. `values` has
// zeros up to a whole run.
float choose_multipliers(const float* values, size_t num_values, float scale, Int4Group& group) {
  float all = 0;
  for (size_t i = 0; i < num_int4_runs(num_values); ++i) {
    const Int4Run run = {values + i * Int4Run::kSize};
    float least = INFINITY;
    for (uint8_t multiplier = 0; multiplier < 4; ++multiplier) {
      const float error = run.error(scale * static_cast<float>(kLeastInt4Multiplier + multiplier));
      if (error < least) least = error, group.multipliers[i] = multiplier;
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
  std::transform(values.begin(), values.end(), tame.begin(),
                 [](float x) { return std::clamp(finite(x), -1e37f, 1e37f); });
  Int4Group group;
  group.codes.fill(kInt4ZeroCode);
  float largest = 0;
  for (const float x : tame) {
    if (std::abs(x) > std::abs(largest)) largest = x;
  }
  if (largest == 0) return group;
  // One scale clips nothing; a smaller one, which clips the largest element, can be better for the
  // others. Both have the largest element's sign.
  constexpr int kTop = 20 * (kLeastInt4Multiplier + 3);
  const float widest = std::max(rounded_up(std::abs(largest) / kTop, 8), kLeastScale);
  const float narrow = std::max(rounded_up(widest * 0.92f, 8), kLeastScale);
  Int4Group other = group;
  group.scale = std::copysign(widest, largest);
  other.scale = std::copysign(narrow, largest);
  const size_t count = values.size();
  if (choose_multipliers(tame.data(), count, other.scale, other) <
      choose_multipliers(tame.data(), count, group.scale, group))
    group = other;
  for (size_t i = 0; i < num_int4_runs(count); ++i) {
    const Int4Run run = {&tame[i * Int4Run::kSize]};
    const auto multiplier = static_cast<float>(kLeastInt4Multiplier + group.multipliers[i]);
    for (size_t j = 0; j < Int4Run::kSize; j += Int4Run::kLanes) {
      const auto indices = run.level_indices(j, group.scale * multiplier);
      for (size_t lane = 0; lane < Int4Run::kLanes; ++lane)
        group.codes[i * Int4Run::kSize + j + lane] =
            kNearestCodes[static_cast<size_t>(indices[lane])];
    }
  }
  return group;
}

float dequantize(WeightFormat format, uint8_t code, float scale) {
  if (format == WeightFormat::kFp8) return e4m3_to_float(code) * scale;
  return static_cast<float>(static_cast<int8_t>(code)) * scale;
}

}  // namespace volley
