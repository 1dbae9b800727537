#include "gemm/shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <set>

#include "gemm/device/fragment.h"
#include "gemm/device/tile_scheduler.h"
#include "gemm/kernel_text.h"

namespace volley::gemm {
namespace {

using testing::HasSubstr;

const DeviceSpec kH100;

// The shapes of DeepSeek-V3 and Qwen3-8B that serving libraries are measured on.
struct DenseShape {
  int m, n, k;
};
std::vector<DenseShape> dense_shapes() {
  std::vector<DenseShape> shapes;
  for (const int m : {64, 128, 4096}) {
    for (const auto& [n, k] : {std::pair{2112, 7168},
                               {24576, 1536},
                               {32768, 512},
                               {7168, 16384},
                               {4096, 7168},
                               {7168, 2048}}) {
      shapes.push_back({m, n, k});
    }
  }
  for (const int m : {1, 16, 64, 256}) {
    for (const auto& [n, k] :
         {std::pair{6144, 4096}, {4096, 4096}, {24576, 4096}, {4096, 12288}, {151936, 4096}}) {
      shapes.push_back({m, n, k});
    }
  }
  shapes.push_back({8192, 8192, 8192});
  return shapes;
}

GemmShape dense(const DenseShape& s, MmaKind mma = MmaKind::kFp8) {
  return {.mma = mma, .m = s.m, .n = s.n, .k = s.k};
}

std::vector<GemmShape> all_shapes() {
  std::vector<GemmShape> shapes;
  for (const MmaKind mma : {MmaKind::kFp8, MmaKind::kBf16, MmaKind::kMxFp4, MmaKind::kNvFp4}) {
    for (const DenseShape& s : dense_shapes()) shapes.push_back(dense(s, mma));
    for (const auto& [n, k] : {std::pair{4096, 7168}, {7168, 2048}}) {
      for (const auto& [groups, rows] : {std::pair{4, 8192}, {8, 4096}}) {
        for (const Grouping grouping : {Grouping::kRowIndex, Grouping::kPrefixSum}) {
          shapes.push_back({.mma = mma,
                            .grouping = grouping,
                            .m = groups * rows,
                            .n = n,
                            .k = k,
                            .num_groups = groups});
        }
      }
      for (const auto& [groups, rows] :
           {std::pair{1, 1024}, {2, 512}, {4, 256}, {8, 64}, {16, 32}}) {
        shapes.push_back({.mma = mma,
                          .grouping = Grouping::kMasked,
                          .m = 4096,
                          .n = n,
                          .k = k,
                          .num_groups = groups,
                          .expected_m = rows});
      }
    }
  }
  for (const MmaKind mma : {MmaKind::kFp8Rows, MmaKind::kBf16}) {
    for (const auto& [m, n] : {std::pair{2112, 7168}, {24576, 1536}, {100, 256}, {4096, 7168}}) {
      shapes.push_back({.mma = mma, .out = OutKind::kF32, .m = m, .n = n, .k = 4096});
      shapes.push_back({.mma = mma,
                        .out = OutKind::kF32,
                        .grouping = Grouping::kAlongK,
                        .m = m,
                        .n = n,
                        .k = 32768,
                        .num_groups = 8});
    }
  }
  return shapes;
}

TEST(Validate, NamesWhatIsWrong) {
  const auto objection = [](auto change) {
    GemmShape shape = {.m = 64, .n = 256, .k = 512};
    change(shape);
    const Status status = validate(shape);
    return status ? std::string() : status.error().message;
  };
  EXPECT_EQ(objection([](auto&) {}), "");
  EXPECT_EQ(objection([](auto& s) { s.m = 0; }), "");
  EXPECT_THAT(objection([](auto& s) { s.m = -1; }), HasSubstr("m is -1"));
  EXPECT_THAT(objection([](auto& s) { s.n = 12; }), HasSubstr("n is 12"));
  EXPECT_THAT(objection([](auto& s) { s.k = 64; }), HasSubstr("k is 64"));
  EXPECT_THAT(objection([](auto& s) { s.num_groups = 2; }), HasSubstr("dense product of 2"));
  EXPECT_THAT(objection([](auto& s) { s.segments = 3; }), HasSubstr("3 segments"));
  EXPECT_THAT(objection([](auto& s) { s.k = 128, s.segments = 2; }), HasSubstr("fewer 128-wide"));
  EXPECT_THAT(objection([](auto& s) { s.grouping = Grouping::kPrefixSum, s.group_align = 12; }),
              HasSubstr("aligned to 12"));
  EXPECT_THAT(objection([](auto& s) { s.grouping = Grouping::kRowIndex, s.group_align = 48; }),
              HasSubstr("multiple of the groups' alignment"));
  EXPECT_THAT(objection([](auto& s) { s.m = 1 << 30, s.n = 1 << 20; }), HasSubstr("2^31"));
  const auto gradient = [](auto& s) {
    s.mma = MmaKind::kFp8Rows, s.out = OutKind::kF32, s.grouping = Grouping::kAlongK;
    s.num_groups = 3;
  };
  EXPECT_EQ(objection(gradient), "");
  EXPECT_EQ(objection([&](auto& s) { gradient(s), s.mma = MmaKind::kBf16; }), "");
  EXPECT_THAT(objection([&](auto& s) { gradient(s), s.mma = MmaKind::kFp8; }),
              HasSubstr("expected fp8rows or bf16"));
  EXPECT_THAT(objection([&](auto& s) { gradient(s), s.out = OutKind::kBf16; }),
              HasSubstr("with float output"));
  EXPECT_THAT(objection([&](auto& s) { gradient(s), s.segments = 2; }), HasSubstr("of a gradient"));
  EXPECT_THAT(objection([&](auto& s) { gradient(s), s.grouping = Grouping::kMasked; }),
              HasSubstr("expected a dense product or one along k"));
}

TEST(Plan, SegmentsBelongToTheWeight) {
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 1, 256, 7168), 4);
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 1, 512, 2048), 2) << "k is short";
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 1, 2112, 7168), 2);
  EXPECT_EQ(reduction_segments(MmaKind::kBf16, 1, 2112, 7168), 1);
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 1, 4096, 7168), 1) << "fills the chip";
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 1, 7168, 16384), 1);
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 8, 4096, 7168), 1) << "eight experts fill the chip";
  EXPECT_EQ(reduction_segments(MmaKind::kFp8, 1, 64, 128), 1) << "too short to cut";
  for (const GemmShape& shape : all_shapes()) {
    GemmShape other = shape;
    other.m = shape.m * 2;
    other.expected_m = 1;
    EXPECT_EQ(segments_of(other), segments_of(shape));
  }
}

