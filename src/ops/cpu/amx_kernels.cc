// The AMX bf16 unit.
//
// A tile product C[16, 16] += A[16, 32] B[32, 16] takes 16 cycles whatever it multiplies, and
// decoding waits for weights to come from memory: 1 KiB of B at 8 bytes a cycle is 128 cycles. So
// up to 32 rows of A ride along with one, which is what makes verifying a drafted block nearly
// free.
//
// The kernels are by what they multiply, each file with its order of sums: bf16 and fp8 weights,
// int8 and int4 weights, keys and values.

#include "ops/cpu/simd_avx512.h"
// after simd
#include "ops/cpu/amx_attention_kernels.h"
#include "ops/cpu/amx_float_kernels.h"
#include "ops/cpu/amx_int_kernels.h"
#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/row_kernels.h"

namespace volley::cpu {
namespace {

int64_t amx_group_bytes(WeightFormat format, int64_t k) {
  return has_blocks(format) ? int_group_bytes(k) : float_group_bytes(k);
}

void amx_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                ThreadScratch& scratch) {
  with_format(task, [&]<WeightFormat kFormat>() {
    if constexpr (has_blocks(kFormat)) {
      const auto finish = [&](int64_t panel, const float* sums) {
        finish_panel<false>(task, panel, sums, nullptr, scratch);
      };
      if constexpr (kFormat == WeightFormat::kInt4) {
        if (task.num_rows == 1 && num_int_blocks(task.k) <= kMaxVectorBlocks)
          return int4_vector_matmul(task, panel_begin, panel_end, scratch, finish);
      }
      if (task.num_rows <= kIntGroupRows) {
        const TileScope tiles = TileScope::one_group(task.num_rows);
        return int_matmul<kFormat, false>(task, panel_begin, panel_end, scratch, finish);
      }
      if (task.num_rows <= 2 * kIntGroupRows) {
        const TileScope tiles = TileScope::four_sums(kIntGroupRows);
        return int_matmul<kFormat, true>(task, panel_begin, panel_end, scratch, finish);
      }
      const TileScope tiles = TileScope::four_sums(kIntGroupRows);
      return int_matmul_many<kFormat>(task, panel_begin, panel_end, scratch,
                                      [&](int64_t panel, int64_t num_panels) {
                                        finish_panels(task, panel, num_panels, scratch);
                                      });
    }
    task.num_rows <= 2 * kTileRows
        ? amx_matmul_few<kFormat>(task, panel_begin, panel_end, scratch)
        : amx_matmul_many<kFormat>(task, panel_begin, panel_end, scratch);
  });
}

int64_t amx_multiply_registers(int64_t count) {
  const TileScope tiles = TileScope::two_groups(kTileRows);
  for (int64_t round = 0; round < count; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return count * 4 * 2 * kTileRows * kTileRows * kTileK;
}

}  // namespace

const KernelTable* amx_bf16_kernels() {
  static constexpr KernelTable kTable = {.weight_layout = Bf16Layout::kTiles,
                                         .kv_is_bf16 = true,
                                         .rows_per_group = kTileRows,
                                         .queries_per_block = kTileRows,
                                         .packs_swiglu = true,
                                         .packed_group_bytes = amx_group_bytes,
                                         .pack_rows = amx_pack_rows,
                                         .pack_blocks = pack_int_blocks,
                                         .matmul = amx_matmul,
                                         .rms_norm = rms_norm_row,
                                         .add_candidates = add_candidates_row,
                                         .finish_candidates = finish_candidates_row,
                                         .widen_bf16 = widen_bf16_row,
                                         .rope_and_store = amx_rope_and_store,
                                         .attend = amx_attend,
                                         .read_lines = read_lines,
                                         .multiply_registers = amx_multiply_registers};
  return &kTable;
}

}  // namespace volley::cpu
