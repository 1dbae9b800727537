#pragma once

#include <functional>
#include <memory>

#include "ops/cpu/isa.h"
#include "ops/ops.h"
#include "tensor/weight_format.h"

namespace volley {

namespace cpu {
class PackCache;
}

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
