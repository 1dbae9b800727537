#include "gemm/plan.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace volley::gemm {

bool groups_share_rows(const GemmShape& shape) {
  return shape.grouping == Grouping::kRowIndex || shape.grouping == Grouping::kPrefixSum;
}

bool fits_groups(const GemmShape& shape, int tile_m) {
  return !groups_share_rows(shape) || shape.group_align % tile_m == 0;
}

Occupancy occupancy(double ctas, const GemmConfig& c, const DeviceSpec& device) {
  // Clusters of 4 leave some SMs of the larger GPCs idle.
  const double slots =
      std::floor(device.num_sms * c.ctas_per_sm / c.cluster() * (c.cluster() > 2 ? 0.97 : 1.0)) *
      c.cluster();
  Occupancy out;
  out.rounds = std::ceil(ctas / slots);
  out.worked_rounds = c.ctas_per_sm == 1 ? out.rounds : std::max(ctas / slots, 1.0);
  out.sharing = std::clamp(ctas / device.num_sms, 1.0, 1.0 * c.ctas_per_sm);
  out.fill = ctas / (out.rounds * slots);
  return out;
}

void sort_by_cost(std::vector<CandidateConfig>& candidates) {
  const auto order_of = [](const GemmConfig& c) {
    return std::tuple(c.swap_ab, c.tile_m, c.tile_n, c.split_k, c.multicast, c.ctas_per_sm);
  };
  std::sort(candidates.begin(), candidates.end(),
            [&](const CandidateConfig& a, const CandidateConfig& b) {
              if (a.us != b.us) return a.us < b.us;
              return order_of(a.config) < order_of(b.config);
            });
}

}  // namespace volley::gemm
