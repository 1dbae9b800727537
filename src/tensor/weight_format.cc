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

// -8 stands for the element of largest magnitude, whatever its sign, as in llama.cpp's Q4_0. A
// smaller step that clips it can be better for the others: the best of some is taken.
float quantize_int4(std::span<const float> values, uint8_t* codes) {
  float largest = 0;
  for (const float x : values) {
    if (std::abs(x) > std::abs(largest)) largest = x;
  }
  if (largest == 0) {
    std::fill_n(codes, values.size(), uint8_t{0});
    return 1.0f;
  }
  const float sign = largest > 0 ? -1.0f : 1.0f;
  const float widest = rounded_up(std::min(std::abs(largest), 1e38f) / 8.0f, 5);
  // Five significant bits: neighbours differ by 1/16 to 1/32.
  constexpr uint32_t kStep = 1u << 19;
  float best_error = INFINITY, best = widest;
  std::array<uint8_t, 128> trial;
  for (uint32_t i = 0; i < 5; ++i) {
    const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(widest) - i * kStep);
    if (magnitude < kLeastScale) break;
    const float error = round_codes(values, sign * magnitude, -8.0f, 7.0f, trial.data());
    if (!(error < best_error)) continue;
    best_error = error;
    best = sign * magnitude;
    std::copy_n(trial.begin(), values.size(), codes);
  }
  if (std::isinf(best_error)) {  // all too small, or the error overflowed
    best = sign * std::max(widest, kLeastScale);
    round_codes(values, best, -8.0f, 7.0f, codes);
  }
  return best;
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
    case WeightFormat::kInt8:
      return 128;
    case WeightFormat::kInt4:
      return 32;
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
    case WeightFormat::kInt4:
      return quantize_int4(all, codes);
    case WeightFormat::kAuto:
    case WeightFormat::kBf16:
      break;
  }
  CHECK(false);
  return 0;
}

void quantize_group_with(WeightFormat format, std::span<const float> values, float scale,
                         uint8_t* codes) {
  std::array<float, 128> tame;
  CHECK_LE(values.size(), tame.size());
  std::transform(values.begin(), values.end(), tame.begin(), finite);
  const bool is_int8 = format == WeightFormat::kInt8;
  round_codes({tame.data(), values.size()}, scale, is_int8 ? -127.0f : -8.0f,
              is_int8 ? 127.0f : 7.0f, codes);
}

float dequantize(WeightFormat format, uint8_t code, float scale) {
  if (format == WeightFormat::kFp8) return e4m3_to_float(code) * scale;
  return static_cast<float>(static_cast<int8_t>(code)) * scale;
}

}  // namespace volley
