#include "ops/ref/ref_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace volley {
namespace {

TensorView view(std::vector<float>& data, int64_t rows, int64_t cols) {
  return {data.data(), DType::kF32, rows, cols, cols};
}

// Small integers, so that every expected value is exact and can be done by hand.
struct Fixture {
  std::unique_ptr<Ops> ops = make_ref_ops();
  std::vector<float> weight = {1, 2, 3, 4, 5, 6};  // [3, 2]
  HostMatrix matrix{HostTensor::of(weight.data(), DType::kF32, {3, 2}), {}};
};

TEST(RefOps, MatmulFamily) {
  Fixture f;
  auto w = *f.ops->pack_matrix({&f.matrix, 1});
  std::vector<float> a = {1, 1, -1, 2}, bias = {10, 20, 30}, out(6);
  const TensorView bias_view = view(bias, 1, 3);
  f.ops->matmul(view(a, 2, 2), *w, nullptr, view(out, 2, 3));
  EXPECT_EQ(out, (std::vector<float>{3, 7, 11, 3, 5, 7}));
  f.ops->matmul(view(a, 2, 2), *w, &bias_view, view(out, 2, 3));
  EXPECT_EQ(out, (std::vector<float>{13, 27, 41, 13, 25, 37}));
  f.ops->matmul_add(view(a, 2, 2), *w, view(out, 2, 3));
  EXPECT_EQ(out, (std::vector<float>{16, 34, 52, 16, 30, 44}));
  std::vector<int32_t> token_ids(2);
  f.ops->matmul_argmax(view(a, 2, 2), *w, token_ids);
  EXPECT_EQ(token_ids, (std::vector<int32_t>{2, 2}));
}

TEST(RefOps, StackedPartsAndSwiglu) {
  Fixture f;
  const HostMatrix parts[] = {f.matrix, f.matrix};
  auto stacked = *f.ops->pack_matrix(parts);
  std::vector<float> a = {1, -1}, out(6);
  f.ops->matmul(view(a, 1, 2), *stacked, nullptr, view(out, 1, 6));
  EXPECT_EQ(out, (std::vector<float>{-1, -1, -1, -1, -1, -1}));
  auto gate_up = *f.ops->pack_gate_up(f.matrix, f.matrix);
  EXPECT_EQ(gate_up->n(), 3);
  out.resize(3);
  f.ops->swiglu(view(a, 1, 2), *gate_up, view(out, 1, 3));
  for (float y : out) EXPECT_FLOAT_EQ(y, 1.0f / (1.0f + std::exp(1.0f)));
}

TEST(RefOps, ArgmaxTiesAndNan) {
  Fixture f;
  std::vector<float> weight = {1, 1, 1};  // [3, 1]: a three-way tie
  const HostMatrix matrix{HostTensor::of(weight.data(), DType::kF32, {3, 1}), {}};
  auto w = *f.ops->pack_matrix({&matrix, 1});
  std::vector<float> a = {2, std::numeric_limits<float>::quiet_NaN()};
  std::vector<int32_t> token_ids(2, -1);
  f.ops->matmul_argmax(view(a, 2, 1), *w, token_ids);
  EXPECT_EQ(token_ids, (std::vector<int32_t>{0, 0}));
}

TEST(RefOps, RotatesStoresAndAttends) {
  Fixture f;
  auto kv = *f.ops->create_kv(
      {.num_layers = 2, .num_kv_heads = 1, .head_dim = 2, .num_pages = 3, .page_size = 32});
  const QkvLayout layout{.num_heads = 2, .num_kv_heads = 1, .head_dim = 2};
  std::vector<float> rope(2 * 40);  // a quarter turn at every position
  for (int p = 0; p < 40; ++p) rope[2 * p + 1] = 1.0f;
  // Positions 31 and 32 straddle two pages. Keys and queries are (1, 0), turned to (0, 1).
  std::vector<float> qkv = {1, 0, 1, 0, 1, 0, 5, 7,  //
                            1, 0, 1, 0, 1, 0, 9, 11};
  const std::vector<int32_t> positions = {31, 32}, sequences = {0, 0}, table = {2, 0};
  const int32_t* tables[] = {table.data()};
  const RowPlaces rows{positions, sequences, tables};
  f.ops->rope_and_store(view(qkv, 2, 8), layout, nullptr, nullptr, 1e-6f, view(rope, 40, 2), rows,
                        *kv, 1);
  EXPECT_EQ(qkv[0], 0.0f);
  EXPECT_EQ(qkv[1], 1.0f);
  const std::vector<int32_t> begin = {31, 31}, end = {32, 33};
  std::vector<float> out(8);
  f.ops->attention(view(qkv, 2, 8), layout, rows, {begin, end}, *kv, 1, view(out, 2, 4));
  EXPECT_EQ(out, (std::vector<float>{5, 7, 5, 7, 7, 9, 7, 9}));
}

TEST(RefOps, RejectsBadWeights) {
  Fixture f;
  std::vector<float> other(3);
  const HostMatrix parts[] = {f.matrix, {HostTensor::of(other.data(), DType::kF32, {1, 3}), {}}};
  EXPECT_FALSE(f.ops->pack_matrix(parts));
  EXPECT_FALSE(f.ops->pack_gate_up(parts[0], parts[1]));
  EXPECT_FALSE(f.ops->create_kv(
      {.num_layers = 1, .num_kv_heads = 1, .head_dim = 64, .num_pages = 1, .page_size = 33}));
}

}  // namespace
}  // namespace volley
