#pragma once

// What a weight format costs in precision, on a target's own weights.

#include <string>
#include <vector>

#include "app/options.h"
#include "base/json.h"
#include "tensor/weight_format.h"

namespace volley {

struct WeightError {
  WeightFormat format = WeightFormat::kBf16;
  // sqrt(sum of squared errors / sum of squares) of the matrices of each layer, and of the head,
  // against the checkpoint's values.
  std::vector<double> layers;
  double head = 0;
  // Over the positions of a text that the bf16 model continued greedily by itself: the mean of
  // KL(bf16 || format) in nats, and the share of positions whose most likely token is the same.
  int num_positions = 0;
  double mean_kl = 0;
  double argmax_agreement = 0;

  std::string table() const;
  Json json() const;
};

// `folder` holds a target with a tokenizer. Errors: the folder's, or no CPU unit can run here.
Result<WeightError> measure_weight_error(const std::string& folder, WeightFormat format,
                                         const ModelOptions& options);

}  // namespace volley
