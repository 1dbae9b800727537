#pragma once

// Random weights, activations and caches for tests of backends, and comparison with a tolerance per
// element.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ops/ops.h"
#include "tensor/float_formats.h"
#include "tensor/weight_format.h"

namespace volley::ops_test {

using Floats = std::vector<float>;

inline float rounded_to_bf16(float x) {
  return bf16_to_float(float_to_bf16(x));
}

// Normal deviates; bf16-exact ones let a backend that rounds to bf16 be held to f32 tolerances.
inline Floats random_floats(int64_t count, uint64_t seed, float scale = 1.0f,
                            bool bf16_exact = true) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  Floats out(static_cast<size_t>(count));
  for (float& x : out) {
    x = normal(random);
    if (bf16_exact) x = rounded_to_bf16(x);
  }
  return out;
}

inline TensorView view(Floats& data, int64_t rows, int64_t cols) {
  return {data.data(), DType::kF32, rows, cols, cols};
}

// Owns the bytes of a checkpoint matrix.
struct Weights {
  std::vector<std::byte> bytes;
  Floats scales;
  HostMatrix matrix;

  Weights(const Weights&) = delete;
  Weights(Weights&& other) = default;

  // Draws [rows, cols] in `dtype`; f8_e4m3 gets a scale for each 128x128 group.
  Weights(int64_t rows, int64_t cols, DType dtype, uint64_t seed, float scale = 0.1f)
      : bytes(static_cast<size_t>(rows * cols * dtype_bytes(dtype))) {
    const Floats values = random_floats(rows * cols, seed, scale, false);
    for (int64_t i = 0; i < rows * cols; ++i) put(i, dtype, values[i]);
    matrix.weight = HostTensor::of(bytes.data(), dtype, {rows, cols});
    if (dtype != DType::kF8E4M3) return;
    const int64_t group_rows = (rows + 127) / 128, group_cols = (cols + 127) / 128;
    scales = random_floats(group_rows * group_cols, seed + 1, 0.01f, false);
    matrix.scale_inv = HostTensor::of(scales.data(), DType::kF32, {group_rows, group_cols});
  }

  // What a backend that packs bf16 makes of `other`.
  static Weights rounded(const HostMatrix& other) {
    Weights weights(other.rows(), other.cols(), DType::kBF16, 0);
    Floats row(static_cast<size_t>(other.cols()));
    for (int64_t r = 0; r < other.rows(); ++r) {
      other.dequantize_row(r, row.data());
      for (int64_t c = 0; c < other.cols(); ++c)
        weights.put(r * other.cols() + c, DType::kBF16, row[c]);
    }
    return weights;
  }

  // What `format` makes of `other`, in f32. Stored FP8 stays as it is.
  static Weights quantized(WeightFormat format, const HostMatrix& other) {
    if (format == WeightFormat::kBf16) return rounded(other);
    Weights weights(other.rows(), other.cols(), DType::kF32, 0);
    Floats row(static_cast<size_t>(other.cols()));
    for (int64_t r = 0; r < other.rows(); ++r) {
      other.dequantize_row(r, row.data());
      const int64_t group = quant_group_size(format);
      for (int64_t first = 0; first < other.cols(); first += group) {
        if (format == WeightFormat::kFp8 && other.is_quantized()) break;
        const auto count = static_cast<size_t>(std::min(group, other.cols() - first));
        uint8_t codes[kMaxQuantGroup];
        const float scale = quantize_group(format, {&row[first], count}, codes);
        for (size_t i = 0; i < count; ++i) row[first + i] = dequantize(format, codes[i], scale);
      }
      for (int64_t c = 0; c < other.cols(); ++c)
        weights.put(r * other.cols() + c, DType::kF32, row[c]);
    }
    return weights;
  }

 private:
  void put(int64_t index, DType dtype, float value) {
    std::byte* at = bytes.data() + index * dtype_bytes(dtype);
    const uint16_t half = dtype == DType::kF16 ? float_to_f16(value) : float_to_bf16(value);
    const uint8_t quarter = float_to_e4m3(value * 256.0f);
    if (dtype == DType::kF32) std::memcpy(at, &value, 4);
    if (dtype == DType::kF16 || dtype == DType::kBF16) std::memcpy(at, &half, 2);
    if (dtype == DType::kF8E4M3) std::memcpy(at, &quarter, 1);
  }
};

// Sum over k of |a| |w| for every output: what rounding errors are proportional to.
inline Floats magnitudes(const Floats& a, int64_t rows, const HostMatrix& w) {
  Floats out(static_cast<size_t>(rows * w.rows()));
  Floats weights(static_cast<size_t>(w.cols()));
  for (int64_t n = 0; n < w.rows(); ++n) {
    w.dequantize_row(n, weights.data());
    for (int64_t m = 0; m < rows; ++m) {
      double sum = 0;
      for (int64_t k = 0; k < w.cols(); ++k)
        sum += std::abs(double{a[m * w.cols() + k]} * weights[k]);
      out[m * w.rows() + n] = static_cast<float>(sum);
    }
  }
  return out;
}

// Two f32 sums of k terms differ by at most this times the sum of magnitudes.
inline float sum_error(int64_t k) {
  return static_cast<float>(k + 4) * 0x1p-23f;
}

// Fails with the worst coordinate of [rows, cols].
inline void expect_near(const Floats& got, const Floats& want, const Floats& tolerance,
                        int64_t cols, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double worst = 0;
  size_t at = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    double excess = std::abs(double{got[i]} - want[i]) / (double{tolerance[i]} + 1e-30);
    if (std::isnan(excess)) excess = 1e300;
    if (excess > worst) {
      worst = excess;
      at = i;
    }
  }
  EXPECT_LE(worst, 1.0) << what << ": worst at row " << at / static_cast<size_t>(cols) << " column "
                        << at % static_cast<size_t>(cols) << ": got " << got[at] << ", want "
                        << want[at] << ", tolerance " << tolerance[at];
}

// Fails with the first coordinate whose bits differ.
inline void expect_same_bits(const float* got, const float* want, int64_t count,
                             const std::string& what) {
  if (count == 0 || std::memcmp(got, want, static_cast<size_t>(count) * sizeof(float)) == 0) return;
  for (int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
        << what << ": element " << i << ": " << got[i] << " and " << want[i];
  }
}

// cos in the first half of each row, sin in the second.
inline Floats rope_table(int64_t positions, int head_dim) {
  Floats table(static_cast<size_t>(positions * head_dim));
  const int half = head_dim / 2;
  for (int64_t p = 0; p < positions; ++p) {
    for (int i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * std::pow(10000.0, -double(i) / half);
      table[p * head_dim + i] = static_cast<float>(std::cos(angle));
      table[p * head_dim + half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}
// Leaves q and k as they are.
inline Floats identity_rope(int64_t positions, int head_dim) {
  Floats table(static_cast<size_t>(positions * head_dim));
  for (int64_t p = 0; p < positions; ++p)
    std::fill_n(table.begin() + p * head_dim, head_dim / 2, 1.0f);
  return table;
}

}  // namespace volley::ops_test
