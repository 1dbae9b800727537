#include "ops/cpu/packing.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "tensor/float_formats.h"

namespace volley::cpu {
namespace {

constexpr float kFp8ScaleLimit = 0x1p60f;  // kernels multiply scales and sums by powers of two

int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

bool has_stored_fp8(const HostMatrix& matrix) {
  return matrix.weight.dtype == DType::kF8E4M3 && matrix.is_quantized();
}

// Kernels have no NaN of e4m3.
bool fp8_is_plain(const HostMatrix& matrix) {
  for (const float scale : matrix.scale_inv.to_floats()) {
    if (!(std::abs(scale) < kFp8ScaleLimit)) return false;
  }
  const auto* codes = reinterpret_cast<const uint8_t*>(matrix.weight.data);
  return std::none_of(codes, codes + matrix.weight.num_elements(),
                      [](uint8_t code) { return (code & 0x7Fu) == 0x7Fu; });
}

// Packs panels one at a time: 32 rows of the checkpoint at k padded to whole steps.
class PanelPacker {
 public:
  PanelPacker(int64_t k, WeightFormat format, Bf16Layout layout)
      : k_(k),
        num_steps_(round_up(k, has_blocks(format) ? kBlockK : kStepK) / kStepK),
        format_(format),
        layout_(layout),
        floats_(static_cast<size_t>(num_steps_ * kStepK)) {
    const auto size = static_cast<size_t>(kPanelCols * num_steps_ * kStepK);
    if (format == WeightFormat::kBf16) {
      values_.resize(size);
    } else {
      codes_.resize(size);
      scales_.resize(static_cast<size_t>(kPanelCols * num_steps_));
      multipliers_.resize(scales_.size() * 4 / (kBlockK / kStepK) + 4 * kPanelCols);
    }
  }

  void pack(const PanelColumn* columns, char* panel) {
    for (int64_t c = 0; c < kPanelCols; ++c) {
      if (format_ == WeightFormat::kBf16)
        read_bf16(columns[c], &values_[c * padded_k()]);
      else
        read_codes(columns[c], c);
    }
    if (has_blocks(format_))
      put_blocks(panel);
    else if (format_ != WeightFormat::kBf16)
      put_steps(panel);
    else if (layout_ == Bf16Layout::kTiles)
      put_tiles(panel);
    else
      put_pairs(reinterpret_cast<uint16_t*>(panel));
  }

 private:
  int64_t padded_k() const { return num_steps_ * kStepK; }
  int64_t group_size() const { return quant_group_size(format_); }

  void read_bf16(const PanelColumn& column, uint16_t* out) {
    if (column.matrix == nullptr) {
      std::fill_n(out, k_, uint16_t{0});
      return;
    }
    const HostTensor& weight = column.matrix->weight;
    if (weight.dtype == DType::kBF16 && !column.matrix->is_quantized()) {
      std::memcpy(out, weight.data + column.row * k_ * 2, static_cast<size_t>(k_) * 2);
      return;
    }
    column.matrix->dequantize_row(column.row, floats_.data());
    std::transform(floats_.begin(), floats_.begin() + k_, out, float_to_bf16);
  }

  // Codes of column c go to codes_[c][padded_k], scales to scales_[group][c].
  void read_codes(const PanelColumn& column, int64_t c) {
    uint8_t* codes = &codes_[c * padded_k()];
    const bool stored =
        column.matrix != nullptr && format_ == WeightFormat::kFp8 && has_stored_fp8(*column.matrix);
    if (column.matrix == nullptr)
      std::fill_n(floats_.begin(), k_, 0.0f);
    else if (stored)
      std::memcpy(codes, column.matrix->weight.data + column.row * k_, static_cast<size_t>(k_));
    else
      column.matrix->dequantize_row(column.row, floats_.data());
    for (int64_t first = 0, group = 0; first < k_; first += group_size(), ++group) {
      const auto count = static_cast<size_t>(std::min(group_size(), k_ - first));
      if (format_ == WeightFormat::kInt4) {
        const Int4Group group4 = quantize_int4_group({&floats_[first], count});
        std::copy(group4.codes.begin(), group4.codes.end(), codes + first);
        scales_[group * kPanelCols + c] = group4.scale;
        for (size_t run = 0; run < group4.multipliers.size(); ++run) {
          uint8_t& quarter =
              multipliers_[(group * kPanelCols + c) * 4 + static_cast<int64_t>(run / 4)];
          quarter = static_cast<uint8_t>((run % 4 == 0 ? 0 : quarter) | group4.multipliers[run]
                                                                            << run % 4 * 2);
        }
        continue;
      }
      scales_[group * kPanelCols + c] =
          stored ? stored_scale(*column.matrix, column.row, group)
                 : quantize_group(format_, {&floats_[first], count}, codes + first);
    }
  }

