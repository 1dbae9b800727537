// The scoring kernels' own source on an emulated GPU (emulated/machine.h): schedule, rings,
// decoding, sums and stores against the reference, and to the bit against each other, with no GPU.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <map>

#include "gemm/emulated/scoring_kernels.h"
#include "gemm/fake_gpu.h"
#include "gemm/scoring_reference.h"

namespace volley::gemm {
namespace {

constexpr int kGuardRows = 2;
constexpr int kGuardCols = 3;

// Prepared through the library on the stand-in driver: grids and tensor maps are under test too.
class Emulated {
 public:
  // The logits with their guards, or the machine's complaint.
  Result<std::vector<float>> run(const HostScoring& host, const ScoringConfig& config, int num_ctas,
                                 OutsideRange outside, uint64_t seed) {
    const int64_t stride = host.shape.num_keys + kGuardCols;
    std::vector<float> logits(static_cast<size_t>((host.shape.num_rows + kGuardRows) * stride),
                              std::bit_cast<float>(0xFFFFFFFFU));
    // Operator new aligns to 16, as device memory must be.
    ScoringArgs args = scoring_args(
        host, [](const void* at, size_t) { return reinterpret_cast<cuda::DevicePtr>(at); });
    args.logits = reinterpret_cast<cuda::DevicePtr>(logits.data());
    args.logits_stride = stride;
    args.outside = outside;
    args.config = config;
    VOLLEY_TRY(ScoringCall call, scoring_->prepare(args));
    call.dims.num_ctas = static_cast<uint32_t>(num_ctas);
    VOLLEY_TRY_STATUS(emulated::run_call(call, seed));
    return logits;
  }