TEST(Plan, SegmentsCoverKInOrder) {
  for (const int blocks : {4, 5, 7, 8, 13, 56, 128}) {
    for (const int segments : {1, 2, 4}) {
      EXPECT_EQ(segment_begin(blocks, segments, 0), 0);
      EXPECT_EQ(segment_begin(blocks, segments, segments), blocks);
      for (int s = 0; s < segments; ++s) {
        const int size =
            segment_begin(blocks, segments, s + 1) - segment_begin(blocks, segments, s);
        EXPECT_GE(size, blocks / segments);
        EXPECT_LE(size, blocks / segments + 1);
      }
    }
  }
}

TEST(Choice, EveryConfigurationFitsTheDeviceAndItsShape) {
  for (const GemmShape& shape : all_shapes()) {
    const auto ranked = rank_configs(shape, kH100);
    ASSERT_FALSE(ranked.empty());
    for (const CandidateConfig& c : ranked) {
      EXPECT_TRUE(c.config.valid()) << config_name(c.config);
      EXPECT_LE(smem_layout(c.config).total_bytes, 232448) << config_name(c.config);
      EXPECT_LE(smem_layout(c.config).total_bytes * c.config.ctas_per_sm +
                    1024 * (c.config.ctas_per_sm - 1),
                233472)
          << config_name(c.config);
      EXPECT_EQ(c.config.segments, segments_of(shape));
      EXPECT_EQ(c.config.grouping, shape.grouping);
      EXPECT_GT(c.us, 0);
      EXPECT_GE(c.us, c.dram_us);
    }
    for (size_t i = 1; i < ranked.size(); ++i) EXPECT_LE(ranked[i - 1].us, ranked[i].us);
  }
}

