#pragma once

#include "gemm/emulated/machine.h"

namespace volley::gemm {

template <int kSize>
void wgmma(float (&d)[kSize], u64 m_side, u64 n_side, int accumulate) {
  emulated::issue_wgmma(d, 2 * kSize, m_side, n_side, accumulate != 0);
}

}  // namespace volley::gemm
