#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/philox.h"
#include "engine/token_filter.h"

namespace volley {
namespace {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// Philox counters are (token / 4, position low, position high, purpose): one block serves four
// tokens.
constexpr uint32_t kSamplingPurpose = 0x53414d50;

PhiloxBlock noise_block(uint64_t seed, int64_t position, uint32_t token_group) {
  const auto p = static_cast<uint64_t>(position);
  return philox4x32(
      {token_group, static_cast<uint32_t>(p), static_cast<uint32_t>(p >> 32), kSamplingPurpose},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
}

double gumbel_of_bits(uint32_t bits) {
  const double u = (bits + 0.5) * 0x1p-32;
  return -std::log(-std::log(u));
}

// No less than gumbel_of_bits(bits): with e = 1 - u, -log(u) >= e, so the noise is at most -log(e),
// and e > 2^-(leading zeros of ~bits + 1).
float gumbel_bound(uint32_t bits) {
  return static_cast<float>(std::countl_zero(~bits) + 1) * 0.6931473f;
}

constexpr float kMaxGumbel = 33 * 0.6931473f;

}  // namespace

Status SamplingParams::validate(int64_t vocab_size) const {
  const auto in_range = [](float x, float low, float high) { return x >= low && x <= high; };
  if (!in_range(temperature, 0, 100)) {
    return invalid("temperature: expected a number in [0, 100], got {}", temperature);
  }
  if (top_k < 0) return invalid("top_k: expected 0 (off) or more, got {}", top_k);
  if (!(top_p > 0 && top_p <= 1)) return invalid("top_p: expected (0, 1], got {}", top_p);
  if (!in_range(min_p, 0, 1)) return invalid("min_p: expected [0, 1], got {}", min_p);
  if (!in_range(repetition_penalty, 0.01f, 100)) {
    return invalid("repetition_penalty: expected [0.01, 100], got {}", repetition_penalty);
  }
  if (!in_range(presence_penalty, -2, 2)) {
    return invalid("presence_penalty: expected [-2, 2], got {}", presence_penalty);
  }
  if (!in_range(frequency_penalty, -2, 2)) {
    return invalid("frequency_penalty: expected [-2, 2], got {}", frequency_penalty);
  }
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return invalid("logit_bias: token id {} is outside the vocabulary of {}", token, vocab_size);
    }
    if (!in_range(bias, -100, 100)) {
      return invalid("logit_bias: expected [-100, 100] for token {}, got {}", token, bias);
    }
  }
  return {};
}

void TokenCounts::add_prompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) counts_[token].in_prompt = true;
}

double gumbel_noise(uint64_t seed, int64_t position, int32_t token) {
  const auto id = static_cast<uint32_t>(token);
  return gumbel_of_bits(noise_block(seed, position, id / 4)[id % 4]);
}

double log_probability(std::span<const float> logits, int32_t token) {
  const double top = logits[argmax(logits)];
  double sum = 0;
  for (const float logit : logits) {
    if (!std::isnan(logit)) sum += std::exp(logit - top);
  }
  return logits[token] - top - std::log(sum);
}

int32_t argmax(std::span<const float> values) {
  float best = kNegInf;
  int32_t best_idx = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] > best) {
      best = values[i];
      best_idx = static_cast<int32_t>(i);
    }
  }
  return best_idx;
}

