// Every op of every ISA unit against ops/ref.

#include "ops/cpu/cpu_ops.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "ops/ops_test_util.h"
#include "ops/ref/ref_ops.h"

namespace volley {
namespace {

using namespace ops_test;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

class CpuOpsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam()))
      GTEST_SKIP() << "not run: this machine cannot run the " << isa_name(GetParam()) << " unit";
    ops_ = *make_cpu_ops({.num_threads = 3, .isa = GetParam()});
  }
  bool rounds_to_bf16() const { return GetParam() == Isa::kAmxBf16; }
  // Activations [m, k] as products with int8 and int4 see them: int8 on AMX, a scale for each 256.
  Floats seen_by(WeightFormat format, const Floats& a, int64_t k) const {
    Floats seen = a;
    if (!rounds_to_bf16() || format == WeightFormat::kFp8) return seen;
    for (int64_t row = 0; row < static_cast<int64_t>(a.size()) / std::max<int64_t>(k, 1); ++row) {
      for (int64_t first = 0; first < k; first += 256) {
        const std::span<float> block(&seen[row * k + first],
                                     static_cast<size_t>(std::min<int64_t>(256, k - first)));
        float largest = 0x1p-100f;
        for (const float x : block) largest = std::max(largest, std::abs(x));
        for (float& x : block)
          x = std::nearbyint(x * (127.0f / largest)) * (largest * (1.0f / 127.0f));
      }
    }
    return seen;
  }

  std::unique_ptr<Ops> ops_;
  std::unique_ptr<Ops> ref_ = make_ref_ops();
};

INSTANTIATE_TEST_SUITE_P(Units, CpuOpsTest,
                         testing::Values(Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16),
                         [](const auto& info) {
                           std::string name(isa_name(info.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

struct Shape {
  int64_t m, n, k;
};

// Panels, tiles and vectors cut at every kind of edge; 513 rows are two passes.
const Shape kShapes[] = {{0, 32, 32},   {1, 1, 1},     {1, 32, 64},   {1, 100, 96},  {2, 17, 33},
                         {5, 48, 31},   {8, 31, 130},  {15, 33, 64},  {16, 64, 160}, {17, 65, 95},
                         {32, 40, 512}, {33, 96, 257}, {64, 160, 70}, {100, 50, 40}, {513, 33, 65}};

TEST_P(CpuOpsTest, MatmulAgainstRef) {
  for (const auto [m, n, k] : kShapes) {
    for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32, DType::kF8E4M3}) {
      const std::string what = fmt::format("m {} n {} k {} {}", m, n, k, dtype_name(dtype));
      const Weights weights(n, k, dtype, static_cast<uint64_t>(n * k));
      const Weights rounded = Weights::rounded(weights.matrix);
      auto packed = *ops_->pack_matrix({&weights.matrix, 1});
      auto expected = *ref_->pack_matrix({&rounded.matrix, 1});
      EXPECT_EQ(packed->n(), n);
      EXPECT_EQ(packed->k(), k);
      Floats a = random_floats(m * k, 1), bias = random_floats(n, 2);
      const TensorView bias_view = view(bias, 1, n);
      Floats got(static_cast<size_t>(m * n), kNan), want = got;
      Floats tolerance = magnitudes(a, m, rounded.matrix);
      for (float& t : tolerance) t = t * sum_error(k) + 1e-6f;

      ops_->matmul(view(a, m, k), *packed, nullptr, view(got, m, n));
      ref_->matmul(view(a, m, k), *expected, nullptr, view(want, m, n));
      expect_near(got, want, tolerance, n, what);
      ops_->matmul(view(a, m, k), *packed, &bias_view, view(got, m, n));
      ref_->matmul(view(a, m, k), *expected, &bias_view, view(want, m, n));
      expect_near(got, want, tolerance, n, what + " with bias");
      ops_->matmul_add(view(a, m, k), *packed, view(got, m, n));
      ref_->matmul_add(view(a, m, k), *expected, view(want, m, n));
      for (float& t : tolerance) t *= 2;
      expect_near(got, want, tolerance, n, what + " added");
    }
  }
}

constexpr WeightFormat kQuantized[] = {WeightFormat::kFp8, WeightFormat::kInt8,
                                       WeightFormat::kInt4};

// Against the dequantised weights. The AMX unit rounds those of fp8 to bf16.
TEST_P(CpuOpsTest, QuantizedMatmulAgainstRef) {
  for (const WeightFormat format : kQuantized) {
    auto ops = *make_cpu_ops({.num_threads = 3, .isa = GetParam(), .weight_format = format});
    const float rounding = rounds_to_bf16() && format == WeightFormat::kFp8 ? 0x1p-8f : 0.0f;
    for (const auto [m, n, k] : kShapes) {
      for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
        const std::string what = fmt::format("{} m {} n {} k {} {}", weight_format_name(format), m,
                                             n, k, dtype_name(dtype));
        const Weights weights(n, k, dtype, static_cast<uint64_t>(n * k + 1));
        const Weights up(n, k, dtype, static_cast<uint64_t>(n * k + 2));
        const Weights seen = Weights::quantized(format, weights.matrix);
        const Weights up_seen = Weights::quantized(format, up.matrix);
        auto packed = *ops->pack_matrix({&weights.matrix, 1});
        auto gate_up = *ops->pack_gate_up(weights.matrix, up.matrix);
        auto expected = *ref_->pack_matrix({&seen.matrix, 1});
        auto expected_gate_up = *ref_->pack_gate_up(seen.matrix, up_seen.matrix);
        EXPECT_LT(packed->num_bytes(), (n + 31) / 32 * ((k + 255) / 256) * 8192 * 5 / 4);
        Floats a = random_floats(m * k, 1), a_seen = seen_by(format, a, k);
        Floats got(static_cast<size_t>(m * n), kNan), want = got;
        const Floats g = magnitudes(a, m, seen.matrix), u = magnitudes(a, m, up_seen.matrix);
        Floats tolerance(got.size());
        for (size_t i = 0; i < got.size(); ++i)
          tolerance[i] = g[i] * (sum_error(k) + rounding) + 1e-6f;
        ops->matmul(view(a, m, k), *packed, nullptr, view(got, m, n));
        ref_->matmul(view(a_seen, m, k), *expected, nullptr, view(want, m, n));
        expect_near(got, want, tolerance, n, what);
        ops->swiglu(view(a, m, k), *gate_up, view(got, m, n));
        ref_->swiglu(view(a_seen, m, k), *expected_gate_up, view(want, m, n));
        for (size_t i = 0; i < got.size(); ++i) {
          tolerance[i] =
              2.1f * (sum_error(k) + rounding) * g[i] * u[i] + 1e-6f * std::abs(want[i]) + 1e-6f;
        }
        expect_near(got, want, tolerance, n, what + " swiglu");
      }
    }
  }
}

// Every code at every place of a group, at scales near the ends of what is allowed.
TEST_P(CpuOpsTest, Fp8CodesDecodeExactly) {
  const int64_t k = 256, n = 32;
  std::vector<uint8_t> codes(static_cast<size_t>(n * k));
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < k; ++c) {
      const auto code = static_cast<uint8_t>(c + r);
      codes[r * k + c] = (code & 0x7F) == 0x7F ? uint8_t{0} : code;
    }
  }
  auto ops =
      *make_cpu_ops({.num_threads = 2, .isa = GetParam(), .weight_format = WeightFormat::kFp8});
  Floats eye(static_cast<size_t>(k * k)), got(static_cast<size_t>(k * n));
  for (int64_t i = 0; i < k; ++i) eye[i * k + i] = 1.0f;
  for (const float scale : {1.0f, 0x1p-90f, -64.0f, 0.0123f}) {
    Floats scales = {scale, 2 * scale};
    const HostMatrix matrix{HostTensor::of(codes.data(), DType::kF8E4M3, {n, k}),
                            HostTensor::of(scales.data(), DType::kF32, {1, 2})};
    auto packed = *ops->pack_matrix({&matrix, 1});
    EXPECT_LT(packed->num_bytes(), n * k * 5 / 4);
    ops->matmul(view(eye, k, k), *packed, nullptr, view(got, k, n));
    for (int64_t c = 0; c < k; ++c) {
      for (int64_t r = 0; r < n; ++r) {
        const float want = matrix.at(r, c);
        EXPECT_NEAR(got[c * n + r], want, std::abs(want) * (rounds_to_bf16() ? 0x1p-8f : 0.0f))
            << "scale " << scale << " row " << r << " column " << c;
      }
    }
  }
}

