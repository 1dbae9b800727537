#pragma once

// What the quantisers' kernels (sm90/quantize_kernel.h) are launched with.

#include "gemm/device/portable.h"

namespace volley::gemm {

inline constexpr int kQuantizeThreads = 256;
inline constexpr int kQuantizeSmemBytes = 12288;  // more than any of them uses

// What one CTA takes of a matrix.
inline constexpr int kQuantizeRows = 16, kQuantizeRowGroups = 4;  // rows, groups of 128 columns
inline constexpr int kQuantizeTokens = 128, kQuantizeFeatures = 64;
inline constexpr int kQuantizeChunks = 4;  // of 8 columns a thread
inline constexpr int kTransposeTile = 32;

struct QuantizeParams {
  const void* x;  // bf16 [num_slabs, rows, cols], rows x_stride elements apart; or float scales
  long long x_stride;
  int num_slabs;
  int rows;
  int cols;
  int power_of_two;        // e4m3: scales are rounded up to powers of two
  unsigned char* values;   // packed
  void* scales;            // float, or the bytes of an FP4 format
  long long scale_stride;  // of m-major scales: floats from one group of columns to the next
  float* tensor_scales;    // NV: [num_slabs]; until the end the slab's largest magnitude
};

// FP4 weights of a checkpoint to the tiles of fp4_format.h.
struct PackFp4Params {
  const unsigned char* values;  // [num_groups, n, k/2], the even column in the low nibble
  const unsigned char* scales;  // [num_groups, n, k/32] UE8M0, or [num_groups, n, k/16] e4m3
  const float* tensor_scales;   // NV: [num_groups]
  int num_groups;
  int n;
  int k;
  unsigned char* tiles;
  float* row_scales;
  unsigned long long* num_rounded;  // null, or zero before
};

// CTAs of each kernel.
VOLLEY_HD constexpr long long quantize_rows_ctas(const QuantizeParams& p) {
  return 1LL * p.num_slabs * ceil_div(p.rows, kQuantizeRows) *
         ceil_div(p.cols / 128, kQuantizeRowGroups);
}
VOLLEY_HD constexpr long long quantize_columns_ctas(const QuantizeParams& p) {
  return 1LL * p.num_slabs * ceil_div(p.rows, kQuantizeTokens) *
         ceil_div(p.cols, kQuantizeFeatures);
}
VOLLEY_HD constexpr long long quantize_blocks_ctas(const QuantizeParams& p) {
  return 1LL * p.num_slabs * ceil_div(p.rows, 128) * (p.cols / 128);
}
// Of one slab.
VOLLEY_HD constexpr int quantize_fp4_ctas(const QuantizeParams& p) {
  return static_cast<int>((1LL * p.rows * (p.cols / 8) + kQuantizeThreads * kQuantizeChunks - 1) /
                          (kQuantizeThreads * kQuantizeChunks));
}
// A warp for each row, those that pad the last strip of 64 included.
VOLLEY_HD constexpr long long pack_fp4_ctas(const PackFp4Params& p) {
  return 1LL * p.num_groups * round_up(p.n, 64) / (kQuantizeThreads / 32);
}
VOLLEY_HD constexpr long long transpose_scales_ctas(const QuantizeParams& p) {
  return 1LL * p.num_slabs * ceil_div(p.rows, kTransposeTile) * ceil_div(p.cols, kTransposeTile);
}

}  // namespace volley::gemm
