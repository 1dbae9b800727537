#include "model/random_weights.h"

#include <cmath>

#include "base/check.h"
#include "tensor/float_formats.h"

namespace volley {
namespace {

// SplitMix64 (Steele, Lea and Flood, 2014): fast and good enough for weights.
uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

RandomWeights RandomWeights::shared(uint64_t seed, int64_t num_elements) {
  RandomWeights weights(seed);
  weights.tensor({num_elements}, 0, 0.02f);
  weights.is_shared_ = true;
  return weights;
}

HostTensor RandomWeights::tensor(std::initializer_list<int64_t> shape, float mean, float spread) {
  int64_t num_elements = 1;
  for (const int64_t extent : shape) num_elements *= extent;
  if (is_shared_) {
    CHECK_LE(num_elements, static_cast<int64_t>(storage_.front().size()));
    return HostTensor::of(storage_.front().data(), DType::kBF16, shape);
  }
  std::vector<uint16_t>& values = storage_.emplace_back(num_elements);
  for (uint16_t& value : values) {
    // Uniform in [-1, 1], scaled to standard deviation `spread`.
    const float uniform = static_cast<float>(next_random(state_) >> 40) * 0x1p-23f - 1.0f;
    value = float_to_bf16(mean + uniform * spread * std::sqrt(3.0f));
  }
  return HostTensor::of(values.data(), DType::kBF16, shape);
}

HostMatrix RandomWeights::matrix(int64_t rows, int64_t cols) {
  return {.weight = tensor({rows, cols}, 0, 1 / std::sqrt(static_cast<float>(cols)))};
}

LayerWeights RandomWeights::layer(int64_t hidden_size, int64_t q_size, int64_t kv_size,
                                  int64_t head_dim, int64_t intermediate_size, bool qk_norm) {
  LayerWeights weights;
  weights.input_norm = tensor({hidden_size}, 1, 0.1f);
  weights.post_attention_norm = tensor({hidden_size}, 1, 0.1f);
  weights.q = matrix(q_size, hidden_size);
  weights.k = matrix(kv_size, hidden_size);
  weights.v = matrix(kv_size, hidden_size);
  weights.o = matrix(hidden_size, q_size);
  if (qk_norm) {
    weights.q_norm = tensor({head_dim}, 1, 0.1f);
    weights.k_norm = tensor({head_dim}, 1, 0.1f);
  }
  weights.gate = matrix(intermediate_size, hidden_size);
  weights.up = matrix(intermediate_size, hidden_size);
  weights.down = matrix(hidden_size, intermediate_size);
  return weights;
}

TargetWeights RandomWeights::target(const TargetConfig& config) {
  const int64_t q_size = int64_t{config.num_heads} * config.head_dim;
  const int64_t kv_size = int64_t{config.num_kv_heads} * config.head_dim;
  TargetWeights weights;
  // Embeddings and the head are larger than the rest, so that logits are well spread.
  weights.embed = {.weight = tensor({config.vocab_size, config.hidden_size}, 0, 1)};
  weights.lm_head = config.tie_word_embeddings
                        ? weights.embed
                        : HostMatrix{tensor({config.vocab_size, config.hidden_size}, 0, 0.3f)};
  weights.norm = tensor({config.hidden_size}, 1, 0.1f);
  for (int i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(layer(config.hidden_size, q_size, kv_size, config.head_dim,
                                   config.intermediate_size, config.qk_norm));
    LayerWeights& added = weights.layers.back();
    if (config.qkv_bias) {
      added.q_bias = tensor({q_size}, 0, 0.3f);
      added.k_bias = tensor({kv_size}, 0, 0.3f);
      added.v_bias = tensor({kv_size}, 0, 0.3f);
    }
    if (config.o_bias) added.o_bias = tensor({config.hidden_size}, 0, 0.3f);
  }
  return weights;
}

DrafterWeights RandomWeights::drafter(const DrafterConfig& config) {
  DrafterWeights weights;
  weights.fc = matrix(config.hidden_size,
                      static_cast<int64_t>(config.taps.size()) * config.target_hidden_size);
  weights.hidden_norm = tensor({config.hidden_size}, 1, 0.1f);
  weights.norm = tensor({config.hidden_size}, 1, 0.1f);
  for (int i = 0; i < config.num_layers; ++i) {
    weights.layers.push_back(layer(config.hidden_size, int64_t{config.num_heads} * config.head_dim,
                                   int64_t{config.num_kv_heads} * config.head_dim, config.head_dim,
                                   config.intermediate_size, true));
  }
  return weights;
}

}  // namespace volley
