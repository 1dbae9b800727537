#pragma once

// FP4 weights on the host: as checkpoints have them, quantised, and packed into the layout that the
// kernels read (device/fp4_format.h). Packing is done once, at load.
//
// A value of e2m1 is 0, 1/2, 1, 3/2, 2, 3, 4 or 6 with a sign: codes 0..7, bit 3 the sign.
//   MX: times 2^(s - 127), s the UE8M0 byte of its 1x32.
//   NV: times the e4m3 scale of its 1x16, times the float of its weight.

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "gemm/device/gemm_config.h"

namespace volley::gemm {

// The weights [num_groups, n, k] of a checkpoint; k % 128 == 0.
struct Fp4Matrix {
  MmaKind format = MmaKind::kMxFp4;  // or kNvFp4
  int64_t num_groups = 1;
  int64_t n = 0;
  int64_t k = 0;
  std::span<const uint8_t> values;  // [num_groups, n, k/2], the even column in the low nibble
  std::span<const uint8_t> scales;  // [num_groups, n, k/32] UE8M0, or [num_groups, n, k/16] e4m3
  std::span<const float> tensor_scales;  // NV: [num_groups], positive
};

// One that owns its data.
struct Fp4Weight {
  std::vector<uint8_t> values, scales;
  std::vector<float> tensor_scales;

  Fp4Matrix view(MmaKind format, int64_t num_groups, int64_t n, int64_t k) const {
    return {format, num_groups, n, k, values, scales, tensor_scales};
  }
};

// Quantises x, [num_groups, n, k]. MX: a group's scale is amax / 6 rounded up to a power of two,
// amax at least 1e-4. NV: the float is the weight's amax / (6 * 448), a group's scale amax / 6
// beside it, rounded to e4m3. Values to nearest, ties to even, beyond 6, and NaN,
// to 6; an infinity counts as the largest float.
Result<Fp4Weight> quantize_fp4(std::span<const float> x, MmaKind format, int64_t num_groups,
                               int64_t n, int64_t k);

// [num_groups, n, k]. Exact for MX within float's range; NV rounds once, at the tensor's scale.
Result<std::vector<float>> dequantize_fp4(const Fp4Matrix& weight);

struct PackedFp4 {
  std::vector<uint8_t> tiles;     // [num_groups, ceil(n/64), k/128] of fp4_tile_bytes()
  std::vector<float> row_scales;  // [num_groups, n rounded up to 64]
  // Values that the packing changed: none, unless the group scales of a row span more than 2^11.
  // The smaller groups' scales are then doubled until they are within the span and their values
  // rounded: none moves by more than 2^-12 of its row's largest group scale.
  int64_t num_rounded = 0;
};

// kInvalidInput for sizes that do not fit, a scale that is NaN or (NV) negative, a tensor scale
// that is not positive.
Result<PackedFp4> pack_fp4(const Fp4Matrix& weight);

// The weight at [group, row, col] of a packed weight: what the kernels multiply by.
double packed_fp4_value(MmaKind format, std::span<const uint8_t> tiles,
                        std::span<const float> row_scales, int64_t n, int64_t k, int64_t group,
                        int64_t row, int64_t col);

}  // namespace volley::gemm
