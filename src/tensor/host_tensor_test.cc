#include "tensor/host_tensor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "tensor/float_formats.h"

namespace volley {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

static_assert(float_to_bf16(1.0f) == 0x3F80);
static_assert(float_to_f16(1.0f) == 0x3C00);
static_assert(float_to_e4m3(1.0f) == 0x38);
static_assert(e4m3_to_float(0x7E) == 448.0f);
static_assert(f16_to_float(0x0001) == 0x1p-24f);
static_assert(e4m3_to_float(0x01) == 0x1p-9f);

// Every code of a narrow format survives widening and narrowing.
TEST(FloatFormats, RoundTripOfEveryCode) {
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    const float bf16 = bf16_to_float(bits);
    const float f16 = f16_to_float(bits);
    if (std::isnan(bf16)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(bf16)))) << code;
    } else {
      EXPECT_EQ(float_to_bf16(bf16), bits);
    }
    if (std::isnan(f16)) {
      EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(f16)))) << code;
    } else {
      EXPECT_EQ(float_to_f16(f16), bits);
    }
  }
  for (uint32_t code = 0; code < 0x100; ++code) {
    const auto bits = static_cast<uint8_t>(code);
    const float value = e4m3_to_float(bits);
    if (std::isnan(value)) {
      EXPECT_EQ(code & 0x7F, 0x7Fu);
      EXPECT_EQ(float_to_e4m3(value) & 0x7F, 0x7F);
    } else {
      EXPECT_EQ(float_to_e4m3(value), bits);
    }
  }
}

// Between each two neighbours: below the middle goes down, above goes up, the middle goes to the
// even code. Codes of one sign are ordered as their values are.
template <class Code, class Widen, class Narrow>
void check_rounding(Code last_finite, Widen widen, Narrow narrow) {
  for (uint32_t code = 0; code < last_finite; ++code) {
    const float low = widen(static_cast<Code>(code));
    const float high = widen(static_cast<Code>(code + 1));
    const float middle = low + (high - low) / 2;  // exact: one more mantissa bit
    const Code even = static_cast<Code>(code % 2 == 0 ? code : code + 1);
    ASSERT_EQ(narrow(middle), even) << code;
    ASSERT_EQ(narrow(std::nextafter(middle, 0.0f)), static_cast<Code>(code)) << code;
    ASSERT_EQ(narrow(std::nextafter(middle, kInf)), static_cast<Code>(code + 1)) << code;
  }
}

TEST(FloatFormats, RoundsToNearestTiesToEven) {
  check_rounding<uint16_t>(0x7F7F, bf16_to_float, float_to_bf16);
  check_rounding<uint16_t>(0x7BFF, f16_to_float, float_to_f16);
  check_rounding<uint8_t>(0x7E, e4m3_to_float, float_to_e4m3);
}

TEST(FloatFormats, Extremes) {
  EXPECT_EQ(float_to_bf16(kInf), 0x7F80);
  EXPECT_EQ(float_to_bf16(-kInf), 0xFF80);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7F80);
  EXPECT_EQ(float_to_f16(kInf), 0x7C00);
  EXPECT_EQ(float_to_f16(65519.99f), 0x7BFF);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7C00);
  EXPECT_EQ(float_to_f16(-1e30f), 0xFC00);
  EXPECT_EQ(float_to_f16(1e-30f), 0x0000);
  EXPECT_EQ(float_to_f16(-0.0f), 0x8000);
  EXPECT_EQ(float_to_e4m3(kInf), 0x7E);
  EXPECT_EQ(float_to_e4m3(-449.0f), 0xFE);
  EXPECT_EQ(float_to_e4m3(0x1p-149f), 0x00);
  // A NaN whose payload sits in the low bits alone must not turn into an infinity.
  const float low_nan = std::bit_cast<float>(0x7F800001u);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(low_nan))));
  EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(low_nan))));
  EXPECT_EQ(float_to_e4m3(low_nan), 0x7F);
}

TEST(HostTensor, ReadsEveryDType) {
  const float f32[] = {1.5f, -2.0f};
  EXPECT_EQ(HostTensor::of(f32, DType::kF32, {2}).float_at(1), -2.0f);
  const uint16_t bf16[] = {0x3FC0, 0xC000};
  EXPECT_EQ(HostTensor::of(bf16, DType::kBF16, {2}).to_floats(), (std::vector<float>{1.5f, -2.0f}));
  const int64_t i64[] = {-7, int64_t{1} << 40};
  EXPECT_EQ(HostTensor::of(i64, DType::kI64, {2}).int_at(1), int64_t{1} << 40);
  const uint8_t flags[] = {0, 1};
  EXPECT_EQ(HostTensor::of(flags, DType::kBool, {2}).int_at(1), 1);
  const HostTensor tensor = HostTensor::of(f32, DType::kF32, {1, 2});
  EXPECT_EQ(tensor.shape_string(), "[1, 2]");
  EXPECT_TRUE(tensor.has_shape({1, 2}));
  EXPECT_FALSE(tensor.has_shape({2}));
  EXPECT_EQ(tensor.num_bytes(), 8);
}

TEST(HostTensor, ReadsUnalignedBytes) {
  alignas(8) std::byte bytes[9] = {};
  const float value = 3.25f;
  std::memcpy(bytes + 1, &value, 4);
  EXPECT_EQ(HostTensor::of(bytes + 1, DType::kF32, {1}).float_at(0), 3.25f);
}

TEST(HostMatrix, DequantizesWithTailGroups) {
  constexpr int64_t kRows = 130, kCols = 260;
  std::vector<uint8_t> codes(kRows * kCols);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 37 % 0x7F);
  const std::vector<float> scales = {0.5f, 0.25f, 3.0f, 0.1f, 7.0f, 0.3f};
  HostMatrix matrix;
  matrix.weight = HostTensor::of(codes.data(), DType::kF8E4M3, {kRows, kCols});
  matrix.scale_inv = HostTensor::of(scales.data(), DType::kF32, {2, 3});
  std::vector<float> row(kCols);
  for (int64_t r : {int64_t{0}, int64_t{127}, int64_t{128}, kRows - 1}) {
    matrix.dequantize_row(r, row.data());
    for (int64_t c = 0; c < kCols; ++c) {
      const float want = e4m3_to_float(codes[r * kCols + c]) * scales[r / 128 * 3 + c / 128];
      ASSERT_EQ(row[c], want);
      ASSERT_EQ(matrix.at(r, c), want);
    }
  }
}

}  // namespace
}  // namespace volley
