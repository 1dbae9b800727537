#pragma once

// What a matrix product is, without its data; which kernel configuration computes it; in which
// order its sums are added. Pure functions of integers, no device needed.

#include <string>
#include <vector>

#include "base/result.h"
#include "gemm/device/gemm_config.h"

namespace volley::gemm {

// D[m, n] = A[m, k] B[n, k]^T, or one such product for each group of rows.
struct GemmShape {
  MmaKind mma = MmaKind::kFp8;
  OutKind out = OutKind::kBf16;
  Grouping grouping = Grouping::kDense;
  int m = 0;           // rows of A in all, padding included; masked: rows of one slab
  int n = 0;           // rows of a weight: a multiple of 8
  int k = 0;           // a multiple of 128
  int num_groups = 1;  // weights; 1 when dense
  // Row index and prefix sum: every group begins at a multiple of this many rows, itself a multiple
  // of
  // 8. Small alignments waste fewer rows and allow smaller tiles only.
  int group_align = 128;
  // Masked: how many rows of a slab are likely to count; 0 means all m. Steers speed, never
  // results.
  int expected_m = 0;
  // The weight's reduction plan: 0 means reduction_segments() of this shape. Law 1 holds among
  // calls whose plans are equal, so a weight that is used both alone and in a group names its plan.
  int segments = 0;

  bool operator==(const GemmShape&) const = default;
};

// What the cost model knows of a GPU. The defaults are an H100 SXM5; rates are sustained ones.
struct DeviceSpec {
  int num_sms = 132;
  int max_smem_bytes = 232448;  // of one CTA
  int smem_per_sm = 233472;
  double clock_ghz = 1.74;          // under load
  double dram_bytes_per_ns = 3100;  // read
  double launch_us = 2.28;          // first instruction to last, of a kernel that does nothing
};

inline constexpr int kMaxK = 1 << 20;
inline constexpr int kMaxGroups = 1 << 16;
inline constexpr int kMaxSegments = 4;

// Says what is wrong with a shape.
Status validate(const GemmShape& shape);

// In how many runs a weight's K is summed: a function of the weight alone (its rows over all groups
// and k). One, unless the weight has too few rows to occupy the chip.
int reduction_segments(MmaKind mma, int num_groups, int n, int k);

// The plan that `shape` asks for, or the default one.
int segments_of(const GemmShape& shape);

struct CandidateConfig {
  GemmConfig config;
  double us = 0;        // predicted
  double mma_us = 0;    // if only the tensor cores and the shared memory that feeds them counted
  double chain_us = 0;  // if only a warpgroup's own sequence counted: products, promotion, waits
  double copy_us = 0;   // if only the latency of copies counted that the stages do not hide
  double dram_us = 0;   // if only bytes from device memory counted
  double fill = 0;      // of the tile slots of all rounds, the part that is used
};

// Every configuration that computes `shape` (which is valid), fastest first by the model. Equal
// costs are ordered by the configuration, so the order is a function of the shape.
std::vector<CandidateConfig> rank_configs(const GemmShape& shape, const DeviceSpec& device);

// The first of them.
Result<GemmConfig> choose_config(const GemmShape& shape, const DeviceSpec& device);

// Every configuration that choose_config() returns for `shape` with m (masked: expected_m) from 1
// to shape.m. What a warm-up or a bundle compiles.
Result<std::vector<GemmConfig>> configs_up_to(const GemmShape& shape, const DeviceSpec& device);

// A short name, unique among configurations: "fp8-bf16-dense-t128x128-s5-g1-x2-r16".
std::string config_name(const GemmConfig& config);

// A table of the `count` fastest candidates and the arithmetic behind them, for people.
Result<std::string> explain(const GemmShape& shape, const DeviceSpec& device, int count);

// The order of the sum over K, in words.
std::string reduction_order(const GemmShape& shape);

}  // namespace volley::gemm
