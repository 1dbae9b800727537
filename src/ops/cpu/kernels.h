#pragma once

// What an ISA unit offers: plain functions over plain structs. This header is compiled under every
// unit's flags, so nothing in it may have a body that the linker could share between units.

#include <cstddef>
#include <cstdint>

#include "tensor/weight_format.h"

namespace volley::cpu {

// Weights [n, k] are cut into panels of 32 columns of n, each contiguous over all of k: one pass
// over a range of panels is one sequential stream. Columns past n are zero. For swiglu a panel
// holds 16 gate columns, then the 16 up columns of the same outputs.
inline constexpr int64_t kPanelCols = 32;
inline constexpr int64_t kGateCols = 16;

// Element (k, column) of a panel of bf16.
enum class Bf16Layout {
  // AMX B tiles, two side by side per 32 k: [k/32][2 halves][16 pairs of k][16 columns][2]. k is
  // padded with zeros to a multiple of 32.
  kTiles,
  // [k][16][2]: columns c and c + 16 share 32 bits, so that a shift and a mask widen both.
  kPairs,
};

// Panels of fp8 begin with a line whose first float is the panel's factor: a power of two for which
// scale * 256 / factor is below 2^14, so that code / 256 times it is a f16. k is padded with zeros
// to steps of 32. For each quant_group of k follow the scales of the 32 columns in f32, and then
// its steps. A step is [k/4][2 halves of the columns][64 bytes]; the 64 bytes hold
//   beside Bf16Layout::kTiles: for each of 16 columns the codes of k 0, 2, 1, 3;
//   beside Bf16Layout::kPairs: pairs (k 0, k 2) of 16 columns, then pairs (k 1, k 3).
inline constexpr int64_t kStepK = 32;
constexpr int64_t panel_header_bytes(WeightFormat format) {
  return format == WeightFormat::kFp8 ? 64 : 0;
}
constexpr int64_t scales_bytes(WeightFormat format) {
  return format == WeightFormat::kFp8 ? 128 : 0;
}
constexpr int64_t step_bytes(WeightFormat format) {
  return format == WeightFormat::kBf16 ? 2048 : 1024;
}
constexpr int64_t steps_per_group(WeightFormat) {
  return 4;
}
// Where the step lies in a panel; with its scales, if it is the first of a quant_group.
constexpr int64_t step_offset(WeightFormat format, int64_t step) {
  const int64_t group = steps_per_group(format);
  return panel_header_bytes(format) + (step + group - 1) / group * scales_bytes(format) +
         step * step_bytes(format);
}

// Panels of int8 and int4 are the same for all units: AMX-INT8 multiplies int8 codes as they lie. k
// is padded with zeros to blocks of 256, the quant_group of both. A block is
//   the scales of the 32 columns, bf16,
//   int4: [2 halves of the columns][16 columns][4 quarters of k] bytes: the multipliers of four
//   runs
//     of 16 k (weight_format.h), the first in the lowest two bits,
//   int8: [4 quarters of k][2 halves of the columns][16][16 columns][4 of k],
//   int4: [4 quarters of k][2 halves of the columns][8][16 columns][4 bytes]: the low four bits of
//     the bytes are k 0 to 3, the high four are k 4 to 7.
inline constexpr int64_t kBlockK = 256;
constexpr bool has_blocks(WeightFormat format) {
  return format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
}
constexpr int64_t block_header_bytes(WeightFormat format) {
  return format == WeightFormat::kInt4 ? 64 + 128 : 64;
}
constexpr int64_t block_bytes(WeightFormat format) {
  return block_header_bytes(format) +
         kPanelCols * (format == WeightFormat::kInt4 ? kBlockK / 2 : kBlockK);
}

// Activations of one matmul, repacked: groups of `rows_per_group` rows.
inline constexpr int64_t kMaxRowsPerPass = 512;

// kPackedSwiglu: as kSwiglu, but the outputs become packed rows for another matmul.
enum class Epilogue { kStore, kAdd, kSwiglu, kPackedSwiglu, kArgmax };

// Per row and lane, the best value so far and its column.
struct ArgmaxState {
  float values[16];
  float columns[16];  // as floats: exact below 2^24
};

// Candidates are found chunk by chunk of the columns, and the sum under their softmax is added up
// in at most kMaxSections sections of whole chunks, whose sums are then added in order: what comes
// out does not depend on who took which section.
inline constexpr int64_t kChunkCols = 128;
inline constexpr int64_t kMaxSections = 64;
constexpr int64_t section_cols(int64_t cols) {
  const int64_t chunks = (cols + kChunkCols - 1) / kChunkCols;
  return (chunks + kMaxSections - 1) / kMaxSections * kChunkCols;
}
// Of one row: in each section the largest logit, and the sum of e^(logit - that).
struct alignas(64) SectionSums {
  float max[kMaxSections];
  float sum[kMaxSections];
};

// What a thread needs during a matmul.
inline constexpr int64_t kScratchPanels = 4;
inline constexpr int64_t kScratchSteps = 8;
struct alignas(64) ThreadScratch {
  ArgmaxState best[kMaxRowsPerPass];
  float sums[kScratchPanels][kMaxRowsPerPass * kPanelCols];
  float logits[kMaxRowsPerPass * kChunkCols];             // of one chunk
  uint16_t decoded[kScratchSteps * kStepK * kPanelCols];  // quantised weights as tiles
  int32_t products[2][4 * 256];                           // tiles of integer sums
};

struct MatmulTask {
  WeightFormat format = WeightFormat::kBf16;  // never kAuto
  const char* weights = nullptr;
  int64_t panel_bytes = 0;
  int64_t n = 0;  // output columns
  int64_t k = 0;
  const void* packed_rows = nullptr;
  int64_t num_rows = 0;   // at most kMaxRowsPerPass
  int64_t first_row = 0;  // of them, in ThreadScratch::best
  Epilogue epilogue = Epilogue::kStore;
  const float* bias = nullptr;  // [n], kStore only
  float* out = nullptr;         // [num_rows, n]
  int64_t out_stride = 0;
  // kPackedSwiglu: rows of k = n for weights of that format, out_rows in the whole pass.
  void* packed_out = nullptr;
  WeightFormat packed_format = WeightFormat::kBf16;
  int64_t out_rows = 0;
};

struct PackRowsTask {
  WeightFormat format = WeightFormat::kBf16;  // of the weights that the rows will meet
  const float* a = nullptr;                   // [num_rows - a_row, k]
  int64_t a_row = 0;                          // the first of them; starts a group
  int64_t a_stride = 0;
  int64_t num_rows = 0;
  int64_t k = 0;
  void* packed_rows = nullptr;
  // Where pack_blocks is there: blocks of kBlockK to pack.
  int64_t block_begin = 0, block_end = 0;
};

// One layer of a KV cache. A page holds, for each kv head, its keys and then its values.
//   bf16 (AMX): keys per 32 positions as two columns of B tiles, [page/32][2][d_pad/32][16 pairs of
//     d][16 keys][2]; values as B tiles, [page/32][d/16][16 pairs of keys][16 of d][2].
//   f32 (AVX): keys [page/16][d][16 keys], values [page/16][d/16][16 keys][16 of d].
// Values are stored finite (NaN as 0): a masked key's weight is exactly 0, and 0 times a stale
// value must be 0.
struct KvLayer {
  char* data = nullptr;
  int64_t page_bytes = 0;
  int64_t head_bytes = 0;
  int64_t values_offset = 0;  // from a head's keys to its values
  int32_t page_size = 0;
  int32_t head_dim = 0;
};

inline constexpr int kMaxHeadDim = 256;
// Softmax runs over chunks of this many absolute positions.
inline constexpr int32_t kKeyChunk = 256;

struct RopeStoreTask {
  float* qkv = nullptr;
  int64_t qkv_stride = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0;
  const float* rope = nullptr;
  int64_t rope_stride = 0;
  const int32_t* positions = nullptr;
  const int32_t* sequences = nullptr;
  const int32_t* const* page_tables = nullptr;
  KvLayer kv;
};

// The rows and kv heads, with the query heads that read them, of one call.
struct RopeShare {
  int64_t row_begin, row_end;
  int32_t kv_head_begin, kv_head_end;
};

struct AttentionTask {
  const float* qkv = nullptr;
  int64_t qkv_stride = 0;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  const int32_t* key_begin = nullptr;
  const int32_t* key_end = nullptr;
  const int32_t* sequences = nullptr;
  const int32_t* const* page_tables = nullptr;
  KvLayer kv;
};

// Some queries of one sequence that share a kv head. Query i of a run of rows is head i % group of
// row i / group, where group = num_heads / num_kv_heads.
struct QueryBlock {
  int32_t first_row = 0;  // of the run
  int32_t first_query = 0;
  int32_t num_queries = 0;  // at most queries_per_block
  // What a unit may fetch ahead of its use: the keys and values of this block, unless one before
  // has just read them, and the first of the same sequence in the head that probably follows, or
  // -1.
  bool fetches = true;
  int32_t next_kv_head = -1;
};

struct KernelTable {
  Bf16Layout weight_layout;
  bool kv_is_bf16;
  int rows_per_group;
  int queries_per_block;
  bool packs_swiglu;  // kPackedSwiglu is there, but for formats in blocks

