// Scoring without a GPU: the schedule, the choice of a configuration, errors, what would be
// launched (cuda/fake_driver.h records it), the kernels' machine code.

#include "gemm/scoring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "gemm/fake_gpu.h"
#include "gemm/scoring_reference.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

using enum KeyKind;
using testing::HasSubstr;

// The arrays of a call, and the work that reads them.
struct HostWork {
  std::vector<int> starts, ends, context_lens, query_starts;
  ScoringWork work = {};
  ScoringConfig config;

  ScoringWork view() const {
    const auto pointer = [](const std::vector<int>& v) { return v.empty() ? nullptr : v.data(); };
    ScoringWork w = work;
    w.starts = pointer(starts);
    w.ends = pointer(ends);
    w.context_lens = pointer(context_lens);
    w.query_starts = pointer(query_starts);
    return w;
  }
};

HostWork random_work(std::mt19937& random) {
  const auto draw = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  HostWork h;
  h.config.paged = draw(0, 1) == 1;
  h.config.queries = draw(1, 8);
  h.config.heads = 16;
  h.work.num_keys = draw(1, 2000);
  if (!h.config.paged) {
    h.work.num_rows = draw(1, 60);
    h.work.num_runs = ceil_div(h.work.num_rows, h.config.queries);
    for (int i = 0; i < h.work.num_rows; ++i) {
      h.starts.push_back(draw(-5, h.work.num_keys));
      h.ends.push_back(draw(-5, h.work.num_keys + 5));
    }
    if (draw(0, 3) == 0) h.starts.clear();
    if (draw(0, 3) == 0) h.ends.clear();
    return h;
  }
  h.work.num_runs = draw(1, 40);
  h.work.next_n = draw(1, 6);
  for (int i = 0; i < h.work.num_runs; ++i) {
    h.context_lens.push_back(draw(0, 3) == 0 ? 0 : draw(0, h.work.num_keys + 70));
  }
  h.work.num_rows = h.work.num_runs * h.work.next_n;
  if (draw(0, 1) == 1) {
    int row = draw(0, 3);
    for (int i = 0; i <= h.work.num_runs; ++i, row += draw(0, 12)) h.query_starts.push_back(row);
    h.work.num_rows = row + draw(0, 5);
  }
  return h;
}

TEST(ScoringSchedule, EveryPairIsDoneOnceAndSharesAreEqual) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const HostWork h = random_work(random);
    const ScoringWork work = h.view();
    int total = 0;
    for (int run = 0; run < work.num_runs; ++run) total += tiles_of_run(work, h.config, run);
    const int num_ctas = std::uniform_int_distribution<int>(1, 150)(random);
    std::map<std::pair<int, int>, int> times;  // by first row of the query tile, and key tile
    int least = total, most = 0;
    for (int cta = 0; cta < num_ctas; ++cta) {
      const int begin = share_begin(total, cta, num_ctas);
      WorkCursor cursor;
      cursor.left = share_begin(total, cta + 1, num_ctas) - begin;
      cursor.skip(work, h.config, begin);
      int done = 0, run = 0;
      QueryTile tile;
      while (cursor.next(work, h.config, tile, run)) {
        ASSERT_GE(tile.num_rows, 1);
        ASSERT_LE(tile.num_rows, h.config.queries);
        ASSERT_LE(tile.row + tile.num_rows, work.num_rows);
        ASSERT_GE(tile.num_tiles, 1);
        done += tile.num_tiles;
        for (int i = 0; i < tile.num_tiles; ++i) ++times[{tile.row, tile.first_tile + i}];
      }
      least = std::min(least, done);
      most = std::max(most, done);
    }
    EXPECT_LE(most - least, 1);
    EXPECT_EQ(static_cast<int>(times.size()), total);
    for (const auto& [pair, count] : times) ASSERT_EQ(count, 1);
    // Every key that a row sees is in a tile of its query tile.
    for (int run = 0; run < work.num_runs; ++run) {
      const RowRun rows = run_of(work, h.config, run);
      for (int i = 0; i < rows.count; ++i) {
        const KeyRange range = range_of(work, h.config, run, rows, rows.first + i);
        const int tile_row = rows.first + i / h.config.queries * h.config.queries;
        for (int key = range.begin; key < range.end; key += 13) {
          ASSERT_EQ(times.count({tile_row, key / kKeyTile}), 1U) << "row " << rows.first + i;
        }
      }
    }
  }
}