Sampler::Sampler(int64_t vocab_size) : edited_(vocab_size) {
  candidates_.reserve(vocab_size);
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                        const TokenCounts* counts, int64_t position,
                        std::span<const uint32_t> mask) {
  CHECK_EQ(logits.size(), edited_.size());
  if (params.temperature == 0 && !params.edits_logits() && mask.empty()) return argmax(logits);

  std::copy(logits.begin(), logits.end(), edited_.begin());
  for (const auto& [token, bias] : params.logit_bias) edited_[token] += bias;
  if (counts != nullptr && params.edits_logits()) {
    for (const auto& [token, count] : counts->counts()) {
      float& logit = edited_[token];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      if (count.generated > 0) {
        logit -= params.presence_penalty + params.frequency_penalty * count.generated;
      }
    }
  }
  for (float& logit : edited_) {
    if (params.temperature > 0) logit /= params.temperature;
    if (std::isnan(logit)) logit = kNegInf;
  }
  if (!mask.empty()) {
    for (size_t token = 0; token < edited_.size(); ++token) {
      // At least the lowest finite number: an allowed token wins even if the model gives it -inf.
      float& logit = edited_[token];
      logit = mask_allows(mask, static_cast<int32_t>(token))
                  ? std::max(logit, std::numeric_limits<float>::lowest())
                  : kNegInf;
    }
  }
  const int32_t mode = argmax(edited_);
  if (params.temperature == 0) return mode;
  const float threshold = truncation_threshold(edited_[mode], params);

  // Gumbel-max over what is left, starting with the most likely token so that most others are out
  // of reach of any noise.
  int32_t best_token = mode;
  double best = edited_[mode] + gumbel_noise(params.seed, position, mode);
  const auto vocab_size = static_cast<uint32_t>(edited_.size());
  for (uint32_t group = 0; group * 4 < vocab_size; ++group) {
    const uint32_t first = group * 4;
    const uint32_t last = std::min(first + 4, vocab_size);
    const float out_of_reach = static_cast<float>(best) - kMaxGumbel - 1e-3f;
    bool any = false;
    for (uint32_t token = first; token < last; ++token) {
      any |= edited_[token] > out_of_reach && edited_[token] >= threshold;
    }
    if (!any) continue;
    const PhiloxBlock bits = noise_block(params.seed, position, group);
    for (uint32_t token = first; token < last; ++token) {
      const float logit = edited_[token];
      if (!(logit >= threshold) || logit + gumbel_bound(bits[token - first]) < best - 1e-3) {
        continue;
      }
      const double score = logit + gumbel_of_bits(bits[token - first]);
      if (score > best || (score == best && static_cast<int32_t>(token) < best_token)) {
        best = score;
        best_token = static_cast<int32_t>(token);
      }
    }
  }
  return best_token;
}

// Top-k, then top-p over what top-k left, then min-p, as in Transformers. Each keeps the tokens at
// or above some logit, so together they are one threshold; tokens tied with the last one kept stay.
float Sampler::truncation_threshold(float max_logit, const SamplingParams& params) {
  float threshold = kNegInf;
  const bool use_top_k = params.top_k > 0 && params.top_k < static_cast<int32_t>(edited_.size());
  if (!use_top_k && params.top_p >= 1 && params.min_p <= 0) return threshold;
  if (!(max_logit > kNegInf)) return threshold;

  candidates_.clear();
  for (const float logit : edited_) candidates_.emplace_back(logit, 0.0f);
  const auto larger = [](const auto& a, const auto& b) { return a.first > b.first; };
  if (use_top_k) {
    std::nth_element(candidates_.begin(), candidates_.begin() + params.top_k - 1, candidates_.end(),
                     larger);
    threshold = candidates_[params.top_k - 1].first;
    std::erase_if(candidates_, [&](const auto& c) { return c.first < threshold; });
  }
  if (params.top_p < 1) {
    double total = 0;
    for (auto& [logit, mass] : candidates_) {
      mass = std::exp(logit - max_logit);
      total += mass;
    }
    // Quickselect by mass: halve the candidates until the one that completes top_p is found.
    double wanted = params.top_p * total;
    auto begin = candidates_.begin();
    auto end = candidates_.end();
    while (end - begin > 1) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, larger);
      double upper = 0;
      for (auto it = begin; it != middle; ++it) upper += it->second;
      if (upper >= wanted) {
        end = middle;
      } else {
        wanted -= upper;
        begin = middle;
      }
    }
    threshold = std::max(threshold, begin->first);
  }
  if (params.min_p > 0) threshold = std::max(threshold, max_logit + std::log(params.min_p));
  return threshold;
}

}  // namespace volley
