#pragma once

// Models with random weights, made in memory: for tests and for benchmarks of shapes.

#include <deque>
#include <vector>

#include "weights/model_files.h"

namespace volley {

// Owns what the views in a TargetWeights or DrafterWeights borrow. Values are bf16, drawn from a
// generator seeded by `seed`; matrices have the scale that keeps activations near one.
class RandomWeights {
 public:
  explicit RandomWeights(uint64_t seed) : state_(seed) {}

  // All tensors share one run of `num_elements` random values, which the largest must not exceed:
  // for benchmarks of shapes, whose values do not matter and whose sources would fill the memory.
  static RandomWeights shared(uint64_t seed, int64_t num_elements);

  TargetWeights target(const TargetConfig& config);
  DrafterWeights drafter(const DrafterConfig& config);

 private:
  HostTensor tensor(std::initializer_list<int64_t> shape, float mean, float spread);
  HostMatrix matrix(int64_t rows, int64_t cols);
  LayerWeights layer(int64_t hidden_size, int64_t q_size, int64_t kv_size, int64_t head_dim,
                     int64_t intermediate_size, bool qk_norm);

  uint64_t state_;
  std::deque<std::vector<uint16_t>> storage_;
  bool is_shared_ = false;
};

}  // namespace volley