TEST(ScoringSchedule, RowsSeeWhatTheReferenceSays) {
  const HostScoring p = random_scoring({.paged = true,
                                        .heads = 16,
                                        .head_dim = 64,
                                        .num_rows = 14,
                                        .num_keys = 300,
                                        .num_sequences = 5},
                                       {300, 64, 2, 0, 400}, {1, 6, 6, 9, 10, 13}, 1);
  const auto views = row_views(p);
  EXPECT_EQ(views[0].sequence, -1);
  EXPECT_EQ(views[1].end, 296);
  EXPECT_EQ(views[5].end, 300);
  EXPECT_EQ(views[6].end, 0) << "two keys, three rows";
  EXPECT_EQ(views[12].end, 300) << "no further than num_keys";
  EXPECT_EQ(views[13].sequence, -1);
}

TEST(ScoringConfigs, AsManyQueriesAsFitOrThereAre) {
  const auto queries = [](int heads, bool paged, int rows) {
    ScoringShape shape = {.paged = paged, .heads = heads, .num_rows = 1, .num_keys = 64};
    (paged ? shape.next_n : shape.num_rows) = rows;
    return choose_scoring_config(shape, DeviceSpec{})->queries;
  };
  EXPECT_EQ(queries(64, false, 4096), 4);
  EXPECT_EQ(queries(64, false, 2), 2);
  EXPECT_EQ(queries(32, false, 4096), 8);
  EXPECT_EQ(queries(128, false, 4096), 2);
  EXPECT_EQ(queries(48, false, 4096), 5);
  EXPECT_EQ(queries(64, true, 1), 1);
  EXPECT_EQ(queries(64, true, 4), 4);
  EXPECT_EQ(queries(64, true, 5), 3) << "3 and 2, not 4 and 1";
  EXPECT_EQ(queries(64, true, 9), 3);
}

TEST(ScoringConfigs, AllFitTheChip) {
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const bool paged : {false, true}) {
      for (int heads = 16; heads <= 128; heads += 16) {
        for (const int head_dim : {64, 128}) {
          for (int rows = 1; rows <= 20; ++rows) {
            ScoringShape shape = {.keys = keys,
                                  .paged = paged,
                                  .heads = heads,
                                  .head_dim = head_dim,
                                  .num_rows = rows,
                                  .next_n = rows};
            const auto config = choose_scoring_config(shape, DeviceSpec{});
            ASSERT_TRUE(config);
            ASSERT_TRUE(config->valid()) << config_name(*config);
            EXPECT_LE(scoring_smem(*config).total_bytes, DeviceSpec{}.max_smem_bytes);
            EXPECT_GE(config->num_stages, 8);
            EXPECT_LE(config->part_queries(0) * heads, 160);
          }
        }
      }
    }
  }
}

TEST(ScoringShapes, PagesHoldKeysThenScales) {
  EXPECT_EQ(scoring_page_bytes(kFp8, 128), 64 * 132);
  EXPECT_EQ(scoring_page_bytes(kFp8, 64), 64 * 68);
  EXPECT_EQ(scoring_page_bytes(kMxFp4, 128), 64 * 68);
  EXPECT_EQ(scoring_page_bytes(kMxFp4, 64), 64 * 34);
}

TEST(ScoringShapes, CostsCountEachByteOnce) {
  const ScoringCost cost = scoring_cost({.num_rows = 2, .num_keys = 100}, 150, 100);
  EXPECT_EQ(cost.flops, 2.0 * 150 * 64 * 128);
  EXPECT_EQ(cost.bytes, 100 * 132 + 150 * 4 + 2 * 64 * 132);
}

class ScoringTest : public testing::Test {
 protected:
  static ScoringArgs flat() {
    return {.shape = {.num_rows = 100, .num_keys = 1000},
            .q = 0x1000,
            .weights = 0x2000,
            .keys = 0x3000,
            .key_scales = 0x4000,
            .starts = 0x5000,
            .ends = 0x6000,
            .logits = 0x7000};
  }
  static ScoringArgs paged() {
    return {.shape =
                {.paged = true, .num_rows = 20, .num_keys = 1000, .num_sequences = 10, .next_n = 2},
            .q = 0x1000,
            .weights = 0x2000,
            .keys = 0x3000,
            .num_pages = 77,
            .block_table = 0x5000,
            .context_lens = 0x6000,
            .logits = 0x7000};
  }
  template <class Change>
  std::string objection(ScoringArgs args, Change&& change) {
    change(args);
    const auto call = scoring_->prepare(args);
    return call ? std::string() : call.error().message;
  }

