#pragma once

// Which configuration computes a product with FP4 weights: rank_configs() of shape.h for these
// kinds, with the costs of device/sm90/fp4_kernel.h. `rows`: tokens that each weight meets.

#include <vector>

#include "gemm/shape.h"

namespace volley::gemm {

std::vector<CandidateConfig> rank_fp4_configs(const GemmShape& shape, const DeviceSpec& device,
                                              int rows);

}  // namespace volley::gemm
