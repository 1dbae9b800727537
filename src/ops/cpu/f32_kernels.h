#pragma once

// The units without AMX: f32 activations, keys and values; weights widened in registers.
// Include after one simd_*.h.
//
// Order of sums. Matmul: each output is a chain of FMAs over k = 0, 1, 2, ... from zero. Scores:
// a chain over head_dim. Values: a chain over the keys of a chunk of kKeyChunk absolute positions,
// upon the rescaled sum of the chunks before. A masked key adds an exact zero, so a query sees no
// difference between a chunk it shares with other queries and one it has alone.

#include <utility>

#include "ops/cpu/attention_kernels.h"
#include "ops/cpu/quant_kernels.h"
#include "ops/cpu/row_kernels.h"

namespace volley::cpu {
namespace {

// Packed rows: per group, [k][rows of the group], so that the broadcasts of one k share a line.
int64_t f32_group_bytes(WeightFormat, int64_t k) {
  return k * kMatmulRows * 4;
}

inline int64_t group_size(int64_t num_rows, int64_t group) {
  const int64_t rest = num_rows - group * kMatmulRows;
  return rest < kMatmulRows ? rest : kMatmulRows;
}

// packs_swiglu is false.
inline void store_packed(const MatmulTask&, int64_t, int64_t, F16) {
  __builtin_trap();
}

void f32_pack_rows(const PackRowsTask& task, int64_t group_begin, int64_t group_end) {
  for (int64_t group = group_begin; group < group_end; ++group) {
    const int64_t rows = group_size(task.num_rows, group);
    float* out = static_cast<float*>(task.packed_rows) + group * kMatmulRows * task.k;
    const float* a = task.a + (group * kMatmulRows - task.a_row) * task.a_stride;
    if (rows == 1) {
      __builtin_memcpy(out, a, static_cast<size_t>(task.k) * 4);
      continue;
    }
    for (int64_t i = 0; i < task.k; ++i) {
      for (int64_t row = 0; row < rows; ++row) *out++ = a[row * task.a_stride + i];
    }
  }
}

// How far ahead of its use a line of weights is fetched: enough to cover a trip to memory.
constexpr int64_t kPrefetchBytes = 4096;

// Calls body(low, high) for the codes of two lines of 16 columns, at most `rest` of them.
template <WeightFormat kFormat, class F>
inline void for_each_code(Codes first, const ScaleLanes& low, Codes second, const ScaleLanes& high,
                          int64_t rest, F body) {
  constexpr int kCodes = kCodesPerLane<kFormat>;
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    if (rest >= kCodes) {
      (..., body(decode<kFormat, kIndex>(first, low), decode<kFormat, kIndex>(second, high)));
    } else {
      (..., (kIndex < rest
                 ? body(decode<kFormat, kIndex>(first, low), decode<kFormat, kIndex>(second, high))
                 : void()));
    }
  }
  (std::make_integer_sequence<int, kCodes>());
}

// Blocks of int8 and int4.
template <WeightFormat kFormat, class F>
inline void for_each_k_of_blocks(const char* w, int64_t k, F body) {
  constexpr int64_t kCodes = kCodesPerLane<kFormat>;
  constexpr int64_t kColumns = 64 / kCodes * 64;  // bytes of 64 k of 16 columns
  const auto load_line = [](const char* p) {
    _mm_prefetch(p + kPrefetchBytes, _MM_HINT_T0);
    return kFormat == WeightFormat::kInt8 ? load_codes_plus_128(p) : load_codes(p);
  };
  for (int64_t block = 0; block < k; block += kBlockK, w += block_bytes(kFormat)) {
    const char* line = w + block_header_bytes(kFormat);
    for (int64_t quarter = 0; quarter < 4; ++quarter, line += kColumns) {
      const auto run = [&]<int kRun>() {
        const int64_t rest = k - block - quarter * 64 - kRun * 16;
        const ScaleLanes low = load_block_scales<kFormat, kRun>(w, quarter, 0);
        const ScaleLanes high = load_block_scales<kFormat, kRun>(w, quarter, 1);
        for (int64_t i = 0; i < 16 && i < rest; i += kCodes, line += 64)
          for_each_code<kFormat>(load_line(line), low, load_line(line + kColumns), high, rest - i,
                                 body);
      };
      run.template operator()<0>();
      run.template operator()<1>();
      run.template operator()<2>();
      run.template operator()<3>();
    }
  }
}

// Calls body(low, high) for each k of a panel in order: columns 0-15 and 16-31.
template <WeightFormat kFormat, class F>
inline void for_each_k(const char* w, int64_t k, F body) {
  if constexpr (kFormat == WeightFormat::kBf16) {
    for (int64_t i = 0; i < k; ++i, w += kPanelCols * 2) {
      _mm_prefetch(w + kPrefetchBytes, _MM_HINT_T0);
      F16 low, high;
      load_panel_row(reinterpret_cast<const uint16_t*>(w), low, high);
      body(low, high);
    }
  } else if constexpr (has_blocks(kFormat)) {
    for_each_k_of_blocks<kFormat>(w, k, body);
  } else {
    constexpr int64_t kGroup = kStepK * steps_per_group(kFormat);
    w += panel_header_bytes(kFormat);
    for (int64_t group = 0; group < k; group += kGroup) {
      const ScaleLanes low = load_fp8_scales(w, 0);
      const ScaleLanes high = load_fp8_scales(w, 1);
      w += scales_bytes(kFormat);
      const int64_t count = k - group < kGroup ? k - group : kGroup;
      for (int64_t i = 0; i < count; i += kCodesPerLane<kFormat>, w += 128) {
        _mm_prefetch(w + kPrefetchBytes, _MM_HINT_T0);
        _mm_prefetch(w + kPrefetchBytes + 64, _MM_HINT_T0);
        for_each_code<kFormat>(load_codes(w), low, load_codes(w + 64), high, count - i, body);
      }
    }
  }
}

template <WeightFormat kFormat, int R>
void panel_times_group(const MatmulTask& task, int64_t panel, int64_t group, ArgmaxState* best) {
  const char* w = task.weights + panel * task.panel_bytes;
  const float* a = static_cast<const float*>(task.packed_rows) + group * kMatmulRows * task.k;
  F16 sums[R][2];
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = zero();
  for_each_k<kFormat>(w, task.k, [&](F16 low, F16 high) {
    for (int r = 0; r < R; ++r) {
      const F16 x = set1(a[r]);
      sums[r][0] = fma(x, low, sums[r][0]);
      sums[r][1] = fma(x, high, sums[r][1]);
    }
    a += R;
  });
  with_epilogue(task, [&]<Epilogue kEpilogue>() {
    for (int r = 0; r < R; ++r)
      finish_row<kEpilogue>(task, group * kMatmulRows + r, panel, sums[r][0], sums[r][1], best);
  });
}

// Calls body.operator()<R>() for the R that equals `rows`, 1 <= rows <= kMax.
template <int kMax, class F>
inline void with_rows(int64_t rows, F body) {
  if constexpr (kMax > 1) {
    if (rows < kMax) return with_rows<kMax - 1>(rows, body);
  }
  body.template operator()<kMax>();
}

template <WeightFormat kFormat>
void f32_matmul_format(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                       ThreadScratch& scratch) {
  const int64_t num_groups = (task.num_rows + kMatmulRows - 1) / kMatmulRows;
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    for (int64_t group = 0; group < num_groups; ++group) {
      with_rows<kMatmulRows>(group_size(task.num_rows, group), [&]<int R>() {
        panel_times_group<kFormat, R>(task, panel, group, scratch.best + task.first_row);
      });
    }
  }
}

