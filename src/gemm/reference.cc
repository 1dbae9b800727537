#include "gemm/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "gemm/fp4.h"
#include "gemm/quantize.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

double element(const std::vector<uint8_t>& bytes, MmaKind mma, int64_t index) {
  if (has_fp8_tokens(mma)) return e4m3_to_float(bytes[static_cast<size_t>(index)]);
  uint16_t bits = 0;
  std::memcpy(&bits, bytes.data() + 2 * index, 2);
  return bf16_to_float(bits);
}

std::vector<uint8_t> to_bf16_bytes(const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * 2);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = float_to_bf16(values[i]);
    std::memcpy(bytes.data() + 2 * i, &bits, 2);
  }
  return bytes;
}

// Uniform sums are close enough to normal, and cheap.
std::vector<float> random_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  std::vector<float> values(static_cast<size_t>(rows * cols));
  uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  const auto next = [&state] {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  };
  for (int64_t r = 0; r < rows; ++r) {
    const float row_scale = next() % 16 == 0 ? 30.0F : 1.0F;
    for (int64_t c = 0; c < cols; ++c) {
      const uint64_t bits = next();
      const auto sum = static_cast<float>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) +
                                          (bits >> 32 & 0xFFFF) + (bits >> 48));
      values[static_cast<size_t>(r * cols + c)] = row_scale * (sum / 65536.0F - 2.0F) * 1.7F;
    }
  }
  return values;
}

}  // namespace

std::vector<int32_t> row_weights(const GemmShape& shape, std::span<const int32_t> groups) {
  const int slabs = has_slabs(shape.grouping) ? shape.num_groups : 1;
  std::vector<int32_t> weights(static_cast<size_t>(int64_t{shape.m} * slabs), -1);
  switch (shape.grouping) {
    case Grouping::kDense:
    case Grouping::kAlongK:
      std::fill(weights.begin(), weights.end(), 0);
      break;
    case Grouping::kRowIndex:
      std::copy(groups.begin(), groups.end(), weights.begin());
      break;
    case Grouping::kPrefixSum: {
      int begin = 0;
      for (int g = 0; g < shape.num_groups; ++g) {
        const int end = std::min(std::max(groups[static_cast<size_t>(g)], begin), shape.m);
        for (int r = round_up(begin, shape.group_align); r < end; ++r) {
          weights[static_cast<size_t>(r)] = g;
        }
        begin = end;
      }
      break;
    }
    case Grouping::kMasked:
      for (int g = 0; g < shape.num_groups; ++g) {
        const int count = std::clamp(groups[static_cast<size_t>(g)], 0, shape.m);
        std::fill_n(weights.begin() + int64_t{g} * shape.m, count, g);
      }
      break;
  }
  return weights;
}

std::vector<Columns> group_columns(const GemmShape& shape, std::span<const int32_t> groups) {
  std::vector<Columns> columns;
  int end = 0;
  for (const int32_t value : groups) {
    const int begin = round_up(end, kQuantGroup);
    end = std::min(std::max(value, end), shape.k);
    columns.push_back({begin, std::max(round_up(end, kQuantGroup), begin)});
  }
  return columns;
}

ReferenceValue reference_value(const HostProblem& problem, std::span<const int32_t> weights,
                               int64_t row, int64_t col) {
  const GemmShape& shape = problem.shape;
  const int weight = weights[static_cast<size_t>(row)];
  if (weight < 0) return {};
  const bool fp8 = has_fp8_tokens(shape.mma), fp4 = has_fp4_weights(shape.mma);
  const bool along_k = shape.grouping == Grouping::kAlongK;
  const int64_t d_slab = row / shape.m, in_slab = row % shape.m, blocks = shape.k / kQuantGroup;
  const int64_t slab = along_k ? 0 : d_slab, a_row = slab * shape.m + in_slab;
  const int64_t n_groups = ceil_div(shape.n, kQuantGroup);
  Columns columns = {0, shape.k};
  if (along_k) columns = group_columns(shape, problem.groups)[static_cast<size_t>(d_slab)];
  ReferenceValue out;
  for (int64_t block = columns.begin / kQuantGroup; block < columns.end / kQuantGroup; ++block) {
    double sum = 0, magnitude = 0;
    for (int64_t i = block * kQuantGroup; i < (block + 1) * kQuantGroup; ++i) {
      const int64_t in_b = (weight * int64_t{shape.n} + col) * shape.k + i;
      const double product =
          element(problem.a, shape.mma, a_row * shape.k + i) *
          (fp4 ? problem.b_values[static_cast<size_t>(in_b)] : element(problem.b, shape.mma, in_b));
      sum += product;
      magnitude += std::fabs(product);
    }
    double scale = 1;
    if (fp8) {
      scale = problem.a_scale[static_cast<size_t>((slab * blocks + block) * problem.a_scale_stride +
                                                  in_slab)];
      if (shape.mma == MmaKind::kFp8Rows) {
        scale *= problem.b_scale[static_cast<size_t>(block * shape.n + col)];
      } else if (!fp4) {
        scale *= problem.b_scale[static_cast<size_t>(
            (weight * n_groups + col / kQuantGroup) * blocks + block)];
      }
    }
    out.value += scale * sum;
    out.magnitude += std::fabs(scale) * magnitude;
  }
  if (!problem.c.empty()) {
    const double c = problem.c[static_cast<size_t>(row * shape.n + col)];
    out.value += c;
    out.magnitude += std::fabs(c);
  }
  return out;
}

