#pragma once

// The best columns of a row, before any is known and where threads meet. Not for ISA units: it has
// bodies that the linker may share.

#include <limits>

#include "ops/cpu/kernels.h"

namespace volley::cpu {

inline constexpr ArgmaxState kNoBest = [] {
  ArgmaxState state{};
  for (int i = 0; i < 16; ++i) {
    state.values[i] = -std::numeric_limits<float>::infinity();
    state.columns[i] = std::numeric_limits<float>::infinity();
  }
  return state;
}();
inline constexpr SectionSums kNoSums = [] {
  SectionSums sums{};
  for (float& max : sums.max) max = -std::numeric_limits<float>::infinity();
  return sums;
}();

// Those of higher columns join those of lower ones, which come first on a tie.
inline void merge_candidates(const ArgmaxState& others, int k, ArgmaxState& best) {
  for (int i = 0; i < k && others.values[i] > best.values[k - 1]; ++i) {
    int at = k - 1;
    for (; at > 0 && others.values[i] > best.values[at - 1]; --at) {
      best.values[at] = best.values[at - 1];
      best.columns[at] = best.columns[at - 1];
    }
    best.values[at] = others.values[i];
    best.columns[at] = others.columns[i];
  }
}

}  // namespace volley::cpu
