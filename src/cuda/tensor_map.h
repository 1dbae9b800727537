#pragma once

// Tensor maps: how the copy engine (TMA) sees a tensor in device memory and cuts boxes out of it.

#include <array>
#include <cstdint>

#include "cuda/driver.h"

namespace volley::cuda {

enum class MapDType : uint8_t { kU8, kBF16, kF32 };
enum class MapSwizzle : uint8_t { kNone, k128B };

// A tensor of three dimensions, innermost first: [dims[2]][dims[1]][dims[0]], elements of dimension
// 0 side by side.
struct TensorMapSpec {
  DevicePtr address = 0;  // 16-byte aligned
  MapDType dtype = MapDType::kU8;
  std::array<int64_t, 3> dims = {1, 1, 1};  // elements, each from 1 to 2^32
  std::array<int64_t, 2> strides = {0, 0};  // bytes from one index of dims 1 and 2 to the next;
                                            // multiples of 16 below 2^40
  std::array<int32_t, 3> box = {1, 1, 1};   // elements a copy moves, each from 1 to 256
  MapSwizzle swizzle = MapSwizzle::kNone;   // k128B: box[0] spans at most 128 bytes
};

int64_t map_dtype_bytes(MapDType dtype);

// Says what is wrong with `spec`, by the rules of cuTensorMapEncodeTiled, which itself answers only
// "invalid value".
Status validate(const TensorMapSpec& spec);

// Elements out of bounds read as zero and are not written. Costs no device work.
Result<TensorMap> encode(const Driver& driver, const TensorMapSpec& spec);

}  // namespace volley::cuda
