#pragma once

// Quantisers to FP8 and the layouts of scales, on the host: for checkpoints, tests and as the
// reference of the device's (quantizer.h, which says what becomes of NaN and infinity).
//
// A group's scale is amax / 448, amax clamped to at least 1e-4 so that a group of zeros has a scale
// that divides; a value is float_to_e4m3(x / scale), both divisions rounded to float. With
// `power_of_two` the scale is rounded up to a power of two (UE8M0), so that scaling is exact.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace volley::gemm {

struct QuantizedRows {
  std::vector<uint8_t> values;  // [m, k] e4m3
  std::vector<float> scales;    // m-major: row r, columns 128b.. at [b * scale_stride + r]
  int64_t scale_stride = 0;     // m rounded up to 4; the padding is 0
};

struct QuantizedWeight {
  std::vector<uint8_t> values;  // [num_groups, n, k] e4m3
  std::vector<float> scales;    // [num_groups, ceil(n/128), k/128]
};

// One scale for each 1x128 of `x`, [m, k] row-major; k % 128 == 0.
Result<QuantizedRows> quantize_rows(std::span<const float> x, int64_t m, int64_t k,
                                    bool power_of_two = false);

// The same of x, [m, n] row-major, transposed: [n, m rounded up to 128], zeros behind.
Result<QuantizedRows> quantize_columns(std::span<const float> x, int64_t m, int64_t n,
                                       bool power_of_two = false);

// One scale for each 128x128 of every [n, k] matrix of `x`; edge groups in n may be smaller.
Result<QuantizedWeight> quantize_weight(std::span<const float> x, int64_t num_groups, int64_t n,
                                        int64_t k, bool power_of_two = false);

// Row-major scales [m, blocks] to m-major with `stride` floats a block, the padding 0.
Result<std::vector<float>> scales_to_m_major(std::span<const float> scales, int64_t m,
                                             int64_t blocks, int64_t stride);

}  // namespace volley::gemm
