// The kernels' own source on an emulated cluster (emulated/machine.h): every role, barrier and
// index of the device code against the reference, with no GPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "base/thread_pool.h"
#include "gemm/emulated/kernels.h"
#include "gemm/fake_gpu.h"
#include "gemm/reference.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

constexpr int kGuardRows = 2;
constexpr int kGuardCols = 8;
constexpr uint8_t kPoison = 0xFF;

// Prepared through the library on the stand-in driver: grids and tensor maps are under test too.
class Emulated {
 public:
  // D with its guards, or the machine's complaint. `in_place`: C is D.
  Result<std::vector<uint8_t>> run(const HostProblem& host, const GemmConfig& config,
                                   int num_clusters, uint64_t seed, bool in_place = false) {
    const GemmShape& shape = host.shape;
    const size_t bytes = shape.out == OutKind::kBf16 ? 2 : 4;
    const int64_t stride = shape.n + kGuardCols;
    const auto size = static_cast<size_t>((host.num_rows() + kGuardRows) * stride) * bytes;
    // Operator new aligns to 16, as device memory must be.
    std::vector<uint8_t> d(size, kPoison);
    const auto address = [](const auto& v) { return reinterpret_cast<cuda::DevicePtr>(v.data()); };
    GemmArgs args;
    args.shape = shape;
    args.a = address(host.a);
    args.b = address(host.b);
    args.a_scale = address(host.a_scale);
    args.b_scale = address(host.b_scale);
    args.a_scale_stride = host.a_scale_stride;
    args.d = address(d);
    args.d_stride = stride;
    args.groups = address(host.groups);
    args.config = config;
    if (!host.c.empty() && in_place) {
      for (int64_t row = 0; row < host.num_rows(); ++row) {
        std::memcpy(d.data() + row * stride * 4, host.c.data() + row * shape.n,
                    static_cast<size_t>(shape.n) * 4);
      }
      args.c = args.d;
    } else if (!host.c.empty()) {
      args.c = address(host.c);
      args.c_stride = shape.n;
    }
    VOLLEY_TRY(GemmCall call, gemm_->prepare(args));
    // A small grid, so that CTAs walk over several tiles.
    call.dims.num_ctas =
        std::min(call.dims.num_ctas, static_cast<uint32_t>(num_clusters * config.cluster()));
    VOLLEY_TRY_STATUS(emulated::run_call(call, seed));
    return d;
  }

 private:
  FakeGpu gpu_;
  std::unique_ptr<Gemm> gemm_ = *Gemm::create(*gpu_.context, *gpu_.kernels);
};

double value_at(const std::vector<uint8_t>& d, const GemmShape& shape, int64_t row, int64_t col) {
  const auto at = static_cast<size_t>(row * (shape.n + kGuardCols) + col);
  if (shape.out == OutKind::kF32) {
    float value = 0;
    std::memcpy(&value, d.data() + 4 * at, 4);
    return value;
  }
  uint16_t bits = 0;
  std::memcpy(&bits, d.data() + 2 * at, 2);
  return bf16_to_float(bits);
}

void check(const HostProblem& host, const std::vector<uint8_t>& d) {
  const GemmShape& shape = host.shape;
  const auto weights = row_weights(shape, host.groups);
  double worst = -1;
  std::string where;
  for (int64_t row = 0; row < host.num_rows(); ++row) {
    if (weights[static_cast<size_t>(row)] < 0) continue;
    for (int64_t col = row % 3; col < shape.n; col += 3) {
      const ReferenceValue want = reference_value(host, weights, row, col);
      const double got = value_at(d, shape, row, col);
      const double ratio =
          std::isfinite(got) ? std::fabs(got - want.value) / error_bound(shape, want) : 1e30;
      if (ratio > worst) {
        worst = ratio;
        where = fmt::format("row {}, column {}: got {}, reference {}", row, col, got, want.value);
      }
    }
  }
  EXPECT_LE(worst, 1.0) << where;
  const size_t bytes = shape.out == OutKind::kBf16 ? 2 : 4;
  const auto row_bytes = static_cast<size_t>(shape.n + kGuardCols) * bytes;
  int num_touched = 0;
  for (int64_t row = 0; row < host.num_rows() + kGuardRows; ++row) {
    const size_t from = row < host.num_rows() ? static_cast<size_t>(shape.n) * bytes : 0;
    for (size_t i = from; i < row_bytes; ++i)
      num_touched += d[static_cast<size_t>(row) * row_bytes + i] != kPoison;
  }
  EXPECT_EQ(num_touched, 0) << "bytes written outside of D";
}

