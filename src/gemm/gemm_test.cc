// The library around the kernels, without a GPU: a stand-in driver (cuda/fake_driver.h) records
// what would have been launched.

#include "gemm/gemm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <random>

#include "gemm/fake_gpu.h"
#include "gemm/fp4.h"
#include "gemm/kernel_text.h"
#include "gemm/quantize.h"
#include "gemm/quantizer.h"
#include "gemm/reference.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

using testing::HasSubstr;

class GemmTest : public testing::Test {
 protected:
  static GemmArgs args(const GemmShape& shape) {
    return {.shape = shape,
            .a = 0x1000,
            .a_scale = 0x2000,
            .b = 0x3000,
            .b_scale = 0x4000,
            .d = 0x5000,
            .groups = 0x6000};
  }

  FakeGpu gpu_;
  std::unique_ptr<Gemm> gemm_ = *Gemm::create(*gpu_.context, *gpu_.kernels);
};

TEST_F(GemmTest, LaunchesWhatWasPlanned) {
  const GemmShape shape = {.m = 4096, .n = 7168, .k = 16384};
  const auto call = gemm_->prepare(args(shape));
  ASSERT_TRUE(call) << call.error().message;
  ASSERT_TRUE(gemm_->launch(*call, nullptr));
  EXPECT_EQ(gpu_.log->last_launch.cta_x, static_cast<unsigned>(call->config.num_threads()));
  EXPECT_EQ(gpu_.log->last_launch.smem_bytes,
            static_cast<unsigned>(smem_layout(call->config).total_bytes));
  EXPECT_EQ(gpu_.log->last_cluster, static_cast<unsigned>(call->config.cluster()));
  EXPECT_LE(gpu_.log->last_launch.grid_x, 132U * static_cast<unsigned>(call->config.ctas_per_sm));
  EXPECT_EQ(gpu_.log->last_launch.grid_x % gpu_.log->last_cluster, 0U);
  // A's map: [4096 rows][16384], boxes of 128 columns.
  EXPECT_EQ(call->a_map.opaque[0], 0x1000U);
  EXPECT_EQ(call->a_map.opaque[2], 16384U);
  EXPECT_EQ(call->a_map.opaque[3], 4096U);
  EXPECT_EQ(call->a_map.opaque[7], 128U);
  EXPECT_EQ(call->a_map.opaque[8], static_cast<uint64_t>(call->config.a_box_rows()));
  EXPECT_EQ(call->b_map.opaque[8], static_cast<uint64_t>(call->config.b_box_rows()));
  EXPECT_EQ(call->scale_map.opaque[3], 128U) << "one row of scales for each 128 of k";
  EXPECT_EQ(call->d_map.opaque[2], 0U) << "bf16 sums of FP8 are stored by their warps";
  GemmShape floats = shape;
  floats.out = OutKind::kF32;
  const auto stored_by_boxes = gemm_->prepare(args(floats));
  ASSERT_TRUE(stored_by_boxes) << stored_by_boxes.error().message;
  EXPECT_EQ(stored_by_boxes->d_map.opaque[2], 7168U);
}

TEST_F(GemmTest, GridsAreNoLargerThanTheWork) {
  const auto call = gemm_->prepare(args({.m = 1, .n = 8, .k = 128}));
  ASSERT_TRUE(call);
  EXPECT_EQ(call->dims.num_ctas, static_cast<uint32_t>(call->config.cluster()));
}

