#pragma once

// What an ISA unit offers: plain functions over plain structs. This header is compiled under every
// unit's flags, so nothing in it may have a body that the linker could share between units.

#include <cstddef>
#include <cstdint>

namespace volley::cpu {

// Weights [n, k] are cut into panels of 32 columns of n, each contiguous over all of k: one pass
// over a range of panels is one sequential stream. Columns past n are zero. For swiglu a panel
// holds 16 gate columns, then the 16 up columns of the same outputs.
inline constexpr int64_t kPanelCols = 32;
inline constexpr int64_t kGateCols = 16;

// Element (k, column) of a panel of bf16.
enum class WeightLayout {
  // AMX B tiles, two side by side per 32 k: [k/32][2 halves][16 pairs of k][16 columns][2]. k is
  // padded with zeros to a multiple of 32.
  kTiles,
  // [k][16][2]: columns c and c + 16 share 32 bits, so that a shift and a mask widen both.
  kPairs,
};

// Activations of one matmul, repacked: groups of `rows_per_group` rows.
inline constexpr int64_t kMaxRowsPerPass = 512;

enum class Epilogue { kStore, kAdd, kSwiglu, kArgmax };

// Per row and lane, the best value so far and its column.
struct ArgmaxState {
  float values[16];
  float columns[16];  // as floats: exact below 2^24
};

// What a thread needs during a matmul.
inline constexpr int64_t kScratchPanels = 4;
struct alignas(64) ThreadScratch {
  ArgmaxState best[kMaxRowsPerPass];
  float sums[kScratchPanels][kMaxRowsPerPass * kPanelCols];
};

struct MatmulTask {
  const uint16_t* weights = nullptr;
  int64_t panel_size = 0;  // elements of one panel
  int64_t n = 0;           // output columns
  int64_t k = 0;
  const void* packed_rows = nullptr;
  int64_t num_rows = 0;  // at most kMaxRowsPerPass
  Epilogue epilogue = Epilogue::kStore;
  const float* bias = nullptr;  // [n], kStore only
  float* out = nullptr;         // [num_rows, n]
  int64_t out_stride = 0;
};

struct PackRowsTask {
  const float* a = nullptr;  // [num_rows, k]
  int64_t a_stride = 0;
  int64_t num_rows = 0;
  int64_t k = 0;
  void* packed_rows = nullptr;
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
};

struct KernelTable {
  WeightLayout weight_layout;
  bool kv_is_bf16;
  int rows_per_group;
  int queries_per_block;

  int64_t (*packed_group_bytes)(int64_t k);
  void (*pack_rows)(const PackRowsTask& task, int64_t group_begin, int64_t group_end);
  // Panels [panel_begin, panel_end).
  void (*matmul)(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                 ThreadScratch& scratch);
  void (*rms_norm)(const float* x, const float* weight, int64_t cols, float eps, float* out);
  // The k largest of x[0, cols), k at most Ops::kMaxCandidates, and their softmax.
  void (*top_candidates)(const float* x, int64_t cols, int k, int32_t* ids, float* probabilities);
  void (*widen_bf16)(const uint16_t* x, int64_t cols, float* out);
  void (*rope_and_store)(const RopeStoreTask& task, int64_t row_begin, int64_t row_end);
  void (*attend)(const AttentionTask& task, const QueryBlock& queries, int32_t kv_head);
};

// Null where the unit was not built.
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();
const KernelTable* amx_bf16_kernels();

}  // namespace volley::cpu