  FakeGpu gpu_;
  std::unique_ptr<Scoring> scoring_ = *Scoring::create(*gpu_.context, *gpu_.kernels);
};

TEST_F(ScoringTest, LaunchesWhatWasPlanned) {
  const auto call = scoring_->prepare(flat());
  ASSERT_TRUE(call) << call.error().message;
  ASSERT_TRUE(scoring_->launch(*call, nullptr));
  EXPECT_EQ(gpu_.log->last_launch.grid_x, 132U);
  EXPECT_EQ(gpu_.log->last_launch.cta_x, 384U);
  EXPECT_EQ(gpu_.log->last_launch.smem_bytes,
            static_cast<unsigned>(scoring_smem(call->config).total_bytes));
  EXPECT_TRUE(gpu_.log->last_overlaps);
  // Queries [100][64][128], boxes of four rows of them.
  EXPECT_EQ(call->q_map.opaque[2], 128U);
  EXPECT_EQ(call->q_map.opaque[3], 64U);
  EXPECT_EQ(call->q_map.opaque[4], 100U);
  EXPECT_EQ(call->q_map.opaque[9], 4U);
  EXPECT_EQ(call->key_map.opaque[3], 1000U);
  EXPECT_EQ(call->key_map.opaque[8], 64U);
  EXPECT_EQ(call->params.work.num_runs, 25);
  EXPECT_EQ(call->params.logits_stride, 1000);
}

TEST_F(ScoringTest, PagesAreMappedWithTheirScales) {
  ScoringArgs args = paged();
  args.page_stride = 64 * 132 + 32;
  const auto call = scoring_->prepare(args);
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_EQ(call->config.queries, 2);
  EXPECT_EQ(call->key_map.opaque[3], 64U);
  EXPECT_EQ(call->key_map.opaque[4], 77U);
  EXPECT_EQ(call->key_map.opaque[6], 64U * 132 + 32);
  EXPECT_EQ(call->scale_map.opaque[0], 0x3000U + 64 * 128);
  EXPECT_EQ(call->scale_map.opaque[3], 77U);
  EXPECT_EQ(call->params.table_stride, 16);
}

