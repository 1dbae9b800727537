#include "tensor/host_tensor.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "tensor/float_formats.h"

namespace volley {
namespace {

template <class T>
T load(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

// Widens `count` elements from element `first` on.
void widen(const HostTensor& tensor, int64_t first, int64_t count, float* out) {
  const std::byte* data = tensor.data;
  switch (tensor.dtype) {
    case DType::kF32:
      std::memcpy(out, data + first * 4, static_cast<size_t>(count) * 4);
      return;
    case DType::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = f16_to_float(load<uint16_t>(data, first + i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(load<uint16_t>(data, first + i));
      return;
    case DType::kF8E4M3:
      for (int64_t i = 0; i < count; ++i) out[i] = e4m3_to_float(load<uint8_t>(data, first + i));
      return;
    default:
      check_failed(__FILE__, __LINE__, "a float tensor is needed");
  }
}

}  // namespace

HostTensor HostTensor::of(const void* elements, DType dtype, std::initializer_list<int64_t> shape) {
  CHECK_LE(shape.size(), static_cast<size_t>(kMaxRank));
  HostTensor tensor;
  tensor.data = static_cast<const std::byte*>(elements);
  tensor.dtype = dtype;
  tensor.rank = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  return tensor;
}

int64_t HostTensor::num_elements() const {
  int64_t count = 1;
  for (int i = 0; i < rank; ++i) count *= shape[i];
  return count;
}

bool HostTensor::has_shape(std::initializer_list<int64_t> wanted) const {
  return static_cast<size_t>(rank) == wanted.size() &&
         std::equal(wanted.begin(), wanted.end(), shape.begin());
}

float HostTensor::float_at(int64_t index) const {
  float value;
  widen(*this, index, 1, &value);
  return value;
}

int64_t HostTensor::int_at(int64_t index) const {
  switch (dtype) {
    case DType::kBool:
    case DType::kU8:
      return load<uint8_t>(data, index);
    case DType::kI8:
      return load<int8_t>(data, index);
    case DType::kI32:
      return load<int32_t>(data, index);
    case DType::kI64:
      return load<int64_t>(data, index);
    default:
      check_failed(__FILE__, __LINE__, "an integer tensor is needed");
  }
}

std::vector<float> HostTensor::to_floats() const {
  std::vector<float> out(static_cast<size_t>(num_elements()));
  if (!out.empty()) widen(*this, 0, num_elements(), out.data());
  return out;
}

std::string HostTensor::shape_string() const {
  return fmt::format("[{}]", fmt::join(shape.begin(), shape.begin() + rank, ", "));
}

float HostMatrix::at(int64_t row, int64_t col) const {
  const float value = weight.float_at(row * cols() + col);
  if (!is_quantized()) return value;
  const int64_t groups = scale_inv.shape[1];
  return value * scale_inv.float_at(row / kQuantGroup * groups + col / kQuantGroup);
}

void HostMatrix::dequantize_row(int64_t row, float* out) const {
  const int64_t width = cols();
  widen(weight, row * width, width, out);
  if (!is_quantized()) return;
  const int64_t groups = scale_inv.shape[1];
  for (int64_t group = 0; group < groups; ++group) {
    const float scale = scale_inv.float_at(row / kQuantGroup * groups + group);
    const int64_t end = std::min(width, (group + 1) * kQuantGroup);
    for (int64_t col = group * kQuantGroup; col < end; ++col) out[col] *= scale;
  }
}

}  // namespace volley
