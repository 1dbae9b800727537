#include "app/bench_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/weight_error.h"
#include "ops/cpu/cpu_ops.h"

namespace volley {
namespace {

using testing::HasSubstr;

BenchShape tiny_shape() {
  BenchShape shape = *bench_shape("qwen3-0.6b");
  shape.name = "tiny";
  for (int* size :
       {&shape.target.hidden_size, &shape.drafter.hidden_size, &shape.drafter.target_hidden_size})
    *size = 64;
  shape.target.intermediate_size = shape.drafter.intermediate_size = 96;
  shape.target.vocab_size = shape.drafter.vocab_size = shape.drafter.draft_vocab_size = 1000;
  shape.drafter.mask_token_id = 999;
  shape.target.num_heads = shape.drafter.num_heads = 2;
  shape.target.num_kv_heads = shape.drafter.num_kv_heads = 1;
  return shape;
}

TEST(BenchShape, EveryShapeIsValid) {
  for (const char* name : {"qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "llama3.1-8b"}) {
    const auto shape = bench_shape(name);
    ASSERT_TRUE(shape) << name;
    EXPECT_TRUE(shape->target.validate()) << name;
    EXPECT_TRUE(shape->drafter.validate()) << name;
    EXPECT_TRUE(check_drafter_fits(shape->target, shape->drafter)) << name;
  }
  EXPECT_THAT(bench_shape("gpt5").error().message, HasSubstr("qwen3-0.6b, qwen3-1.7b"));
}

TEST(BenchShape, MeasuresEveryPassInEveryFormat) {
  if (!isa_available(Isa::kAuto)) GTEST_SKIP() << "not run: no CPU unit can run here";
  for (const WeightFormat format :
       {WeightFormat::kBf16, WeightFormat::kFp8, WeightFormat::kInt8, WeightFormat::kInt4}) {
    ShapeBenchConfig config;
    config.num_threads = 2;
    config.format = format;
    config.budget_s = 0.2;
    config.rows = {2, 16};
    config.contexts = {64, 128};
    config.prefills = {64, 192};
    config.prefill_chunk = 64;
    config.read_buffer_bytes = 8 << 20;
    int num_lines = 0;
    const auto report = measure_shape(tiny_shape(), config, [&](std::string_view) { ++num_lines; });
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_GT(num_lines, 5);
    EXPECT_EQ(report->figures.size(), 2u + 2u + 2u + 2u);
    for (const ShapeFigure& figure : report->figures) {
      EXPECT_GT(figure.ms, 0) << figure.name;
      EXPECT_GT(report->floor_ms(figure), 0) << figure.name;
    }
    EXPECT_GT(report->computed_speedup(), 0);
    EXPECT_EQ(report->json()["figures"].size(), 8u);
    EXPECT_EQ(report->json()["bars"].size(), 3u);
    EXPECT_THAT(report->table(), HasSubstr("computed, not measured"));
    EXPECT_THAT(shape_plot_svg({*report}, "a & b"), HasSubstr("a &amp; b"));
  }
}

TEST(WeightError, OfTheDemoTarget) {
  if (!isa_available(Isa::kAuto)) GTEST_SKIP() << "not run: no CPU unit can run here";
  const auto int8 = measure_weight_error("models/demo-target", WeightFormat::kInt8, {});
  const auto int4 = measure_weight_error("models/demo-target", WeightFormat::kInt4, {});
  ASSERT_TRUE(int8) << int8.error().message;
  ASSERT_TRUE(int4) << int4.error().message;
  for (const double error : int8->layers) EXPECT_LT(error, 0.01);
  for (const double error : int4->layers) EXPECT_LT(error, 0.1);
  EXPECT_LT(int8->mean_kl, 0.005);
  EXPECT_LT(int4->mean_kl, 0.2);
  EXPECT_GT(int8->argmax_agreement, 0.97);
  EXPECT_GT(int4->argmax_agreement, 0.85);
  EXPECT_THAT(int4->table(), HasSubstr("layer 0"));
}

TEST(BenchShape, SaysWithNumbersWhatDoesNotFit) {
  BenchShape shape = *bench_shape("qwen3-8b");
  shape.target.num_layers = 900;
  const auto report = measure_shape(shape, {.num_threads = 1}, [](std::string_view) {});
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(report.error().message, HasSubstr("GB are free"));
}

TEST(BenchShape, FloorsAndTheComputedSpeedup) {
  ShapeReport report;
  report.read_bytes_s = 10e9;
  report.multiply_flop_s = 1e12;
  report.block_size = 16;
  report.acceptance_length = 6;
  report.figures = {{.name = "step", .rows = 1, .context = 128, .ms = 20, .bytes = 100e6},
                    {.name = "verify", .rows = 8, .context = 128, .ms = 21, .times_one_row = 1.05},
                    {.name = "verify", .rows = 16, .context = 128, .ms = 22, .times_one_row = 1.1},
                    {.name = "draft", .rows = 16, .context = 128, .ms = 5, .flops = 50e9},
                    {.name = "inject", .rows = 6, .context = 128, .ms = 3}};
  EXPECT_DOUBLE_EQ(report.floor_ms(report.figures[0]), 10);
  EXPECT_DOUBLE_EQ(report.floor_ms(report.figures[3]), 50);
  EXPECT_DOUBLE_EQ(report.computed_speedup(), 6 * 20 / (5 + 3 + 1.1 * 20));
  const std::vector<ShapeBar> bars = report.bars();
  ASSERT_EQ(bars.size(), 3u);
  EXPECT_DOUBLE_EQ(bars[0].value, 50);
  EXPECT_FALSE(bars[0].met());
  EXPECT_DOUBLE_EQ(bars[1].value, 1.1);
  EXPECT_TRUE(bars[1].met());
  EXPECT_DOUBLE_EQ(bars[2].value, 0.1);
  EXPECT_TRUE(bars[2].met());
  report.figures.pop_back();
  EXPECT_EQ(report.computed_speedup(), 0);
}

}  // namespace
}  // namespace volley
