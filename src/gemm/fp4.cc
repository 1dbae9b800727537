#include "gemm/fp4.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

constexpr float kMinAmax = 1e-4F;
constexpr float kMaxE2m1 = 6.0F;
constexpr int kSignBit = 8;

bool is_nv(MmaKind format) {
  return format == MmaKind::kNvFp4;
}
int64_t group_cols(MmaKind format) {
  return is_nv(format) ? 16 : 32;
}

// A scale as 8 * exponent + the three bits of its mantissa, exponents counted as e4m3 counts them,
// but without an end: the scale is (1 + f/8) * 2^(e - 7).
int wide_code(MmaKind format, uint8_t scale) {
  if (!is_nv(format)) return 8 * (int{scale} - 127 + 7);
  if (scale >= 8) return scale;
  const int top = scale >= 4 ? 2 : scale >= 2 ? 1 : 0;  // of a denormal's mantissa; 0 has no values
  return 8 * (top - 2) + ((int{scale} << (3 - top)) & 7);
}

double wide_scale(int code) {
  const int exponent = static_cast<int>(std::floor(code / 8.0));
  return std::ldexp(1 + (code - 8 * exponent) / 8.0, exponent - 7);
}

Status check(const Fp4Matrix& w) {
  if (!has_fp4_weights(w.format)) return invalid("fp4: expected an FP4 format");
  if (w.num_groups < 1 || w.n < 1 || w.k < 128 || w.k % 128 != 0) {
    return invalid("fp4: [{}, {}, {}], expected a multiple of 128 columns", w.num_groups, w.n, w.k);
  }
  const int64_t size = w.num_groups * w.n * w.k;
  const auto expect = [](const char* what, size_t got, int64_t want) -> Status {
    if (static_cast<int64_t>(got) == want) return {};
    return invalid("fp4: {} bytes of {}, expected {}", got, what, want);
  };
  VOLLEY_TRY_STATUS(expect("values", w.values.size(), size / 2));
  VOLLEY_TRY_STATUS(expect("scales", w.scales.size(), size / group_cols(w.format)));
  const int64_t floats = is_nv(w.format) ? w.num_groups : 0;
  VOLLEY_TRY_STATUS(expect("tensor scales", w.tensor_scales.size() * 4, floats * 4));
  for (const uint8_t scale : w.scales) {
    if (is_nv(w.format) ? scale >= 0x7F : scale == 0xFF) {
      return invalid("fp4: a scale of {:#x}, expected a number{}", scale,
                     is_nv(w.format) ? " that is not negative" : "");
    }
  }
  for (const float scale : w.tensor_scales) {
    if (!(scale > 0) || !std::isfinite(scale)) {
      return invalid("fp4: a tensor scale of {}, expected a positive number", scale);
    }
  }
  return {};
}

uint8_t nibble_at(std::span<const uint8_t> values, int64_t index) {
  const uint8_t pair = values[static_cast<size_t>(index / 2)];
  return index % 2 == 0 ? pair & 15 : pair >> 4;
}

// One row of one weight: its codes and values, rounded where the codes' span is too short.
class RowPacker {
 public:
  RowPacker(const Fp4Matrix& weight, int64_t row)
      : weight_(weight), cols_(group_cols(weight.format)), row_(row) {
    const int64_t groups = weight.k / cols_;
    const int max_code = is_nv(weight.format) ? kNvFp4MaxCode : kMxFp4MaxCode;
    bool any = false;
    int top = 0;
    for (int64_t g = 0; g < groups; ++g) {
      if (!has_values(g)) continue;
      const int code =
          wide_code(weight.format, weight.scales[static_cast<size_t>(row * groups + g)]);
      top = any ? std::max(top, code) : code;
      any = true;
    }
    // By whole powers of two, up or down, to where the largest scale just fits.
    shift_ = any ? static_cast<int>(std::ceil((top - max_code) / 8.0)) : 0;
  }

  float row_scale() const {
    const float tensor =
        is_nv(weight_.format) ? weight_.tensor_scales[static_cast<size_t>(row_ / weight_.n)] : 1.0F;
    return std::ldexp(tensor, shift_);
  }

