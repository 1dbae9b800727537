#include "tensor/weight_format.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tensor/float_formats.h"

namespace volley {
namespace {

constexpr WeightFormat kQuantized[] = {WeightFormat::kFp8, WeightFormat::kInt8,
                                       WeightFormat::kInt4};

std::vector<float> normal_values(size_t count, float spread, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> values(count);
  for (float& x : values) x = normal(random);
  return values;
}

TEST(WeightFormat, NamesGoBothWays) {
  for (const WeightFormat format : {WeightFormat::kAuto, WeightFormat::kBf16, WeightFormat::kFp8,
                                    WeightFormat::kInt8, WeightFormat::kInt4}) {
    EXPECT_EQ(weight_format_from_name(weight_format_name(format)), format);
  }
  EXPECT_FALSE(weight_format_from_name("q4_0"));
}

// Relative error of normal deviates: what a quantiser of that many levels can reach.
TEST(WeightFormat, ErrorsAreThoseOfTheirBits) {
  const auto error_of = [](WeightFormat format) {
    double off = 0, all = 0;
    for (uint64_t seed = 0; seed < 200; ++seed) {
      const auto values = normal_values(static_cast<size_t>(quant_group_size(format)), 0.02f, seed);
      std::array<uint8_t, kMaxQuantGroup> codes;
      const float scale = quantize_group(format, values, codes.data());
      for (size_t i = 0; i < values.size(); ++i) {
        const double x = values[i];
        off += std::pow(dequantize(format, codes[i], scale) - x, 2);
        all += x * x;
      }
    }
    return std::sqrt(off / all);
  };
  EXPECT_LT(error_of(WeightFormat::kInt8), 0.0075);
  EXPECT_LT(error_of(WeightFormat::kFp8), 0.03);
  EXPECT_LT(error_of(WeightFormat::kInt4), 0.082);
  EXPECT_GT(error_of(WeightFormat::kInt4), 0.05);
}

// Runs of 16 have multipliers of their own: one of half its neighbours' size loses no more than
// they.
TEST(WeightFormat, Int4RunsHaveTheirOwnMultipliers) {
  for (const float spread : {1e-12f, 0.02f, 3e7f}) {
    double small_off = 0, small_all = 0;
    for (uint64_t seed = 0; seed < 200; ++seed) {
      auto values = normal_values(256, spread, seed);
      for (size_t i = 0; i < 16; ++i) values[i] *= 0.5f;
      const Int4Group group = quantize_int4_group(values);
      EXPECT_EQ(bf16_to_float(float_to_bf16(group.scale)), group.scale);
      for (size_t i = 0; i < values.size(); ++i) {
        EXPECT_LT(group.codes[i], 16);
        EXPECT_LT(group.multipliers[i / 16], 4);
        const double off = group.product(i) * double{group.scale} - values[i];
        if (i < 16) small_off += off * off, small_all += double{values[i]} * values[i];
      }
    }
    EXPECT_LT(small_off, 0.012 * small_all);
  }
}

TEST(WeightFormat, Int4PastTheValuesIsZero) {
  const auto values = normal_values(70, 1.0f, 3);
  const Int4Group group = quantize_int4_group(values);
  for (size_t i = values.size(); i < kMaxQuantGroup; ++i) EXPECT_EQ(group.product(i), 0);
  std::array<uint8_t, kMaxQuantGroup> codes;
  EXPECT_EQ(quantize_group(WeightFormat::kInt4, values, codes.data()), group.scale);
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(static_cast<int8_t>(codes[i]), group.product(i));
}

TEST(WeightFormat, Int8ScaleIsABf16) {
  const auto values = normal_values(128, 0.3f, 5);
  std::array<uint8_t, kMaxQuantGroup> codes;
  const float scale = quantize_group(WeightFormat::kInt8, values, codes.data());
  EXPECT_EQ(bf16_to_float(float_to_bf16(scale)), scale);
}

TEST(WeightFormat, ExtremeGroups) {
  const float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> groups = {
      {0, 0, 0},
      {-0.0f, 1e-44f, 1e-40f},
      {1e38f, -3e38f, 1},
      {kInfinity, -kInfinity, 1},
      {std::nanf(""), 2, -3},
      {5},
      {-5},
      {1e-30f, -1e-31f},
  };
  for (const WeightFormat format : kQuantized) {
    for (const auto& group : groups) {
      std::array<uint8_t, kMaxQuantGroup> codes;
      const float scale = quantize_group(format, group, codes.data());
      EXPECT_TRUE(std::isfinite(scale) && scale != 0) << weight_format_name(format);
      for (size_t i = 0; i < group.size(); ++i)
        EXPECT_TRUE(std::isfinite(dequantize(format, codes[i], scale)))
            << weight_format_name(format) << " " << group[i];
    }
    std::array<uint8_t, kMaxQuantGroup> codes;
    const std::vector<float> one = {-5};
    const float scale = quantize_group(format, one, codes.data());
    EXPECT_NEAR(dequantize(format, codes[0], scale), -5, 0.2);
  }
}

TEST(WeightFormat, SymmetricAroundZero) {
  const auto values = normal_values(128, 1, 9);
  std::vector<float> negated = values;
  for (float& x : negated) x = -x;
  for (const WeightFormat format : kQuantized) {
    std::array<uint8_t, 128> a, b;
    const float scale = quantize_group(format, values, a.data());
    const float other = quantize_group(format, negated, b.data());
    for (size_t i = 0; i < values.size(); ++i)
      EXPECT_EQ(dequantize(format, a[i], scale), -dequantize(format, b[i], other));
  }
}

}  // namespace
}  // namespace volley