// Each group has a scale of its own, whatever the others are. Zeros stay zeros.
TEST_P(CpuOpsTest, QuantizedGroupsOfAllSizes) {
  const int64_t k = 1024, n = 64;
  Floats weights = random_floats(n * k, 31, 1.0f, false);
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t c = 0; c < k; ++c)
      weights[r * k + c] =
          c / 256 == 3 ? 0.0f
                       : std::ldexp(weights[r * k + c], static_cast<int>(-6 * (c / 256) - r % 5));
  }
  const HostMatrix matrix{HostTensor::of(weights.data(), DType::kF32, {n, k}), {}};
  Floats eye(static_cast<size_t>(k * k)), got(static_cast<size_t>(k * n));
  for (int64_t i = 0; i < k; ++i) eye[i * k + i] = 1.0f;
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    auto ops = *make_cpu_ops({.num_threads = 2, .isa = GetParam(), .weight_format = format});
    ops->matmul(view(eye, k, k), **ops->pack_matrix({&matrix, 1}), nullptr, view(got, k, n));
    const Weights seen = Weights::quantized(format, matrix);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < k; ++c) {
        const float want = seen.matrix.at(r, c);
        ASSERT_NEAR(got[c * n + r], want, std::abs(want) * 0x1p-21f)
            << weight_format_name(format) << " row " << r << " column " << c;
        EXPECT_TRUE(c / 256 != 3 || got[c * n + r] == 0.0f);
      }
    }
  }
}

// Rows that no integer can hold: a NaN or an infinity spoils its row and no other, zeros stay zero.
TEST_P(CpuOpsTest, QuantizedMatmulOfExtremeRows) {
  const int64_t m = 5, k = 200, n = 40;
  const Weights weights(n, k, DType::kBF16, 33);
  Floats a = random_floats(m * k, 34), got(static_cast<size_t>(m * n)), alone(got.size());
  a[1 * k + 130] = kNan;
  a[2 * k + 7] = -kInf;
  std::fill_n(&a[3 * k], k, 0.0f);
  for (int64_t i = 0; i < k; ++i) a[4 * k + i] = i % 2 == 0 ? 1e-42f : 3e37f;
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    auto ops = *make_cpu_ops({.num_threads = 2, .isa = GetParam(), .weight_format = format});
    const auto packed = *ops->pack_matrix({&weights.matrix, 1});
    ops->matmul(view(a, m, k), *packed, nullptr, view(got, m, n));
    ops->matmul(view(a, 1, k), *packed, nullptr, view(alone, 1, n));
    expect_same_bits(got.data(), alone.data(), n, "a row above spoiled ones");
    for (int64_t c = 0; c < n; ++c) {
      EXPECT_TRUE(std::isnan(got[1 * n + c]));
      EXPECT_FALSE(std::isfinite(got[2 * n + c]));
      EXPECT_EQ(got[3 * n + c], 0.0f);
      EXPECT_FALSE(std::isnan(got[4 * n + c]));
    }
  }
}

