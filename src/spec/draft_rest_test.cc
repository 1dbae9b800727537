#include "spec/draft_rest.h"

#include <gtest/gtest.h>

namespace volley {
namespace {

// Steps until those that begin no longer rest, at most `limit`.
int rest_length(CrowdWatch& watch, int num_live, int limit) {
  int steps = 0;
  while (steps < limit && watch.new_ones_rest(num_live)) ++steps;
  return steps;
}

void record_steps(CrowdWatch& watch, int num_live, int count, int drafted_of_ten) {
  for (int i = 0; i < count; ++i) watch.record(num_live, num_live, i % 10 < drafted_of_ten);
}

TEST(CrowdWatch, RestsWhereDraftingComesToNothingAndLongerEachTime) {
  CrowdWatch watch;
  EXPECT_FALSE(watch.new_ones_rest(64));
  record_steps(watch, 64, 200, 1);
  const int first = rest_length(watch, 64, 1 << 20);
  EXPECT_GT(first, 500);
  record_steps(watch, 64, 64, 0);
  EXPECT_EQ(rest_length(watch, 64, 1 << 20), 2 * first);
  for (int i = 0; i < 20; ++i) {
    record_steps(watch, 64, 64, 0);
    EXPECT_LT(rest_length(watch, 64, 1 << 20), 1 << 16);
  }
}

TEST(CrowdWatch, DraftsOnWhereItPays) {
  CrowdWatch watch;
  record_steps(watch, 64, 10'000, 5);
  EXPECT_FALSE(watch.new_ones_rest(64));
  // What is learned of 64 sequences says nothing of 20, and the other way round.
  record_steps(watch, 20, 64, 0);
  EXPECT_FALSE(watch.new_ones_rest(64));
  EXPECT_TRUE(watch.new_ones_rest(20));
  // When it pays again, the next rest is a short one again.
  while (watch.new_ones_rest(20)) {
  }
  record_steps(watch, 20, 64, 9);
  EXPECT_FALSE(watch.new_ones_rest(20));
}

TEST(CrowdWatch, FewSequencesJudgeForThemselves) {
  CrowdWatch watch;
  record_steps(watch, CrowdWatch::kCrowd - 1, 10'000, 0);
  EXPECT_FALSE(watch.new_ones_rest(CrowdWatch::kCrowd - 1));
  // Nor do a few candidates speak for a crowd.
  for (int i = 0; i < 10'000; ++i) watch.record(64, 4, false);
  EXPECT_FALSE(watch.new_ones_rest(64));
}

TEST(RestRegret, ComesBackWhenTheLossHasGrownToThePrice) {
  RestRegret regret;
  int steps = 1;
  // Twice as fast with drafts: half a millisecond a step, against a price of 20 ms.
  while (!regret.add(2.0, 1e-3, 20e-3, 1000)) ++steps;
  EXPECT_NEAR(steps, 41, 1);
  regret.clear();
  EXPECT_FALSE(regret.add(2.0, 1e-3, 20e-3, 1000));
}

TEST(RestRegret, StaysWhereTheRestIsTooShortOrThePromiseTooSmall) {
  RestRegret regret;
  for (int i = 0; i < 1000; ++i) {
    EXPECT_FALSE(regret.add(2.0, 1e-3, 20e-3, 30));
    EXPECT_FALSE(regret.add(1.02, 1e-3, 20e-3, 1 << 20));
    EXPECT_FALSE(regret.add(0.5, 1e-3, 20e-3, 1 << 20));
  }
}

}  // namespace
}  // namespace volley
