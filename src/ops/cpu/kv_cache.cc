#include "ops/cpu/kv_cache.h"

#include <cstring>

#include "ops/pack_checks.h"

namespace volley::cpu {

Result<std::unique_ptr<CpuKv>> CpuKv::create(const KvShape& shape, const Unit& unit) {
  VOLLEY_TRY_STATUS(check_kv_shape(shape, 16));
  if (shape.head_dim > kMaxHeadDim)
    return make_error(ErrorKind::kUnsupported, "head_dim {} is above {}, the most that {} holds",
                      shape.head_dim, kMaxHeadDim, unit.ops_name);
  const int64_t element = unit.kernels->kv_is_bf16 ? 2 : 4;
  const int64_t key_dim =
      unit.kernels->kv_is_bf16 ? (shape.head_dim + 31) / 32 * 32 : shape.head_dim;
  const int64_t keys = shape.page_size * key_dim * element;
  const int64_t values = int64_t{shape.page_size} * shape.head_dim * element;
  const int64_t heads = int64_t{shape.num_layers} * shape.num_pages * shape.num_kv_heads;
  VOLLEY_TRY(Buffer data, Buffer::create(heads * (keys + values)));
  return std::unique_ptr<CpuKv>(new CpuKv(shape, keys, values, std::move(data)));
}

void CpuKv::copy_page(int32_t from, int32_t to, int num_positions) {
  // Every layout keeps 32 positions of a head together.
  const int64_t count = (num_positions + 31) / 32 * 32;
  for (int layer_idx = 0; layer_idx < shape().num_layers; ++layer_idx) {
    const KvLayer kv = layer(layer_idx);
    const int64_t key_bytes = kv.values_offset / kv.page_size * count;
    const int64_t value_bytes = (kv.head_bytes - kv.values_offset) / kv.page_size * count;
    for (int kv_head = 0; kv_head < shape().num_kv_heads; ++kv_head) {
      const char* source = kv.data + from * kv.page_bytes + kv_head * kv.head_bytes;
      char* target = kv.data + to * kv.page_bytes + kv_head * kv.head_bytes;
      std::memcpy(target, source, static_cast<size_t>(key_bytes));
      std::memcpy(target + kv.values_offset, source + kv.values_offset,
                  static_cast<size_t>(value_bytes));
    }
  }
}

}  // namespace volley::cpu
