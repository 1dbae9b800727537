#pragma once

// Attention, what all units share: where queries and keys lie, and the softmax over the keys, a
// chunk at a time. Include after one simd_*.h.

#include "ops/cpu/row_kernels.h"

namespace volley::cpu {
namespace {

constexpr int32_t kKeyRun = 32;  // positions that lie together, whatever the page size

// Where the keys and values of a chunk lie, for each run of it that is used.
struct ChunkPlaces {
  const char* keys[kKeyChunk / kKeyRun];
  const char* values[kKeyChunk / kKeyRun];
};

// Positions [first, last) of the chunk from `chunk` on; bytes are those of one position.
inline void find_places(const KvLayer& kv, const int32_t* pages, int32_t kv_head, int32_t chunk,
                        int32_t first, int32_t last, int64_t key_bytes, int64_t value_bytes,
                        ChunkPlaces& places) {
  for (int32_t run = (first - chunk) / kKeyRun; chunk + run * kKeyRun < last; ++run) {
    const int32_t position = chunk + run * kKeyRun;
    const int64_t slot = position % kv.page_size;
    const char* head = page_head(kv, pages, position, kv_head);
    places.keys[run] = head + slot * key_bytes;
    places.values[run] = head + kv.values_offset + slot * value_bytes;
  }
}

// Where query i of a block stands in qkv and out.
struct QueryPlace {
  int64_t row;
  int64_t column;
};
inline QueryPlace query_place(const AttentionTask& task, const QueryBlock& block, int32_t kv_head,
                              int32_t i) {
  const int32_t group = task.num_heads / task.num_kv_heads;
  const int32_t query = block.first_query + i;
  return {block.first_row + query / group,
          int64_t{kv_head * group + query % group} * task.kv.head_dim};
}

// The keys that any query of a block sees.
struct KeySpan {
  int32_t begin = INT32_MAX;
  int32_t end = 0;
  void add(int32_t other_begin, int32_t other_end) {
    if (other_begin < begin) begin = other_begin;
    if (other_end > end) end = other_end;
  }
};

// Calls body(chunk, first, last) for each chunk that the span meets, with the multiples of `step`
// around the part of it that the span covers.
template <class F>
inline void for_chunks(const KeySpan& span, int32_t step, F body) {
  for (int32_t chunk = span.begin / kKeyChunk * kKeyChunk; chunk < span.end; chunk += kKeyChunk) {
    const int32_t first = (span.begin > chunk ? span.begin : chunk) / step * step;
    const int32_t limit = span.end < chunk + kKeyChunk ? span.end : chunk + kKeyChunk;
    body(chunk, first, (limit + step - 1) / step * step);
  }
}

// 2^x to 2 ulp for -125 <= x <= 1; below, 2^-125. NaN stays NaN. Cheaper than exp(): the fraction
// needs no product with ln 2. Coefficients of Cephes' exp2f.
inline F16 exp2_small(F16 x) {
  const F16 kRound = set1(12582912.0f);  // as in exp()
  x = max(set1(-125.0f), x);
  const F16 shifted = add(x, kRound);
  const F16 r = sub(x, sub(shifted, kRound));
  F16 p = set1(1.535336188319500e-4f);
  p = fma(p, r, set1(1.339887440266574e-3f));
  p = fma(p, r, set1(9.618437357674640e-3f));
  p = fma(p, r, set1(5.550332471162809e-2f));
  p = fma(p, r, set1(2.402264791363012e-1f));
  p = fma(p, r, set1(6.931472028550421e-1f));
  p = fma(p, r, set1(1.0f));
  return scale_by_exponent(p, shifted);
}

constexpr float kNoScore = -1e30f;  // finite, so that the difference of two is 0 and not NaN

// What a query knows of the chunks before.
struct SoftmaxState {
  float max_score = kNoScore;  // before scaling
  float sum = 0.0f;            // of e^(scale * (score - max_score))
};

// Keys of one query in a chunk, as offsets from the chunk's start. Scores are computed on
// [first, last), multiples of 16; the query's own keys are [begin, end).
struct KeyWindow {
  int32_t first, last;
  int32_t begin, end;
};

// Calls store_weights(c, w) with the weights e^(scale * (score - max)) of each 16 keys, exact zeros
// where masked. Returns what earlier sums of this query must be multiplied by; 1 when nothing
// changes. A chunk that is masked throughout leaves the state as it is.
template <class StoreWeights>
inline float soften_scores(const float* scores, const KeyWindow& keys, float scale,
                           SoftmaxState& state, StoreWeights store_weights) {
  const auto all_seen = [&](int32_t c) { return keys.begin <= c && c + 16 <= keys.end; };
  const auto seen = [&](int32_t c) { return lanes_between(keys.begin - c, keys.end - c); };
  F16 lane_max = set1(state.max_score);
  for (int32_t c = keys.first; c < keys.last; c += 16) {
    const F16 score = load(scores + c);
    lane_max = max(lane_max, all_seen(c) ? score : select(seen(c), score, set1(kNoScore)));
  }
  const float new_max = reduce_max(lane_max);
  scale *= 1.44269504f;  // e^x = 2^(x log2 e)
  const F16 shift = set1(-new_max * scale);
  F16 lane_sum = zero();
  for (int32_t c = keys.first; c < keys.last; c += 16) {
    F16 weight = exp2_small(fma(load(scores + c), set1(scale), shift));
    if (!all_seen(c)) weight = select(seen(c), weight, zero());
    store_weights(c, weight);
    lane_sum = add(lane_sum, weight);
  }
  float factor = 1.0f;
  if (new_max != state.max_score) {
    alignas(64) float lanes[16];
    store(lanes, exp2_small(set1((state.max_score - new_max) * scale)));
    factor = lanes[0];
    state.max_score = new_max;
  }
  state.sum = state.sum * factor + reduce_add(lane_sum);
  return factor;
}

}  // namespace
}  // namespace volley::cpu
