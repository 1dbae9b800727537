#pragma once

// The KV cache in bf16 and attention on AMX tiles. Include after simd_avx512.h, from one unit.
//
// Order of sums. Scores: TDPBF16PS adds pairs of head_dim in order within a tile, tiles in order,
// into one f32 sum. Values: tiles of 32 keys in order, within chunks of kKeyChunk absolute
// positions, upon the rescaled sum of the chunks before. A masked key has weight zero, and adding
// zeros is exact.

#include "ops/cpu/amx_tiles.h"
#include "ops/cpu/attention_kernels.h"

namespace volley::cpu {
namespace {

static_assert(kKeyRun == kTileK);  // a run of keys is one step of the values' sum

inline int32_t padded_dim(int32_t head_dim) {
  return (head_dim + 31) / 32 * 32;
}

void amx_rope_and_store(const RopeStoreTask& task, const RopeShare& share) {
  const int32_t d = task.kv.head_dim;
  rope_rows(task, share, [&](char* head, int32_t slot, const float* key, const float* value) {
    // Keys: pair (2i, 2i + 1) of head_dim is one 32-bit element of column slot % 16.
    auto* keys =
        reinterpret_cast<uint32_t*>(head) + slot / 16 * (padded_dim(d) / 2) * 16 + slot % 16;
    alignas(64) uint32_t pairs[kMaxHeadDim / 2];
    for (int32_t c = 0; c < d; c += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + c / 2), to_bf16(load(key + c)));
    for (int32_t i = 0; i < d / 2; ++i) keys[i * 16] = pairs[i];
    // Values: every other 16-bit element of a row of the tile.
    auto* values = reinterpret_cast<uint16_t*>(head + task.kv.values_offset) +
                   slot / kKeyRun * kKeyRun * d + slot % kKeyRun / 2 * kTileK;
    const __mmask32 mask = slot % 2 == 0 ? 0x55555555u : 0xAAAAAAAAu;
    const __m512 limit = _mm512_set1_ps(3.38953139e38f);  // the largest bf16
    for (int32_t c = 0; c < d; c += 16, values += kTileSize) {
      const __m512 x = _mm512_loadu_ps(value + c);
      const __m512 finite =
          _mm512_maskz_max_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), _mm512_min_ps(x, limit),
                              _mm512_sub_ps(_mm512_setzero_ps(), limit));
      __m512i bits = _mm512_cvtepu16_epi32(to_bf16({finite}));
      if (slot % 2 != 0) bits = _mm512_slli_epi32(bits, 16);
      _mm512_mask_storeu_epi16(values, mask, bits);
    }
  });
}

// Sixteen queries on their way over the keys. Rows past `count` are never read.
struct Queries {
  int32_t count;
  int32_t begin[kTileRows];  // keys of each
  int32_t end[kTileRows];
  SoftmaxState softmax[kTileRows];
  alignas(64) uint16_t q[kMaxHeadDim / kTileK][kTileSize];  // A tiles
  alignas(64) float scores[kTileRows][kKeyChunk];
  alignas(64) uint16_t weights[kKeyChunk / kKeyRun][kTileSize];  // A tiles
  alignas(64) float out[kMaxHeadDim / 16][kTileRows][16];        // tiles of sums
};

inline KeySpan load_queries(const AttentionTask& task, const QueryBlock& block, int32_t kv_head,
                            Queries& queries) {
  const int32_t d = task.kv.head_dim;
  KeySpan span;
  queries.count = block.num_queries;
  for (int32_t i = 0; i < queries.count; ++i) {
    const auto [row, column] = query_place(task, block, kv_head, i);
    queries.begin[i] = task.key_begin[row];
    queries.end[i] = task.key_end[row];
    span.add(queries.begin[i], queries.end[i]);
    const float* q = task.qkv + row * task.qkv_stride + column;
    for (int32_t x = 0; x < padded_dim(d); x += 16) {
      auto* out = reinterpret_cast<__m256i*>(queries.q[x / kTileK] + i * kTileK + x % kTileK);
      _mm256_storeu_si256(out, x < d ? to_bf16(load(q + x)) : _mm256_setzero_si256());
    }
    for (int32_t x = 0; x < d; x += 16) store(queries.out[x / 16][i], zero());
  }
  return span;
}

// Fetches the keys and then the values of a chunk into L2, a quarter of a run at a time. Memory
// would idle during the softmax otherwise, and pages end where the hardware would fetch on.
class KeyFetcher {
 public:
  static constexpr int32_t kParts = 16;  // of a run
  static constexpr int32_t kAhead = 2 * kParts;