TEST_F(GemmTest, WrongArgumentsAreNamed) {
  const GemmShape shape = {.m = 64, .n = 256, .k = 512};
  const auto objection = [&](auto change) {
    GemmArgs changed = args(shape);
    change(changed);
    const auto call = gemm_->prepare(changed);
    return call ? std::string() : call.error().message;
  };
  EXPECT_EQ(objection([](auto&) {}), "");
  EXPECT_THAT(objection([](auto& a) { a.a = 0x1008; }), HasSubstr("a is 0x1008"));
  EXPECT_THAT(objection([](auto& a) { a.b = 0; }), HasSubstr("b is 0x0"));
  EXPECT_THAT(objection([](auto& a) { a.d = 4; }), HasSubstr("d is 0x4"));
  EXPECT_THAT(objection([](auto& a) { a.a_stride = 500; }), HasSubstr("a_stride is 500"));
  EXPECT_THAT(objection([](auto& a) { a.d_stride = 257; }), HasSubstr("d_stride is 257"));
  EXPECT_THAT(objection([](auto& a) { a.a_scale_stride = 60; }), HasSubstr("a_scale_stride is 60"));
  EXPECT_THAT(objection([](auto& a) { a.shape.n = 250; }), HasSubstr("n is 250"));
  EXPECT_THAT(objection([](auto& a) { a.a_scale = 0; }), HasSubstr("a_scale is 0x0"));
  EXPECT_THAT(objection([](auto& a) { a.shape.grouping = Grouping::kMasked, a.groups = 2; }),
              HasSubstr("groups is 0x2"));
  EXPECT_THAT(objection([](auto& a) { a.c = 0x7000; }), HasSubstr("expected float output"));
  const auto gradient = [](auto& a) {
    a.shape.mma = MmaKind::kFp8Rows, a.shape.out = OutKind::kF32, a.c = a.d;
  };
  EXPECT_EQ(objection(gradient), "");
  EXPECT_THAT(objection([&](auto& a) { gradient(a), a.c = 0x7004; }), HasSubstr("c is 0x7004"));
  EXPECT_THAT(objection([&](auto& a) { gradient(a), a.c_stride = 260; }),
              HasSubstr("c_stride is 260 and d_stride 256"));
  EXPECT_THAT(objection([&](auto& a) { gradient(a), a.b_scale_stride = 200; }),
              HasSubstr("b_scale_stride is 200"));
  EXPECT_THAT(objection([](auto& a) { a.config = GemmConfig{.mma = MmaKind::kBf16}; }),
              HasSubstr("does not compute this shape"));
}

TEST_F(GemmTest, NoRowsNothingToLaunch) {
  const auto call = gemm_->prepare(args({.m = 0, .n = 256, .k = 512}));
  ASSERT_TRUE(call);
  const int64_t before = gpu_.log->num_launches;
  EXPECT_TRUE(gemm_->launch(*call, nullptr));
  EXPECT_EQ(gpu_.log->num_launches, before);
}

TEST_F(GemmTest, AfterAWarmUpNothingCompiles) {
  const std::vector<GemmShape> shapes = {{.m = 512, .n = 6144, .k = 4096}};
  ASSERT_TRUE(gemm_->warm_up(shapes, 2, nullptr));
  const int64_t compiled = gpu_.kernels->stats().num_compiled;
  EXPECT_GT(compiled, 1);
  for (int m = 1; m <= 512; ++m) {
    GemmShape shape = shapes[0];
    shape.m = m;
    ASSERT_TRUE(gemm_->prepare(args(shape)));
  }
  EXPECT_EQ(gpu_.kernels->stats().num_compiled, compiled);
}

TEST_F(GemmTest, ALaunchCostsTheHostLittle) {
  const auto call = gemm_->prepare(args({.m = 64, .n = 6144, .k = 4096}));
  ASSERT_TRUE(call);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 10000; ++i) (void)gemm_->launch(*call, nullptr);
  const std::chrono::duration<double, std::micro> elapsed =
      std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count() / 10000, 2.0) << "microseconds a launch, the driver's own cost aside";
}

TEST(KernelText, TheClosureHoldsEveryDeviceHeader) {
  const auto source = kernel_source(*choose_config({.m = 64, .n = 2112, .k = 7168}, DeviceSpec{}));
  const auto closure = jit::include_closure(source);
  ASSERT_TRUE(closure) << closure.error().message;
  EXPECT_EQ(closure->size(), source.headers.size());
}

TEST(KernelText, TheInstructionNamesEveryRegister) {
  const std::string text = wgmma_header(MmaKind::kFp8, 24);
  EXPECT_THAT(text,
              HasSubstr("m64n24k32.f32.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11}"
                        ", %12, %13, p, 1, 1;"));
  EXPECT_THAT(text, HasSubstr("setp.ne.b32 p, %14, 0;"));
  EXPECT_THAT(wgmma_header(MmaKind::kBf16, 8), HasSubstr("k16.f32.bf16.bf16"));
}

