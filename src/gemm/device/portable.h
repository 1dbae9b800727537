#pragma once

// What lets one header serve the kernel and the host: these headers are compiled by NVRTC, which
// has no standard library, and by the C++ compiler for the host's plans and tests.

#if defined(__CUDACC__)
#define VOLLEY_HD __host__ __device__ __forceinline__
#else
#define VOLLEY_HD inline
#endif

namespace volley::gemm {

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8);

VOLLEY_HD constexpr int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}
VOLLEY_HD constexpr int round_up(int a, int b) {
  return ceil_div(a, b) * b;
}
VOLLEY_HD constexpr int min_of(int a, int b) {
  return a < b ? a : b;
}
VOLLEY_HD constexpr int max_of(int a, int b) {
  return a > b ? a : b;
}

}  // namespace volley::gemm