// A NaN or a large scale is no reason to fail: such a matrix is held as bf16.
TEST_P(CpuOpsTest, Fp8ThatKernelsCannotDecodeBecomesBf16) {
  std::vector<uint8_t> codes(32 * 128, 0x38);  // 1.0
  Floats scales = {1.0f};
  const HostMatrix matrix{HostTensor::of(codes.data(), DType::kF8E4M3, {32, 128}),
                          HostTensor::of(scales.data(), DType::kF32, {1, 1})};
  auto ops =
      *make_cpu_ops({.num_threads = 1, .isa = GetParam(), .weight_format = WeightFormat::kAuto});
  const int64_t plain = (*ops->pack_matrix({&matrix, 1}))->num_bytes();
  scales[0] = 0x1p101f;
  EXPECT_GT((*ops->pack_matrix({&matrix, 1}))->num_bytes(), plain);
  scales[0] = 1.0f;
  codes[77] = 0x7F;
  auto packed = *ops->pack_matrix({&matrix, 1});
  EXPECT_GT(packed->num_bytes(), plain);
  Floats a(128, 1.0f), got(32);
  ops->matmul(view(a, 1, 128), *packed, nullptr, view(got, 1, 32));
  EXPECT_TRUE(std::isnan(got[0]));
  EXPECT_EQ(got[1], 128.0f);
}

TEST_P(CpuOpsTest, MatmulRoundsActivationsNoMoreThanItSays) {
  const int64_t m = 20, n = 70, k = 300;
  const Weights weights(n, k, DType::kBF16, 3);
  auto packed = *ops_->pack_matrix({&weights.matrix, 1});
  auto expected = *ref_->pack_matrix({&weights.matrix, 1});
  Floats a = random_floats(m * k, 4, 1.0f, false), got(m * n), want(m * n);
  ops_->matmul(view(a, m, k), *packed, nullptr, view(got, m, n));
  ref_->matmul(view(a, m, k), *expected, nullptr, view(want, m, n));
  Floats tolerance = magnitudes(a, m, weights.matrix);
  for (float& t : tolerance) t *= sum_error(k) + (rounds_to_bf16() ? 0x1p-9f : 0.0f);
  expect_near(got, want, tolerance, n, "f32 activations");
}

TEST_P(CpuOpsTest, StackedPartsAndStrides) {
  const int64_t m = 9, k = 48;
  const Weights q(24, k, DType::kBF16, 5), kk(8, k, DType::kF32, 6), v(3, k, DType::kF16, 7);
  const Weights kk_rounded = Weights::rounded(kk.matrix), v_rounded = Weights::rounded(v.matrix);
  const HostMatrix parts[] = {q.matrix, kk.matrix, v.matrix};
  const HostMatrix rounded[] = {q.matrix, kk_rounded.matrix, v_rounded.matrix};
  auto packed = *ops_->pack_matrix(parts);
  auto expected = *ref_->pack_matrix(rounded);
  Floats a = random_floats(m * 64, 8), got(m * 50, 7.0f), want = got;
  const TensorView a_view = view(a, m, 64).col_range(3, k);
  ops_->matmul(a_view, *packed, nullptr, view(got, m, 50).col_range(5, 35));
  ref_->matmul(a_view, *expected, nullptr, view(want, m, 50).col_range(5, 35));
  expect_near(got, want, Floats(got.size(), 1e-5f), 50, "strided");
  for (int64_t row = 0; row < m; ++row) {
    EXPECT_EQ(got[row * 50 + 4], 7.0f) << "written left of the columns";
    EXPECT_EQ(got[row * 50 + 40], 7.0f) << "written right of the columns";
  }
}

TEST_P(CpuOpsTest, SwigluAgainstRef) {
  for (const auto [m, n, k] : kShapes) {
    const Weights gate(n, k, DType::kBF16, 10, 0.5f), up(n, k, DType::kBF16, 11, 0.5f);
    auto packed = *ops_->pack_gate_up(gate.matrix, up.matrix);
    auto expected = *ref_->pack_gate_up(gate.matrix, up.matrix);
    EXPECT_EQ(packed->n(), n);
    Floats a = random_floats(m * k, 12), got(static_cast<size_t>(m * n), kNan), want = got;
    ops_->swiglu(view(a, m, k), *packed, view(got, m, n));
    ref_->swiglu(view(a, m, k), *expected, view(want, m, n));
    // |silu'| < 1.1 and |silu(x)| <= |x|.
    const Floats g = magnitudes(a, m, gate.matrix), u = magnitudes(a, m, up.matrix);
    Floats tolerance(got.size());
    for (size_t i = 0; i < tolerance.size(); ++i)
      tolerance[i] = 2.1f * sum_error(k) * g[i] * u[i] + 1e-6f * std::abs(want[i]) + 1e-6f;
    expect_near(got, want, tolerance, n, fmt::format("m {} n {} k {}", m, n, k));
  }
}

