#include "ops/cpu/isa.h"

#include <algorithm>
#include <array>

#include "ops/cpu/cpu_features.h"
#include "ops/cpu/kernels.h"

namespace volley {
namespace {

struct KnownUnit {
  Isa isa;
  std::string_view name;      // as a flag
  std::string_view ops_name;  // as Ops::name()
  std::string_view needs;
  const cpu::KernelTable* (*kernels)();
  bool cpu::CpuFeatures::*feature;
};

constexpr std::array<KnownUnit, 3> kUnits = {{
    {Isa::kAvx2, "avx2", "cpu/avx2", "AVX2, FMA and F16C", cpu::avx2_kernels,
     &cpu::CpuFeatures::avx2},
    {Isa::kAvx512, "avx512", "cpu/avx512", "AVX-512 F, BW, DQ and VL", cpu::avx512_kernels,
     &cpu::CpuFeatures::avx512},
    {Isa::kAmxBf16, "amx-bf16", "cpu/amx-bf16",
     "AMX-BF16, AMX-INT8, AVX512-VNNI, VBMI, BF16 and FP16, and tile state from the kernel",
     cpu::amx_bf16_kernels, &cpu::CpuFeatures::amx_bf16},
}};

bool available(const KnownUnit& unit) {
  return cpu::cpu_features().*unit.feature && unit.kernels() != nullptr;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  for (const KnownUnit& unit : kUnits) {
    if (unit.isa == isa) return unit.name;
  }
  return "auto";
}

Result<Isa> parse_isa(std::string_view name) {
  if (name == "auto") return Isa::kAuto;
  for (const KnownUnit& unit : kUnits) {
    if (unit.name == name) return unit.isa;
  }
  return invalid("unknown ISA '{}': expected auto, avx2, avx512 or amx-bf16", name);
}

bool isa_available(Isa isa) {
  return std::any_of(kUnits.begin(), kUnits.end(), [&](const KnownUnit& unit) {
    return (isa == Isa::kAuto || unit.isa == isa) && available(unit);
  });
}

Result<cpu::Unit> cpu::choose_unit(Isa isa) {
  for (auto unit = kUnits.rbegin(); unit != kUnits.rend(); ++unit) {
    if (isa != Isa::kAuto && isa != unit->isa) continue;
    if (available(*unit)) return Unit{unit->ops_name, unit->kernels()};
    if (isa == unit->isa)
      return make_error(ErrorKind::kUnsupported,
                        "this machine cannot run the {} unit: it needs {}; use another or 'auto'",
                        unit->name, unit->needs);
  }
  return make_error(ErrorKind::kUnsupported,
                    "this machine has none of AVX2, AVX-512 and AMX; use the ref backend");
}

}  // namespace volley