TEST(Choice, NoPredictionBeatsTheRoofline) {
  for (const GemmShape& shape : all_shapes()) {
    const bool once = shape.grouping == Grouping::kDense || shape.grouping == Grouping::kAlongK;
    const int groups = once ? 1 : shape.num_groups;
    const double rows =
        shape.grouping == Grouping::kMasked ? double{1} * shape.expected_m * groups : shape.m;
    const double peak = has_fp8_tokens(shape.mma) ? 8192.0 : 4096.0;
    const double flops = 2.0 * rows * shape.n * shape.k;
    const double floor_us = flops / (peak * kH100.num_sms * kH100.clock_ghz * 1e3);
    EXPECT_GE(rank_configs(shape, kH100).front().us, floor_us);
  }
}

TEST(Choice, ManyTokensTakeLargeTilesAndFewTokensNarrowOnes) {
  const GemmConfig large = *choose_config(dense({8192, 8192, 8192}), kH100);
  EXPECT_FALSE(large.swap_ab);
  EXPECT_GE(large.tile_m * large.tile_n, 128 * 128);
  for (const int m : {1, 8, 16, 64}) {
    const GemmConfig few = *choose_config(dense({m, 24576, 4096}), kH100);
    EXPECT_LE(few.tile_m, m <= 16 ? 24 : 64) << m;
  }
}

TEST(Choice, Fp4WeightsAreDecodedInRegistersForFewTokensOnly) {
  for (const MmaKind mma : {MmaKind::kMxFp4, MmaKind::kNvFp4}) {
    for (const int m : {1, 16, 64, 4096}) {
      const GemmConfig config = *choose_config(dense({m, 24576, 4096}, mma), kH100);
      EXPECT_EQ(config.mma, mma);
      EXPECT_EQ(config.decodes_to_smem(), m == 4096) << config_name(config);
      if (m < 4096) {
        EXPECT_LE(config.tile_m, round_up(m, 8) + 8);
      }
    }
  }
}

TEST(Choice, ManyTokensOfACutWeightKeepItsPlan) {
  for (const int m : {1, 64, 4096}) {
    EXPECT_EQ(choose_config(dense({m, 256, 7168}), kH100)->segments, 4);
  }
}

TEST(Choice, GroupsAreNeverCutByATile) {
  for (const int align : {8, 16, 24, 32, 64, 96, 128, 256}) {
    const GemmShape shape = {.grouping = Grouping::kPrefixSum,
                             .m = align * 64,
                             .n = 4096,
                             .k = 7168,
                             .num_groups = 8,
                             .group_align = align};
    for (const CandidateConfig& c : rank_configs(shape, kH100)) {
      EXPECT_EQ(align % c.config.tile_m, 0);
    }
    EXPECT_TRUE(choose_config(shape, kH100)) << align;
  }
}

TEST(Choice, IsAFunctionOfTheShape) {
  for (const GemmShape& shape : all_shapes()) {
    EXPECT_EQ(*choose_config(shape, kH100), *choose_config(shape, kH100));
  }
}

TEST(Choice, AWeightNeedsFewKernels) {
  for (const DenseShape& s :
       {DenseShape{8192, 4096, 7168}, {8192, 24576, 4096}, {8192, 2112, 7168}}) {
    const auto configs = configs_up_to(dense(s), kH100);
    ASSERT_TRUE(configs);
    EXPECT_LE(configs->size(), 24U);
    for (const int m : {1, 7, 200, 8192}) {
      GemmShape part = dense(s);
      part.m = m;
      EXPECT_THAT(*configs, testing::Contains(*choose_config(part, kH100)));
    }
  }
}

TEST(Choice, NamesAreUnique) {
  std::set<std::string> names;
  std::vector<GemmConfig> seen;
  for (const GemmShape& shape : all_shapes()) {
    for (const CandidateConfig& c : rank_configs(shape, kH100)) {
      if (std::find(seen.begin(), seen.end(), c.config) != seen.end()) continue;
      seen.push_back(c.config);
      EXPECT_TRUE(names.insert(config_name(c.config)).second) << config_name(c.config);
    }
  }
}

