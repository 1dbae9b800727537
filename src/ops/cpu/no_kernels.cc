// Stands in for the ISA units on processors other than x86-64.

#include "ops/cpu/kernels.h"

namespace volley::cpu {

const KernelTable* avx2_kernels() {
  return nullptr;
}
const KernelTable* avx512_kernels() {
  return nullptr;
}
const KernelTable* amx_bf16_kernels() {
  return nullptr;
}

}  // namespace volley::cpu
