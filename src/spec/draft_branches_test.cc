#include "spec/draft_branches.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace volley {
namespace {

BranchPlan plan_branches(const std::vector<float>& probabilities, int width,
                         const BranchLimits& limits) {
  BranchPlanner planner;
  planner.start(probabilities, width, limits);
  return planner.plan(static_cast<int>(planner.steps().size()));
}

TEST(DraftBranches, ASureDrafterGetsOneChain) {
  const std::vector<float> probabilities(15 * 4, 0.0f);
  std::vector<float> sure = probabilities;
  for (int i = 0; i < 15; ++i) sure[i * 4] = 0.97f, sure[i * 4 + 1] = 0.01f;
  const BranchPlan plan =
      plan_branches(sure, 4, {.num_rows = 16, .max_branches = 6, .max_branch_length = 15});
  EXPECT_EQ(plan.main_length, 15);
  EXPECT_TRUE(plan.branches.empty());
}

TEST(DraftBranches, ADoubtfulFirstTokenGetsBranches) {
  std::vector<float> probabilities(15 * 4, 0.0f);
  for (int i = 0; i < 15; ++i) {
    const float guesses[] = {0.45f, 0.25f, 0.12f, 0.06f};
    std::copy(guesses, guesses + 4, &probabilities[i * 4]);
  }
  const BranchPlan plan =
      plan_branches(probabilities, 4, {.num_rows = 16, .max_branches = 6, .max_branch_length = 15});
  EXPECT_LT(plan.main_length, 10);
  ASSERT_FALSE(plan.branches.empty());
  EXPECT_EQ(plan.branches[0].fork, 0);
  EXPECT_EQ(plan.branches[0].rank, 1);
}

// Any distributions: limits hold, branches are distinct, nothing is spent twice.
TEST(DraftBranches, RandomDistributions) {
  for (int seed = 0; seed < 2000; ++seed) {
    std::mt19937 rng(seed);
    const int width = 1 + rng() % 5;
    const int positions = rng() % 20;
    std::vector<float> probabilities(positions * width);
    for (int i = 0; i < positions; ++i) {
      float left = 1;
      for (int r = 0; r < width; ++r) {
        probabilities[i * width + r] = left * (rng() % 1000) / 1000.0f;
        left -= probabilities[i * width + r];
      }
    }
    const BranchLimits limits{.num_rows = static_cast<int>(rng() % 40),
                              .max_branches = static_cast<int>(rng() % 8),
                              .max_branch_length = static_cast<int>(rng() % 16)};
    const BranchPlan plan = plan_branches(probabilities, width, limits);
    int rows = plan.main_length + 1;
    std::set<std::pair<int, int>> seen;
    for (const DraftBranch& branch : plan.branches) {
      rows += branch.length + 1;
      ASSERT_TRUE(seen.emplace(branch.fork, branch.rank).second);
      ASSERT_TRUE(branch.rank >= 1 && branch.rank < width);
      ASSERT_TRUE(branch.length > branch.fork && branch.length <= limits.max_branch_length);
      ASSERT_LE(branch.length, positions);
    }
    ASSERT_LE(rows, std::max(1, limits.num_rows));
    ASSERT_LE(plan.main_length, positions);
    ASSERT_LE(static_cast<int>(plan.branches.size()), limits.max_branches);
  }
}

TEST(DraftBranches, FewerStepsAreAPrefix) {
  std::vector<float> probabilities(15 * 4);
  for (int i = 0; i < 15; ++i) {
    const float guesses[] = {0.5f, 0.2f, 0.1f, 0.05f};
    std::copy(guesses, guesses + 4, &probabilities[i * 4]);
  }
  BranchPlanner planner;
  planner.start(probabilities, 4, {.num_rows = 16, .max_branches = 6, .max_branch_length = 15});
  int rows = 0;
  for (int n = 0; n <= std::ssize(planner.steps()); ++n) {
    if (n > 0) rows += planner.steps()[n - 1].rows;
    const BranchPlan& plan = planner.plan(n);
    int used = plan.main_length;
    for (const DraftBranch& branch : plan.branches) used += branch.length + 1;
    EXPECT_EQ(used, rows) << n;
  }
}

}  // namespace
}  // namespace volley
