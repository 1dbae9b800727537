#pragma once

// Borrowed views of tensors in host memory, as a checkpoint stores them: row-major, packed, in the
// checkpoint's own dtype. Whoever owns the bytes (a mapped file, a test's vector) outlives the
// view. Data may be unaligned: elements are read with memcpy.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace volley {

struct HostTensor {
  static constexpr int kMaxRank = 4;

  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape = {};  // the first `rank` entries; rank 0 is one scalar

  // A view of `elements`, whose memory the caller keeps.
  static HostTensor of(const void* elements, DType dtype, std::initializer_list<int64_t> shape);

  bool empty() const { return data == nullptr; }  // "this tensor is absent", not "zero elements"
  int64_t num_elements() const;
  int64_t num_bytes() const { return num_elements() * dtype_bytes(dtype); }
  bool has_shape(std::initializer_list<int64_t> wanted) const;

  // Element `index` in row-major order. The dtype must be a float format.
  float float_at(int64_t index) const;
  // Element `index` of a bool or integer tensor.
  int64_t int_at(int64_t index) const;
  // All elements, widened exactly. The dtype must be a float format.
  std::vector<float> to_floats() const;
  std::string shape_string() const;  // "[256, 64]"
};

// A weight [rows, cols] and, for fp8 checkpoints, one scale for each 128x128 quant_group:
// value(r, c) = weight(r, c) * scale_inv(r / 128, c / 128). The last group in a row or column may
// cover fewer elements.
struct HostMatrix {
  static constexpr int64_t kQuantGroup = 128;

  HostTensor weight;     // [rows, cols] f32, f16, bf16 or f8_e4m3
  HostTensor scale_inv;  // [ceil(rows/128), ceil(cols/128)] f32, f16 or bf16; absent otherwise

  bool empty() const { return weight.empty(); }
  bool is_quantized() const { return !scale_inv.empty(); }
  int64_t rows() const { return weight.shape[0]; }
  int64_t cols() const { return weight.shape[1]; }

  float at(int64_t row, int64_t col) const;
  // Writes row `row` as `cols()` floats. The product with the scale is one float multiplication, so
  // at() gives the same bits.
  void dequantize_row(int64_t row, float* out) const;
};

}  // namespace volley
