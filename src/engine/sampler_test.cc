#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

namespace volley {
namespace {

std::vector<float> random_logits(int n, float spread, int seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

// Pearson's statistic of samples at positions 0..num_samples-1 against `expected` probabilities, in
// standard deviations of the chi-square distribution. Rare outcomes are pooled.
double chi_square_z(const std::vector<float>& logits, const SamplingParams& params,
                    const std::vector<double>& expected, int num_samples) {
  Sampler sampler(logits.size());
  std::vector<int> counts(logits.size());
  for (int p = 0; p < num_samples; ++p) ++counts[sampler.sample(logits, params, nullptr, p)];
  double statistic = 0;
  int bins = 0;
  double pooled_expected = 0;
  double pooled_count = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double e = expected[i] * num_samples;
    if (expected[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " was cut off";
    } else if (e < 8) {
      pooled_expected += e;
      pooled_count += counts[i];
    } else {
      statistic += (counts[i] - e) * (counts[i] - e) / e;
      ++bins;
    }
  }
  if (pooled_expected >= 8) {
    statistic +=
        (pooled_count - pooled_expected) * (pooled_count - pooled_expected) / pooled_expected;
    ++bins;
  }
  const double freedom = bins - 1;
  return (statistic - freedom) / std::sqrt(2 * freedom);
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature,
                            const std::vector<bool>& kept = {}) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) {
    p[i] = kept.empty() || kept[i] ? std::exp((logits[i] - top) / temperature) : 0;
  }
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

TEST(Sampler, ChiSquareAgainstTheExactDistribution) {
  for (const float temperature : {0.5f, 0.7f, 1.0f, 1.6f}) {
    for (int seed = 0; seed < 3; ++seed) {
      const auto logits = random_logits(200, 2, seed);
      SamplingParams params{.temperature = temperature, .seed = 1000u + seed};
      EXPECT_LT(std::abs(chi_square_z(logits, params, softmax(logits, temperature), 200'000)), 4.5)
          << "temperature " << temperature << " seed " << seed;
    }
  }
}

TEST(Sampler, ChiSquareAfterTruncation) {
  const auto logits = random_logits(100, 1.5, 5);
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  const auto kept_first = [&](int n) {
    std::vector<bool> kept(logits.size());
    for (int i = 0; i < n; ++i) kept[order[i]] = true;
    return kept;
  };
  const auto p = softmax(logits, 1);

  EXPECT_LT(std::abs(chi_square_z(logits, {.temperature = 1, .top_k = 7, .seed = 3},
                                  softmax(logits, 1, kept_first(7)), 100'000)),
            4.5);
  double mass = 0;
  int nucleus = 0;
  while (mass < 0.8) mass += p[order[nucleus++]];
  EXPECT_LT(std::abs(chi_square_z(logits, {.temperature = 1, .top_p = 0.8f, .seed = 4},
                                  softmax(logits, 1, kept_first(nucleus)), 100'000)),
            4.5);
  int likely = 0;
  while (likely < 100 && p[order[likely]] >= 0.1 * p[order[0]]) ++likely;
  EXPECT_LT(std::abs(chi_square_z(logits, {.temperature = 1, .min_p = 0.1f, .seed = 5},
                                  softmax(logits, 1, kept_first(likely)), 100'000)),
            4.5);
}

// The pruned search equals the definition: argmax of logit / T + noise.
TEST(Sampler, EqualsTheDefinition) {
  for (int seed = 0; seed < 300; ++seed) {
    const auto logits = random_logits(1 + seed * 7, seed % 3 == 0 ? 0.1f : 4.0f, seed);
    const SamplingParams params{.temperature = 0.9f, .seed = static_cast<uint64_t>(seed) << 33};
    const int64_t position = int64_t{seed} * 1'000'003;
    int32_t best_token = -1;
    double best = -1e300;
    for (size_t i = 0; i < logits.size(); ++i) {
      const float scaled = logits[i] / params.temperature;
      const double score = scaled + gumbel_noise(params.seed, position, static_cast<int32_t>(i));
      if (score > best) {
        best = score;
        best_token = static_cast<int32_t>(i);
      }
    }
    Sampler sampler(logits.size());
    ASSERT_EQ(sampler.sample(logits, params, nullptr, position), best_token) << seed;
  }
}

TEST(Sampler, NoiseDiffersBySeedPositionAndToken) {
  EXPECT_NE(gumbel_noise(1, 0, 0), gumbel_noise(2, 0, 0));
  EXPECT_NE(gumbel_noise(1, 0, 0), gumbel_noise(1, 1, 0));
  EXPECT_NE(gumbel_noise(1, 0, 0), gumbel_noise(1, 0, 1));
  EXPECT_NE(gumbel_noise(uint64_t{1} << 32, 0, 0), gumbel_noise(0, 0, 0));
  EXPECT_NE(gumbel_noise(0, int64_t{1} << 32, 0), gumbel_noise(0, 0, 0));
}

TEST(Sampler, Penalties) {
  const std::vector<float> logits{2.0f, 1.9f, -1.0f, 0.0f};
  TokenCounts counts;
  counts.add_prompt(std::vector<int32_t>{0});
  Sampler sampler(4);
  // In the prompt: the repetition penalty sees it, presence and frequency do not.
  EXPECT_EQ(sampler.sample(logits, {.repetition_penalty = 1.2f}, &counts, 0), 1);
  EXPECT_EQ(sampler.sample(logits, {.presence_penalty = 1}, &counts, 0), 0);
  counts.add_generated(0);
  EXPECT_EQ(sampler.sample(logits, {.presence_penalty = 1}, &counts, 0), 1);
  counts.add_generated(1);
  EXPECT_EQ(sampler.sample(logits, {.frequency_penalty = 0.2f}, &counts, 0), 0);
  counts.add_generated(0);
  EXPECT_EQ(sampler.sample(logits, {.frequency_penalty = 0.2f}, &counts, 0), 1);
  EXPECT_EQ(sampler.sample(logits, {.logit_bias = {{2, 100.0f}}}, &counts, 0), 2);
}

TEST(Sampler, NanAndInfinity) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  Sampler sampler(3);
  EXPECT_EQ(sampler.sample(std::vector<float>{nan, 1, 0}, {}, nullptr, 0), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{nan, nan, nan}, {.temperature = 1}, nullptr, 0), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{-inf, 0, -inf}, {.temperature = 1, .top_p = 0.5f},
                           nullptr, 9),
            1);
}

TEST(Sampler, MaskedTokensNeverWin) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Sampler sampler(40);
  const auto logits = random_logits(40, 3, 1);
  for (int allowed = 0; allowed < 40; ++allowed) {
    std::vector<uint32_t> mask(2, 0);
    mask[allowed / 32] = 1u << (allowed % 32);
    EXPECT_EQ(sampler.sample(logits, {}, nullptr, 3, mask), allowed);
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1}, nullptr, 3, mask), allowed);
    EXPECT_EQ(sampler.sample(std::vector<float>(40, nan), {}, nullptr, 3, mask), allowed);
  }
}

TEST(Sampler, LogProbability) {
  const auto logits = random_logits(50, 2, 8);
  const auto p = softmax(logits, 1);
  for (int i = 0; i < 50; ++i) EXPECT_NEAR(log_probability(logits, i), std::log(p[i]), 1e-9);
}

TEST(SamplingParams, Validation) {
  EXPECT_TRUE(SamplingParams{}.validate(10));
  EXPECT_FALSE((SamplingParams{.temperature = -1}).validate(10));
  EXPECT_FALSE((SamplingParams{.temperature = std::nanf("")}).validate(10));
  EXPECT_FALSE((SamplingParams{.top_k = -1}).validate(10));
  EXPECT_FALSE((SamplingParams{.top_p = 0}).validate(10));
  EXPECT_FALSE((SamplingParams{.min_p = 2}).validate(10));
  EXPECT_FALSE((SamplingParams{.repetition_penalty = 0}).validate(10));
  EXPECT_FALSE((SamplingParams{.presence_penalty = 3}).validate(10));
  EXPECT_FALSE((SamplingParams{.logit_bias = {{10, 1.0f}}}).validate(10));
}

}  // namespace
}  // namespace volley
