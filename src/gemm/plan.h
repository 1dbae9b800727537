#pragma once

// What the rankings of shape.cc and fp4_plan.cc have in common.

#include "gemm/shape.h"

namespace volley::gemm {

// Whether rows of different groups lie in one matrix, so that a tile must not cross them.
bool groups_share_rows(const GemmShape& shape);
// Whether tiles of `tile_m` rows stay within groups.
bool fits_groups(const GemmShape& shape, int tile_m);

// How `ctas` of one configuration fill the GPU.
struct Occupancy {
  double rounds = 0;  // of CTAs that run at a time
  // CTAs that share an SM even out: their last round is as short as its work.
  double worked_rounds = 0;
  double sharing = 0;  // CTAs beside each other on an SM
  double fill = 0;     // of the slots of all rounds, the part that is used
};
Occupancy occupancy(double ctas, const GemmConfig& config, const DeviceSpec& device);

// Fastest first; equal costs in an order of the configurations.
void sort_by_cost(std::vector<CandidateConfig>& candidates);

}  // namespace volley::gemm