  // Writes quantisation group `g` into the row's tiles.
  void pack(int64_t g, uint8_t* tiles, int row_in_strip, int64_t& num_rounded) const {
    const bool nv = is_nv(weight_.format);
    const int64_t groups = weight_.k / cols_, col = g * cols_;
    uint8_t* tile = tiles + col / kFp4BlockCols * fp4_tile_bytes(nv);
    const int in_block = static_cast<int>(col % kFp4BlockCols);
    int code = kFp4MinCode;
    float ratio = 0;  // of the group's scale to the one it gets: a power of two
    if (has_values(g)) {
      const int wide =
          wide_code(weight_.format, weight_.scales[static_cast<size_t>(row_ * groups + g)]) -
          8 * shift_;
      const int doublings = std::max(0, (kFp4MinCode - wide + 7) / 8);
      code = wide + 8 * doublings;
      ratio = std::ldexp(1.0F, -doublings);
    }
    tile[fp4_scale_byte(nv, row_in_strip, in_block / static_cast<int>(cols_))] =
        static_cast<uint8_t>(code);
    for (int64_t i = 0; i < cols_; ++i) {
      uint8_t value = nibble_at(weight_.values, row_ * weight_.k + col + i);
      if (ratio != 1) {
        const float wanted = e2m1_to_float(value) * ratio;
        value = float_to_e2m1(wanted);
        num_rounded += e2m1_to_float(value) != wanted;
      }
      const Fp4Position at = fp4_position(row_in_strip, in_block + static_cast<int>(i));
      const auto set = [&](int bit, uint8_t bits) {
        tile[at.byte + bit / 8] |= static_cast<uint8_t>(bits << bit % 8);
      };
      set(at.magnitude_bit, static_cast<uint8_t>(nv ? kNvFp4Index[value & 7] : value & 7));
      set(at.sign_bit, (value & kSignBit) != 0 ? 1 : 0);
    }
  }

 private:
  // Whether group `g` has a value that its scale can make other than 0.
  bool has_values(int64_t g) const {
    const int64_t groups = weight_.k / cols_;
    if (is_nv(weight_.format) && weight_.scales[static_cast<size_t>(row_ * groups + g)] == 0) {
      return false;
    }
    for (int64_t i = 0; i < cols_; ++i) {
      if ((nibble_at(weight_.values, row_ * weight_.k + g * cols_ + i) & 7) != 0) return true;
    }
    return false;
  }

  const Fp4Matrix& weight_;
  int64_t cols_;
  int64_t row_;
  int shift_ = 0;
};

float amax_of(std::span<const float> x) {
  float amax = 0;
  for (const float value : x) amax = std::max(amax, std::fabs(value));
  return std::min(amax, std::numeric_limits<float>::max());
}

uint8_t nearest_e2m1(float value) {
  return std::isnan(value) ? 7 : float_to_e2m1(value);  // whatever the sign
}

// The UE8M0 byte of the smallest power of two that is at least `scale`, a normal number.
uint8_t round_up_to_power(float scale) {
  const uint32_t bits = std::bit_cast<uint32_t>(scale);
  return static_cast<uint8_t>((bits >> 23) + ((bits & 0x7FFFFF) != 0 ? 1 : 0));
}

}  // namespace

Result<Fp4Weight> quantize_fp4(std::span<const float> x, MmaKind format, int64_t num_groups,
                               int64_t n, int64_t k) {
  if (!has_fp4_weights(format) || num_groups < 1 || n < 1 || k < 128 || k % 128 != 0 ||
      static_cast<int64_t>(x.size()) != num_groups * n * k) {
    return invalid("quantize_fp4: {} values for [{}, {}, {}], expected a multiple of 128 columns",
                   x.size(), num_groups, n, k);
  }
  const auto cols = static_cast<size_t>(group_cols(format));
  Fp4Weight out;
  out.values.resize(x.size() / 2);
  out.scales.reserve(x.size() / cols);
  const size_t weight_size = x.size() / static_cast<size_t>(num_groups);
  float tensor = 1;
  for (size_t at = 0; at < x.size(); at += cols) {
    if (is_nv(format) && at % weight_size == 0) {
      tensor = std::max(amax_of(x.subspan(at, weight_size)), kMinAmax) / (kMaxE2m1 * 448);
      out.tensor_scales.push_back(tensor);
    }
    const float amax = amax_of(x.subspan(at, cols));
    float scale = 0;
    if (is_nv(format)) {
      out.scales.push_back(float_to_e4m3(amax / kMaxE2m1 / tensor));
      scale = e4m3_to_float(out.scales.back()) * tensor;
    } else {
      out.scales.push_back(round_up_to_power(std::max(amax, kMinAmax) / kMaxE2m1));
      scale = std::ldexp(1.0F, out.scales.back() - 127);
    }
    for (size_t i = at; i < at + cols; ++i) {
      const uint8_t value = scale > 0 ? nearest_e2m1(x[i] / scale) : 0;
      out.values[i / 2] |= static_cast<uint8_t>(i % 2 == 0 ? value : value << 4);
    }
  }
  return out;
}