TEST(Explain, ShowsThePlanAndTheCandidates) {
  GemmShape shape = dense({64, 2112, 7168});
  shape.segments = 4;
  const auto text = explain(shape, kH100, 5);
  ASSERT_TRUE(text);
  EXPECT_THAT(*text, HasSubstr("4 segments of blocks: [0, 14), [14, 28), [28, 42), [42, 56)"));
  EXPECT_THAT(*text, HasSubstr("fp8-bf16-dense-swap"));
  EXPECT_FALSE(explain(dense({64, 2113, 7168}), kH100, 5));
}

// Every unit of a grid comes once, in bands.
TEST(Scheduler, UnitsAreAPermutation) {
  for (const int m_tiles : {1, 2, 15, 16, 17, 40}) {
    for (const int n_units : {1, 3, 33}) {
      for (const int raster : {1, 8, 16}) {
        std::set<std::pair<int, int>> seen;
        for (int unit = 0; unit < m_tiles * n_units; ++unit) {
          const UnitPosition at = unit_position(unit, m_tiles, n_units, raster);
          EXPECT_LT(at.m_unit, m_tiles);
          EXPECT_LT(at.n_unit, n_units);
          EXPECT_TRUE(seen.insert({at.m_unit, at.n_unit}).second);
          EXPECT_EQ(at.m_unit / raster, unit / (raster * n_units));
        }
      }
    }
  }
}

struct GroupedCase {
  Grouping grouping;
  int m, num_groups, group_align;
  std::vector<int> groups;
};

// Which rows of which weight every tile covers, over all CTAs of a grid, against the definition.
TEST(Scheduler, EveryRowThatCountsIsCoveredOnceByItsWeight) {
  std::vector<int> row_index(512, -1);
  std::fill_n(row_index.begin(), 100, 2);
  std::fill_n(row_index.begin() + 128, 128, 0);
  std::fill_n(row_index.begin() + 384, 1, 1);
  const std::vector<GroupedCase> cases = {
      {Grouping::kDense, 1, 1, 128, {}},
      {Grouping::kDense, 700, 1, 128, {}},
      {Grouping::kRowIndex, 512, 3, 128, row_index},
      {Grouping::kPrefixSum, 768, 4, 128, {5, 5, 300, 768}},
      {Grouping::kPrefixSum, 256, 3, 128, {0, 0, 0}},
      {Grouping::kPrefixSum, 384, 3, 128, {400, 20, 384}},
      {Grouping::kMasked, 200, 5, 128, {0, 1, 200, 999, -3}},
      {Grouping::kAlongK, 200, 5, 128, {0, 256, 130, 700, 1024}},
  };
  for (const GroupedCase& test : cases) {
    for (const auto& [tile_m, multicast, segments, grid] :
         {std::tuple{128, 1, 1, 7}, {64, 2, 1, 3}, {32, 1, 4, 5}, {128, 1, 1, 1000}}) {
      const GemmConfig config = {.grouping = test.grouping,
                                 .swap_ab = segments > 1,
                                 .tile_m = tile_m,
                                 .tile_n = 64,
                                 .segments = segments,
                                 .split_k = segments > 1,
                                 .multicast = multicast,
                                 .raster = 4};
      GemmParams params = {};
      params.m = test.m;
      params.n = 328;
      params.k = 1024;
      params.num_groups = test.num_groups;
      params.groups = test.groups.data();
      params.group_align = test.group_align;
      const int slabs = has_slabs(test.grouping) ? test.num_groups : 1;
      const int lanes = config.cluster();
      // By lane of the cluster, when the lanes do the same tiles (split), else all together.
      for (int lane = 0; lane < (config.split_k ? lanes : 1); ++lane) {
        std::vector<int> count(static_cast<size_t>(slabs * test.m * params.n), 0);
        std::vector<int> weight(count.size(), -1);
        for (int cluster = 0; cluster < grid; ++cluster) {
          for (int rank = config.split_k ? lane : 0; rank < (config.split_k ? lane + 1 : lanes);
               ++rank) {
            TileScheduler tiles(config, params, rank, cluster, grid);
            for (Tile tile; tiles.next(config, params, tile);) {
              for (int r = tile.row; r < std::min(tile.row + tile_m, tile.row_end); ++r) {
                for (int c = tile.col; c < std::min(tile.col + 64, params.n); ++c) {
                  const auto at = static_cast<size_t>((tile.d_slab * test.m + r) * params.n + c);
                  ++count[at];
                  // Along k: the first column and the last.
                  const bool along_k = test.grouping == Grouping::kAlongK;
                  weight[at] = along_k ? tile.k_begin * 10000 + tile.k_end : tile.group;
                }
              }
            }
          }
        }
        // The definition, independent of the scheduler.
        std::vector<int> expected(static_cast<size_t>(slabs * test.m), -1);
        if (test.grouping == Grouping::kDense) std::fill(expected.begin(), expected.end(), 0);
        if (test.grouping == Grouping::kRowIndex) expected = test.groups;
        if (test.grouping == Grouping::kPrefixSum) {
          int begin = 0;
          for (int g = 0; g < test.num_groups; ++g) {
            const int end = std::min(std::max(test.groups[static_cast<size_t>(g)], begin), test.m);
            for (int r = (begin + 127) / 128 * 128; r < end; ++r)
              expected[static_cast<size_t>(r)] = g;
            begin = end;
          }
        }
        if (test.grouping == Grouping::kMasked) {
          for (int g = 0; g < test.num_groups; ++g) {
            const int rows = std::clamp(test.groups[static_cast<size_t>(g)], 0, test.m);
            std::fill_n(expected.begin() + g * test.m, rows, g);
          }
        }
        if (test.grouping == Grouping::kAlongK) {
          const int columns[][2] = {{0, 0}, {0, 256}, {256, 256}, {256, 768}, {768, 1024}};
          for (int g = 0; g < 5; ++g) {
            std::fill_n(expected.begin() + g * test.m, test.m,
                        columns[g][0] * 10000 + columns[g][1]);
          }
        }
        for (size_t row = 0; row < expected.size(); ++row) {
          for (int c = 0; c < params.n; ++c) {
            const size_t at = row * static_cast<size_t>(params.n) + static_cast<size_t>(c);
            ASSERT_LE(count[at], 1) << "row " << row << " column " << c;
            if (expected[row] < 0) continue;
            ASSERT_EQ(count[at], 1) << "row " << row << " column " << c;
            ASSERT_EQ(weight[at], expected[row]);
          }
        }
      }
    }
  }
}