double error_bound(const GemmShape& shape, const ReferenceValue& reference) {
  // Inside a 128-byte block the tensor core aligns products to the largest and keeps, for FP8, 13
  // bits of fraction beside it: each of a block's k/32 additions loses less than one unit of the
  // last place for every product. BF16 products are kept to float's 24 bits. Float adds of blocks
  // and segments follow; then the output's own rounding.
  const double blocks = static_cast<double>(shape.k) / kQuantGroup;
  // NV weights are two products each: twice as many additions.
  const double in_block = shape.mma == MmaKind::kBf16    ? std::ldexp(1.0, -21)
                          : shape.mma == MmaKind::kNvFp4 ? std::ldexp(1.0, -11)
                                                         : std::ldexp(1.0, -12);
  const double between = (blocks + 5) * std::ldexp(1.0, -23);
  const double rounding = shape.out == OutKind::kBf16 ? std::ldexp(1.0, -8) : std::ldexp(1.0, -23);
  return reference.magnitude * (in_block + between) + std::fabs(reference.value) * rounding + 1e-30;
}

HostProblem random_problem(const GemmShape& shape, std::vector<int32_t> groups, uint64_t seed,
                           bool with_c) {
  HostProblem problem;
  problem.shape = shape;
  problem.groups = std::move(groups);
  const int64_t k = shape.k;
  const auto a = random_matrix(int64_t{shape.m} * problem.num_a_slabs(), k, 2 * seed + 1);
  const auto b = random_matrix(int64_t{problem.num_weights()} * shape.n, k, 2 * seed + 2);
  if (with_c) problem.c = random_matrix(problem.num_rows(), shape.n, 2 * seed + 3);
  if (shape.mma == MmaKind::kBf16) {
    problem.a = to_bf16_bytes(a);
    problem.b = to_bf16_bytes(b);
    return problem;
  }
  for (int64_t slab = 0; slab < problem.num_a_slabs(); ++slab) {
    const auto part = quantize_rows(std::span(a).subspan(static_cast<size_t>(slab * shape.m * k),
                                                         static_cast<size_t>(shape.m * k)),
                                    shape.m, k);
    CHECK(part.has_value());
    problem.a.insert(problem.a.end(), part->values.begin(), part->values.end());
    problem.a_scale.insert(problem.a_scale.end(), part->scales.begin(), part->scales.end());
    problem.a_scale_stride = part->scale_stride;
  }
  if (has_fp4_weights(shape.mma)) {
    const auto weight = quantize_fp4(b, shape.mma, shape.num_groups, shape.n, k);
    CHECK(weight.has_value());
    const Fp4Matrix view = weight->view(shape.mma, shape.num_groups, shape.n, k);
    auto values = dequantize_fp4(view);
    auto packed = pack_fp4(view);
    CHECK(values.has_value() && packed.has_value());
    CHECK_EQ(packed->num_rounded, 0);
    problem.b_values = std::move(*values);
    problem.b = std::move(packed->tiles);
    problem.b_scale = std::move(packed->row_scales);
    return problem;
  }
  if (shape.mma == MmaKind::kFp8Rows) {
    auto part = quantize_rows(b, shape.n, k);
    CHECK(part.has_value());
    CHECK_EQ(part->scale_stride, shape.n);
    problem.b = std::move(part->values);
    problem.b_scale = std::move(part->scales);
    return problem;
  }
  auto weight = quantize_weight(b, shape.num_groups, shape.n, k);
  CHECK(weight.has_value());
  problem.b = std::move(weight->values);
  problem.b_scale = std::move(weight->scales);
  return problem;
}

}  // namespace volley::gemm