// Real machine code for every kernel family: nothing spilled to memory, nothing serialised.
TEST(KernelText, KernelsCompileWithoutSpills) {
  auto nvrtc = jit::load_nvrtc();
  if (!nvrtc) GTEST_SKIP() << "not run: " << nvrtc.error().message;
  std::vector<GemmConfig> configs;
  std::vector<GemmShape> shapes;
  for (const MmaKind mma : {MmaKind::kFp8, MmaKind::kBf16, MmaKind::kMxFp4, MmaKind::kNvFp4}) {
    // The heaviest users of registers, and one of every other kind.
    for (const GemmShape& shape : std::vector<GemmShape>{
             {.mma = mma, .m = 8192, .n = 8192, .k = 8192},
             {.mma = mma, .m = 4096, .n = 2112, .k = 7168},
             {.mma = mma, .m = 64, .n = 2112, .k = 7168},
             {.mma = mma, .m = 1, .n = 24576, .k = 4096},
             {.mma = mma, .out = OutKind::kF32, .m = 100, .n = 4096, .k = 4096},
             {.mma = mma, .out = OutKind::kF32, .m = 4096, .n = 4096, .k = 4096}}) {
      shapes.push_back(shape);
    }
    for (const Grouping grouping : {Grouping::kRowIndex, Grouping::kPrefixSum, Grouping::kMasked}) {
      shapes.push_back({.mma = mma,
                        .grouping = grouping,
                        .m = 4096,
                        .n = 4096,
                        .k = 7168,
                        .num_groups = 8,
                        .expected_m = 64});
    }
    shapes.push_back({.mma = mma,
                      .out = OutKind::kF32,
                      .grouping = Grouping::kRowIndex,
                      .m = 4096,
                      .n = 4096,
                      .k = 7168,
                      .num_groups = 2,
                      .group_align = 256});
  }
  for (const MmaKind mma : {MmaKind::kFp8Rows, MmaKind::kBf16}) {
    for (const Grouping grouping : {Grouping::kDense, Grouping::kAlongK}) {
      shapes.push_back({.mma = mma,
                        .out = OutKind::kF32,
                        .grouping = grouping,
                        .m = 4096,
                        .n = 7168,
                        .k = 4096,
                        .num_groups = grouping == Grouping::kDense ? 1 : 4});
    }
  }
  for (const GemmShape& shape : shapes) {
    const auto ranked = rank_configs(shape, DeviceSpec{});
    configs.push_back(ranked.front().config);
    const auto most =
        std::max_element(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) {
          return a.config.accumulator_floats() < b.config.accumulator_floats();
        });
    configs.push_back(most->config);
    // The tightest of those that share an SM.
    const CandidateConfig* shared = nullptr;
    for (const CandidateConfig& c : ranked) {
      if (c.config.ctas_per_sm == 1 || c.config.math_warpgroups() == 1) continue;
      if (shared == nullptr ||
          c.config.accumulator_floats() > shared->config.accumulator_floats()) {
        shared = &c;
      }
    }
    if (shared != nullptr) configs.push_back(shared->config);
  }
  std::sort(configs.begin(), configs.end(), [](const GemmConfig& a, const GemmConfig& b) {
    return config_name(a) < config_name(b);
  });
  configs.erase(std::unique(configs.begin(), configs.end()), configs.end());
  for (const GemmConfig& config : configs) {
    jit::KernelSource source = kernel_source(config);
    source.flags = {"--ptxas-options=-v"};
    const auto compiled = (*nvrtc)->compile(source, "sm_90a");
    ASSERT_TRUE(compiled) << compiled.error().message;
    const auto bytes_of = [&](const char* what) {
      const size_t at = compiled->log.find(what);
      return at == std::string::npos
                 ? -1
                 : std::atoi(compiled->log.c_str() + compiled->log.rfind(' ', at - 1));
    };
    // A wide tile's threads hold 192 floats and more: they may spill what they need once a tile. So
    // may the producer of a product along K, for its walk over the groups, and that of wide FP4
    // tiles, which gives its registers to the others.
    const bool once_a_tile = config.grouping == Grouping::kAlongK || config.decodes_to_smem() ||
                             config.accumulator_floats() >= 192;
    const int most = config.n_waves() > 1 ? 96 : once_a_tile ? 32 : 0;
    const int spilled = bytes_of(" bytes spill stores"), stack = bytes_of(" bytes stack frame");
    EXPECT_GE(spilled, 0) << compiled->log;
    EXPECT_LE(spilled, most) << source.name << compiled->log;
    EXPECT_LE(stack, most) << "sums in local memory: " << source.name << compiled->log;
    EXPECT_THAT(compiled->log, testing::Not(HasSubstr("serialized"))) << source.name;
    EXPECT_THAT(compiled->log, testing::Not(HasSubstr("warning"))) << source.name;
  }
}