TEST_P(CpuOpsTest, SwigluOfExtremes) {
  const float gate_weight = 1.0f, up_weight = 1.0f;
  const HostMatrix gate{HostTensor::of(&gate_weight, DType::kF32, {1, 1}), {}};
  const HostMatrix up{HostTensor::of(&up_weight, DType::kF32, {1, 1}), {}};
  auto packed = *ops_->pack_gate_up(gate, up);
  Floats a = {0.0f, 8192.0f, -8192.0f, 3e38f, -3e38f, 1e-30f, kNan, 60.0f, -60.0f}, got(a.size());
  const int64_t m = static_cast<int64_t>(a.size());
  ops_->swiglu(view(a, m, 1), *packed, view(got, m, 1));
  EXPECT_EQ(got[0], 0.0f);
  EXPECT_EQ(got[1], 8192.0f * 8192.0f);
  EXPECT_NEAR(got[2], 0.0f, 1e-25f);
  EXPECT_EQ(got[3], kInf);
  EXPECT_FALSE(std::isnan(got[4]));
  EXPECT_TRUE(std::isnan(got[6]));
  EXPECT_FLOAT_EQ(got[7], 3600.0f);
  EXPECT_NEAR(got[8], 0.0f, 1e-20f);
}

// Norm, swiglu and the two matmuls in one, to the bit what they are one by one.
TEST_P(CpuOpsTest, FeedForwardEqualsItsParts) {
  for (const WeightFormat format :
       {WeightFormat::kAuto, WeightFormat::kFp8, WeightFormat::kInt8, WeightFormat::kInt4}) {
    // Many rows are split among an even number of threads, columns among others.
    const int num_threads = format == WeightFormat::kInt8 ? 3 : 4;
    auto ops =
        *make_cpu_ops({.num_threads = num_threads, .isa = GetParam(), .weight_format = format});
    for (const auto [m, n, i] : {Shape{1, 64, 96},
                                 {8, 128, 48},
                                 {17, 96, 80},
                                 {33, 160, 16},
                                 {40, 64, 200},
                                 {71, 128, 112},
                                 {513, 64, 40},
                                 {3, 4100, 64}}) {
      const std::string what =
          fmt::format("m {} n {} i {} {}", m, n, i, weight_format_name(format));
      const Weights gate(i, n, DType::kBF16, 50), up(i, n, DType::kBF16, 51);
      const Weights down(n, i, DType::kBF16, 52);
      const auto gate_up = *ops->pack_gate_up(gate.matrix, up.matrix);
      const auto packed_down = *ops->pack_matrix({&down.matrix, 1});
      Floats norm = random_floats(n, 53), x = random_floats(m * n, 54), expected = x;
      Floats normed(m * n), act(m * i), out(m * i), expected_out(m * i);
      ops->rms_norm(view(expected, m, n), view(norm, 1, n), 1e-6f, view(normed, m, n));
      ops->swiglu(view(normed, m, n), *gate_up, view(act, m, i));
      ops->matmul_add(view(act, m, i), *packed_down, view(expected, m, n));
      const auto packed_gate = *ops->pack_matrix({&gate.matrix, 1});
      ops->matmul(view(normed, m, n), *packed_gate, nullptr, view(expected_out, m, i));
      ops->norm_matmul(view(x, m, n), view(norm, 1, n), 1e-6f, *packed_gate, nullptr,
                       view(out, m, i));
      ops->feed_forward(view(x, m, n), view(norm, 1, n), 1e-6f, *gate_up, *packed_down);
      expect_same_bits(x.data(), expected.data(), m * n, what);
      expect_same_bits(out.data(), expected_out.data(), m * i, what + ", norm_matmul");
    }
  }
}

TEST_P(CpuOpsTest, ArgmaxEqualsMatmul) {
  for (const auto [m, n, k] : kShapes) {
    const Weights weights(n, k, DType::kBF16, 20);
    auto packed = *ops_->pack_matrix({&weights.matrix, 1});
    Floats a = random_floats(m * k, 21), logits(static_cast<size_t>(m * n));
    ops_->matmul(view(a, m, k), *packed, nullptr, view(logits, m, n));
    std::vector<int32_t> token_ids(static_cast<size_t>(m), -1);
    ops_->matmul_argmax(view(a, m, k), *packed, token_ids);
    for (int64_t row = 0; row < m; ++row) {
      const auto first = logits.begin() + row * n;
      EXPECT_EQ(token_ids[row], std::max_element(first, first + n) - first)
          << "m " << m << " n " << n << " k " << k << " row " << row;
    }
  }
}

TEST_P(CpuOpsTest, ArgmaxTiesNanAndInfinity) {
  // Rows of the weight: column c of the logits is a * w[c].
  Floats w(200, 1.0f);
  w[70] = 2.0f;
  w[150] = 2.0f;
  const HostMatrix matrix{HostTensor::of(w.data(), DType::kF32, {200, 1}), {}};
  auto packed = *ops_->pack_matrix({&matrix, 1});
  Floats a = {1.0f, -1.0f, 0.0f, kNan, kInf, -kInf};
  std::vector<int32_t> token_ids(a.size());
  ops_->matmul_argmax(view(a, static_cast<int64_t>(a.size()), 1), *packed, token_ids);
  EXPECT_EQ(token_ids, (std::vector<int32_t>{70, 0, 0, 0, 0, 0}));
  // NaN is passed over, even in favour of -inf.
  w.assign(40, kNan);
  w[33] = -1.0f;
  const HostMatrix nans{HostTensor::of(w.data(), DType::kF32, {40, 1}), {}};
  packed = *ops_->pack_matrix({&nans, 1});
  Floats ones = {1.0f, kInf, -1.0f};
  token_ids.assign(3, -1);
  ops_->matmul_argmax(view(ones, 3, 1), *packed, token_ids);
  EXPECT_EQ(token_ids, (std::vector<int32_t>{33, 33, 33}));
}

