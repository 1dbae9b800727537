#pragma once

// Exact conversions between float and the narrow float formats of checkpoints. Narrowing rounds to
// nearest, ties to even; widening is exact. Denormals, infinities and NaN are kept.

#include <bit>
#include <cstdint>

namespace volley {

constexpr float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

constexpr uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

namespace float_formats_detail {

// 2^exponent for -126 <= exponent <= 127.
constexpr float power_of_two(int exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

// Rounds the finite non-negative float `bits` to `kMantissaBits` with smallest normal exponent
// `kMinExponent`. Returns exponent and mantissa fields side by side; a carry out of the mantissa
// lands in the exponent, as it should. Overflow is the caller's.
template <int kMantissaBits, int kMinExponent>
constexpr uint32_t round_magnitude(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 23) - 127;
  // Below the smallest normal the spacing stays that of the smallest normal binade.
  const int denormal_shift = exponent < kMinExponent ? kMinExponent - exponent : 0;
  const int shift = 23 - kMantissaBits + denormal_shift;
  if (shift > 24) return 0;  // under half of the smallest denormal; float denormals are here too
  const uint32_t mantissa = (bits & 0x7FFFFFu) | 0x800000u;
  const uint32_t kept = mantissa >> shift;
  const uint32_t rest = mantissa & ((1u << shift) - 1u);
  const uint32_t half = 1u << (shift - 1);
  const uint32_t rounded = kept + ((rest > half || (rest == half && (kept & 1u))) ? 1u : 0u);
  if (denormal_shift > 0) return rounded;
  return rounded + (static_cast<uint32_t>(exponent - kMinExponent) << kMantissaBits);
}

}  // namespace float_formats_detail

constexpr float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0x1Fu) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * float_formats_detail::power_of_two(-24);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Magnitudes from 65520 on become infinity.
constexpr uint16_t float_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) {
    return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
  }
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65536 and above
  // A carry past 65504 rounds into the encoding of infinity by itself.
  return static_cast<uint16_t>(sign | float_formats_detail::round_magnitude<10, -14>(magnitude));
}

// e4m3fn: bias 7, no infinity, 0x7F and 0xFF are NaN, largest magnitude 448.
constexpr float e4m3_to_float(uint8_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  const uint32_t exponent = (bits >> 3) & 0xFu;
  const uint32_t mantissa = bits & 0x7u;
  if ((bits & 0x7Fu) == 0x7Fu) return std::bit_cast<float>(sign | 0x7FC00000u);
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 120u) << 23) | (mantissa << 20));
  const float magnitude = static_cast<float>(mantissa) * float_formats_detail::power_of_two(-9);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

// Saturates at 448, infinity included (as cvt.satfinite does), since a quantiser wants the nearest
// number that exists. NaN stays NaN.
constexpr uint8_t float_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 24) & 0x80u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint8_t>(sign | 0x7Fu);
  if (magnitude >= 0x43E00000u) return static_cast<uint8_t>(sign | 0x7Eu);  // 448 and above
  return static_cast<uint8_t>(sign | float_formats_detail::round_magnitude<3, -6>(magnitude));
}

// e2m1: the low four bits of `bits`. 0, 1/2, 1, 3/2, 2, 3, 4, 6, and the same with a sign.
constexpr float e2m1_to_float(uint8_t bits) {
  const int exponent = bits >> 1 & 3, mantissa = bits & 1;
  const float magnitude = exponent == 0 ? 0.5F * static_cast<float>(mantissa)
                                        : (1.0F + 0.5F * static_cast<float>(mantissa)) *
                                              static_cast<float>(1 << (exponent - 1));
  return (bits & 8) != 0 ? -magnitude : magnitude;
}

// Ties to the even code; beyond 6, NaN included, 6.
constexpr uint8_t float_to_e2m1(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>(bits >> 28 & 8);
  const float x = std::bit_cast<float>(bits & 0x7FFFFFFFu);
  // Up to and including the middle between two codes where the lower one is even.
  const int code = x <= 0.25F   ? 0
                   : x < 0.75F  ? 1
                   : x <= 1.25F ? 2
                   : x < 1.75F  ? 3
                   : x <= 2.5F  ? 4
                   : x < 3.5F   ? 5
                   : x <= 5.0F  ? 6
                                : 7;
  return static_cast<uint8_t>(sign | code);
}

}  // namespace volley
