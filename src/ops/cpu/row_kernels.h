#pragma once

// Work on single rows and the ends of matmuls, for every unit. Include after one simd_*.h: the code
// is written on its F16 and compiled under that unit's flags, with internal linkage.
//
// Every function does the same to each row and lane, so row-invariance needs no argument here.

#include "ops/cpu/kernels.h"

namespace volley::cpu {
namespace {

// e^x to 2 ulp for -86 <= x <= 88; clamped outside (so e^-1000 is 4e-38, not 0). NaN stays NaN.
// x = n ln2 + r, |r| <= ln2 / 2, with a polynomial for e^r (coefficients of Cephes' expf).
inline F16 exp(F16 x) {
  const F16 kRound =
      set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  x = min(set1(88.0f), max(set1(-86.0f), x));
  const F16 shifted = fma(x, set1(1.44269504088896341f), kRound);
  const F16 n = sub(shifted, kRound);
  const F16 r = fnma(n, set1(-2.12194440e-4f), fnma(n, set1(0.693359375f), x));
  F16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(mul(p, r), r, add(r, set1(1.0f)));
  return scale_by_exponent(p, shifted);
}

// `quotient` is the unit's, for a divisor of at least 1.
inline F16 silu(F16 x) {
  return quotient(x, add(set1(1.0f), exp(sub(zero(), x))));
}

// Calls body(column, count) over [0, cols) in steps of 16; count < 16 only in the last.
template <class F>
inline void for_lanes(int64_t cols, F body) {
  int64_t c = 0;
  for (; c + 16 <= cols; c += 16) body(c, int64_t{16});
  if (c < cols) body(c, cols - c);
}
inline F16 load_upto(const float* p, int64_t count) {
  return count == 16 ? load(p) : load_first(p, count);
}
inline void store_upto(float* p, int64_t count, F16 x) {
  count == 16 ? store(p, x) : store_first(p, count, x);
}

// Columns [c, c + 16) of one row, for kPackedSwiglu. Each unit's own.
inline void store_packed(const MatmulTask& task, int64_t row, int64_t c, F16 x);

// Sixteen sums of one row leave the registers: columns [c, c + count) of the task's output. For
// kSwiglu `x` is gate and `up` is up; others ignore `up`.
template <Epilogue kEpilogue>
inline void finish_lanes(const MatmulTask& task, int64_t row, int64_t c, int64_t count, F16 x,
                         F16 up, ArgmaxState* best) {
  if constexpr (kEpilogue == Epilogue::kArgmax) {
    alignas(64) static constexpr float kLanes[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                     8, 9, 10, 11, 12, 13, 14, 15};
    const F16 column = add(set1(static_cast<float>(c)), load(kLanes));
    const F16 value = load(best[row].values);
    const F16 best_column = load(best[row].columns);
    // Columns rise within a lane, so a tie changes nothing, except that -inf may replace "none",
    // whose column is infinite. NaN compares false.
    M16 take = either(greater(x, value), both(equal(x, value), greater(best_column, column)));
    if (count < 16) take = both(take, first_lanes(count));
    store(best[row].values, select(take, x, value));
    store(best[row].columns, select(take, column, best_column));
    return;
  }
  if constexpr (kEpilogue == Epilogue::kPackedSwiglu) {
    store_packed(task, row, c, mul(silu(x), up));
    return;
  }
  float* out = task.out + row * task.out_stride + c;
  if constexpr (kEpilogue == Epilogue::kSwiglu) x = mul(silu(x), up);
  if constexpr (kEpilogue == Epilogue::kStore) {
    if (task.bias != nullptr) x = add(x, load_upto(task.bias + c, count));
  }
  if constexpr (kEpilogue == Epilogue::kAdd) x = add(load_upto(out, count), x);
  store_upto(out, count, x);
}

// Calls body.operator()<kEpilogue>() for the task's epilogue.
template <class F>
inline void with_epilogue(const MatmulTask& task, F body) {
  switch (task.epilogue) {
    case Epilogue::kStore:
      return body.template operator()<Epilogue::kStore>();
    case Epilogue::kAdd:
      return body.template operator()<Epilogue::kAdd>();
    case Epilogue::kSwiglu:
      return body.template operator()<Epilogue::kSwiglu>();
    case Epilogue::kPackedSwiglu:
      return body.template operator()<Epilogue::kPackedSwiglu>();
    case Epilogue::kArgmax:
      return body.template operator()<Epilogue::kArgmax>();
  }
}

// Calls body.operator()<kFormat>() for the format of the task's weights.
template <class F>
inline void with_format(const MatmulTask& task, F body) {
  switch (task.format) {
    case WeightFormat::kFp8:
      return body.template operator()<WeightFormat::kFp8>();
    case WeightFormat::kInt8:
      return body.template operator()<WeightFormat::kInt8>();
    case WeightFormat::kInt4:
      return body.template operator()<WeightFormat::kInt4>();
    default:
      return body.template operator()<WeightFormat::kBf16>();
  }
}

// The sums of one row and one panel.
template <Epilogue kEpilogue>
inline void finish_row(const MatmulTask& task, int64_t row, int64_t panel, F16 low, F16 high,
                       ArgmaxState* best) {
  if constexpr (kEpilogue == Epilogue::kSwiglu || kEpilogue == Epilogue::kPackedSwiglu) {
    const int64_t c = panel * kGateCols;
    finish_lanes<kEpilogue>(task, row, c, task.n - c < 16 ? task.n - c : 16, low, high, best);
  } else {
    const int64_t c = panel * kPanelCols;
    const int64_t count = task.n - c;
    finish_lanes<kEpilogue>(task, row, c, count < 16 ? count : 16, low, low, best);
    if (count > 16)
      finish_lanes<kEpilogue>(task, row, c + 16, count < 32 ? count - 16 : 16, high, high, best);
  }
}

inline float inverse_sqrt(float x) {
  return 1.0f / __builtin_sqrtf(x);
}

// Four vectors of partial sums take turns over the columns.
inline float sum_of_squares(const float* x, int64_t cols) {
  F16 sums[4] = {zero(), zero(), zero(), zero()};
  int64_t c = 0;
  for (; c + 64 <= cols; c += 64) {
    for (int i = 0; i < 4; ++i) {
      const F16 part = load(x + c + 16 * i);
      sums[i] = fma(part, part, sums[i]);
    }
  }
  for (int i = 0; c < cols; c += 16, ++i) {
    const F16 part = load_first(x + c, cols - c);
    sums[i] = fma(part, part, sums[i]);
  }
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

void rms_norm_row(const float* x, const float* weight, int64_t cols, float eps, float* out) {
  const F16 scale = set1(inverse_sqrt(sum_of_squares(x, cols) / static_cast<float>(cols) + eps));
  for_lanes(cols, [&](int64_t c, int64_t count) {
    const F16 scaled = mul(load_upto(x + c, count), scale);
    store_upto(out + c, count, mul(scaled, load_upto(weight + c, count)));
  });
}

// The largest of 64 columns at most; NaN is never the greater one: max() takes its second operand.
inline float largest_of(const float* x, int64_t count) {
  F16 most = set1(-__builtin_inff());
  for_lanes(count, [&](int64_t c, int64_t lanes) {
    const F16 part = load_upto(x + c, lanes);
    most = max(lanes == 16 ? part : select(first_lanes(lanes), part, most), most);
  });
  return reduce_max(most);
}

// Columns are looked at one by one only where 64 of them together hold a newcomer.
void add_candidates_row(const float* x, int64_t first, int64_t count, int k, ArgmaxState& best,
                        float& section_max, float& section_sum) {
  constexpr int64_t kBlock = 64;
  float most = -__builtin_inff();
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = begin + kBlock < count ? begin + kBlock : count;
    const float largest = largest_of(x + begin, end - begin);
    if (largest > most) most = largest;
    if (!(largest > best.values[k - 1])) continue;
    for (int64_t c = begin; c < end; ++c) {
      if (!(x[c] > best.values[k - 1])) continue;
      int at = k - 1;
      for (; at > 0 && x[c] > best.values[at - 1]; --at) {
        best.values[at] = best.values[at - 1];
        best.columns[at] = best.columns[at - 1];
      }
      best.values[at] = x[c];
      best.columns[at] = static_cast<float>(first + c);
    }
  }
  if (most > section_max) {
    alignas(64) float factor[16];
    store(factor, exp(set1(section_max - most)));
    section_sum *= factor[0];
    section_max = most;
  }
  if (section_max - section_max != 0) return;  // nothing finite yet, or infinity
  F16 sum = zero();
  for_lanes(count, [&](int64_t c, int64_t lanes) {
    const F16 logit = load_upto(x + c, lanes);
    M16 counts = equal(logit, logit);
    if (lanes < 16) counts = both(counts, first_lanes(lanes));
    sum = add(sum, select(counts, exp(sub(logit, set1(section_max))), zero()));
  });
  section_sum += reduce_add(sum);
}

void finish_candidates_row(const ArgmaxState& best, const SectionSums& sums, int k, int32_t* ids,
                           float* probabilities) {
  const float top = best.values[0];
  const bool is_finite = top - top == 0;
  F16 sum = zero();
  for (int64_t i = 0; is_finite && i < kMaxSections; i += 16)
    sum = fma(load(sums.sum + i), exp(sub(load(sums.max + i), set1(top))), sum);
  const float total = reduce_add(sum);
  alignas(64) float shares[16];
  store(shares, exp(sub(load(best.values), set1(top))));
  for (int i = 0; i < k; ++i) {
    const bool is_there = is_finite && best.values[i] - best.values[i] == 0;
    ids[i] = is_there ? static_cast<int32_t>(best.columns[i]) : 0;
    probabilities[i] = is_there ? shares[i] / total : 0.0f;
  }
}

void widen_bf16_row(const uint16_t* x, int64_t cols, float* out) {
  int64_t c = 0;
  for (; c + 16 <= cols; c += 16) store(out + c, widen_bf16(x + c));
  if (c == cols) return;
  uint16_t tail[16] = {};
  __builtin_memcpy(tail, x + c, static_cast<size_t>(cols - c) * 2);
  store_first(out + c, cols - c, widen_bf16(tail));
}

// Norm (when given) and rotation of one head, x to out; they may be the same.
inline void turn_head(const float* x, const float* norm, float eps, const float* angles,
                      int32_t head_dim, float* out) {
  if (norm != nullptr) {
    rms_norm_row(x, norm, head_dim, eps, out);
    x = out;
  }
  const int64_t half = head_dim / 2;
  for_lanes(half, [&](int64_t c, int64_t count) {
    const F16 first = load_upto(x + c, count);
    const F16 second = load_upto(x + half + c, count);
    const F16 cosine = load_upto(angles + c, count);
    const F16 sine = load_upto(angles + half + c, count);
    store_upto(out + c, count, fnma(second, sine, mul(first, cosine)));
    store_upto(out + half + c, count, fma(first, sine, mul(second, cosine)));
  });
}

inline float finite_or_zero(float x) {
  constexpr float kMax = 3.38953139e38f;  // the largest bf16
  if (x != x) return 0.0f;
  return x > kMax ? kMax : x < -kMax ? -kMax : x;
}

// The place of absolute position `position`: head `kv_head` of its page.
inline char* page_head(const KvLayer& kv, const int32_t* pages, int32_t position, int32_t kv_head) {
  return kv.data + pages[position / kv.page_size] * kv.page_bytes + kv_head * kv.head_bytes;
}

// `store_key_value(head, slot, key, value)` writes one position of one head. Sixteen rows of one kv
// head at a time: neighbouring positions share lines.
template <class Store>
inline void rope_rows(const RopeStoreTask& task, const RopeShare& share, Store store_key_value) {
  constexpr int64_t kRows = 16;
  const int32_t d = task.kv.head_dim;
  const int32_t group = task.num_heads / task.num_kv_heads;
  alignas(64) float key[kMaxHeadDim];
  for (int64_t first = share.row_begin; first < share.row_end; first += kRows) {
    const int64_t last = first + kRows < share.row_end ? first + kRows : share.row_end;
    for (int32_t head = share.kv_head_begin; head < share.kv_head_end; ++head) {
      for (int64_t row = first; row < last; ++row) {
        const int32_t position = task.positions[row];
        const float* angles = task.rope + position * task.rope_stride;
        float* qkv = task.qkv + row * task.qkv_stride;
        for (int32_t i = head * group; i < (head + 1) * group; ++i)
          turn_head(qkv + i * d, task.q_norm, task.eps, angles, d, qkv + i * d);
        const float* keys = qkv + task.num_heads * d;
        turn_head(keys + head * d, task.k_norm, task.eps, angles, d, key);
        const int32_t* pages = task.page_tables[task.sequences[row]];
        store_key_value(page_head(task.kv, pages, position, head), position % task.kv.page_size,
                        key, keys + (task.num_kv_heads + head) * d);
      }
    }
  }
}

}  // namespace
}  // namespace volley::cpu
