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

TEST(CostTable, NeverFallsWithMoreRows) {
  CostTable costs(64);
  for (int i = 0; i < 5; ++i) {
    costs.observe(8, 2.0);
    costs.observe(9, 5.0);  // an unlucky one
    costs.observe(12, 3.0);
    costs.observe(32, 6.0);
  }
  EXPECT_DOUBLE_EQ(costs.estimate(1), 2.0);
  EXPECT_DOUBLE_EQ(costs.estimate(9), 4.0);
  EXPECT_DOUBLE_EQ(costs.estimate(12), 4.0);
  double last = 0;
  for (int rows = 1; rows <= 64; ++rows) {
    EXPECT_GE(costs.estimate(rows), last);
    last = costs.estimate(rows);
  }
}

TEST(Confidence, BelievesTheDrafterUntilItKnowsBetter) {
  Confidence confidence;
  for (const double p : {0.0, 0.1, 0.33, 0.5, 0.97, 1.0}) EXPECT_NEAR(confidence(p), p, 1e-9);
  std::mt19937 rng(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  // An overconfident drafter: what it calls p matches with p^2.
  for (int i = 0; i < 20000; ++i) {
    const double p = uniform(rng);
    confidence.observe(p, uniform(rng) < p * p);
  }
  for (const double p : {0.1, 0.3, 0.5, 0.8, 0.95}) EXPECT_NEAR(confidence(p), p * p, 0.12) << p;
}

// `shares.size()` sequences decode together; returns their speed relative to plain decoding. Costs
// in units of a plain pass over one row: a pass over r rows takes 1 + row_cost * (r - 1), a draft
// pass draft_cost + draft_row_cost * rows.
struct Costs {
  double row, draft, draft_row;
};
double simulated_speed(const std::vector<double>& shares, const Costs& costs, int seed,
                       int num_steps = 3000) {
  std::mt19937 rng(seed);
  std::uniform_real_distribution<double> uniform(0, 1);
  const auto num_sequences = static_cast<int>(shares.size());
  const auto verify_s = [&](int rows) { return 1 + costs.row * (rows - 1); };
  const auto draft_s = [&](int rows) { return costs.draft + costs.draft_row * rows; };
  CostTable draft(16 * num_sequences), verify(16 * num_sequences);
  for (int n : {1, num_sequences}) {
    for (int length : {1, 4, 8, 16}) verify.observe(n * length, verify_s(n * length));
    draft.observe(16 * n, draft_s(16 * n));
  }
  const SurvivalEstimate prior(15);
  std::vector<DraftOutlook> outlooks(shares.size(), DraftOutlook(15, prior));
  DraftPlanner planner({.block_sizes = {16}});
  double seconds = 0;
  double tokens = 0;
  for (int step = 0; step < num_steps; ++step) {
    std::vector<DraftCandidate> candidates;
    for (DraftOutlook& outlook : outlooks) {
      candidates.push_back({.outlook = &outlook, .max_length = 15});
    }
    planner.choose(candidates, 0, draft, verify);
    int rows = num_sequences;
    int num_drafting = 0;
    const double tokens_before = tokens;
    for (int i = 0; i < num_sequences; ++i) {
      const int n = candidates[i].length;
      int accepted = 0;
      while (accepted < n && uniform(rng) < shares[i]) ++accepted;
      tokens += accepted + 1;
      rows += n;
      num_drafting += n > 0;
      if (n > 0) outlooks[i].survival.observe(n, accepted);
    }
    const double cycle_s = verify_s(rows) + (num_drafting > 0 ? draft_s(16 * num_drafting) : 0);
    if (num_drafting > 0) planner.observe(tokens - tokens_before, cycle_s);
    seconds += cycle_s;
  }
  return tokens * verify_s(num_sequences) / (num_sequences * seconds);
}

constexpr Costs kCheapRows{.row = 0.01, .draft = 0.35, .draft_row = 0.003};
constexpr Costs kDearRows{.row = 0.2, .draft = 0.25, .draft_row = 0.003};

TEST(DraftPlanner, NeverMuchSlowerThanPlain) {
  for (const double share : {0.0, 0.02, 0.1, 0.2, 0.3}) {
    for (int seed = 0; seed < 8; ++seed) {
      for (const size_t count : {1, 2, 8}) {
        const std::vector<double> shares(count, share);
        EXPECT_GT(simulated_speed(shares, kCheapRows, seed), 0.98) << share << " x " << count;
        EXPECT_GT(simulated_speed(shares, kDearRows, seed), 0.98) << share << " x " << count;
      }
    }
  }
}

TEST(DraftPlanner, TakesTheSpeedThatIsThere) {
  // Survival 0.8: with full blocks 1/(1-0.8) = 4.9 tokens for 1.55 steps.
  EXPECT_GT(simulated_speed({0.8}, kCheapRows, 1), 2.9);
  // Where rows cost, short drafts win: it must beat both plain and full blocks.
  const double full_block = 4.86 / (0.3 + 1 + 0.2 * 15);
  EXPECT_GT(simulated_speed({0.8}, kDearRows, 1), std::max(1.15, full_block));
}

// A drafter that fails on some of the sequences is used for the others.
TEST(DraftPlanner, ServesEachSequenceByItsOwnSurvival) {
  const double mixed = simulated_speed({0.9, 0.05, 0.9, 0.05}, kCheapRows, 1);
  const double all_good = simulated_speed({0.9, 0.9, 0.9, 0.9}, kCheapRows, 1);
  EXPECT_GT(mixed, 0.4 * all_good);
  EXPECT_GT(mixed, 1.5);
}

TEST(DraftPlanner, ComesBackWhenDraftsBecomeGood) {
  CostTable draft(16);
  CostTable verify(16);
  draft.observe(16, 0.4);
  verify.observe(1, 1.0);
  verify.observe(16, 1.1);
  DraftOutlook outlook(15, SurvivalEstimate(15));
  DraftPlanner planner({.block_sizes = {16}});
  int drafted_steps = 0;
  for (int i = 0; i < 1300; ++i) {
    DraftCandidate candidate{.outlook = &outlook, .max_length = 15};
    planner.choose({&candidate, 1}, 0, draft, verify);
    const bool good = i >= 500;
    if (candidate.length > 0) {
      outlook.survival.observe(candidate.length, good ? candidate.length : 0);
    }
    if (good) drafted_steps += candidate.length > 0;
  }
  EXPECT_GT(drafted_steps, 500);
}

// The same survival at a batch where every row costs: drafts shorten, then stop.
TEST(DraftPlanner, DraftsLessInLargeBatches) {
  CostTable draft(1024);
  CostTable verify(1024);
  for (int rows = 1; rows <= 1024; rows *= 2) {
    verify.observe(rows, 1.0 + rows / 64.0);  // flat, then bound by compute
    draft.observe(rows, 0.3 + rows / 300.0);
  }
  SurvivalEstimate prior(15);
  for (int i = 0; i < 100; ++i) prior.observe(15, i % 4);
  const auto drafts_of = [&](size_t count) {
    DraftPlanner planner({.block_sizes = {16}});
    std::vector<DraftOutlook> outlooks(count, DraftOutlook(15, prior));
    std::vector<DraftCandidate> candidates;
    for (auto& outlook : outlooks) candidates.push_back({.outlook = &outlook, .max_length = 15});
    planner.choose(candidates, 0, draft, verify);
    return candidates[0].length;
  };
  EXPECT_GT(drafts_of(1), 1);
  EXPECT_LT(drafts_of(64), drafts_of(1));
}

// A whole block for one sequence, a short one where the rows of many blocks cost more than they
// bring; and block_for() is the smallest that holds.
TEST(DraftPlanner, TakesShortBlocksForManySequences) {
  CostTable draft(1024);
  CostTable verify(1024);
  for (int rows = 1; rows <= 1024; rows *= 2) {
    verify.observe(rows, 1.0 + rows / 256.0);
    draft.observe(rows, 0.1 + rows / 128.0);
  }
  SurvivalEstimate prior(15);
  for (int i = 0; i < 200; ++i) prior.observe(15, 2 + i % 9);
  const auto block_of = [&](size_t count) {
    DraftPlanner planner({.block_sizes = {4, 8, 16}});
    std::vector<DraftOutlook> outlooks(count, DraftOutlook(15, prior));
    std::vector<DraftCandidate> candidates;
    for (auto& outlook : outlooks) candidates.push_back({.outlook = &outlook, .max_length = 15});
    const int block = planner.choose(candidates, 0, draft, verify);
    for (const DraftCandidate& candidate : candidates) EXPECT_LT(candidate.length, block);
    EXPECT_GT(candidates[0].length, 0);
    return block;
  };
  EXPECT_GT(block_of(1), 4);
  EXPECT_EQ(block_of(32), 4);
  const DraftPlanner planner({.block_sizes = {4, 8, 16}});
  for (const auto& [drafts, block] : {std::pair{1, 4}, {3, 4}, {4, 8}, {7, 8}, {8, 16}, {15, 16}}) {
    EXPECT_EQ(planner.block_for(drafts), block) << drafts;
  }
}

// While drafting pays, a plain step and other blocks come now and then, so that no cost is stale.
TEST(DraftPlanner, LooksAtOtherChoicesNowAndThen) {
  CostTable draft(16);
  CostTable verify(16);
  draft.observe(16, 0.1);
  verify.observe(1, 1.0);
  verify.observe(16, 1.1);
  DraftOutlook outlook(15, SurvivalEstimate(15));
  DraftPlanner planner({.block_sizes = {4, 16}});
  int plain = 0;
  int short_blocks = 0;
  for (int i = 0; i < 960; ++i) {
    DraftCandidate candidate{.outlook = &outlook, .max_length = 15};
    const int block = planner.choose({&candidate, 1}, 0, draft, verify);
    plain += candidate.length == 0;
    short_blocks += candidate.length > 0 && block == 4;
    if (candidate.length > 0) outlook.survival.observe(candidate.length, candidate.length);
  }
  EXPECT_GE(plain, 5);
  EXPECT_LE(plain, 30);
  EXPECT_GE(short_blocks, 5);
  EXPECT_LE(short_blocks, 40);
}

// Survival promises about as much as plain decoding yields; what came of it decides.
TEST(DraftPlanner, LearnsWhatItsPromisesAreWorth) {
  for (const double kept : {0.8, 1.3}) {
    CostTable draft(64), verify(64);
    for (const int rows : {1, 4, 8, 16}) verify.observe(rows, 1 + 0.1 * (rows - 1));
    draft.observe(16, 0.3);
    const SurvivalEstimate prior(15);
    DraftPlanner planner({.block_sizes = {16}});
    SurvivalEstimate survival(15);
    for (int i = 0; i < 200; ++i) survival.observe(15, i % 2);
    const double before = planner.promise(1, survival, draft, verify);
    DraftOutlook outlook(15, prior);
    for (int step = 0; step < 400; ++step) {
      std::vector<DraftCandidate> candidates = {{.outlook = &outlook, .max_length = 15}};
      planner.choose(candidates, 0, draft, verify);
      const int length = candidates[0].length;
      if (length == 0) continue;
      double promised = 1, reach = 1;
      for (int n = 1; n <= length; ++n) promised += reach *= outlook.survival.conditional(n);
      planner.observe(kept * promised, 0.3 + verify.estimate(1 + length));
    }
    const double after = planner.promise(1, survival, draft, verify);
    EXPECT_NEAR(after / before, kept, 0.06) << kept;
  }
}

TEST(DraftPlanner, RespectsTheStepsBound) {
  CostTable draft(16);
  CostTable verify(16);
  draft.observe(16, 0.1);
  verify.observe(1, 1.0);
  verify.observe(16, 1.0);
  DraftOutlook outlook(15, SurvivalEstimate(15));
  DraftPlanner planner({.block_sizes = {16}});
  for (const int bound : {-1, 0, 3}) {
    DraftCandidate candidate{.outlook = &outlook, .max_length = bound};
    planner.choose({&candidate, 1}, 0, draft, verify);
    EXPECT_LE(candidate.length, std::max(0, bound));
  }
}

// Rows go where they are worth most, and stop where one more would cost more than it brings.
TEST(RowShare, TakesTheBestGuessesFirst) {
  const std::vector<DraftStep> sure(6, {.value = 0.9, .rows = 1});
  const std::vector<DraftStep> doubtful(6, {.value = 0.3, .rows = 1});
  std::vector<DraftBid> bids = {{.steps = doubtful}, {.steps = sure}};
  const double rate =
      share_rows(std::span(bids), 2, 2, true, [](int, int rows) { return 1 + 0.5 * (rows - 2); });
  EXPECT_EQ(bids[0].num_taken, 0);
  EXPECT_EQ(bids[1].num_taken, 0);  // a row costs 0.5, and 2 tokens a second are had anyway
  EXPECT_DOUBLE_EQ(rate, 2);
  share_rows(std::span(bids), 2, 2, true, [](int, int rows) { return 1 + 0.02 * rows; });
  EXPECT_EQ(bids[1].num_taken, 6);
  EXPECT_EQ(bids[0].num_taken, 6);
  share_rows(std::span(bids), 2, 2, true, [](int, int rows) { return 1 + 0.12 * (rows - 2); });
  EXPECT_EQ(bids[1].num_taken, 6);
  EXPECT_EQ(bids[0].num_taken, 0);
}

}  // namespace
}  // namespace volley