  static float stored_scale(const HostMatrix& matrix, int64_t row, int64_t group) {
    static_assert(HostMatrix::kQuantGroup == 128);
    return matrix.scale_inv.float_at(row / 128 * matrix.scale_inv.shape[1] + group);
  }

  // [k/32][2 halves][16 pairs of k][16 columns] of 32 bits.
  void put_tiles(char* panel) const {
    for (int64_t step = 0; step < num_steps_; ++step) {
      for (int64_t c = 0; c < kPanelCols; ++c) {
        uint32_t pairs[16];
        std::memcpy(pairs, &values_[c * padded_k() + step * kStepK], sizeof(pairs));
        char* out = panel + (step * 2 + c / 16) * 1024 + c % 16 * 4;
        for (int i = 0; i < 16; ++i) std::memcpy(out + i * 64, &pairs[i], 4);
      }
    }
  }

  // [k][16 columns][2 halves].
  void put_pairs(uint16_t* panel) const {
    for (int64_t first = 0; first < k_; first += kStepK) {
      const int64_t end = std::min(first + kStepK, k_);
      for (int64_t c = 0; c < kPanelCols; ++c) {
        for (int64_t i = first; i < end; ++i)
          panel[i * kPanelCols + c % 16 * 2 + c / 16] = values_[c * padded_k() + i];
      }
    }
  }

  // A power of two that brings the scales near the top of f16. Where one is below 2^-13 of the
  // panel's largest, kernels that multiply by it in f16 take the smallest of its codes for zero.
  float fp8_factor() const {
    float largest = 0x1p-100f;  // where all is tiny or zero: far from the end of the floats
    for (int64_t first = 0, group = 0; first < k_; first += group_size(), ++group) {
      for (int64_t c = 0; c < kPanelCols; ++c) {
        const uint8_t* codes = &codes_[c * padded_k() + first];
        const bool is_zero = std::all_of(codes, codes + std::min(group_size(), k_ - first),
                                         [](uint8_t code) { return (code & 0x7Fu) == 0; });
        if (!is_zero) largest = std::max(largest, std::abs(scales_[group * kPanelCols + c]));
      }
    }
    constexpr int kTop = 13;
    return std::ldexp(1.0f, std::ilogb(largest) + 8 - kTop);
  }

  void put_steps(char* panel) const {
    const float factor = fp8_factor();
    std::memset(panel, 0, static_cast<size_t>(panel_header_bytes(format_)));
    std::memcpy(panel, &factor, sizeof(factor));
    panel += panel_header_bytes(format_);
    for (int64_t step = 0; step < num_steps_; ++step) {
      if (step % steps_per_group(format_) == 0) {
        std::memcpy(panel, &scales_[step / steps_per_group(format_) * kPanelCols],
                    kPanelCols * sizeof(float));
        panel += scales_bytes(format_);
      }
      for (int64_t c = 0; c < kPanelCols; ++c)
        put_column(&codes_[c * padded_k() + step * kStepK], c % 16, panel + c / 16 * 64);
      panel += step_bytes(format_);
    }
  }

  // The codes of one column in each line of a step.
  void put_column(const uint8_t* codes, int64_t c, char* line) const {
    constexpr int kPlaces[] = {0, 2, 1, 3};
    for (int64_t first = 0; first < kStepK; line += 128, first += 4) {
      for (int i = 0; i < 4; ++i) {
        const int64_t place =
            layout_ == Bf16Layout::kTiles ? 4 * c + kPlaces[i] : i % 2 * 32 + c * 2 + i / 2;
        line[place] = static_cast<char>(codes[first + i]);
      }
    }
  }

