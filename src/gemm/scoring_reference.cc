#include "gemm/scoring_reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "base/check.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

constexpr int kFp4Group = 32;

// 2^(code - 127) of a UE8M0 byte.
double ue8m0(uint8_t code) {
  return code == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, code - 127);
}

struct KeyPlace {
  const uint8_t* values;
  const uint8_t* scales;
};

// Key `key` of the key array, or of page key / 64.
KeyPlace key_place(const HostScoring& p, int64_t key) {
  const ScoringConfig c = {.keys = p.shape.keys, .head_dim = p.shape.head_dim};
  if (!p.shape.paged) {
    return {p.keys.data() + key * c.key_bytes(), p.key_scales.data() + key * c.scale_bytes()};
  }
  const uint8_t* page =
      p.keys.data() + key / kKeyTile * scoring_page_bytes(c.keys, p.shape.head_dim);
  return {page + key % kKeyTile * c.key_bytes(),
          page + kKeyTile * c.key_bytes() + key % kKeyTile * c.scale_bytes()};
}

std::vector<float> normal_values(size_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

template <class T>
std::vector<T> slice(const std::vector<T>& v, int64_t first, int64_t count) {
  return {v.begin() + first, v.begin() + first + count};
}

}  // namespace

Result<QuantizedKeys> quantize_keys(std::span<const float> x, KeyKind kind, int64_t num_keys,
                                    int head_dim) {
  if (num_keys < 0 || (head_dim != 64 && head_dim != 128) ||
      static_cast<int64_t>(x.size()) != num_keys * head_dim) {
    return invalid("quantize_keys: {} values for [{}, {}], expected a head_dim of 64 or 128",
                   x.size(), num_keys, head_dim);
  }
  const auto amax = [&](int64_t from, int count) {
    float most = 0;
    for (int i = 0; i < count; ++i)
      most = std::max(most, std::fabs(x[static_cast<size_t>(from + i)]));
    return most;
  };
  QuantizedKeys out;
  for (int64_t key = 0; key < num_keys; ++key) {
    const int64_t at = key * head_dim;
    if (kind == KeyKind::kFp8) {
      const float scale = std::max(amax(at, head_dim), 1e-4F) / 448.0F;
      for (int i = 0; i < head_dim; ++i) {
        out.values.push_back(float_to_e4m3(x[static_cast<size_t>(at + i)] / scale));
      }
      uint8_t bytes[4];
      std::memcpy(bytes, &scale, 4);
      out.scales.insert(out.scales.end(), bytes, bytes + 4);
      continue;
    }
    for (int g = 0; g < head_dim; g += kFp4Group) {
      const float largest = amax(at + g, kFp4Group);
      int exponent = -127;
      if (largest > 0) {
        const double wanted = largest / 6.0;
        exponent = std::ilogb(wanted);
        if (std::ldexp(1.0, exponent) < wanted) ++exponent;
        exponent = std::clamp(exponent, -127, 127);
      }
      out.scales.push_back(static_cast<uint8_t>(exponent + 127));
      for (int i = 0; i < kFp4Group; i += 2) {
        const auto code = [&](int j) {
          const double value = x[static_cast<size_t>(at + g + j)];
          return float_to_e2m1(static_cast<float>(std::ldexp(value, -exponent)));
        };
        out.values.push_back(static_cast<uint8_t>(code(i) | code(i + 1) << 4));
      }
    }
  }
  return out;
}

std::vector<RowView> row_views(const HostScoring& p) {
  const ScoringShape& s = p.shape;
  std::vector<RowView> rows(static_cast<size_t>(s.num_rows));
  if (!s.paged) {
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r] = {0, p.starts.empty() ? 0 : std::clamp(p.starts[r], 0, s.num_keys),
                 p.ends.empty() ? s.num_keys : std::clamp(p.ends[r], 0, s.num_keys)};
      rows[r].end = std::max(rows[r].begin, rows[r].end);
    }
    return rows;
  }
  for (int q = 0; q < s.num_sequences; ++q) {
    const auto i = static_cast<size_t>(q);
    int first = q * s.next_n, end = first + s.next_n;
    if (!p.query_starts.empty()) {
      first = std::clamp(p.query_starts[i], 0, s.num_rows);
      end = std::clamp(p.query_starts[i + 1], first, s.num_rows);
    }
    for (int row = first; row < end; ++row) {
      rows[static_cast<size_t>(row)] = {
          q, 0, std::clamp(p.context_lens[i] - (end - 1 - row), 0, s.num_keys)};
    }
  }
  return rows;
}