TEST(KernelText, TheQuantisersCompileWithoutSpills) {
  const jit::KernelSource plain = quantizer_source();
  const auto closure = jit::include_closure(plain);
  ASSERT_TRUE(closure) << closure.error().message;
  EXPECT_EQ(closure->size(), plain.headers.size());
  auto nvrtc = jit::load_nvrtc();
  if (!nvrtc) GTEST_SKIP() << "not run: " << nvrtc.error().message;
  jit::KernelSource source = plain;
  source.flags = {"--ptxas-options=-v"};
  const auto compiled = (*nvrtc)->compile(source, "sm_90a");
  ASSERT_TRUE(compiled) << compiled.error().message;
  EXPECT_THAT(compiled->log, HasSubstr(" 0 bytes spill stores"));
  // Two registers at most, around the rare path of a division.
  EXPECT_THAT(compiled->log, testing::Not(testing::ContainsRegex("[1-9][0-9]+ bytes spill")));
  EXPECT_THAT(compiled->log, testing::Not(HasSubstr("warning")));
}

TEST(Quantize, RowsKeepWithinHalfAStepAndScalesAreMMajor) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  constexpr int64_t kM = 5, kK = 384;
  std::vector<float> x(kM * kK);
  for (float& value : x) value = normal(random);
  x[3] = 1000;
  const auto q = quantize_rows(x, kM, kK);
  ASSERT_TRUE(q);
  EXPECT_EQ(q->scale_stride, 8);
  for (int64_t r = 0; r < kM; ++r) {
    for (int64_t c = 0; c < kK; ++c) {
      const float scale = q->scales[static_cast<size_t>(c / 128 * 8 + r)];
      const float got = e4m3_to_float(q->values[static_cast<size_t>(r * kK + c)]) * scale;
      const float want = x[static_cast<size_t>(r * kK + c)];
      EXPECT_NEAR(got, want, std::max(std::fabs(want) / 16, scale / 512));
    }
  }
  EXPECT_FLOAT_EQ(q->scales[0], 1000.0F / 448);
  EXPECT_EQ(q->scales[5], 0) << "padding";
  const auto powers = quantize_rows(x, kM, kK, true);
  for (const float scale : powers->scales) {
    if (scale == 0) continue;  // padding
    EXPECT_EQ(std::exp2(std::round(std::log2(scale))), scale);
  }
  EXPECT_GE(powers->scales[0], q->scales[0]);
}

TEST(Quantize, ZerosAndEdges) {
  const auto zeros = quantize_rows(std::vector<float>(128), 1, 128);
  ASSERT_TRUE(zeros);
  EXPECT_FLOAT_EQ(zeros->scales[0], 1e-4F / 448);
  EXPECT_EQ(zeros->values[7], 0);
  EXPECT_FALSE(quantize_rows(std::vector<float>(100), 1, 100));
  EXPECT_FALSE(quantize_rows(std::vector<float>(100), 1, 128));
  EXPECT_TRUE(quantize_rows({}, 0, 128));
  // 130 rows: the last two make a group of their own.
  std::vector<float> w(130 * 128, 1.0F);
  w[129 * 128] = 8;
  const auto weight = quantize_weight(w, 1, 130, 128);
  ASSERT_TRUE(weight);
  ASSERT_EQ(weight->scales.size(), 2U);
  EXPECT_FLOAT_EQ(weight->scales[0], 1.0F / 448);
  EXPECT_FLOAT_EQ(weight->scales[1], 8.0F / 448);
}