  void put_blocks(char* panel) const {
    const bool is_int4 = format_ == WeightFormat::kInt4;
    const int64_t column_bytes = is_int4 ? 512 : 1024;  // 64 of k and 16 columns
    for (int64_t block = 0; block < padded_k() / kBlockK; ++block, panel += block_bytes(format_)) {
      const int64_t group = block * kPanelCols;
      for (int64_t c = 0; c < kPanelCols; ++c) {
        const uint16_t scale = float_to_bf16(scales_[group + c]);  // exact
        std::memcpy(panel + 2 * c, &scale, 2);
      }
      if (is_int4) std::memcpy(panel + 64, &multipliers_[group * 4], kPanelCols * 4);
      for (int64_t c = 0; c < kPanelCols; ++c) {
        const uint8_t* codes = &codes_[c * padded_k() + block * kBlockK];
        for (int64_t quarter = 0; quarter < kBlockK / 64; ++quarter) {
          char* out = panel + block_header_bytes(format_) + (quarter * 2 + c / 16) * column_bytes +
                      c % 16 * 4;
          put_lines(codes + quarter * 64, is_int4, out);
        }
      }
    }
  }
  // 64 codes of one column.
  static void put_lines(const uint8_t* codes, bool is_int4, char* out) {
    if (!is_int4) {
      for (int64_t i = 0; i < 16; ++i) std::memcpy(out + i * 64, codes + i * 4, 4);
      return;
    }
    for (int64_t i = 0; i < 8; ++i) {
      uint32_t low, high;
      std::memcpy(&low, codes + i * 8, 4);
      std::memcpy(&high, codes + i * 8 + 4, 4);
      const uint32_t both = low | high << 4;
      std::memcpy(out + i * 64, &both, 4);
    }
  }

  int64_t k_;
  int64_t num_steps_;
  WeightFormat format_;
  Bf16Layout layout_;
  std::vector<float> floats_;
  std::vector<uint16_t> values_;      // [kPanelCols, padded_k]; zeros past k
  std::vector<uint8_t> codes_;        // likewise
  std::vector<float> scales_;         // [groups, kPanelCols], with room to spare
  std::vector<uint8_t> multipliers_;  // [groups, kPanelCols, 4 quarters] of int4
};

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

WeightFormat panel_format(WeightFormat wanted, std::span<const HostMatrix> parts) {
  if (wanted == WeightFormat::kBf16) return wanted;
  const bool all_stored = std::all_of(parts.begin(), parts.end(), has_stored_fp8);
  if (wanted == WeightFormat::kAuto && !all_stored) return WeightFormat::kBf16;
  if (wanted != WeightFormat::kAuto && wanted != WeightFormat::kFp8) return wanted;
  const bool plain = std::all_of(parts.begin(), parts.end(), [](const HostMatrix& part) {
    return !has_stored_fp8(part) || fp8_is_plain(part);
  });
  return plain ? WeightFormat::kFp8 : WeightFormat::kBf16;
}

bool needs_quantiser(WeightFormat format, std::span<const HostMatrix> parts) {
  if (format == WeightFormat::kFp8) return !std::all_of(parts.begin(), parts.end(), has_stored_fp8);
  return has_blocks(format);
}

int64_t panel_bytes(WeightFormat format, Bf16Layout layout, int64_t k) {
  if (format == WeightFormat::kBf16 && layout == Bf16Layout::kPairs) return k * kPanelCols * 2;
  if (has_blocks(format)) return round_up(k, kBlockK) / kBlockK * block_bytes(format);
  return step_offset(format, round_up(k, kStepK) / kStepK);
}

Result<PackedPanels> pack_panels(std::span<const PanelColumn> columns, int64_t k,
                                 WeightFormat format, Bf16Layout layout, ThreadPool& pool) {
  CHECK(format != WeightFormat::kAuto);
  PackedPanels packed;
  packed.format = format;
  packed.num_panels = static_cast<int64_t>(columns.size()) / kPanelCols;
  packed.panel_bytes = panel_bytes(format, layout, k);
  VOLLEY_TRY(packed.data, Buffer::create(packed.num_bytes()));
  pool.split(packed.num_panels, 1, [&](ItemRange range, int) {
    PanelPacker packer(k, format, layout);
    for (int64_t panel = range.begin; panel < range.end; ++panel)
      packer.pack(&columns[panel * kPanelCols], packed.data.data() + panel * packed.panel_bytes);
  });
  return packed;
}

}  // namespace volley::cpu