TEST(Choice, GradientsNameWhatTheySum) {
  const GemmShape shape = {.mma = MmaKind::kBf16,
                           .out = OutKind::kF32,
                           .grouping = Grouping::kAlongK,
                           .m = 256,
                           .n = 256,
                           .k = 32768,
                           .num_groups = 4};
  EXPECT_EQ(segments_of(shape), 1) << "groups differ in length, and a gradient has rows enough";
  EXPECT_THAT(reduction_order(shape), HasSubstr("each group's blocks alone; C last"));
  EXPECT_FALSE(choose_config(shape, kH100)->swap_ab);
}

TEST(Fragment, AWarpgroupHoldsEveryElementOnce) {
  for (const int n : {8, 64, 256}) {
    std::set<std::pair<int, int>> seen;
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < n / 2; ++i) {
        EXPECT_TRUE(seen.insert({fragment_row(thread, i), fragment_col(thread, i)}).second);
      }
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(64 * n));
    EXPECT_EQ(seen.rbegin()->first, 63);
  }
}

// What stmatrix does with the addresses and registers the kernel gives it: afterwards the element
// of the fragment must lie where the copy engine, or the swapped epilogue's reads, look for it.
TEST(Fragment, StoresPutEveryElementWhereItIsReadFrom) {
  const auto element_at = [](int row, int col) {  // of a [rows][64] bf16 box under the swizzle
    return swizzled(row, col / 8) + 2 * (col % 8);
  };
  std::vector<int> box(64 * 64, -1);
  for (int warp = 0; warp < 4; ++warp) {
    for (int pair = 0; pair < 4; ++pair) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        for (int lane = 0; lane < 32;
             ++lane) {  // holds row lane/4, columns 2*(lane%4) and one more
          for (int e = 0; e < 2; ++e) {
            const int address =
                store_offset(warp, 8 * matrix + lane / 4, pair) + 4 * (lane % 4) + 2 * e;
            const int thread = 32 * warp + lane, element = 8 * pair + 2 * matrix + e;
            box[static_cast<size_t>(address / 2)] =
                fragment_row(thread, element) * 64 + fragment_col(thread, element);
          }
        }
      }
    }
  }
  for (int row = 0; row < 64; ++row) {
    for (int col = 0; col < 64; ++col) {
      ASSERT_EQ(box[static_cast<size_t>(element_at(row, col) / 2)], row * 64 + col);
    }
  }
  // Floats: two boxes of 32 columns hold the same 64 columns.
  std::vector<int> floats(64 * 32, -1);
  for (int thread = 0; thread < 128; ++thread) {
    for (int element = 0; element < 16; ++element) {
      const int address = store_offset_f32(thread, element & ~1) + element % 2 * 4;
      floats[static_cast<size_t>(address / 4)] =
          fragment_row(thread, element) * 64 + fragment_col(thread, element);
    }
  }
  for (int row = 0; row < 64; ++row) {
    for (int col = 0; col < 32; ++col) {
      const int address = swizzled(row, col / 4) + col % 4 * 4;
      ASSERT_EQ(floats[static_cast<size_t>(address / 4)], row * 64 + col);
    }
  }
  constexpr int kTokens = 48;
  std::vector<int> swapped(kTokens * 64, -1);
  for (int warp = 0; warp < 4; ++warp) {
    for (int octet = 0; octet < kTokens / 8; ++octet) {
      for (int matrix = 0; matrix < 2; ++matrix) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int e = 0; e < 2; ++e) {
            // .trans: the lane's pair goes to memory rows 2*(lane%4) + e, position lane/4.
            const int memory_row = 2 * (lane % 4) + e;
            const int address =
                store_offset_swapped(warp, 8 * matrix + memory_row, octet) + 2 * (lane / 4);
            const int thread = 32 * warp + lane, element = 4 * octet + 2 * matrix + e;
            swapped[static_cast<size_t>(address / 2)] =
                fragment_col(thread, element) * 64 + fragment_row(thread, element);
          }
        }
      }
    }
  }
  for (int token = 0; token < kTokens; ++token) {
    for (int col = 0; col < 64; ++col) {
      ASSERT_EQ(swapped[static_cast<size_t>(element_at(token, col) / 2)], token * 64 + col);
    }
  }
}