TEST_P(CpuOpsTest, TopCandidatesAgainstRef) {
  for (const int64_t cols : {1, 5, 16, 63, 64, 65, 130, 1000, 8192}) {
    for (const int k : {1, 4, 8}) {
      const int64_t rows = 11;
      Floats logits = random_floats(rows * cols, 40 + static_cast<uint64_t>(cols));
      for (float& x : logits) x = std::round(20 * x) / 2;  // many ties, a wide range
      const auto row = [&](int64_t i) { return logits.begin() + i * cols; };
      std::fill(row(1), row(2), 3.0f);
      std::fill(row(2), row(3), -kInf);
      std::fill(row(3), row(4), kNan);
      row(4)[cols / 2] = kNan;
      row(5)[cols / 2] = kInf;
      std::fill(row(6), row(7), -kInf);
      row(6)[cols - 1] = -3.0f;
      row(7)[0] = kNan;
      row(8)[0] = 1e30f;
      std::fill(row(9), row(10), kNan);
      row(9)[cols - 1] = 2.0f;
      std::vector<int32_t> ids(rows * k, -1), expected_ids(rows * k, -2);
      Floats p(rows * k, -1.0f), expected(rows * k, -2.0f);
      ops_->top_candidates(view(logits, rows, cols), ids, p);
      ref_->top_candidates(view(logits, rows, cols), expected_ids, expected);
      EXPECT_EQ(ids, expected_ids) << "cols " << cols << " k " << k;
      for (int64_t i = 0; i < rows * k; ++i)
        EXPECT_NEAR(p[i], expected[i], 2e-6) << cols << " " << i;
    }
  }
}

// Without writing logits: the same to the bit, whatever the threads and the other rows.
TEST_P(CpuOpsTest, MatmulCandidatesEqualsLogitsAndTopCandidates) {
  for (const auto [m, n, k] :
       {Shape{1, 40, 70}, {3, 128, 64}, {24, 8192, 64}, {40, 9000, 64}, {513, 300, 32}}) {
    const Weights weights(n, k, DType::kBF16, 33);
    auto packed = *ops_->pack_matrix({&weights.matrix, 1});
    Floats a = random_floats(m * k, 34), logits(static_cast<size_t>(m * n));
    if (m > 2) std::fill_n(a.begin() + k, k, 0.0f);  // ties everywhere
    if (m > 2) a[2 * k + 1] = kNan;
    const int64_t count = 4;
    std::vector<int32_t> ids(m * count, -1), expected_ids(m * count, -2);
    Floats p(m * count, -1.0f), expected(m * count, -2.0f);
    ops_->matmul(view(a, m, k), *packed, nullptr, view(logits, m, n));
    ops_->top_candidates(view(logits, m, n), expected_ids, expected);
    ops_->matmul_candidates(view(a, m, k), *packed, ids, p);
    EXPECT_EQ(ids, expected_ids) << "m " << m << " n " << n;
    expect_same_bits(p.data(), expected.data(), m * count, fmt::format("m {} n {}", m, n));
    ops_->matmul_candidates(view(a, m, k).row_range(m - 1, 1), *packed, std::span(ids).first(count),
                            std::span(p).first(count));
    EXPECT_TRUE(std::equal(ids.begin(), ids.begin() + count, expected_ids.end() - count));
    expect_same_bits(p.data(), expected.data() + (m - 1) * count, count, "the last row alone");
  }
}

TEST_P(CpuOpsTest, NanInOneRowStaysThere) {
  const int64_t m = 20, n = 40, k = 70;
  const Weights weights(n, k, DType::kBF16, 30);
  auto packed = *ops_->pack_matrix({&weights.matrix, 1});
  Floats a = random_floats(m * k, 31), clean(m * n), dirty(m * n);
  ops_->matmul(view(a, m, k), *packed, nullptr, view(clean, m, n));
  a[7 * k + 3] = kNan;
  a[8 * k + 5] = kInf;
  ops_->matmul(view(a, m, k), *packed, nullptr, view(dirty, m, n));
  EXPECT_TRUE(std::isnan(dirty[7 * n]));
  EXPECT_FALSE(std::isfinite(dirty[8 * n]));
  for (int64_t row = 0; row < m; ++row) {
    if (row == 7 || row == 8) continue;
    expect_same_bits(&dirty[row * n], &clean[row * n], n, fmt::format("row {}", row));
  }
}

TEST_P(CpuOpsTest, RmsNormAgainstRef) {
  for (int64_t cols : {1, 15, 16, 64, 100, 128, 1000, 2048}) {
    for (int64_t rows : {0, 1, 7, 300}) {
      for (float scale : {1e-12f, 1.0f, 1e12f}) {
        Floats x = random_floats(rows * cols, 40, scale), weight = random_floats(cols, 41);
        Floats got(x.size()), want(x.size()), tolerance(x.size());
        const TensorView weight_view = view(weight, 1, cols);
        ops_->rms_norm(view(x, rows, cols), weight_view, 1e-6f, view(got, rows, cols));
        ref_->rms_norm(view(x, rows, cols), weight_view, 1e-6f, view(want, rows, cols));
        for (size_t i = 0; i < want.size(); ++i)
          tolerance[i] = std::abs(want[i]) * (sum_error(cols) + 1e-6f);
        expect_near(got, want, tolerance, cols, fmt::format("rows {} cols {}", rows, cols));
        ops_->rms_norm(view(x, rows, cols), weight_view, 1e-6f, view(x, rows, cols));
        expect_same_bits(x.data(), got.data(), rows * cols, "in place");
      }
    }
  }
}

