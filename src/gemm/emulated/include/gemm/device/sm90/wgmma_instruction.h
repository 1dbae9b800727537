#pragma once

#include "gemm/emulated/machine.h"

namespace volley::gemm {

template <int kSize>
void wgmma(float (&d)[kSize], u64 m_side, u64 n_side, int accumulate) {
  emulated::issue_wgmma(d, 2 * kSize, m_side, n_side, accumulate != 0);
}

template <int kSize>
void wgmma_a_in_registers(float (&d)[kSize], const u32 (&a)[4], u64 n_side, int accumulate) {
  emulated::issue_wgmma_registers(d, 2 * kSize, a, n_side, accumulate != 0);
}

}  // namespace volley::gemm
