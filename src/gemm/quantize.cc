#include "gemm/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

constexpr int64_t kGroup = 128;
constexpr float kMaxE4m3 = 448.0F;
constexpr float kMinAmax = 1e-4F;
constexpr uint8_t kNan = 0x7F;

float scale_of(float amax, bool power_of_two) {
  const float scale = std::max(amax, kMinAmax) / kMaxE4m3;
  if (!power_of_two) return scale;
  const uint32_t bits = std::bit_cast<uint32_t>(scale);
  const bool is_power = (bits & 0x7FFFFFU) == 0;
  return std::bit_cast<float>((bits & 0x7F800000U) + (is_power ? 0U : 0x800000U));
}

Status check_size(size_t got, int64_t want, const char* what) {
  if (static_cast<int64_t>(got) == want) return {};
  return invalid("{}: expected {} values, got {}", what, want, got);
}

// Quantises the rows x cols rectangle at `x` (rows `stride` apart) with one scale, which it
// returns.
float quantize_group(const float* x, int64_t rows, int64_t cols, int64_t stride, bool power_of_two,
                     uint8_t* out) {
  float amax = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) amax = std::max(amax, std::fabs(x[r * stride + c]));
  }
  const float scale = scale_of(amax, power_of_two);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float q = x[r * stride + c] / scale;
      out[r * stride + c] = std::isnan(q) ? kNan : float_to_e4m3(q);  // whatever the sign
    }
  }
  return scale;
}

}  // namespace

Result<QuantizedRows> quantize_rows(std::span<const float> x, int64_t m, int64_t k,
                                    bool power_of_two) {
  if (m < 0 || k < kGroup || k % kGroup != 0) {
    return invalid("quantize_rows: [{}, {}], expected a multiple of 128 columns", m, k);
  }
  VOLLEY_TRY_STATUS(check_size(x.size(), m * k, "quantize_rows"));
  QuantizedRows out;
  out.scale_stride = (m + 3) / 4 * 4;
  out.values.resize(x.size());
  out.scales.resize(static_cast<size_t>(out.scale_stride * (k / kGroup)));
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t b = 0; b < k / kGroup; ++b) {
      const int64_t at = r * k + b * kGroup;
      out.scales[static_cast<size_t>(b * out.scale_stride + r)] =
          quantize_group(x.data() + at, 1, kGroup, k, power_of_two, out.values.data() + at);
    }
  }
  return out;
}

Result<QuantizedRows> quantize_columns(std::span<const float> x, int64_t m, int64_t n,
                                       bool power_of_two) {
  if (m < 0 || n < 0) return invalid("quantize_columns: [{}, {}]", m, n);
  VOLLEY_TRY_STATUS(check_size(x.size(), m * n, "quantize_columns"));
  const int64_t k = (m + kGroup - 1) / kGroup * kGroup;
  if (k == 0) return QuantizedRows{};
  std::vector<float> transposed(static_cast<size_t>(n * k));
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      transposed[static_cast<size_t>(c * k + r)] = x[static_cast<size_t>(r * n + c)];
    }
  }
  return quantize_rows(transposed, n, k, power_of_two);
}

Result<QuantizedWeight> quantize_weight(std::span<const float> x, int64_t num_groups, int64_t n,
                                        int64_t k, bool power_of_two) {
  if (num_groups < 1 || n < 1 || k < kGroup || k % kGroup != 0) {
    return invalid("quantize_weight: [{}, {}, {}], expected a multiple of 128 columns", num_groups,
                   n, k);
  }
  VOLLEY_TRY_STATUS(check_size(x.size(), num_groups * n * k, "quantize_weight"));
  QuantizedWeight out;
  out.values.resize(x.size());
  out.scales.reserve(static_cast<size_t>(num_groups * ((n + kGroup - 1) / kGroup) * (k / kGroup)));
  for (int64_t g = 0; g < num_groups; ++g) {
    for (int64_t r = 0; r < n; r += kGroup) {
      for (int64_t c = 0; c < k; c += kGroup) {
        const int64_t at = (g * n + r) * k + c;
        out.scales.push_back(quantize_group(x.data() + at, std::min(kGroup, n - r), kGroup, k,
                                            power_of_two, out.values.data() + at));
      }
    }
  }
  return out;
}

Result<std::vector<float>> scales_to_m_major(std::span<const float> scales, int64_t m,
                                             int64_t blocks, int64_t stride) {
  if (m < 0 || blocks < 0 || stride < m || stride % 4 != 0) {
    return invalid("scales_to_m_major: [{}, {}] with stride {}, expected a multiple of 4 from {}",
                   m, blocks, stride, m);
  }
  VOLLEY_TRY_STATUS(check_size(scales.size(), m * blocks, "scales_to_m_major"));
  std::vector<float> out(static_cast<size_t>(stride * blocks));
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t b = 0; b < blocks; ++b) {
      out[static_cast<size_t>(b * stride + r)] = scales[static_cast<size_t>(r * blocks + b)];
    }
  }
  return out;
}

}  // namespace volley::gemm