TEST_P(CpuOpsTest, EmbedCopyGatherAreExact) {
  for (DType dtype : {DType::kBF16, DType::kF16, DType::kF32, DType::kF8E4M3}) {
    for (int64_t cols : {8, 16, 100, 512}) {
      const int64_t vocab = 50;
      const Weights weights(vocab, cols, dtype, 50);
      const Tensor table = *ops_->pack_embedding(weights.matrix);
      const Tensor expected = *ref_->pack_embedding(weights.matrix);
      for (int64_t rows : {0, 1, 3, 400}) {
        std::vector<int32_t> ids(static_cast<size_t>(rows));
        for (int64_t i = 0; i < rows; ++i) ids[i] = static_cast<int32_t>(i * 7 % vocab);
        Floats got(static_cast<size_t>(rows * cols)), want = got;
        ops_->embed(table, ids, view(got, rows, cols));
        ref_->embed(expected, ids, view(want, rows, cols));
        EXPECT_EQ(got, want);
        Floats copied(static_cast<size_t>(rows * (cols + 5)), 9.0f);
        const TensorView target = view(copied, rows, cols + 5).col_range(2, cols);
        ops_->copy(view(got, rows, cols), target);
        for (int64_t row = 0; row < rows; ++row)
          expect_same_bits(target.row<float>(row), &got[row * cols], cols, "copy");
        if (rows == 0) continue;
        std::vector<int32_t> row_ids = {static_cast<int32_t>(rows - 1), 0};
        Floats gathered(static_cast<size_t>(2 * cols));
        ops_->gather_rows(view(got, rows, cols), row_ids, view(gathered, 2, cols));
        expect_same_bits(&gathered[0], &got[(rows - 1) * cols], cols, "gather");
        expect_same_bits(&gathered[cols], &got[0], cols, "gather");
      }
    }
  }
}

TEST_P(CpuOpsTest, AddBiasIsExact) {
  for (int64_t rows : {0, 1, 400}) {
    Floats got = random_floats(rows * 100, 55), want = got, bias = random_floats(100, 56);
    ops_->add_bias(view(got, rows, 100), view(bias, 1, 100));
    ref_->add_bias(view(want, rows, 100), view(bias, 1, 100));
    EXPECT_EQ(got, want);
  }
}

TEST_P(CpuOpsTest, PackVectorConcatenates) {
  Floats first = {1.5f, 2.5f};
  const uint16_t second = float_to_bf16(-3.0f);
  const HostTensor parts[] = {HostTensor::of(first.data(), DType::kF32, {2}),
                              HostTensor::of(&second, DType::kBF16, {1})};
  const Tensor vector = *ops_->pack_vector(parts);
  EXPECT_EQ(vector.view().cols, 3);
  expect_same_bits(vector.view().row<float>(0), Floats{1.5f, 2.5f, -3.0f}.data(), 3, "vector");
}

// ---- Attention.

struct AttentionShape {
  int num_heads, num_kv_heads, head_dim;
  int page_size, first_position, num_rows;
  int window;  // 0: all keys before
  bool causal;
};

// Keys and values of positions [0, first_position + num_rows) are stored, then the last num_rows
// rows attend.
struct AttentionCase {
  AttentionShape shape;
  QkvLayout layout;
  int num_positions;
  std::vector<int32_t> positions, sequences, pages, begin, end;
  const int32_t* tables[1];
  Floats qkv;

  explicit AttentionCase(const AttentionShape& s, uint64_t seed)
      : shape(s),
        layout{s.num_heads, s.num_kv_heads, s.head_dim},
        num_positions(s.first_position + s.num_rows),
        positions(num_positions),
        sequences(num_positions, 0),
        pages(num_pages()),
        begin(s.num_rows),
        end(s.num_rows),
        qkv(random_floats(num_positions * layout.cols(), seed)) {
    std::iota(positions.begin(), positions.end(), 0);
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
    tables[0] = pages.data();
    for (int row = 0; row < s.num_rows; ++row) {
      end[row] = s.causal ? s.first_position + row + 1 : num_positions;
      begin[row] = s.window > 0 ? std::max(0, s.first_position + row + 1 - s.window) : 0;
    }
  }
  int num_pages() const { return (num_positions + shape.page_size - 1) / shape.page_size + 2; }
  KvShape kv_shape() const {
    return {.num_layers = 2,
            .num_kv_heads = layout.num_kv_heads,
            .head_dim = layout.head_dim,
            .num_pages = num_pages(),
            .page_size = shape.page_size};
  }

  // Returns the attention output, and the rotated q in `qkv_out` when asked.
  Floats run(Ops& ops, Floats qkv_in, Floats rope, const TensorView* q_norm,
             const TensorView* k_norm, Floats* qkv_out = nullptr) const {
    auto kv = *ops.create_kv(kv_shape());
    const RowPlaces places{positions, sequences, tables};
    const TensorView all = view(qkv_in, num_positions, layout.cols());
    ops.rope_and_store(all, layout, q_norm, k_norm, 1e-6f,
                       view(rope, num_positions, layout.head_dim), places, *kv, 1);
    Floats out(static_cast<size_t>(shape.num_rows) * layout.num_heads * layout.head_dim, kNan);
    const RowPlaces rows{std::span(positions).last(shape.num_rows),
                         std::span(sequences).last(shape.num_rows), tables};
    ops.attention(all.row_range(shape.first_position, shape.num_rows), layout, rows, {begin, end},
                  *kv, 1, view(out, shape.num_rows, layout.num_heads * layout.head_dim));
    if (qkv_out != nullptr) *qkv_out = qkv_in;
    return out;
  }