TEST(Quantize, ScalesMoveToTheMMajorLayout) {
  const std::vector<float> row_major = {1, 2, 3, 4, 5, 6};
  const auto moved = scales_to_m_major(row_major, 3, 2, 4);
  ASSERT_TRUE(moved);
  EXPECT_THAT(*moved, testing::ElementsAre(1, 3, 5, 0, 2, 4, 6, 0));
  EXPECT_FALSE(scales_to_m_major(row_major, 3, 2, 5));
  EXPECT_FALSE(scales_to_m_major(row_major, 4, 2, 4));
}

TEST(Fp4, ValuesAndTheirNearestCodes) {
  const float values[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  for (uint8_t code = 0; code < 8; ++code) {
    EXPECT_EQ(e2m1_to_float(code), values[code]);
    EXPECT_EQ(e2m1_to_float(code | 8), -values[code]);
    EXPECT_EQ(float_to_e2m1(values[code]), code);
    if (code == 7) continue;
    const float middle = (values[code] + values[code + 1]) / 2;
    EXPECT_EQ(float_to_e2m1(middle), code % 2 == 0 ? code : code + 1) << "ties to even";
    EXPECT_EQ(float_to_e2m1(std::nextafter(middle, 0.0F)), code);
    EXPECT_EQ(float_to_e2m1(-std::nextafter(middle, 9.0F)), (code + 1) | 8);
  }
  EXPECT_EQ(float_to_e2m1(1e30F), 7);
}

TEST(Fp4, TheLayoutUsesEveryBitOnce) {
  for (const bool nv : {false, true}) {
    std::vector<int> uses(static_cast<size_t>(fp4_tile_bytes(nv)) * 8);
    for (int row = 0; row < kFp4StripRows; ++row) {
      for (int col = 0; col < kFp4BlockCols; ++col) {
        const Fp4Position at = fp4_position(row, col);
        for (int bit = 0; bit < 3; ++bit)
          ++uses[static_cast<size_t>(at.byte * 8 + at.magnitude_bit + bit)];
        ++uses[static_cast<size_t>(at.byte * 8 + at.sign_bit)];
      }
      for (int group = 0; group < fp4_groups(nv); ++group) {
        for (int bit = 0; bit < 8; ++bit)
          ++uses[static_cast<size_t>(fp4_scale_byte(nv, row, group) * 8 + bit)];
      }
    }
    EXPECT_THAT(uses, testing::Each(1));
  }
}

// Random nibbles under random scales from `low` to `high` (bytes of the format).
Fp4Weight random_fp4(MmaKind format, int64_t groups, int64_t n, int64_t k, int low, int high) {
  std::mt19937 random(7);
  const auto draw = [&random](int from, int to) {
    return static_cast<uint8_t>(std::uniform_int_distribution<int>(from, to)(random));
  };
  Fp4Weight w;
  w.values.resize(static_cast<size_t>(groups * n * k / 2));
  w.scales.resize(static_cast<size_t>(groups * n * k / (format == MmaKind::kNvFp4 ? 16 : 32)));
  for (uint8_t& value : w.values) value = draw(0, 255);
  for (uint8_t& scale : w.scales) scale = draw(low, high);
  if (format == MmaKind::kNvFp4) w.tensor_scales.assign(static_cast<size_t>(groups), 0.037F);
  return w;
}

TEST(Fp4, PackingKeepsEveryValueWhoseRowSpansElevenBinades) {
  struct Case {
    MmaKind format;
    int low, high;
  };
  for (const Case& c : {Case{MmaKind::kMxFp4, 100, 111},
                        {MmaKind::kMxFp4, 0, 11},
                        {MmaKind::kMxFp4, 243, 254},
                        {MmaKind::kNvFp4, 2, 84},
                        {MmaKind::kNvFp4, 0x7E - 94, 0x7E}}) {
    constexpr int64_t kGroups = 2, kN = 72, kK = 256;
    const Fp4Weight w = random_fp4(c.format, kGroups, kN, kK, c.low, c.high);
    const Fp4Matrix view = w.view(c.format, kGroups, kN, kK);
    const auto packed = pack_fp4(view);
    const auto values = dequantize_fp4(view);
    ASSERT_TRUE(packed && values);
    EXPECT_EQ(packed->num_rounded, 0) << "scales " << c.low << " to " << c.high;
    EXPECT_EQ(packed->tiles.size(),
              static_cast<size_t>(kGroups * 2 * 2 * fp4_tile_bytes(c.format == MmaKind::kNvFp4)));
    for (int64_t i = 0; i < kGroups * kN * kK; ++i) {
      const double got = packed_fp4_value(c.format, packed->tiles, packed->row_scales, kN, kK,
                                          i / (kN * kK), i / kK % kN, i % kK);
      const float want = (*values)[static_cast<size_t>(i)];
      ASSERT_FLOAT_EQ(static_cast<float>(got), want) << i;
    }
    // What the kernels take: p + q codes that neither fall below a normal number nor pass 448.
    const bool nv = c.format == MmaKind::kNvFp4;
    for (size_t tile = 0; tile < packed->tiles.size();
         tile += static_cast<size_t>(fp4_tile_bytes(nv))) {
      for (int i = kFp4ValueBytes; i < fp4_tile_bytes(nv); ++i) {
        const int code = packed->tiles[tile + static_cast<size_t>(i)];
        ASSERT_GE(code, kFp4MinCode);
        ASSERT_LE(code, nv ? kNvFp4MaxCode : kMxFp4MaxCode);
      }
    }
  }
}

TEST(Fp4, AWiderSpanRoundsTheSmallestGroupsAndSaysSo) {
  for (const MmaKind format : {MmaKind::kMxFp4, MmaKind::kNvFp4}) {
    const bool nv = format == MmaKind::kNvFp4;
    constexpr int64_t kN = 64, kK = 512;
    const Fp4Weight w = random_fp4(format, 1, kN, kK, nv ? 1 : 90, nv ? 126 : 127);
    const Fp4Matrix view = w.view(format, 1, kN, kK);
    const auto packed = pack_fp4(view);
    const auto values = dequantize_fp4(view);
    ASSERT_TRUE(packed && values);
    EXPECT_GT(packed->num_rounded, 0);
    const int64_t cols = nv ? 16 : 32;
    int64_t num_changed = 0;
    for (int64_t row = 0; row < kN; ++row) {
      float largest = 0;
      for (int64_t g = 0; g < kK / cols; ++g) {
        const uint8_t scale = w.scales[static_cast<size_t>(row * kK / cols + g)];
        largest = std::max(largest,
                           nv ? e4m3_to_float(scale) * 0.037F : std::ldexp(1.0F, int{scale} - 127));
      }
      for (int64_t col = 0; col < kK; ++col) {
        const double got =
            packed_fp4_value(format, packed->tiles, packed->row_scales, kN, kK, 0, row, col);
        const double want = (*values)[static_cast<size_t>(row * kK + col)];
        EXPECT_LE(std::fabs(got - want), largest * std::ldexp(1.0001, -12));
        num_changed += std::fabs(got - want) > 1e-6 * std::fabs(want);
      }
    }
    EXPECT_EQ(num_changed, packed->num_rounded);
  }
}

TEST(Fp4, QuantisersKeepWithinHalfAStep) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr int64_t kN = 8, kK = 256;
  std::vector<float> x(kN * kK);
  for (float& value : x) value = normal(random);
  std::fill_n(x.begin() + kK, 32, 0.0F);
  for (const MmaKind format : {MmaKind::kMxFp4, MmaKind::kNvFp4}) {
    const auto weight = quantize_fp4(x, format, 1, kN, kK);
    ASSERT_TRUE(weight);
    const auto values = dequantize_fp4(weight->view(format, 1, kN, kK));
    ASSERT_TRUE(values);
    const size_t cols = format == MmaKind::kNvFp4 ? 16 : 32;
    for (size_t i = 0; i < x.size(); ++i) {
      float amax = 0;
      for (size_t j = i / cols * cols; j < (i / cols + 1) * cols; ++j)
        amax = std::max(amax, std::fabs(x[j]));
      // The widest step of e2m1 is 2; a scale is at most twice (MX) or 1/16 above (NV) amax / 6.
      const float scale = amax / 6 * (format == MmaKind::kNvFp4 ? 1.07F : 2);
      EXPECT_NEAR((*values)[i], x[i], scale + 1e-6F);
    }
    EXPECT_EQ((*values)[kK], 0);
  }
}

