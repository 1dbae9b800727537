#pragma once

// What every backend asks of the weights and cache shapes it is given. These come from checkpoints
// and flags, so a wrong one is an Error.

#include "ops/ops.h"

namespace volley {

inline Status check_parts(std::span<const HostMatrix> parts) {
  if (parts.empty()) return invalid("pack_matrix: no matrices given");
  for (const HostMatrix& part : parts) {
    if (part.weight.rank != 2 || !is_float(part.weight.dtype))
      return invalid("pack_matrix: expected a float matrix, got {} {}",
                     dtype_name(part.weight.dtype), part.weight.shape_string());
    if (part.rows() <= 0 || part.cols() <= 0 || part.cols() != parts[0].cols())
      return invalid("pack_matrix: expected [n, {}], got {}", parts[0].cols(),
                     part.weight.shape_string());
  }
  return {};
}

inline Status check_gate_up(const HostMatrix& gate, const HostMatrix& up) {
  const HostMatrix parts[] = {gate, up};
  VOLLEY_TRY_STATUS(check_parts(parts));
  if (gate.rows() != up.rows())
    return invalid("pack_gate_up: gate is {}, up is {}", gate.weight.shape_string(),
                   up.weight.shape_string());
  return {};
}

// `head_dim_step`: head_dim must be a multiple of it.
inline Status check_kv_shape(const KvShape& shape, int head_dim_step) {
  if (shape.num_layers <= 0 || shape.num_kv_heads <= 0 || shape.num_pages <= 0 ||
      shape.head_dim <= 0 || shape.head_dim % head_dim_step != 0 || shape.page_size <= 0 ||
      shape.page_size % 32 != 0)
    return make_error(
        ErrorKind::kUnsupported,
        "KV cache of {} layers, {} kv heads, head_dim {}, {} pages of {}: every count "
        "must be positive, head_dim a multiple of {}, page_size a multiple of 32",
        shape.num_layers, shape.num_kv_heads, shape.head_dim, shape.num_pages, shape.page_size,
        head_dim_step);
  return {};
}

}  // namespace volley