  // Largest sum over head_dim of |q| |k| that a score may have.
  float score_magnitude(const Floats& x) const {
    float largest_q = 0, largest_k = 0;
    for (int row = 0; row < num_positions; ++row) {
      const float* heads = &x[row * layout.cols()];
      for (int head = 0; head < layout.num_heads + layout.num_kv_heads; ++head) {
        float norm = 0;
        for (int i = 0; i < layout.head_dim; ++i)
          norm += heads[head * layout.head_dim + i] * heads[head * layout.head_dim + i];
        float& largest = head < layout.num_heads ? largest_q : largest_k;
        largest = std::max(largest, std::sqrt(norm));
      }
    }
    return largest_q * largest_k / std::sqrt(static_cast<float>(layout.head_dim));
  }

  Floats with_absolute_values(Floats x) const {
    for (int row = 0; row < num_positions; ++row) {
      for (int64_t c = layout.cols() - layout.num_kv_heads * layout.head_dim; c < layout.cols();
           ++c)
        x[row * layout.cols() + c] = std::abs(x[row * layout.cols() + c]);
    }
    return x;
  }
};

const AttentionShape kAttentionShapes[] = {
    {8, 2, 64, 32, 0, 1, 0, true},     {8, 2, 64, 32, 200, 1, 0, true},
    {8, 2, 64, 64, 100, 16, 0, true},  {4, 4, 128, 64, 130, 7, 0, true},
    {6, 1, 32, 96, 50, 20, 0, true},   {10, 2, 80, 32, 61, 9, 0, true},
    {3, 1, 96, 128, 127, 5, 0, true},  {40, 1, 16, 32, 10, 3, 0, true},
    {4, 2, 256, 32, 40, 4, 0, true},   {8, 2, 64, 32, 300, 20, 40, true},
    {4, 2, 64, 32, 250, 16, 0, false}, {4, 2, 64, 32, 250, 16, 100, false},
    {2, 1, 64, 256, 0, 150, 0, true},  {8, 8, 48, 32, 600, 2, 33, true}};

TEST_P(CpuOpsTest, AttentionAgainstRef) {
  for (const AttentionShape& shape : kAttentionShapes) {
    const AttentionCase c(shape, 60);
    const Floats rope = identity_rope(c.num_positions, shape.head_dim);
    const Floats got = c.run(*ops_, c.qkv, rope, nullptr, nullptr);
    const Floats want = c.run(*ref_, c.qkv, rope, nullptr, nullptr);
    // A score's error changes its weight by that factor; bf16 weights by up to 2^-9 more.
    Floats tolerance = c.run(*ref_, c.with_absolute_values(c.qkv), rope, nullptr, nullptr);
    const float factor = 2.0f * c.score_magnitude(c.qkv) * sum_error(shape.head_dim) +
                         sum_error(c.num_positions) + 1e-6f + (rounds_to_bf16() ? 0x1p-8f : 0.0f);
    for (float& t : tolerance) t = t * factor + 1e-7f;
    expect_near(
        got, want, tolerance, c.layout.num_heads * c.layout.head_dim,
        fmt::format("heads {}/{} head_dim {} rows {} after {}", shape.num_heads, shape.num_kv_heads,
                    shape.head_dim, shape.num_rows, shape.first_position));
  }
}

TEST_P(CpuOpsTest, RopeAndNormAgainstRef) {
  for (const AttentionShape& shape : kAttentionShapes) {
    for (bool with_norm : {false, true}) {
      const AttentionCase c(shape, 70);
      const Floats rope = rope_table(c.num_positions, shape.head_dim);
      Floats q_weight = random_floats(shape.head_dim, 71),
             k_weight = random_floats(shape.head_dim, 72);
      const TensorView q_norm = view(q_weight, 1, shape.head_dim);
      const TensorView k_norm = view(k_weight, 1, shape.head_dim);
      const TensorView* q = with_norm ? &q_norm : nullptr;
      const TensorView* k = with_norm ? &k_norm : nullptr;
      Floats got_qkv, want_qkv;
      const Floats got = c.run(*ops_, c.qkv, rope, q, k, &got_qkv);
      const Floats want = c.run(*ref_, c.qkv, rope, q, k, &want_qkv);
      expect_near(got_qkv, want_qkv, Floats(got_qkv.size(), 2e-5f), c.layout.cols(), "rotated q");
      Floats tolerance = c.run(*ref_, c.with_absolute_values(c.qkv), rope, q, k);
      // The norms' weights are about 1, so the bound on scores without norms holds with them too.
      const float score_error = rounds_to_bf16() ? 0x1p-8f : sum_error(4 * shape.head_dim);
      const float scale = 4.0f * std::max(c.score_magnitude(want_qkv), 4.0f);
      const float factor = std::expm1(scale * score_error) + sum_error(c.num_positions) + 1e-5f +
                           (rounds_to_bf16() ? 0x1p-8f : 0.0f);
      for (float& t : tolerance) t = t * factor + 1e-6f;
      expect_near(got, want, tolerance, c.layout.num_heads * c.layout.head_dim,
                  fmt::format("heads {}/{} head_dim {} norm {}", shape.num_heads,
                              shape.num_kv_heads, shape.head_dim, with_norm));
    }
  }
}