void f32_matmul(const MatmulTask& task, int64_t panel_begin, int64_t panel_end,
                ThreadScratch& scratch) {
  with_format(task, [&]<WeightFormat kFormat>() {
    f32_matmul_format<kFormat>(task, panel_begin, panel_end, scratch);
  });
}

int64_t f32_multiply_registers(int64_t count) {
  constexpr int kChains = 8;
  F16 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = set1(1.0f);
  const F16 x = set1(1.0f), y = set1(0x1p-30f);
  for (int64_t round = 0; round < count; ++round) {
    for (int i = 0; i < kChains; ++i) sums[i] = fma(sums[i], x, y);
  }
  F16 all = zero();
  for (int i = 0; i < kChains; ++i) all = add(all, sums[i]);
  // Never less: the sums only grow. The compiler does not know.
  return reduce_add(all) < 1.0f ? 0 : count * kChains * 16 * 2;
}

void f32_rope_and_store(const RopeStoreTask& task, const RopeShare& share) {
  const int32_t d = task.kv.head_dim;
  rope_rows(task, share, [&](char* head, int32_t slot, const float* key, const float* value) {
    float* keys = reinterpret_cast<float*>(head) + (slot / 16) * 16 * d + slot % 16;
    for (int32_t i = 0; i < d; ++i) keys[i * 16] = key[i];
    float* values = reinterpret_cast<float*>(head + task.kv.values_offset) + slot / 16 * 16 * d +
                    slot % 16 * 16;
    for (int32_t x = 0; x < d; ++x) values[x / 16 * 256 + x % 16] = finite_or_zero(value[x]);
  });
}

// The state of up to kAttentionRows queries on their way over the keys.
struct Queries {
  int count;
  int32_t begin[kAttentionRows];  // keys of each
  int32_t end[kAttentionRows];
  SoftmaxState softmax[kAttentionRows];
  alignas(64) float q[kMaxHeadDim][kAttentionRows];
  alignas(64) float scores[kAttentionRows][kKeyChunk];  // then the weights of the chunk
  alignas(64) float out[kAttentionRows][kMaxHeadDim];
};