ScoringReference::ScoringReference(const HostScoring& problem)
    : problem_(problem), rows_(row_views(problem)) {
  const ScoringShape& s = problem.shape;
  for (const uint8_t byte : problem.q) q_.push_back(e4m3_to_float(byte));
  const int64_t count = s.paged ? problem.num_pages * kKeyTile : s.num_keys;
  keys_.reserve(static_cast<size_t>(count * s.head_dim));
  for (int64_t key = 0; key < count; ++key) {
    const KeyPlace place = key_place(problem, key);
    if (s.keys == KeyKind::kFp8) {
      float scale = 0;
      std::memcpy(&scale, place.scales, 4);
      for (int i = 0; i < s.head_dim; ++i) {
        keys_.push_back(double{e4m3_to_float(place.values[i])} * scale);
      }
      rounding_.push_back(0);
      continue;
    }
    double largest = 0, smallest = std::numeric_limits<double>::infinity();
    for (int g = 0; g < s.head_dim / kFp4Group; ++g) {
      largest = std::max(largest, ue8m0(place.scales[g]));
      smallest = std::min(smallest, ue8m0(place.scales[g]));
    }
    rounding_.push_back(smallest < std::ldexp(largest, -14) ? std::ldexp(largest, -16) : 0);
    for (int i = 0; i < s.head_dim; ++i) {
      const auto code = static_cast<uint8_t>(place.values[i / 2] >> (4 * (i % 2)) & 15);
      keys_.push_back(e2m1_to_float(code) * ue8m0(place.scales[i / kFp4Group]));
    }
  }
}

ScoringReference::Value ScoringReference::at(int row, int key) const {
  const ScoringShape& s = problem_.shape;
  int64_t place = key;
  if (s.paged) {
    const int sequence = rows_[static_cast<size_t>(row)].sequence;
    const int64_t stride = ceil_div(s.num_keys, kKeyTile);
    place = int64_t{problem_.block_table[static_cast<size_t>(sequence * stride + key / kKeyTile)]} *
                kKeyTile +
            key % kKeyTile;
  }
  const double* k = keys_.data() + place * s.head_dim;
  double value = 0, magnitude = 0, rounding = 0;
  for (int h = 0; h < s.heads; ++h) {
    const float* q = q_.data() + (int64_t{row} * s.heads + h) * s.head_dim;
    double raw = 0, sum = 0, q_sum = 0;
    for (int i = 0; i < s.head_dim; ++i) {
      raw += q[i] * k[i];
      sum += std::fabs(q[i] * k[i]);
      q_sum += std::fabs(q[i]);
    }
    const double w = problem_.weights[static_cast<size_t>(int64_t{row} * s.heads + h)];
    value += std::isnan(raw) ? raw : w * std::max(raw, 0.0);
    magnitude += std::fabs(w) * sum;
    rounding += std::fabs(w) * q_sum * rounding_[static_cast<size_t>(place)];
  }
  // The tensor core's sum, then a quarter of the heads one after the other, two sums of two, a
  // product; half the smallest float for what underflows.
  const double steps = s.heads / 4 + 4;
  return {value, magnitude * (std::ldexp(1.0, -12) + steps * std::ldexp(1.0, -23)) + rounding +
                     std::ldexp(1.0, -149)};
}

HostScoring random_scoring(const ScoringShape& shape, std::vector<int32_t> first,
                           std::vector<int32_t> second, uint64_t seed) {
  std::mt19937_64 random(seed);
  HostScoring p;
  p.shape = shape;
  const auto rows = static_cast<size_t>(shape.num_rows), heads = static_cast<size_t>(shape.heads),
             dim = static_cast<size_t>(shape.head_dim);
  for (const float v : normal_values(rows * heads * dim, random)) {
    p.q.push_back(float_to_e4m3(v * 60.0F));
  }
  p.weights = normal_values(rows * heads, random);
  int64_t num_keys = shape.num_keys;
  if (shape.paged) {
    p.context_lens = std::move(first);
    p.query_starts = std::move(second);
    const int stride = ceil_div(shape.num_keys, kKeyTile);
    p.block_table.assign(static_cast<size_t>(shape.num_sequences) * static_cast<size_t>(stride),
                         -1);
    // Every sequence its pages, in random order, every fifth page unused.
    std::vector<size_t> entries;
    for (int s = 0; s < shape.num_sequences; ++s) {
      const int seen = std::min(p.context_lens[static_cast<size_t>(s)], shape.num_keys);
      for (int i = 0; i < ceil_div(std::max(seen, 0), kKeyTile); ++i) {
        entries.push_back(static_cast<size_t>(s * stride + i));
      }
    }
    std::shuffle(entries.begin(), entries.end(), random);
    for (size_t i = 0; i < entries.size(); ++i) {
      p.block_table[entries[i]] = static_cast<int32_t>(i + i / 4);
    }
    p.num_pages = static_cast<int64_t>(entries.size() + entries.size() / 4 + 1);
    num_keys = p.num_pages * kKeyTile;
  } else {
    p.starts = std::move(first);
    p.ends = std::move(second);
  }
  std::vector<float> x = normal_values(static_cast<size_t>(num_keys) * dim, random);
  for (int64_t key = 0; key < num_keys; ++key) {
    float* values = x.data() + key * shape.head_dim;
    if (random() % 8 == 0) {
      for (size_t i = 0; i < dim; ++i) values[i] *= 50.0F;
    }
    // Groups from 2^-21 to 2^4 of their neighbours, and of nothing but zeros.
    const bool uneven = shape.keys == KeyKind::kMxFp4 && random() % 4 == 0;
    for (size_t g = 0; uneven && g < dim; g += kFp4Group) {
      const int exponent = static_cast<int>(random() % 26) - 21;
      const float factor = random() % 8 == 0 ? 0.0F : std::ldexp(1.0F, exponent);
      for (size_t i = 0; i < kFp4Group; ++i) values[g + i] *= factor;
    }
  }
  const auto quantized = quantize_keys(x, shape.keys, num_keys, shape.head_dim);
  CHECK(quantized.has_value());
  if (!shape.paged) {
    p.keys = quantized->values;
    p.key_scales = quantized->scales;
    return p;
  }
  const auto value_bytes = static_cast<int64_t>(quantized->values.size()) / p.num_pages;
  const auto scale_bytes = static_cast<int64_t>(quantized->scales.size()) / p.num_pages;
  for (int64_t page = 0; page < p.num_pages; ++page) {
    const auto values = slice(quantized->values, page * value_bytes, value_bytes);
    const auto scales = slice(quantized->scales, page * scale_bytes, scale_bytes);
    p.keys.insert(p.keys.end(), values.begin(), values.end());
    p.keys.insert(p.keys.end(), scales.begin(), scales.end());
  }
  return p;
}