  KeyFetcher() = default;
  // Positions [first, last) of the chunk.
  KeyFetcher(const KvLayer& kv, const int32_t* pages, int32_t kv_head, int32_t chunk, int32_t first,
             int32_t last)
      : begin_((first - chunk) / kKeyRun), end_((last - chunk + kKeyRun - 1) / kKeyRun) {
    const int32_t d = kv.head_dim;
    key_bytes_ = padded_dim(d) * 2;
    value_bytes_ = d * 2;
    find_places(kv, pages, kv_head, chunk, first, last, key_bytes_, value_bytes_, places_);
    num_left_ = 2 * kParts * (end_ - begin_);
  }

  const ChunkPlaces& places() const { return places_; }
  int32_t num_left() const { return num_left_; }

  void fetch(int32_t num_parts) {
    for (; num_parts > 0 && num_left_ > 0; --num_parts, --num_left_) {
      const int32_t num_runs = end_ - begin_;
      const int32_t part = 2 * kParts * num_runs - num_left_;
      const int32_t run = part / kParts;
      const bool is_key = run < num_runs;
      const int64_t bytes = (is_key ? key_bytes_ : value_bytes_) * kKeyRun / kParts;
      const char* at =
          (is_key ? places_.keys[begin_ + run] : places_.values[begin_ + run - num_runs]) +
          part % kParts * bytes;
      for (int64_t line = 0; line < bytes; line += kLine) prefetch_here(at + line);
    }
  }

 private:
  ChunkPlaces places_;
  int32_t begin_ = 0, end_ = 0;  // runs
  int32_t num_left_ = 0;         // parts
  int64_t key_bytes_ = 0, value_bytes_ = 0;
};

// scores[.][c] for kRuns times 32 keys from offset c on. A product waits for the one before upon
// the same sums, so two runs at once take little longer than one.
template <int kRuns>
inline void score_keys(const ChunkPlaces& places, int32_t head_dim, int32_t c, Queries& queries,
                       KeyFetcher* fetcher) {
  static_assert(kRuns == 1 || kRuns == 2);
  const int32_t num_steps = padded_dim(head_dim) / kTileK;
  const int64_t high = num_steps * kTileSize;
  const int32_t parts = (KeyFetcher::kParts / 2 + num_steps - 1) / num_steps;
  const auto* first = reinterpret_cast<const uint16_t*>(places.keys[c / kKeyRun]);
  const auto* second = reinterpret_cast<const uint16_t*>(places.keys[c / kKeyRun + kRuns - 1]);
  zero_sums<kRuns == 2>();
  for (int32_t step = 0; step < num_steps; ++step) {
    _tile_loadd(4, queries.q[step], kLine);
    _tile_loadd(6, first + step * kTileSize, kLine);
    if (fetcher != nullptr) fetcher->fetch(parts);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, first + high + step * kTileSize, kLine);
    if (fetcher != nullptr) fetcher->fetch(parts);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRuns == 2) {
      _tile_loadd(6, second + step * kTileSize, kLine);
      if (fetcher != nullptr) fetcher->fetch(parts);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, second + high + step * kTileSize, kLine);
      if (fetcher != nullptr) fetcher->fetch(parts);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, queries.scores[0] + c, kKeyChunk * 4);
  _tile_stored(1, queries.scores[0] + c + 16, kKeyChunk * 4);
  if constexpr (kRuns == 2) {
    _tile_stored(2, queries.scores[0] + c + 32, kKeyChunk * 4);
    _tile_stored(3, queries.scores[0] + c + 48, kKeyChunk * 4);
  }
}

// Scores of query i become bf16 weights; what was summed before is rescaled.
inline void weigh_keys(int32_t head_dim, int32_t chunk, int32_t first, int32_t last, int32_t i,
                       Queries& queries) {
  const KeyWindow keys = {first, last, queries.begin[i] - chunk, queries.end[i] - chunk};
  const float factor =
      soften_scores(queries.scores[i], keys, inverse_sqrt(static_cast<float>(head_dim)),
                    queries.softmax[i], [&](int32_t c, F16 weight) {
                      uint16_t* tile = queries.weights[c / kKeyRun] + i * kTileK + c % kKeyRun;
                      _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile), to_bf16(weight));
                    });
  if (factor == 1.0f) return;
  for (int32_t tile = 0; tile < head_dim / 16; ++tile)
    store(queries.out[tile][i], mul(load(queries.out[tile][i]), set1(factor)));
}

