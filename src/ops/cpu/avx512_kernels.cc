// The AVX-512 unit (F, BW, DQ, VL). Compiled with those flags.

#include "ops/cpu/simd_avx512.h"
// after simd
#include "ops/cpu/f32_kernels.h"

namespace volley::cpu {

const KernelTable* avx512_kernels() {
  static constexpr KernelTable kTable = f32_kernel_table();
  return &kTable;
}

}  // namespace volley::cpu