Result<std::vector<float>> dequantize_fp4(const Fp4Matrix& weight) {
  VOLLEY_TRY_STATUS(check(weight));
  const int64_t cols = group_cols(weight.format), size = weight.num_groups * weight.n * weight.k;
  std::vector<float> out(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const uint8_t scale = weight.scales[static_cast<size_t>(i / cols)];
    const float value = e2m1_to_float(nibble_at(weight.values, i));
    out[static_cast<size_t>(i)] =
        is_nv(weight.format)
            ? value * e4m3_to_float(scale) *
                  weight.tensor_scales[static_cast<size_t>(i / (weight.n * weight.k))]
            : std::ldexp(value, int{scale} - 127);
  }
  return out;
}

Result<PackedFp4> pack_fp4(const Fp4Matrix& weight) {
  VOLLEY_TRY_STATUS(check(weight));
  const bool nv = is_nv(weight.format);
  const int64_t strips = (weight.n + kFp4StripRows - 1) / kFp4StripRows;
  const int64_t strip_bytes = weight.k / kFp4BlockCols * fp4_tile_bytes(nv);
  PackedFp4 out;
  out.tiles.resize(static_cast<size_t>(weight.num_groups * strips * strip_bytes));
  // Padding rows are zeros with a scale that decodes.
  for (size_t tile = 0; tile < out.tiles.size(); tile += static_cast<size_t>(fp4_tile_bytes(nv))) {
    std::fill_n(out.tiles.begin() + static_cast<int64_t>(tile) + kFp4ValueBytes,
                kFp4StripRows * fp4_groups(nv), static_cast<uint8_t>(kFp4MinCode));
  }
  out.row_scales.resize(static_cast<size_t>(weight.num_groups * strips * kFp4StripRows));
  for (int64_t group = 0; group < weight.num_groups; ++group) {
    for (int64_t row = 0; row < weight.n; ++row) {
      const RowPacker packer(weight, group * weight.n + row);
      const int64_t strip = group * strips + row / kFp4StripRows;
      const int in_strip = static_cast<int>(row % kFp4StripRows);
      out.row_scales[static_cast<size_t>(strip * kFp4StripRows + in_strip)] = packer.row_scale();
      for (int64_t g = 0; g < weight.k / group_cols(weight.format); ++g) {
        packer.pack(g, out.tiles.data() + strip * strip_bytes, in_strip, out.num_rounded);
      }
    }
  }
  return out;
}

double packed_fp4_value(MmaKind format, std::span<const uint8_t> tiles,
                        std::span<const float> row_scales, int64_t n, int64_t k, int64_t group,
                        int64_t row, int64_t col) {
  const bool nv = is_nv(format);
  const int64_t strips = (n + kFp4StripRows - 1) / kFp4StripRows;
  const int64_t strip = group * strips + row / kFp4StripRows;
  const int in_strip = static_cast<int>(row % kFp4StripRows);
  const int in_block = static_cast<int>(col % kFp4BlockCols);
  const uint8_t* tile =
      tiles.data() + (strip * (k / kFp4BlockCols) + col / kFp4BlockCols) * fp4_tile_bytes(nv);
  const Fp4Position at = fp4_position(in_strip, in_block);
  const auto bits = [&](int bit) { return tile[at.byte + bit / 8] >> bit % 8; };
  int magnitude = bits(at.magnitude_bit) & 7;
  if (nv)
    magnitude = static_cast<int>(std::find(kNvFp4Index, kNvFp4Index + 8, magnitude) - kNvFp4Index);
  const int value = magnitude | (bits(at.sign_bit) & 1) * kSignBit;
  const uint8_t code =
      tile[fp4_scale_byte(nv, in_strip, in_block / static_cast<int>(group_cols(format)))];
  return double{e2m1_to_float(static_cast<uint8_t>(value))} * wide_scale(code) *
         row_scales[static_cast<size_t>(strip * kFp4StripRows + in_strip)];
}

}  // namespace volley::gemm
