#include "ops/cpu/packing.h"

#include <algorithm>

#include "tensor/float_formats.h"

namespace volley::cpu {
namespace {

int64_t panel_elements(int64_t k, WeightLayout layout) {
  return (layout == WeightLayout::kTiles ? (k + 31) / 32 * 32 : k) * kPanelCols;
}

// Writes column `column` of a panel from k bf16 values. Padding stays zero from the mapping.
void put_column(const std::vector<uint16_t>& values, int64_t column, WeightLayout layout,
                uint16_t* panel) {
  const int64_t k = static_cast<int64_t>(values.size());
  const int64_t half = column / 16, lane = column % 16;
  if (layout == WeightLayout::kPairs) {
    for (int64_t i = 0; i < k; ++i) panel[i * kPanelCols + lane * 2 + half] = values[i];
    return;
  }
  for (int64_t i = 0; i < k; ++i) {
    const int64_t tile = i / 32 * 2 + half;
    panel[(tile * 16 + i % 32 / 2) * 32 + lane * 2 + i % 2] = values[i];
  }
}

int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

}  // namespace

std::vector<PanelColumn> stacked_columns(std::span<const HostMatrix> parts) {
  std::vector<PanelColumn> columns;
  for (const HostMatrix& part : parts) {
    for (int64_t row = 0; row < part.rows(); ++row) columns.push_back({&part, row});
  }
  columns.resize(static_cast<size_t>(round_up(static_cast<int64_t>(columns.size()), kPanelCols)));
  return columns;
}

std::vector<PanelColumn> gate_up_columns(const HostMatrix& gate, const HostMatrix& up) {
  const int64_t n = gate.rows();
  std::vector<PanelColumn> columns(static_cast<size_t>(2 * round_up(n, kGateCols)));
  for (int64_t row = 0; row < n; ++row) {
    const int64_t column = row / kGateCols * kPanelCols + row % kGateCols;
    columns[column] = {&gate, row};
    columns[column + kGateCols] = {&up, row};
  }
  return columns;
}

Result<PackedPanels> pack_panels(std::span<const PanelColumn> columns, int64_t k,
                                 WeightLayout layout, ThreadPool& pool) {
  PackedPanels packed;
  packed.num_panels = static_cast<int64_t>(columns.size()) / kPanelCols;
  packed.panel_size = panel_elements(k, layout);
  VOLLEY_TRY(packed.data, Buffer::create(packed.num_panels * packed.panel_size * 2));
  auto* out = reinterpret_cast<uint16_t*>(packed.data.data());
  pool.split(packed.num_panels, 1, [&](ItemRange range, int) {
    std::vector<float> floats(static_cast<size_t>(k));
    std::vector<uint16_t> values(static_cast<size_t>(k));
    for (int64_t panel = range.begin; panel < range.end; ++panel) {
      for (int64_t column = 0; column < kPanelCols; ++column) {
        const PanelColumn& source = columns[panel * kPanelCols + column];
        if (source.matrix == nullptr) continue;
        source.matrix->dequantize_row(source.row, floats.data());
        std::transform(floats.begin(), floats.end(), values.begin(), float_to_bf16);
        put_column(values, column, layout, out + panel * packed.panel_size);
      }
    }
  });
  return packed;
}

}  // namespace volley::cpu