 private:
  FakeGpu gpu_;
  std::unique_ptr<Scoring> scoring_ = *Scoring::create(*gpu_.context, *gpu_.kernels);
};

// Small, with tails everywhere: rows that see nothing, one key, a key tile's end, all.
HostScoring problem_for(const ScoringConfig& c, uint64_t seed) {
  ScoringShape shape = {.keys = c.keys, .paged = c.paged, .heads = c.heads, .head_dim = c.head_dim};
  if (!c.paged) {
    shape.num_rows = 11;
    shape.num_keys = 333;
    return random_scoring(shape, {0, 0, 5, 70, 0, 333, 64, 63, 300, -4, 128},
                          {333, 1, 5, 75, 200, 400, 128, 65, 64, 64, 333}, seed);
  }
  shape.num_keys = 300;
  shape.num_sequences = 5;
  if (c.queries % 2 == 0) {
    shape.next_n = 3;
    shape.num_rows = 15;
    return random_scoring(shape, {300, 64, 2, 0, 193}, {}, seed);
  }
  // Sequences of any number of rows, and rows of no sequence.
  shape.num_rows = 14;
  return random_scoring(shape, {300, 64, 2, 0, 193}, {1, 6, 6, 9, 10, 13}, seed);
}

class EmulatedScoring : public testing::TestWithParam<size_t> {};

TEST_P(EmulatedScoring, ScoresInAnyOrderOfEvents) {
  const ScoringConfig config = emulated::scoring_configs()[GetParam()];
  ASSERT_TRUE(config.valid());
  SCOPED_TRACE(config_name(config));
  Emulated gpu;
  const HostScoring host = problem_for(config, 3);
  std::vector<float> first;
  for (const int run : {0, 1, 2}) {
    const OutsideRange outside =
        run == 0 ? OutsideRange::kNegativeInfinity : OutsideRange::kUntouched;
    const auto logits = gpu.run(host, config,
                                run == 0   ? 2
                                : run == 1 ? 1
                                           : 5,
                                outside, static_cast<uint64_t>(run + 1));
    ASSERT_TRUE(logits) << logits.error().message;
    const int64_t stride = host.shape.num_keys + kGuardCols;
    ASSERT_EQ(check_logits(host, *logits, stride, outside, 1), "");
    if (run == 1) first = *logits;
    if (run == 2) {
      EXPECT_EQ(std::memcmp(first.data(), logits->data(), first.size() * 4), 0)
          << "bits depend on how many CTAs share the work";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, EmulatedScoring,
                         testing::Range(size_t{0}, emulated::scoring_configs().size()));

// Law 1, as far as it is ours: a logit has the same bits whatever the tile's queries, paged or not.
TEST(EmulatedScorings, ARowHasTheSameBitsPagedOrNotAndInEveryTile) {
  Emulated gpu;
  for (const KeyKind keys : {KeyKind::kFp8, KeyKind::kMxFp4}) {
    const ScoringShape shape = {.keys = keys,
                                .paged = true,
                                .num_rows = 6,
                                .num_keys = 200,
                                .num_sequences = 2,
                                .next_n = 3};
    const HostScoring paged = random_scoring(shape, {200, 131}, {}, 7);
    // By sequence, row of the sequence and key: its bits.
    std::map<std::tuple<int, int, int>, uint32_t> bits;
    int num_configs = 0;
    for (const ScoringConfig& config : emulated::scoring_configs()) {
      if (config.keys != keys || config.heads != 64 || config.head_dim != 128) continue;
      ++num_configs;
      SCOPED_TRACE(config_name(config));
      for (int sequence = 0; sequence < 2; ++sequence) {
        const HostScoring host = config.paged ? paged : sequence_alone(paged, sequence);
        const auto logits = gpu.run(host, config, 3, OutsideRange::kUntouched, 5);
        ASSERT_TRUE(logits) << logits.error().message;
        const auto views = row_views(host);
        const int first = config.paged ? sequence * 3 : 0;
        for (int row = 0; row < 3; ++row) {
          for (int key = 0; key < views[static_cast<size_t>(first + row)].end; ++key) {
            const auto at = static_cast<size_t>(
                (first + row) * int64_t{host.shape.num_keys + kGuardCols} + key);
            const auto got = std::bit_cast<uint32_t>((*logits)[at]);
            const auto [known, inserted] = bits.try_emplace({sequence, row, key}, got);
            ASSERT_EQ(known->second, got) << sequence << " " << row << " " << key;
          }
        }
      }
    }
    EXPECT_GE(num_configs, 4);
  }
}

// FP4 codes that decoding treats apart: scales of 0, the largest, NaN, and far below the key's
// largest; every value.
TEST(EmulatedScorings, EveryFp4CodeAndScaleDecodes) {
  Emulated gpu;
  HostScoring host =
      random_scoring({.keys = KeyKind::kMxFp4, .num_rows = 1, .num_keys = 64}, {}, {}, 1);
  for (size_t key = 0; key < 64; ++key) {
    for (size_t i = 0; i < 64; ++i) {
      host.keys[key * 64 + i] =
          static_cast<uint8_t>((i * 2 + key) % 16 | (i * 2 + key + 1) % 16 << 4);
    }
    // The first group's scale is `key` binades above the others'.
    const auto low = static_cast<uint8_t>(key == 63 ? 0 : 100);
    const auto high = static_cast<uint8_t>(key == 62 ? 255 : key == 61 ? 200 : low + key % 32);
    for (size_t g = 0; g < 4; ++g) host.key_scales[key * 4 + g] = g == key % 4 ? high : low;
  }
  for (float& w : host.weights) w = std::fabs(w) * 1e-20F;
  ScoringConfig config = {KeyKind::kMxFp4, false, 64, 128, 1, 4};
  const auto logits = gpu.run(host, config, 1, OutsideRange::kUntouched, 1);
  ASSERT_TRUE(logits) << logits.error().message;
  EXPECT_EQ(check_logits(host, *logits, 64 + kGuardCols, OutsideRange::kUntouched, 1), "");
}

}  // namespace
}  // namespace volley::gemm
