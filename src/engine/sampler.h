#pragma once

// Sampling by position (law 1): the token at absolute position p is a pure function of its logits,
// the parameters, the penalties' counts, the seed and p.

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"

namespace volley {

struct SamplingParams {
  float temperature = 0;         // 0: the most likely token
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // in (0, 1]
  float min_p = 0;               // in [0, 1]: least share of the most likely token's probability
  float repetition_penalty = 1;  // > 0; over prompt and generated tokens, as in Transformers
  float presence_penalty = 0;    // [-2, 2]; over generated tokens, as in the OpenAI API
  float frequency_penalty = 0;   // [-2, 2]; times the count among generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, added to its logit
  uint64_t seed = 0;

  // Ranges, finiteness, and token ids below `vocab_size`.
  Status validate(int64_t vocab_size) const;
  bool edits_logits() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0 ||
           !logit_bias.empty();
  }
};

// How often each token occurred. Grows with the sequence, one add() a token.
class TokenCounts {
 public:
  void add_prompt(std::span<const int32_t> tokens);
  void add_generated(int32_t token) { ++counts_[token].generated; }

  struct Count {
    int32_t generated = 0;
    bool in_prompt = false;
  };
  const std::unordered_map<int32_t, Count>& counts() const { return counts_; }

 private:
  std::unordered_map<int32_t, Count> counts_;
};

// Gumbel noise of (seed, position, token): adding it to log-probabilities and taking the largest
// samples from them (the Gumbel-max trick). 32 random bits a token, from Philox.
double gumbel_noise(uint64_t seed, int64_t position, int32_t token);

// Scratch memory for one thread's sampling. sample() is a pure function of its arguments.
class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  // The token at `position`. `logits` [vocab_size]; NaN counts as -inf. `counts` may be null where
  // no penalty is set. With a mask (engine/token_filter.h), only the tokens it allows. Drafts are
  // proposed by the same call on the drafter's logits: the same noise makes drafter and target err
  // in the same direction. Cost: a few passes over the vocabulary; noise is drawn only for tokens
  // that could still win.
  int32_t sample(std::span<const float> logits, const SamplingParams& params,
                 const TokenCounts* counts, int64_t position, std::span<const uint32_t> mask = {});

 private:
  float truncation_threshold(float max_logit, const SamplingParams& params);

  std::vector<float> edited_;                        // logits after penalties and temperature
  std::vector<std::pair<float, float>> candidates_;  // (logit, probability mass)
};

// log softmax(logits)[token], in double precision.
double log_probability(std::span<const float> logits, int32_t token);

// The lowest index of the largest value; NaN never wins; 0 when all are NaN.
int32_t argmax(std::span<const float> values);

}  // namespace volley
