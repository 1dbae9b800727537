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

// One run of an int4 group: what its steps may be. One end of the codes stands for the element of
// largest magnitude, whatever its sign, as in llama.cpp's Q4_0. A smaller step, which clips it, can
// be better for the others.
struct Int4Run {
  std::span<const float> values;
  float low = -8, high = 7;
  float widest = 0;  // step that clips nothing

  explicit Int4Run(std::span<const float> all) : values(all) {
    float largest = 0;
    for (const float x : values) {
      if (std::abs(x) > std::abs(largest)) largest = x;
    }
    if (largest > 0) low = -7, high = 8;
    widest = std::abs(largest) / 8.0f;
  }
  float error(float step) const {
    std::array<uint8_t, Int4Group::kRun> codes;
    return round_codes(values, step, low, high, codes.data());
  }
  // The best of the steps from `widest` down to three quarters of it.
  float best_step() const {
    float best = widest, best_error = INFINITY;
    for (int i = 0; i < 5; ++i) {
      const float step = widest * (1.0f - 0.06f * static_cast<float>(i));
      const float off = error(step);
      if (off < best_error) best = step, best_error = off;
    }
    return best;
  }
  // The best multiple of `scale` near `step`.
  int best_multiple(float step, float scale) const {
    const int near = static_cast<int>(std::lround(std::min(step / scale, 15.0f)));
    int best = std::max(near, 1);
    float best_error = INFINITY;
    for (int multiple = std::max(near - 1, 1); multiple <= std::min(near + 1, 15); ++multiple) {
      const float off = error(static_cast<float>(multiple) * scale);
      if (off < best_error) best = multiple, best_error = off;
    }
    return best;
  }
};

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
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
      return 128;
    case WeightFormat::kAuto:
    case WeightFormat::kBf16:
      return 0;
  }
  return 0;
}

float quantize_group(WeightFormat format, std::span<const float> values, uint8_t* codes) {
  std::array<float, 128> tame;
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
  CHECK_LE(values.size(), size_t{128});
  std::array<float, 128> tame = {};
  std::transform(values.begin(), values.end(), tame.begin(), finite);
  Int4Group group;
  group.codes.fill(8);
  std::array<float, 4> steps;
  for (size_t run = 0; run < 4; ++run)
    steps[run] = Int4Run({&tame[run * Int4Group::kRun], Int4Group::kRun}).best_step();
  const float largest = *std::max_element(steps.begin(), steps.end());
  if (largest == 0) return group;
  group.scale = std::max(rounded_up(std::min(largest, 1e37f) / 15.0f, 8), kLeastScale);
  for (size_t i = 0; i < 4; ++i) {
    const Int4Run run({&tame[i * Int4Group::kRun], Int4Group::kRun});
    const int multiple = run.best_multiple(steps[i], group.scale);
    group.steps[i] = static_cast<uint8_t>(multiple);
    group.zeros[i] = static_cast<uint8_t>(-run.low);
    uint8_t* codes = &group.codes[i * Int4Group::kRun];
    round_codes(run.values, static_cast<float>(multiple) * group.scale, run.low, run.high, codes);
    for (size_t j = 0; j < Int4Group::kRun; ++j)
      codes[j] = static_cast<uint8_t>(codes[j] + group.zeros[i]);
  }
  return group;
}

float dequantize(WeightFormat format, uint8_t code, float scale) {
  if (format == WeightFormat::kFp8) return e4m3_to_float(code) * scale;
  return static_cast<float>(static_cast<int8_t>(code)) * scale;
}

}  // namespace volley
