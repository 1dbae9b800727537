// The AVX2 + FMA unit. Compiled with -mavx2 -mfma.

#include "ops/cpu/simd_avx2.h"
// after simd
#include "ops/cpu/f32_kernels.h"

namespace volley::cpu {

const KernelTable* avx2_kernels() {
  static constexpr KernelTable kTable = f32_kernel_table();
  return &kTable;
}

}  // namespace volley::cpu
