#include "spec/draft_length.h"

#include <gtest/gtest.h>

#include <random>

namespace volley {
namespace {

TEST(CostTable, MedianIgnoresSpikesAndInterpolates) {
  CostTable costs(16);
  EXPECT_FALSE(costs.known());
  for (int i = 0; i < 9; ++i) costs.observe(1, i == 4 ? 50.0 : 1.0);
  costs.observe(16, 2.5);
  EXPECT_DOUBLE_EQ(costs.estimate(1), 1.0);
  EXPECT_DOUBLE_EQ(costs.estimate(16), 2.5);
  EXPECT_DOUBLE_EQ(costs.estimate(6), 1.5);
}

TEST(CostTable, ExtrapolatesTheLastSlope) {
  CostTable costs(64);
  costs.observe(16, 2.0);
  EXPECT_DOUBLE_EQ(costs.estimate(64), 2.0);
  costs.observe(32, 4.0);
  EXPECT_DOUBLE_EQ(costs.estimate(64), 8.0);
}

TEST(SurvivalEstimate, LearnsAConditionalShare) {
  SurvivalEstimate survival(15);
  for (int i = 0; i < 300; ++i) survival.observe(15, i % 2 == 0 ? 0 : 2);
  EXPECT_NEAR(survival.conditional(1), 0.5, 0.02);
  EXPECT_NEAR(survival.conditional(2), 1.0, 0.01);
  EXPECT_NEAR(survival.conditional(3), 0.0, 0.01);
}

// One simulated sequence: each draft survives with probability `share`; returns the speed relative
// to plain decoding, costs in units of a plain step.
double simulated_speed(double share, double draft_cost, double verify_slope, int seed,
                       int num_tokens = 4000) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  CostTable draft(16);
  CostTable verify(16);
  for (int i = 0; i < 3; ++i) {
    verify.observe(1, 1.0);
    verify.observe(16, 1.0 + verify_slope * 15);
    draft.observe(2, draft_cost);
    draft.observe(16, draft_cost);
  }
  SurvivalEstimate prior(15);
  DraftLengthChooser chooser({}, prior);
  double seconds = 0;
  int tokens = 0;
  while (tokens < num_tokens) {
    const int n = chooser.choose(15, 1, draft, verify);
    int accepted = 0;
    while (accepted < n && uniform(rng) < share) ++accepted;
    seconds += (n > 0 ? draft_cost : 0) + 1 + verify_slope * n;
    tokens += accepted + 1;
    chooser.observe(n, accepted, false);
  }
  return tokens / seconds;
}

TEST(DraftLengthChooser, NeverMuchSlowerThanPlain) {
  for (const double share : {0.0, 0.02, 0.1, 0.2, 0.3}) {
    for (int seed = 0; seed < 8; ++seed) {
      EXPECT_GT(simulated_speed(share, 0.4, 0.01, seed), 0.98) << share << " seed " << seed;
      EXPECT_GT(simulated_speed(share, 0.3, 0.2, seed), 0.98) << share << " seed " << seed;
    }
  }
}

TEST(DraftLengthChooser, TakesTheSpeedThatIsThere) {
  // Survival 0.8: with full blocks 1/(1-0.8) = 4.9 tokens for 1.55 steps.
  EXPECT_GT(simulated_speed(0.8, 0.4, 0.01, 1), 2.9);
  // Where rows cost, short drafts win: it must beat both plain and full blocks.
  const double full_block = 4.86 / (0.3 + 1 + 0.2 * 15);
  EXPECT_GT(simulated_speed(0.8, 0.3, 0.2, 1), std::max(1.15, full_block));
}

TEST(DraftLengthChooser, ComesBackWhenDraftsBecomeGood) {
  CostTable draft(16);
  CostTable verify(16);
  draft.observe(16, 0.4);
  verify.observe(1, 1.0);
  verify.observe(16, 1.1);
  SurvivalEstimate prior(15);
  DraftLengthChooser chooser({}, prior);
  for (int i = 0; i < 500; ++i) {
    const int n = chooser.choose(15, 1, draft, verify);
    chooser.observe(n, 0, false);
  }
  int drafted_steps = 0;
  for (int i = 0; i < 800; ++i) {
    const int n = chooser.choose(15, 1, draft, verify);
    chooser.observe(n, n, false);
    drafted_steps += n > 0;
  }
  EXPECT_GT(drafted_steps, 300);
}

// The same survival at a batch where every row costs: drafts shorten, then stop.
TEST(DraftLengthChooser, DraftsLessInLargeBatches) {
  CostTable draft(1024);
  CostTable verify(1024);
  for (int rows = 1; rows <= 1024; rows *= 2) {
    verify.observe(rows, 1.0 + rows / 64.0);  // flat, then bound by compute
    draft.observe(rows, 0.3 + rows / 300.0);
  }
  SurvivalEstimate prior(15);
  for (int i = 0; i < 100; ++i) prior.observe(15, i % 4);
  DraftLengthChooser chooser({}, prior);
  const int alone = chooser.choose(15, 1, draft, verify);
  const int together = chooser.choose(15, 64, draft, verify);
  EXPECT_GT(alone, 1);
  EXPECT_LT(together, alone);
}

TEST(DraftLengthChooser, RespectsTheStepsBound) {
  CostTable draft(16);
  CostTable verify(16);
  draft.observe(16, 0.1);
  verify.observe(1, 1.0);
  verify.observe(16, 1.0);
  SurvivalEstimate prior(15);
  DraftLengthChooser chooser({}, prior);
  EXPECT_EQ(chooser.choose(0, 1, draft, verify), 0);
  EXPECT_LE(chooser.choose(3, 1, draft, verify), 3);
}

}  // namespace
}  // namespace volley