TEST(Fp4, WrongWeightsAreNamed) {
  const Fp4Weight good = random_fp4(MmaKind::kNvFp4, 1, 8, 128, 8, 100);
  const auto objection = [&](auto change) {
    Fp4Weight changed = good;
    change(changed);
    const auto packed = pack_fp4(changed.view(MmaKind::kNvFp4, 1, 8, 128));
    return packed ? std::string() : packed.error().message;
  };
  EXPECT_EQ(objection([](auto&) {}), "");
  EXPECT_THAT(objection([](auto& w) { w.scales[3] = 0x7F; }), HasSubstr("a scale of 0x7f"));
  EXPECT_THAT(objection([](auto& w) { w.scales[3] = 0x88; }), HasSubstr("a scale of 0x88"));
  EXPECT_THAT(objection([](auto& w) { w.scales.pop_back(); }), HasSubstr("of scales, expected 64"));
  EXPECT_THAT(objection([](auto& w) { w.values.pop_back(); }),
              HasSubstr("of values, expected 512"));
  EXPECT_THAT(objection([](auto& w) { w.tensor_scales[0] = 0; }), HasSubstr("tensor scale of 0"));
  EXPECT_FALSE(pack_fp4(good.view(MmaKind::kNvFp4, 1, 8, 100)));
  EXPECT_FALSE(pack_fp4(good.view(MmaKind::kFp8, 1, 8, 128)));
  EXPECT_FALSE(quantize_fp4(std::vector<float>(100), MmaKind::kMxFp4, 1, 1, 100));
}