// out += weights . values over offsets [first, last), kTiles tiles of head_dim at once.
template <int kTiles>
inline void add_values(const ChunkPlaces& places, int32_t first, int32_t last, int32_t tile,
                       Queries& queries) {
  constexpr int64_t kStride = 64;
  _tile_loadd(0, queries.out[tile], kStride);
  if constexpr (kTiles > 1) _tile_loadd(1, queries.out[tile + 1], kStride);
  if constexpr (kTiles > 2) _tile_loadd(2, queries.out[tile + 2], kStride);
  if constexpr (kTiles > 3) _tile_loadd(3, queries.out[tile + 3], kStride);
  for (int32_t run = first / kKeyRun; run < last / kKeyRun; ++run) {
    const auto* values = reinterpret_cast<const uint16_t*>(places.values[run]) + tile * kTileSize;
    _tile_loadd(4, queries.weights[run], kLine);
    _tile_loadd(6, values, kLine);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTiles > 1) {
      _tile_loadd(7, values + kTileSize, kLine);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTiles > 2) {
      _tile_loadd(6, values + 2 * kTileSize, kLine);
      _tile_dpbf16ps(2, 4, 6);
    }
    if constexpr (kTiles > 3) {
      _tile_loadd(7, values + 3 * kTileSize, kLine);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, queries.out[tile], kStride);
  if constexpr (kTiles > 1) _tile_stored(1, queries.out[tile + 1], kStride);
  if constexpr (kTiles > 2) _tile_stored(2, queries.out[tile + 2], kStride);
  if constexpr (kTiles > 3) _tile_stored(3, queries.out[tile + 3], kStride);
}

void amx_attend(const AttentionTask& task, const QueryBlock& block, int32_t kv_head) {
  const int32_t d = task.kv.head_dim;
  Queries queries;
  const KeySpan span = load_queries(task, block, kv_head, queries);
  const int32_t* pages = task.page_tables[task.sequences[block.first_row]];
  const TileScope tiles = TileScope::four_sums(queries.count);
  // Of few queries the tile loads alone are faster: 8,192 keys of one row took 8% longer with
  // fetches.
  const bool is_busy = queries.count >= kTileRows / 2;
  const bool fetches = is_busy && block.fetches;
  KeyFetcher here, ahead;
  for_chunks(span, kKeyRun, [&](int32_t chunk, int32_t first, int32_t last) {
    const bool is_first = chunk <= span.begin;
    here = is_first ? KeyFetcher(task.kv, pages, kv_head, chunk, first, last) : ahead;
    const int32_t next = chunk + kKeyChunk;
    ahead = next < span.end ? KeyFetcher(task.kv, pages, kv_head, next, next,
                                         span.end < next + kKeyChunk ? span.end : next + kKeyChunk)
            : block.next_kv_head >= 0
                ? KeyFetcher(task.kv, pages, block.next_kv_head, chunk, first, last)
                : KeyFetcher();
    KeyFetcher* fetcher = fetches ? &here : nullptr;
    if (is_first && fetcher != nullptr) fetcher->fetch(KeyFetcher::kAhead);
    const ChunkPlaces& places = here.places();
    first -= chunk;
    last -= chunk;
    int32_t c = first;
    for (; c + 2 * kKeyRun <= last; c += 2 * kKeyRun) score_keys<2>(places, d, c, queries, fetcher);
    if (c < last) score_keys<1>(places, d, c, queries, fetcher);
    const int32_t per_query = (here.num_left() + queries.count - 1) / queries.count;
    for (int32_t i = 0; i < queries.count; ++i) {
      if (fetcher != nullptr) fetcher->fetch(per_query);
      weigh_keys(d, chunk, first, last, i, queries);
    }
    int32_t tile = 0;
    const auto fetch_ahead = [&] {
      if (is_busy && (block.fetches || next >= span.end)) ahead.fetch(KeyFetcher::kAhead / 2);
    };
    for (; tile + 4 <= d / 16; tile += 4) {
      fetch_ahead();
      add_values<4>(places, first, last, tile, queries);
    }
    for (; tile + 2 <= d / 16; tile += 2) add_values<2>(places, first, last, tile, queries);
    if (tile < d / 16) add_values<1>(places, first, last, tile, queries);
  });
  for (int32_t i = 0; i < queries.count; ++i) {
    const auto [row, column] = query_place(task, block, kv_head, i);
    const F16 scale = set1(1.0f / queries.softmax[i].sum);
    // Adding zero turns -0 into 0: a masked key may have added -0 or 0.
    for (int32_t x = 0; x < d; x += 16)
      store(task.out + row * task.out_stride + column + x,
            add(mul(load(queries.out[x / 16][i]), scale), zero()));
  }
}
}  // namespace
}  // namespace volley::cpu
