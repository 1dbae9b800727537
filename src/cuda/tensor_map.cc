#include "cuda/tensor_map.h"

namespace volley::cuda {
namespace {

// CUtensorMapDataType, CUtensorMapSwizzle, CUtensorMapL2promotion.
int driver_dtype(MapDType dtype) {
  switch (dtype) {
    case MapDType::kU8:
      return 0;
    case MapDType::kBF16:
      return 9;
    case MapDType::kF32:
      return 7;
  }
  return 0;
}
constexpr int kSwizzleNone = 0;
constexpr int kSwizzle128B = 3;
constexpr int kL2Promotion256B = 3;

}  // namespace

int64_t map_dtype_bytes(MapDType dtype) {
  switch (dtype) {
    case MapDType::kU8:
      return 1;
    case MapDType::kBF16:
      return 2;
    case MapDType::kF32:
      return 4;
  }
  return 1;
}

Status validate(const TensorMapSpec& spec) {
  if (spec.address == 0 || spec.address % 16 != 0) {
    return invalid("tensor map: expected an address aligned to 16 bytes, got {:#x}", spec.address);
  }
  for (size_t i = 0; i < 3; ++i) {
    if (spec.dims[i] < 1 || spec.dims[i] > int64_t{1} << 32) {
      return invalid("tensor map: dimension {} is {}, expected 1 to 2^32", i, spec.dims[i]);
    }
    if (spec.box[i] < 1 || spec.box[i] > 256) {
      return invalid("tensor map: box {} is {}, expected 1 to 256", i, spec.box[i]);
    }
  }
  for (size_t i = 0; i < 2; ++i) {
    if (spec.strides[i] < 1 || spec.strides[i] % 16 != 0 || spec.strides[i] >= int64_t{1} << 40) {
      return invalid("tensor map: stride {} is {} bytes, expected a multiple of 16 below 2^40", i,
                     spec.strides[i]);
    }
  }
  const int64_t box_bytes = spec.box[0] * map_dtype_bytes(spec.dtype);
  if (box_bytes % 16 != 0) {
    return invalid("tensor map: a box row of {} bytes, expected a multiple of 16", box_bytes);
  }
  if (spec.swizzle == MapSwizzle::k128B && box_bytes > 128) {
    return invalid("tensor map: a box row of {} bytes, at most 128 fit the swizzle", box_bytes);
  }
  return {};
}

Result<TensorMap> encode(const Driver& driver, const TensorMapSpec& spec) {
  VOLLEY_TRY_STATUS(validate(spec));
  TensorMap map;
  uint64_t dims[3], strides[2];
  uint32_t box[3];
  const uint32_t element_strides[3] = {1, 1, 1};
  for (size_t i = 0; i < 3; ++i) {
    dims[i] = static_cast<uint64_t>(spec.dims[i]);
    box[i] = static_cast<uint32_t>(spec.box[i]);
  }
  for (size_t i = 0; i < 2; ++i) strides[i] = static_cast<uint64_t>(spec.strides[i]);
  const int swizzle = spec.swizzle == MapSwizzle::k128B ? kSwizzle128B : kSwizzleNone;
  VOLLEY_TRY_STATUS(driver.check(
      driver.tensor_map_encode_tiled(&map, driver_dtype(spec.dtype), 3,
                                     reinterpret_cast<void*>(spec.address), dims, strides, box,
                                     element_strides, 0, swizzle, kL2Promotion256B, 0),
      "encoding a tensor map"));
  return map;
}

}  // namespace volley::cuda