TEST(Reference, AgreesWithProductsOfTheUnquantisedMatrices) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  constexpr int kM = 3, kN = 16, kK = 256;
  std::vector<float> a(kM * kK), b(kN * kK);
  for (float& value : a) value = normal(random);
  for (float& value : b) value = normal(random);
  HostProblem problem;
  problem.shape = {.m = kM, .n = kN, .k = kK};
  const auto qa = quantize_rows(a, kM, kK);
  const auto qb = quantize_weight(b, 1, kN, kK);
  problem.a = qa->values;
  problem.a_scale = qa->scales;
  problem.a_scale_stride = qa->scale_stride;
  problem.b = qb->values;
  problem.b_scale = qb->scales;
  const auto weights = row_weights(problem.shape, {});
  for (int r = 0; r < kM; ++r) {
    for (int c = 0; c < kN; ++c) {
      double want = 0;
      for (int i = 0; i < kK; ++i) want += double{a[r * kK + i]} * b[c * kK + i];
      const ReferenceValue got = reference_value(problem, weights, r, c);
      EXPECT_NEAR(got.value, want, 2.5) << "e4m3 keeps 4 bits: about 4% of each of 256 products";
      EXPECT_GE(got.magnitude, std::fabs(got.value));
    }
  }
}

TEST(Reference, KnowsWhichWeightARowMeets) {
  EXPECT_THAT(
      row_weights({.grouping = Grouping::kMasked, .m = 3, .n = 8, .k = 128, .num_groups = 2},
                  std::vector<int32_t>{1, 9}),
      testing::ElementsAre(0, -1, -1, 1, 1, 1));
  EXPECT_THAT(row_weights({.grouping = Grouping::kPrefixSum,
                           .m = 24,
                           .n = 8,
                           .k = 128,
                           .num_groups = 3,
                           .group_align = 8},
                          std::vector<int32_t>{3, 3, 10}),
              testing::ElementsAre(0, 0, 0, -1, -1, -1, -1, -1, 2, 2, -1, -1, -1, -1, -1, -1, -1,
                                   -1, -1, -1, -1, -1, -1, -1));
}

}  // namespace
}  // namespace volley::gemm
