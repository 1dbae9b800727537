#pragma once

// The units of the CPU ops: their names, and which of them this machine can run.

#include <string_view>

#include "base/result.h"

namespace volley {

// One translation unit of kernels each. kAuto takes the last one that the machine can run.
enum class Isa {
  kAuto,
  kAvx2,     // AVX2, FMA and F16C
  kAvx512,   // AVX-512 F, BW, DQ, VL
  kAmxBf16,  // the above with AVX512-BF16 and -FP16, AMX-TILE and AMX-BF16
};

std::string_view isa_name(Isa isa);  // "auto", "avx2", "avx512", "amx-bf16"
Result<Isa> parse_isa(std::string_view name);

// Whether this processor and this kernel let the process run the unit. kAuto: whether any unit.
bool isa_available(Isa isa);

namespace cpu {

struct KernelTable;

struct Unit {
  std::string_view ops_name;  // as Ops::name()
  const KernelTable* kernels;
};
// Errors: the unit cannot run here, or for kAuto none can.
Result<Unit> choose_unit(Isa isa);

}  // namespace cpu
}  // namespace volley
