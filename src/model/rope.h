#pragma once

#include <vector>

#include "ops/ops.h"
#include "weights/config.h"

namespace volley {

// Angular frequency of each pair of a head, radians a position: theta^(-2i/head_dim), rescaled as
// the checkpoint's rope type says. [head_dim / 2], as float, since Transformers rounds there too.
std::vector<float> rope_frequencies(const RopeConfig& rope, int head_dim);

// The table that Ops::rope_and_store reads: [max_positions, head_dim], cosines then sines.
Result<Tensor> make_rope_table(const RopeConfig& rope, int head_dim, int max_positions, Ops& ops);

}  // namespace volley