TEST_F(ScoringTest, WrongArgumentsAreNamed) {
  const auto flat_error = [&](auto change) { return objection(flat(), change); };
  const auto paged_error = [&](auto change) { return objection(paged(), change); };
  EXPECT_EQ(flat_error([](auto&) {}), "");
  EXPECT_EQ(paged_error([](auto&) {}), "");
  EXPECT_EQ(flat_error([](auto& a) { a.starts = a.ends = 0; }), "");
  EXPECT_THAT(flat_error([](auto& a) { a.q = 0x1008; }), HasSubstr("q is 0x1008"));
  EXPECT_THAT(flat_error([](auto& a) { a.weights = 0; }), HasSubstr("weights is 0x0"));
  EXPECT_THAT(flat_error([](auto& a) { a.keys = 8; }), HasSubstr("keys is 0x8"));
  EXPECT_THAT(flat_error([](auto& a) { a.key_scales = 0; }), HasSubstr("key_scales is 0x0"));
  EXPECT_THAT(flat_error([](auto& a) { a.ends = 2; }), HasSubstr("ends is 0x2"));
  EXPECT_THAT(flat_error([](auto& a) { a.logits = 2; }), HasSubstr("logits is 0x2"));
  EXPECT_THAT(flat_error([](auto& a) { a.logits_stride = 999; }),
              HasSubstr("logits_stride is 999"));
  EXPECT_THAT(flat_error([](auto& a) { a.q_stride = 8200; }), HasSubstr("q_stride is 8200"));
  EXPECT_THAT(flat_error([](auto& a) { a.weights_stride = 66; }),
              HasSubstr("weights_stride is 66"));
  EXPECT_THAT(flat_error([](auto& a) { a.key_stride = 120; }), HasSubstr("key_stride is 120"));
  EXPECT_THAT(flat_error([](auto& a) { a.shape.keys = kMxFp4, a.key_stride = 80; }),
              HasSubstr("FP4 keys packed"));
  EXPECT_THAT(flat_error([](auto& a) { a.shape.heads = 40; }), HasSubstr("heads is 40"));
  EXPECT_THAT(flat_error([](auto& a) { a.shape.head_dim = 96; }), HasSubstr("head_dim is 96"));
  EXPECT_THAT(flat_error([](auto& a) { a.shape.num_rows = 1 << 30; }), HasSubstr("2^31 pairs"));
  EXPECT_THAT(flat_error([](auto& a) { a.config = ScoringConfig{.heads = 32}; }),
              HasSubstr("does not compute this shape"));
  EXPECT_THAT(paged_error([](auto& a) { a.block_table = 1; }), HasSubstr("block_table is 0x1"));
  EXPECT_THAT(paged_error([](auto& a) { a.context_lens = 0; }), HasSubstr("context_lens is 0x0"));
  EXPECT_THAT(paged_error([](auto& a) { a.num_pages = 0; }), HasSubstr("num_pages is 0"));
  EXPECT_THAT(paged_error([](auto& a) { a.table_stride = 15; }), HasSubstr("table_stride is 15"));
  EXPECT_THAT(paged_error([](auto& a) { a.page_stride = 8440; }), HasSubstr("page_stride is 8440"));
  EXPECT_THAT(paged_error([](auto& a) { a.shape.next_n = 3; }),
              HasSubstr("10 sequences of 3 rows"));
  EXPECT_THAT(paged_error([](auto& a) { a.shape.next_n = 0; }), HasSubstr("next_n 0"));
  EXPECT_EQ(paged_error([](auto& a) { a.shape.next_n = 3, a.query_starts = 0x8000; }), "");
}

TEST_F(ScoringTest, NoRowsOrNoKeysNothingToLaunch) {
  for (const bool rows : {false, true}) {
    ScoringArgs args;
    args.shape = {.num_rows = rows ? 5 : 0, .num_keys = rows ? 0 : 5};
    const auto call = scoring_->prepare(args);
    ASSERT_TRUE(call) << call.error().message;
    const int64_t before = gpu_.log->num_launches;
    EXPECT_TRUE(scoring_->launch(*call, nullptr));
    EXPECT_EQ(gpu_.log->num_launches, before);
  }
}

TEST_F(ScoringTest, AfterAWarmUpNothingCompiles) {
  const std::vector<ScoringShape> shapes = {
      {.num_rows = 4096, .num_keys = 8192},
      {.keys = kMxFp4, .paged = true, .num_rows = 1, .num_keys = 1000, .next_n = 7}};
  ASSERT_TRUE(scoring_->warm_up(shapes, 2, nullptr));
  const int64_t compiled = gpu_.kernels->stats().num_compiled;
  EXPECT_GE(compiled, 8);
  for (int rows = 1; rows <= 300; ++rows) {
    ScoringArgs args = flat();
    args.shape.num_rows = rows;
    ASSERT_TRUE(scoring_->prepare(args));
  }
  for (int next_n = 1; next_n <= 7; ++next_n) {
    ScoringArgs args = paged();
    args.shape.keys = kMxFp4;
    args.shape.next_n = next_n;
    args.shape.num_rows = 10 * next_n;
    ASSERT_TRUE(scoring_->prepare(args));
  }
  EXPECT_EQ(gpu_.kernels->stats().num_compiled, compiled);
}

TEST(ScoringText, TheClosureIsWhatIsSent) {
  const auto source =
      kernel_source(*choose_scoring_config({.num_rows = 64, .num_keys = 64}, DeviceSpec{}));
  const auto closure = jit::include_closure(source);
  ASSERT_TRUE(closure) << closure.error().message;
  EXPECT_EQ(closure->size(), source.headers.size());
}

