#pragma once

// Checkpoint weights to panels of bf16 (kernels.h, WeightLayout).

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/memory.h"
#include "tensor/host_tensor.h"

namespace volley::cpu {

struct PackedPanels {
  Buffer data;
  int64_t num_panels = 0;
  int64_t panel_size = 0;  // bf16 elements

  const uint16_t* panels() const { return reinterpret_cast<const uint16_t*>(data.data()); }
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

// `columns` is a multiple of kPanelCols long. Each thread packs whole panels, so that on a NUMA
// machine the memory lies where the same split of a matmul reads it.
Result<PackedPanels> pack_panels(std::span<const PanelColumn> columns, int64_t k,
                                 WeightLayout layout, ThreadPool& pool);

}  // namespace volley::cpu