// Stale slots, a drafter's projection without queries, and zero rows.
TEST_P(CpuOpsTest, StaleSlotsCannotPoison) {
  const AttentionShape shape{4, 2, 64, 32, 40, 8, 0, true};
  const AttentionCase c(shape, 80);
  Floats rope = identity_rope(64, shape.head_dim);
  const auto attend = [&](float stale) {
    auto kv = *ops_->create_kv(c.kv_shape());
    // Every slot of every page holds `stale`, as a rolled back draft or another request left it.
    for (int position = 0; position < 64; ++position) {
      Floats junk(static_cast<size_t>(c.layout.cols()), stale);
      const std::vector<int32_t> at = {position}, sequence = {0};
      ops_->rope_and_store(view(junk, 1, c.layout.cols()), c.layout, nullptr, nullptr, 1e-6f,
                           view(rope, 64, 64), {at, sequence, c.tables}, *kv, 1);
    }
    // Keys and values alone, as for a drafter's context.
    const QkvLayout kv_only{0, c.layout.num_kv_heads, c.layout.head_dim};
    Floats qkv = c.qkv;
    const TensorView all = view(qkv, c.num_positions, c.layout.cols());
    ops_->rope_and_store(all.col_range(4 * 64, kv_only.cols()), kv_only, nullptr, nullptr, 1e-6f,
                         view(rope, 64, 64), {c.positions, c.sequences, c.tables}, *kv, 1);
    Floats out(8 * 4 * 64);
    ops_->attention(all.row_range(40, 8), c.layout,
                    {std::span(c.positions).last(8), std::span(c.sequences).last(8), c.tables},
                    {c.begin, c.end}, *kv, 1, view(out, 8, 4 * 64));
    return out;
  };
  const Floats clean = attend(0.0f);
  for (float stale : {kNan, kInf, -kInf, 1e30f, 3e38f}) {
    const Floats got = attend(stale);
    expect_same_bits(got.data(), clean.data(), static_cast<int64_t>(clean.size()),
                     fmt::format("stale {}", stale));
  }
}

TEST_P(CpuOpsTest, ExtremeScores) {
  const AttentionShape shape{2, 1, 64, 32, 100, 4, 0, true};
  AttentionCase c(shape, 81);
  const Floats rope = identity_rope(c.num_positions, 64);
  for (float scale : {0.0f, 1e-20f, 100.0f, 1e12f}) {
    Floats qkv = c.qkv;
    for (int row = 0; row < c.num_positions; ++row) {
      for (int i = 0; i < 3 * 64; ++i) qkv[row * c.layout.cols() + i] *= scale;
    }
    for (float x : c.run(*ops_, qkv, rope, nullptr, nullptr))
      EXPECT_TRUE(std::isfinite(x)) << scale;
  }
  Floats qkv = c.qkv;
  qkv[102 * c.layout.cols()] = kNan;  // q of the third row, first head
  const Floats out = c.run(*ops_, qkv, rope, nullptr, nullptr);
  const Floats clean = c.run(*ops_, c.qkv, rope, nullptr, nullptr);
  EXPECT_TRUE(std::isnan(out[2 * 128]));
  expect_same_bits(out.data(), clean.data(), 2 * 128, "rows before the NaN");
  expect_same_bits(&out[2 * 128 + 64], &clean[2 * 128 + 64], 64 + 128, "heads after the NaN");
}

TEST_P(CpuOpsTest, ZeroRows) {
  auto kv = *ops_->create_kv(
      {.num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .num_pages = 1, .page_size = 32});
  const QkvLayout layout{2, 1, 64};
  Floats none, rope = identity_rope(8, 64);
  ops_->rope_and_store(view(none, 0, layout.cols()), layout, nullptr, nullptr, 1e-6f,
                       view(rope, 8, 64), {}, *kv, 0);
  ops_->attention(view(none, 0, layout.cols()), layout, {}, {}, *kv, 0, view(none, 0, 128));
}

// ---- Configuration.

TEST(CpuOps, NamesAndErrors) {
  for (Isa isa : {Isa::kAuto, Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16}) {
    EXPECT_EQ(*parse_isa(isa_name(isa)), isa);
    auto ops = make_cpu_ops({.num_threads = 1, .isa = isa});
    ASSERT_EQ(ops.has_value(), isa_available(isa));
    if (!ops) {
      EXPECT_EQ(ops.error().kind, ErrorKind::kUnsupported);
    } else if (isa != Isa::kAuto) {
      EXPECT_EQ((*ops)->name(), "cpu/" + std::string(isa_name(isa)));
    }
  }
  EXPECT_FALSE(parse_isa("sse9"));
  EXPECT_FALSE(make_cpu_ops({.num_threads = 0}));
}

TEST_P(CpuOpsTest, RejectsCachesItCannotHold) {
  const KvShape good{
      .num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .num_pages = 1, .page_size = 32};
  KvShape bad = good;
  bad.head_dim = 24;
  EXPECT_FALSE(ops_->create_kv(bad));
  bad.head_dim = 512;
  EXPECT_FALSE(ops_->create_kv(bad));
  bad = good;
  bad.page_size = 40;
  EXPECT_FALSE(ops_->create_kv(bad));
}

}  // namespace
}  // namespace volley
