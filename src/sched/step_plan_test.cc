#include "sched/step_plan.h"

#include <gtest/gtest.h>

#include <random>

namespace volley {
namespace {

TEST(StepPlan, DecodesBeforeItPrefills) {
  const std::vector<SequenceState> states{
      {.num_tokens = 100, .num_computed = 0, .prefill_chunk = 64},
      {.num_tokens = 51, .num_computed = 50, .draft_length = 7}};
  const auto plan = plan_step(states, {.max_rows = 40, .max_output_rows = 16});
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].sequence_idx, 1);
  EXPECT_EQ(plan[0].num_drafts, 7);
  EXPECT_EQ(plan[1].num_known, 32);
  EXPECT_FALSE(plan[1].samples);
}

// Random states, run to the end: limits hold, every sequence finishes, nothing waits forever.
TEST(StepPlan, RandomSequencesFinish) {
  for (int seed = 0; seed < 300; ++seed) {
    std::mt19937 rng(seed);
    const StepLimits limits{.max_rows = 1 + static_cast<int>(rng() % 40),
                            .max_output_rows = 1 + static_cast<int>(rng() % 20)};
    std::vector<SequenceState> states(1 + rng() % 8);
    std::vector<int64_t> goal;
    for (auto& s : states) {
      s = {.num_tokens = 1 + static_cast<int64_t>(rng() % 90),
           .prefill_chunk = 1 + static_cast<int>(rng() % 64),
           .draft_length = static_cast<int>(rng() % 16)};
      goal.push_back(s.num_tokens + 20);
    }
    const auto done = [&](size_t i) { return states[i].num_tokens >= goal[i]; };
    for (int step = 0; step < 5000; ++step) {
      std::vector<SequenceState> live;
      std::vector<size_t> ids;
      for (size_t i = 0; i < states.size(); ++i) {
        if (!done(i)) live.push_back(states[i]), ids.push_back(i);
      }
      if (live.empty()) break;
      const auto plan = plan_step(live, limits);
      ASSERT_FALSE(plan.empty());
      int rows = 0;
      int outputs = 0;
      for (const StepItem& item : plan) {
        rows += item.num_known + item.num_drafts;
        outputs += item.samples ? 1 + item.num_drafts : 0;
        auto& s = states[ids[item.sequence_idx]];
        ASSERT_GT(item.num_known, 0);
        ASSERT_LE(s.num_computed + item.num_known, s.num_tokens);
        ASSERT_TRUE(item.num_drafts == 0 || item.samples);
        ASSERT_EQ(item.samples, s.num_computed + item.num_known == s.num_tokens);
        const int accepted = item.num_drafts > 0 ? rng() % (item.num_drafts + 1) : 0;
        s.num_computed += item.num_known + accepted;
        if (item.samples) s.num_tokens += 1 + accepted;
      }
      ASSERT_LE(rows, limits.max_rows);
      ASSERT_LE(outputs, limits.max_output_rows);
    }
    for (size_t i = 0; i < states.size(); ++i) ASSERT_TRUE(done(i)) << "seed " << seed;
  }
}

}  // namespace
}  // namespace volley
