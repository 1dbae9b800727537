#pragma once

// A KV cache in the layout of a unit (kernels.h).

#include <memory>

#include "ops/cpu/isa.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/memory.h"
#include "ops/ops.h"

namespace volley::cpu {

class CpuKv final : public KvCache {
 public:
  // Errors: a shape that does not hold together, or beyond kMaxHeadDim; no memory.
  static Result<std::unique_ptr<CpuKv>> create(const KvShape& shape, const Unit& unit);
  int64_t num_bytes() const override { return data_.size(); }

  KvLayer layer(int layer_idx) const {
    const int64_t page_bytes = head_bytes_ * shape().num_kv_heads;
    return {.data = data_.data() + layer_idx * shape().num_pages * page_bytes,
            .page_bytes = page_bytes,
            .head_bytes = head_bytes_,
            .values_offset = values_offset_,
            .page_size = shape().page_size,
            .head_dim = shape().head_dim};
  }

  void copy_page(int32_t from, int32_t to, int num_positions);

 private:
  CpuKv(const KvShape& shape, int64_t keys_bytes, int64_t values_bytes, Buffer data)
      : KvCache(shape),
        values_offset_(keys_bytes),
        head_bytes_(keys_bytes + values_bytes),
        data_(std::move(data)) {}

  int64_t values_offset_;
  int64_t head_bytes_;
  Buffer data_;
};

}  // namespace volley::cpu
