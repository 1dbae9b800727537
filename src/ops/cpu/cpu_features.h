#pragma once

#include <cstdint>
#include <initializer_list>

namespace volley::cpu {

// What the processor and the kernel together allow. Asked once; asking requests AMX tile state.
struct CpuFeatures {
  bool avx2 = false;      // with FMA and F16C
  bool avx512 = false;    // F, BW, DQ, VL
  bool amx_bf16 = false;  // with AVX512-BF16, AVX512-FP16 and avx512
};

const CpuFeatures& cpu_features();

}  // namespace volley::cpu
