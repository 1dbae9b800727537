#pragma once

// Element types of tensors, as checkpoints and kernels name them.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace volley {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  // the finite-only variant (e4m3fn): no infinity, largest magnitude 448
  kBool,
  kU8,
  kI8,
  kI32,
  kI64,
};

struct DTypeInfo {
  DType dtype;
  std::string_view name;              // in messages
  std::string_view safetensors_name;  // in safetensors headers
  int64_t bytes;
};

inline constexpr std::array<DTypeInfo, 9> kDTypes = {{
    {DType::kF32, "f32", "F32", 4},
    {DType::kF16, "f16", "F16", 2},
    {DType::kBF16, "bf16", "BF16", 2},
    {DType::kF8E4M3, "f8_e4m3", "F8_E4M3", 1},
    {DType::kBool, "bool", "BOOL", 1},
    {DType::kU8, "u8", "U8", 1},
    {DType::kI8, "i8", "I8", 1},
    {DType::kI32, "i32", "I32", 4},
    {DType::kI64, "i64", "I64", 8},
}};

constexpr const DTypeInfo& dtype_info(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)];
}
constexpr int64_t dtype_bytes(DType dtype) {
  return dtype_info(dtype).bytes;
}
constexpr std::string_view dtype_name(DType dtype) {
  return dtype_info(dtype).name;
}

constexpr bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF8E4M3;
}

// The dtype a safetensors header calls `name`; nullopt for one that Volley does not hold.
constexpr std::optional<DType> dtype_from_safetensors(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.safetensors_name == name) return info.dtype;
  }
  return std::nullopt;
}

}  // namespace volley