// Real machine code: products not serialised, sums and weights in registers.
TEST(ScoringText, SumsAndWeightsStayInRegisters) {
  auto nvrtc = jit::load_nvrtc();
  if (!nvrtc) GTEST_SKIP() << "not run: " << nvrtc.error().message;
  struct Case {
    KeyKind keys;
    bool paged;
    int heads, head_dim, queries;
  };
  for (const Case& c : {Case{kFp8, false, 64, 128, 4},
                        {kFp8, false, 32, 128, 8},
                        {kFp8, true, 64, 128, 1},
                        {kFp8, true, 64, 128, 3},
                        {kFp8, true, 64, 128, 4},
                        {kFp8, false, 48, 128, 5},
                        {kFp8, true, 128, 64, 2},
                        {kFp8, false, 16, 128, 8},
                        {kMxFp4, false, 64, 128, 4},
                        {kMxFp4, true, 64, 128, 1},
                        {kMxFp4, true, 64, 128, 2},
                        {kMxFp4, true, 32, 64, 8}}) {
    jit::KernelSource source = kernel_source(
        scoring_config(c.keys, c.paged, c.heads, c.head_dim, c.queries, DeviceSpec{}));
    source.flags = {"--ptxas-options=-v"};
    const auto compiled = (*nvrtc)->compile(source, "sm_90a");
    ASSERT_TRUE(compiled) << compiled.error().message;
    const size_t spill = compiled->log.find(" bytes spill stores");
    ASSERT_NE(spill, std::string::npos) << compiled->log;
    const int spilled = std::atoi(compiled->log.c_str() + compiled->log.rfind(' ', spill - 1));
    // A few words among 200 registers of sums and weights.
    EXPECT_LE(spilled, 48) << source.name << compiled->log;
    EXPECT_THAT(compiled->log, testing::Not(HasSubstr("serialized"))) << source.name;
    EXPECT_THAT(compiled->log, testing::Not(HasSubstr("warning"))) << source.name;
  }
}

TEST(QuantizeKeys, KeepWithinHalfAStep) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(3 * 128);
  for (float& value : x) value = normal(random);
  for (size_t i = 128; i < 160; ++i) x[i] = 0;
  x[200] = 500;
  const auto fp8 = quantize_keys(x, kFp8, 3, 128);
  ASSERT_TRUE(fp8);
  const auto fp4 = quantize_keys(x, kMxFp4, 3, 128);
  ASSERT_TRUE(fp4);
  ASSERT_EQ(fp4->scales.size(), 12U);
  for (size_t i = 0; i < x.size(); ++i) {
    float scale = 0;
    std::memcpy(&scale, fp8->scales.data() + i / 128 * 4, 4);
    EXPECT_NEAR(e4m3_to_float(fp8->values[i]) * scale, x[i],
                std::max(std::fabs(x[i]) / 16, scale / 512));
    const auto code = static_cast<uint8_t>(fp4->values[i / 2] >> (4 * (i % 2)) & 15);
    const float unit = std::ldexp(1.0F, fp4->scales[i / 32] - 127);
    EXPECT_NEAR(e2m1_to_float(code) * unit, x[i], std::max(std::fabs(x[i]) / 4, unit / 4) * 1.001F);
  }
  EXPECT_EQ(fp4->scales[4], 0) << "a group of zeros";
  EXPECT_FALSE(quantize_keys(x, kFp8, 3, 96));
  EXPECT_FALSE(quantize_keys(x, kFp8, 4, 128));
}

// The oracle itself, on a problem small enough to do by hand.
TEST(ScoringReferences, SumWeightedPositiveParts) {
  HostScoring p =
      random_scoring({.heads = 16, .head_dim = 64, .num_rows = 1, .num_keys = 1}, {}, {}, 1);
  std::fill(p.q.begin(), p.q.end(), uint8_t{0});
  std::fill(p.keys.begin(), p.keys.end(), uint8_t{0});
  std::fill(p.weights.begin(), p.weights.end(), 100.0F);
  const float scale = 0.5F;
  std::memcpy(p.key_scales.data(), &scale, 4);
  p.keys[3] = float_to_e4m3(2.0F);
  p.q[3] = float_to_e4m3(4.0F);        // head 0: 8
  p.q[64 + 3] = float_to_e4m3(-4.0F);  // head 1: -8, no part of the sum
  p.q[128 + 3] = float_to_e4m3(1.0F);  // head 2: 2
  p.weights[0] = 3;
  p.weights[2] = -1;
  EXPECT_EQ(ScoringReference(p).at(0, 0).value, 0.5 * (3 * 8 - 2));
}

}  // namespace
}  // namespace volley::gemm
