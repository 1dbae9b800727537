#include "spec/acceptance.h"

#include <gtest/gtest.h>

#include <random>

namespace volley {
namespace {

std::vector<int32_t> walk(std::vector<int32_t> drafts, std::vector<int32_t> samples, int32_t stop,
                          int& accepted) {
  std::vector<int32_t> tokens;
  accepted = accept_drafts(
                 std::span(&drafts, 1), [&](int, int i) { return samples.at(i); },
                 [&](int32_t t) { return t != stop; }, tokens)
                 .num_accepted;
  return tokens;
}

TEST(Acceptance, KeepsTheMatchAndTheTargetsOwnToken) {
  int accepted = 0;
  EXPECT_EQ(walk({5, 6, 7}, {5, 6, 9, 1}, -1, accepted), (std::vector<int32_t>{5, 6, 9}));
  EXPECT_EQ(accepted, 2);
  EXPECT_EQ(walk({5, 6, 7}, {5, 6, 7, 1}, -1, accepted), (std::vector<int32_t>{5, 6, 7, 1}));
  EXPECT_EQ(accepted, 3);
  EXPECT_EQ(walk({5}, {4}, -1, accepted), (std::vector<int32_t>{4}));
  EXPECT_EQ(accepted, 0);
  EXPECT_EQ(walk({}, {4}, -1, accepted), (std::vector<int32_t>{4}));
}

TEST(Acceptance, TakesTheBranchThatFits) {
  const std::vector<std::vector<int32_t>> chains{{5, 6, 7}, {5, 9, 8}, {4}};
  std::vector<int32_t> tokens;
  const std::vector<int32_t> samples{5, 9, 8, 1};
  const Acceptance accepted = accept_drafts(
      chains, [&](int, int i) { return samples.at(i); }, [](int32_t) { return true; }, tokens);
  EXPECT_EQ(accepted.num_accepted, 3);
  EXPECT_EQ(accepted.chain, 1);
  EXPECT_EQ(tokens, samples);
}

TEST(Acceptance, StopsAtAStopToken) {
  int accepted = 0;
  EXPECT_EQ(walk({5, 2, 7}, {5, 2, 7, 1}, 2, accepted), (std::vector<int32_t>{5, 2}));
  EXPECT_EQ(accepted, 2);
}

// Whatever the chains, the emitted stream is the target's own: a target that is a function of the
// tokens so far gives the same text with any drafter.
TEST(Acceptance, StreamIsIndependentOfDrafts) {
  const auto target = [](const std::vector<int32_t>& known) {
    uint32_t hash = 17;
    for (const int32_t t : known) hash = hash * 31 + t;
    return static_cast<int32_t>((hash >> 8) % 3);
  };
  std::vector<int32_t> plain{1};
  while (plain.size() < 200) plain.push_back(target(plain));
  for (int seed = 0; seed < 200; ++seed) {
    std::mt19937 rng(seed);
    std::vector<int32_t> known{1};
    while (known.size() < 200) {
      std::vector<std::vector<int32_t>> chains(1 + rng() % 4);
      for (auto& drafts : chains) {
        drafts.resize(rng() % 8);
        for (auto& d : drafts) d = rng() % 3;
      }
      std::vector<int32_t> walked = known;
      std::vector<int32_t> tokens;
      const Acceptance accepted = accept_drafts(
          chains,
          [&](int chain, int i) {
            // The named chain has a row i, and its drafts before it are the tokens so far.
            const auto& drafts = chains[chain];
            EXPECT_GE(static_cast<int>(drafts.size()), i);
            EXPECT_TRUE(std::equal(drafts.begin(), drafts.begin() + i, tokens.begin()));
            walked.push_back(target(walked));
            return walked.back();
          },
          [](int32_t) { return true; }, tokens);
      // No other chain would have got further.
      for (const auto& drafts : chains) {
        const auto match =
            std::mismatch(drafts.begin(), drafts.end(), tokens.begin(), tokens.end());
        ASSERT_LE(match.first - drafts.begin(), accepted.num_accepted);
      }
      ASSERT_EQ(tokens.size(), accepted.num_accepted + 1u);
      known.insert(known.end(), tokens.begin(), tokens.end());
    }
    known.resize(200);
    ASSERT_EQ(known, plain) << "seed " << seed;
  }
}

}  // namespace
}  // namespace volley
