#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "ops/ops.h"
#include "tensor/weight_format.h"

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
class PackCache;
// The kernels of a unit that can run here.
Result<const KernelTable*> kernels_of(Isa isa);
}  // namespace cpu

struct CpuOpsConfig {
  int num_threads = 1;  // the calling thread included
  Isa isa = Isa::kAuto;
  WeightFormat weight_format = WeightFormat::kBf16;
  // Packed matrices come from here where it has them, and go there where not. Outlives the last
  // pack. Null: every matrix is packed.
  cpu::PackCache* pack_cache = nullptr;
  // After each matrix: the bytes of the checkpoint that it was made of.
  std::function<void(int64_t source_bytes)> on_packed = {};
};

// Ops on CPU cores. Matrices are packed in `weight_format` (tensor/weight_format.h); with AMX,
// weights of fp8 are rounded to bf16 where a matmul reads them, and activations to bf16, or to int8
// with a scale for each 256 beside int8 and int4 weights. Keys and values are rounded to bf16; sums
// are f32 throughout. The AVX units keep activations, keys and values in f32. docs/cpu-ops.md
// states every layout and the order of every sum.
//
// One instance serves any number of models; calls must come from one thread at a time. After the
// last pack and create_kv, no op allocates for calls of up to 4096 rows.
Result<std::unique_ptr<Ops>> make_cpu_ops(const CpuOpsConfig& config);

}  // namespace volley