// A shape with tails in every direction, small enough to emulate. k has an odd number of blocks.
GemmShape shape_for(const GemmConfig& c) {
  GemmShape shape = {.mma = c.mma,
                     .out = c.out,
                     .grouping = c.grouping,
                     .m = 150,
                     .n = c.tile_n == 192 ? 328 : 200,
                     .k = 640,
                     .segments = c.segments};
  if (c.grouping == Grouping::kDense) return shape;
  shape.num_groups = 4;
  shape.k = 256;
  if (c.grouping == Grouping::kAlongK) {
    shape.k = 768;
  } else if (c.grouping == Grouping::kMasked) {
    shape.m = 140;
  } else {
    shape.group_align = std::max(c.tile_m, 32);
    shape.m = shape.group_align * 5;
  }
  return shape;
}

std::vector<int32_t> groups_for(const GemmShape& shape) {
  switch (shape.grouping) {
    case Grouping::kDense:
      return {};
    case Grouping::kRowIndex: {
      std::vector<int32_t> groups(static_cast<size_t>(shape.m), -1);
      for (int run = 0; run < 5; ++run) {
        if (run == 2) continue;  // all padding
        std::fill_n(groups.begin() + run * shape.group_align, shape.group_align - 3 * run,
                    (run + 2) % 4);
      }
      return groups;
    }
    case Grouping::kPrefixSum:
      return {9, 9, 2 * shape.group_align + 5, 4 * shape.group_align + 1};
    case Grouping::kMasked:
      return {140, 0, 33, 1};
    case Grouping::kAlongK:
      return {256, 256, 384, 700};
  }
  return {};
}

class EmulatedKernel : public testing::TestWithParam<size_t> {};

TEST_P(EmulatedKernel, ComputesTheProductInAnyOrderOfEvents) {
  const GemmConfig config = emulated::configs()[GetParam()];
  ASSERT_TRUE(config.valid());
  SCOPED_TRACE(config_name(config));
  Emulated gpu;
  const GemmShape shape = shape_for(config);
  const bool with_c = config.out == OutKind::kF32 && (config.simple_rows());
  const HostProblem host = random_problem(shape, groups_for(shape), 3, with_c);
  std::vector<uint8_t> first;
  for (const uint64_t seed : {1, 2}) {
    const auto d = gpu.run(host, config, seed == 1 ? 2 : 3, seed, seed == 2);
    ASSERT_TRUE(d) << d.error().message;
    if (first.empty()) {
      check(host, *d);
      first = *d;
    }
    const auto weights = row_weights(shape, host.groups);
    const size_t row_bytes = first.size() / static_cast<size_t>(host.num_rows() + kGuardRows);
    for (size_t row = 0; row < weights.size(); ++row) {
      if (weights[row] < 0) continue;
      ASSERT_TRUE(std::equal(first.begin() + static_cast<int64_t>(row * row_bytes),
                             first.begin() + static_cast<int64_t>((row + 1) * row_bytes),
                             d->begin() + static_cast<int64_t>(row * row_bytes)))
          << "row " << row << " differs between orders of events";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EmulatedKernel, testing::Range(size_t{0}, emulated::configs().size()),
                         [](const auto& info) {
                           std::string name = config_name(emulated::configs()[info.param]);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Law 1, as far as it is ours: configurations of one plan add in one order.
TEST(EmulatedKernels, OnePlanOneResultToTheBit) {
  Emulated gpu;
  for (const MmaKind mma : {MmaKind::kFp8, MmaKind::kBf16, MmaKind::kMxFp4, MmaKind::kNvFp4}) {
    for (const int segments : {1, 4}) {
      const GemmShape shape = {.mma = mma, .m = 70, .n = 136, .k = 640, .segments = segments};
      const HostProblem host = random_problem(shape, {}, 5);
      std::vector<uint8_t> first;
      int num_compared = 0;
      for (const GemmConfig& config : emulated::configs()) {
        if (config.mma != mma || config.segments != segments ||
            config.grouping != Grouping::kDense || config.out != OutKind::kBf16) {
          continue;
        }
        const auto d = gpu.run(host, config, 3, 7);
        ASSERT_TRUE(d) << config_name(config) << ": " << d.error().message;
        if (first.empty()) first = *d;
        EXPECT_EQ(*d, first) << config_name(config);
        ++num_compared;
      }
      EXPECT_GE(num_compared, 2);
    }
  }
}

}  // namespace
}  // namespace volley::gemm
