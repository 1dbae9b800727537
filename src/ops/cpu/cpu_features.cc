#include "ops/cpu/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace volley::cpu {

#if defined(__x86_64__)
namespace {

struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

constexpr bool has_all(uint64_t word, std::initializer_list<int> bits) {
  for (int bit : bits) {
    if (((word >> bit) & 1) == 0) return false;
  }
  return true;
}

// The register state that the kernel saves and restores.
uint64_t xcr0() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

// Linux hands out the 8 KiB of tile state on request, once for the whole process.
bool request_tiles() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

CpuFeatures detect() {
  CpuFeatures found;
  const Registers leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0), leaf7_1 = cpuid(7, 1);
  if (!has_all(leaf1.ecx, {27})) return found;  // no OSXSAVE: xgetbv would fault
  const uint64_t state = xcr0();
  found.avx2 =
      has_all(state, {1, 2}) && has_all(leaf1.ecx, {12, 28, 29}) && has_all(leaf7.ebx, {5});
  found.avx512 = found.avx2 && has_all(state, {5, 6, 7}) && has_all(leaf7.ebx, {16, 17, 30, 31});
  found.amx_bf16 = found.avx512 && has_all(state, {17, 18}) && has_all(leaf7.ecx, {1, 11}) &&
                   has_all(leaf7.edx, {22, 23, 24, 25}) && has_all(leaf7_1.eax, {5}) &&
                   request_tiles();
  return found;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures kFound = detect();
  return kFound;
}

#else

const CpuFeatures& cpu_features() {
  static const CpuFeatures kNone;
  return kNone;
}

#endif

}  // namespace volley::cpu