TEST(SmemLayout, PartsAreAlignedAndDoNotOverlap) {
  for (const GemmShape& shape : all_shapes()) {
    for (const CandidateConfig& candidate : rank_configs(shape, kH100)) {
      const GemmConfig& c = candidate.config;
      const SmemLayout s = smem_layout(c);
      EXPECT_EQ(s.a_bytes % 1024, 0);
      EXPECT_EQ(s.b_bytes % (c.fp4() ? 128 : 1024), 0);
      EXPECT_EQ(s.stage_bytes % 1024, 0);
      EXPECT_EQ(s.store % 1024, 0);
      EXPECT_EQ(s.store_bytes % 1024, 0);
      EXPECT_EQ(s.partial % 16, 0);
      EXPECT_EQ(s.scales % 128, 0);
      EXPECT_EQ(s.scale_stride % 128, 0);
      EXPECT_EQ(s.barriers % 8, 0);
      EXPECT_LE(s.stage_bytes * c.num_stages, s.store);
      EXPECT_LE(s.store + s.store_bytes * c.math_warpgroups(), s.partial);
      EXPECT_LE(s.partial + s.partial_bytes * c.math_warpgroups(), s.scales);
      EXPECT_EQ(s.b_scales % 128, 0);
      EXPECT_LE(s.b_scales + s.scale_bytes - c.tile_m * 4, s.scale_stride);
      EXPECT_LE(s.scales + s.scale_stride * (has_fp8_tokens(c.mma) ? c.num_stages : 0), s.barriers);
      EXPECT_LE(s.barriers + (2 * c.num_stages + 2) * 8, s.total_bytes);
    }
  }
}

}  // namespace
}  // namespace volley::gemm