// scores[.][c] for offsets [first, last) into the chunk, both multiples of 16.
template <int Q>
void score_keys(const ChunkPlaces& places, int32_t d, int32_t first, int32_t last,
                Queries& queries) {
  for (int32_t c = first; c < last; c += 16) {
    const auto* keys = reinterpret_cast<const float*>(places.keys[c / kKeyRun]) + c % kKeyRun * d;
    F16 dots[Q];
    for (int i = 0; i < Q; ++i) dots[i] = zero();
    for (int32_t x = 0; x < d; ++x) {
      const F16 key = load(keys + x * 16);
      for (int i = 0; i < Q; ++i) dots[i] = fma(set1(queries.q[x][i]), key, dots[i]);
    }
    for (int i = 0; i < Q; ++i) store(queries.scores[i] + c, dots[i]);
  }
}

// Scores become weights; what was summed before is rescaled.
inline void weigh_keys(int32_t d, int32_t chunk, int32_t first, int32_t last, int i,
                       Queries& queries) {
  const KeyWindow keys = {first, last, queries.begin[i] - chunk, queries.end[i] - chunk};
  float* scores = queries.scores[i];
  const float factor =
      soften_scores(scores, keys, inverse_sqrt(static_cast<float>(d)), queries.softmax[i],
                    [&](int32_t c, F16 weight) { store(scores + c, weight); });
  if (factor == 1.0f) return;
  for (int32_t x = 0; x < d; x += 16)
    store(queries.out[i] + x, mul(load(queries.out[i] + x), set1(factor)));
}

// out += weights . values over offsets [first, last).
template <int Q>
void add_values(const ChunkPlaces& places, int32_t d, int32_t first, int32_t last,
                Queries& queries) {
  for (int32_t x = 0; x < d; x += 16) {
    F16 sums[Q];
    for (int i = 0; i < Q; ++i) sums[i] = load(queries.out[i] + x);
    for (int32_t c = first; c < last; c += 16) {
      const auto* values =
          reinterpret_cast<const float*>(places.values[c / kKeyRun]) + c % kKeyRun * d + x * 16;
      for (int32_t key = c; key < c + 16; ++key, values += 16) {
        const F16 value = load(values);
        for (int i = 0; i < Q; ++i) sums[i] = fma(set1(queries.scores[i][key]), value, sums[i]);
      }
    }
    for (int i = 0; i < Q; ++i) store(queries.out[i] + x, sums[i]);
  }
}

void f32_attend(const AttentionTask& task, const QueryBlock& block, int32_t kv_head) {
  const int32_t d = task.kv.head_dim;
  Queries queries;
  queries.count = block.num_queries;
  KeySpan span;
  for (int i = 0; i < queries.count; ++i) {
    const auto [row, column] = query_place(task, block, kv_head, i);
    queries.begin[i] = task.key_begin[row];
    queries.end[i] = task.key_end[row];
    span.add(queries.begin[i], queries.end[i]);
    const float* q = task.qkv + row * task.qkv_stride + column;
    for (int32_t x = 0; x < d; ++x) {
      queries.q[x][i] = q[x];
      queries.out[i][x] = 0.0f;
    }
  }
  const int32_t* pages = task.page_tables[task.sequences[block.first_row]];
  for_chunks(span, 16, [&](int32_t chunk, int32_t first, int32_t last) {
    ChunkPlaces places;
    find_places(task.kv, pages, kv_head, chunk, first, last, d * 4, d * 4, places);
    first -= chunk;
    last -= chunk;
    with_rows<kAttentionRows>(queries.count,
                              [&]<int Q>() { score_keys<Q>(places, d, first, last, queries); });
    for (int i = 0; i < queries.count; ++i) weigh_keys(d, chunk, first, last, i, queries);
    with_rows<kAttentionRows>(queries.count,
                              [&]<int Q>() { add_values<Q>(places, d, first, last, queries); });
  });
  for (int i = 0; i < queries.count; ++i) {
    const auto [row, column] = query_place(task, block, kv_head, i);
    const F16 scale = set1(1.0f / queries.softmax[i].sum);
    // Adding zero turns -0 into 0: a masked key may have added -0 or 0.
    for (int32_t x = 0; x < d; x += 16)
      store(task.out + row * task.out_stride + column + x,
            add(mul(load(queries.out[i] + x), scale), zero()));
  }
}

constexpr KernelTable f32_kernel_table() {
  return {.weight_layout = Bf16Layout::kPairs,
          .kv_is_bf16 = false,
          .rows_per_group = kMatmulRows,
          .queries_per_block = kAttentionRows,
          .packs_swiglu = false,
          .packed_group_bytes = f32_group_bytes,
          .pack_rows = f32_pack_rows,
          .pack_blocks = nullptr,
          .matmul = f32_matmul,
          .rms_norm = rms_norm_row,
          .add_candidates = add_candidates_row,
          .finish_candidates = finish_candidates_row,
          .widen_bf16 = widen_bf16_row,
          .rope_and_store = f32_rope_and_store,
          .attend = f32_attend,
          .read_lines = read_lines,
          .multiply_registers = f32_multiply_registers};
}

}  // namespace
}  // namespace volley::cpu
