#pragma once

// Checkpoint weights to panels (kernels.h).

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/memory.h"
#include "tensor/host_tensor.h"

namespace volley::cpu {

struct PackedPanels {
  Buffer data;
  WeightFormat format = WeightFormat::kBf16;
  int64_t num_panels = 0;
  int64_t panel_bytes = 0;

  const char* panels() const { return data.data(); }
  int64_t num_bytes() const { return num_panels * panel_bytes; }
};

// One row of a checkpoint matrix, which becomes one column of a panel. A null matrix: zeros.
struct PanelColumn {
  const HostMatrix* matrix = nullptr;
  int64_t row = 0;
};

// Stacks `parts` along n: panel p holds rows [32 p, 32 p + 32) of the stack.
std::vector<PanelColumn> stacked_columns(std::span<const HostMatrix> parts);
// 16 rows of gate, then the same rows of up, and so on.
std::vector<PanelColumn> gate_up_columns(const HostMatrix& gate, const HostMatrix& up);

// What `wanted` means for these matrices: kAuto becomes fp8 where all of them are stored so, with
// scales that kernels can multiply by (below 128, no NaN among the weights), and bf16 otherwise.
WeightFormat panel_format(WeightFormat wanted, std::span<const HostMatrix> parts);

// Whether codes have to be found. Other panels hold rounded or stored values in another order, and
// are made as fast as they are read from a disk's cache.
bool needs_quantiser(WeightFormat format, std::span<const HostMatrix> parts);

int64_t panel_bytes(WeightFormat format, Bf16Layout layout, int64_t k);

// `columns` is a multiple of kPanelCols long. Each thread packs whole panels, so that on a NUMA
// machine the memory lies where the same split of a matmul reads it. Errors: no memory; FP8 weights
// that panel_format() would not take.
Result<PackedPanels> pack_panels(std::span<const PanelColumn> columns, int64_t k,
                                 WeightFormat format, Bf16Layout layout, ThreadPool& pool);

}  // namespace volley::cpu