HostScoring sequence_alone(const HostScoring& paged, int sequence) {
  const ScoringShape& s = paged.shape;
  HostScoring p;
  p.shape = s;
  p.shape.paged = false;
  p.shape.num_sequences = 0;
  p.shape.num_rows = 0;
  p.shape.num_keys =
      std::min(s.num_keys, std::max(paged.context_lens[static_cast<size_t>(sequence)], 0));
  const auto views = row_views(paged);
  const int64_t row_bytes = int64_t{s.heads} * s.head_dim;
  for (int row = 0; row < s.num_rows; ++row) {
    const RowView& view = views[static_cast<size_t>(row)];
    if (view.sequence != sequence) continue;
    ++p.shape.num_rows;
    const auto q = slice(paged.q, row * row_bytes, row_bytes);
    const auto w = slice(paged.weights, int64_t{row} * s.heads, s.heads);
    p.q.insert(p.q.end(), q.begin(), q.end());
    p.weights.insert(p.weights.end(), w.begin(), w.end());
    p.ends.push_back(view.end);
  }
  const ScoringConfig c = {.keys = s.keys, .head_dim = s.head_dim};
  const int stride = ceil_div(s.num_keys, kKeyTile);
  for (int key = 0; key < p.shape.num_keys; ++key) {
    const int64_t page = paged.block_table[static_cast<size_t>(sequence * stride + key / kKeyTile)];
    const KeyPlace place = key_place(paged, page * kKeyTile + key % kKeyTile);
    p.keys.insert(p.keys.end(), place.values, place.values + c.key_bytes());
    p.key_scales.insert(p.key_scales.end(), place.scales, place.scales + c.scale_bytes());
  }
  return p;
}

std::string check_logits(const HostScoring& problem, std::span<const float> logits, int64_t stride,
                         OutsideRange outside, int step) {
  const ScoringReference reference(problem);
  const ScoringShape& s = problem.shape;
  double worst = -1;
  std::string where;
  int64_t num_wrong = 0;
  const auto total_rows = static_cast<int64_t>(logits.size()) / stride;
  for (int64_t row = 0; row < total_rows; ++row) {
    const RowView view = row < s.num_rows ? reference.rows()[static_cast<size_t>(row)] : RowView{};
    for (int64_t key = 0; key < stride; ++key) {
      const float got = logits[static_cast<size_t>(row * stride + key)];
      if (row < s.num_rows && key >= view.begin && key < view.end) {
        if (key % step != row % step) continue;
        const auto want = reference.at(static_cast<int>(row), static_cast<int>(key));
        double ratio = std::fabs(got - want.value) / want.bound;
        if (std::isnan(want.value)) {
          ratio = std::isnan(got) ? 0 : 1e30;
        } else if (!std::isfinite(got)) {
          ratio = 1e30;
        }
        if (ratio > worst) {
          worst = ratio;
          where = fmt::format("row {}, key {}: got {}, reference {} (bound {})", row, key, got,
                              want.value, want.bound);
        }
        continue;
      }
      const bool fill =
          row < s.num_rows && key < s.num_keys && outside == OutsideRange::kNegativeInfinity;
      const bool right = fill ? got == -std::numeric_limits<float>::infinity()
                              : std::bit_cast<uint32_t>(got) == 0xFFFFFFFFU;
      if (!right && num_wrong++ == 0) {
        where = fmt::format("row {}, key {} outside of the row's range: {}", row, key, got);
      }
    }
  }
  if (num_wrong > 0) return fmt::format("{} values outside of ranges: {}", num_wrong, where);
  return worst <= 1.0 ? std::string() : where;
}

}  // namespace volley::gemm
