#include "model/rope.h"

#include <cmath>
#include <numbers>

namespace volley {
namespace {

// Llama 3's rescaling: long wavelengths are stretched by `factor`, short ones kept, those between
// blended by how many turns they make over the original context.
double llama3_scaled(double frequency, const RopeConfig& rope) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double turns = rope.original_max_position_embeddings / wavelength;
  if (turns < rope.low_freq_factor) return frequency / rope.factor;
  if (turns > rope.high_freq_factor) return frequency;
  const double blend =
      (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - blend) * frequency / rope.factor + blend * frequency;
}

}  // namespace

std::vector<float> rope_frequencies(const RopeConfig& rope, int head_dim) {
  std::vector<float> frequencies(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(rope.theta, -2.0 * i / head_dim);
    if (rope.type == RopeType::kLlama3) frequency = llama3_scaled(frequency, rope);
    if (rope.type == RopeType::kLinear) frequency /= rope.factor;
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

Result<Tensor> make_rope_table(const RopeConfig& rope, int head_dim, int max_positions, Ops& ops) {
  const std::vector<float> frequencies = rope_frequencies(rope, head_dim);
  VOLLEY_TRY(Tensor table, ops.allocate(max_positions, head_dim, DType::kF32));
  const int half = head_dim / 2;
  for (int position = 0; position < max_positions; ++position) {
    float* row = table.view().row<float>(position);
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * frequencies[i];
      row[i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
  return table;
}

}  // namespace volley