  int64_t (*packed_group_bytes)(WeightFormat format, int64_t k);
  void (*pack_rows)(const PackRowsTask& task, int64_t group_begin, int64_t group_end);
  // Rows for weights in blocks, one part of k of all of them; null: pack_rows does those too.
  void (*pack_blocks)(const PackRowsTask& task);
  // Panels [panel_begin, panel_end).
  void (*matmul)(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                 ThreadScratch& scratch);
  void (*rms_norm)(const float* x, const float* weight, int64_t cols, float eps, float* out);
  // Columns [first, first + count) of one row join its k best, sorted in `best`, and one section.
  void (*add_candidates)(const float* x, int64_t first, int64_t count, int k, ArgmaxState& best,
                         float& section_max, float& section_sum);
  // Ids and softmax of the k best, once all sections are there.
  void (*finish_candidates)(const ArgmaxState& best, const SectionSums& sums, int k, int32_t* ids,
                            float* probabilities);
  void (*widen_bf16)(const uint16_t* x, int64_t cols, float* out);
  void (*rope_and_store)(const RopeStoreTask& task, const RopeShare& share);
  void (*attend)(const AttentionTask& task, const QueryBlock& queries, int32_t kv_head);

  // For rooflines. Reads every line once, and returns something that depends on all of them.
  uint64_t (*read_lines)(const char* data, int64_t num_bytes);
  // Does `count` rounds of the unit's widest multiply-adds on registers; returns their FLOPs.
  int64_t (*multiply_registers)(int64_t count);
};

// Null where the unit was not built.
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* amx_bf16_kernels();

}  // namespace volley::cpu
