// Law 1, bit for bit: a row's result does not depend on the rows beside it, on where it stands, on
// the number of threads, or on how its sequence was cut into calls.

#include <gtest/gtest.h>

#include <functional>
#include <numeric>

#include "ops/cpu/cpu_ops.h"
#include "ops/ops_test_util.h"

namespace volley {
namespace {

using namespace ops_test;

class RowInvarianceTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!isa_available(GetParam()))
      GTEST_SKIP() << "not run: this machine cannot run the " << isa_name(GetParam()) << " unit";
  }
  std::unique_ptr<Ops> ops(int num_threads, WeightFormat format = WeightFormat::kBf16) const {
    return *make_cpu_ops({.num_threads = num_threads, .isa = GetParam(), .weight_format = format});
  }
  void matmuls(WeightFormat format);
};

INSTANTIATE_TEST_SUITE_P(Units, RowInvarianceTest,
                         testing::Values(Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16),
                         [](const auto& info) {
                           std::string name(isa_name(info.param));
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// Runs `op` (x [m, k] to out [m, n]) on 2048 rows at once, then on pieces of it, alone and at other
// places, and wants the same bits.
using RowOp = std::function<void(Ops&, const TensorView& x, const TensorView& out)>;

void expect_row_invariant(const std::vector<std::unique_ptr<Ops>>& all_ops, int64_t k, int64_t n,
                          const RowOp& op, const std::string& what) {
  const int64_t kRows = 2048;
  Floats x = random_floats(kRows * k, 90, 1.0f, false), whole(kRows * n);
  op(*all_ops[0], view(x, kRows, k), view(whole, kRows, n));
  for (const auto& ops : all_ops) {
    for (int64_t m : {1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100, 511, 513, 1025, 2048}) {
      for (int64_t first : {int64_t{0}, int64_t{5}, kRows / 2 - 3, kRows - m}) {
        if (first + m > kRows || first < 0) continue;
        Floats out(static_cast<size_t>(m * n));
        op(*ops, view(x, kRows, k).row_range(first, m), view(out, m, n));
        expect_same_bits(out.data(), &whole[first * n], m * n,
                         fmt::format("{} rows {} to {}", what, first, first + m));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

void RowInvarianceTest::matmuls(WeightFormat format) {
  // Tails everywhere, and one shape large enough that every thread has work.
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{72, 100}, {192, 160}, {40, 600}}) {
    const DType dtype = format == WeightFormat::kFp8 ? DType::kF8E4M3 : DType::kBF16;
    const Weights weights(n, k, dtype, 1), up(n, k, DType::kF16, 2);
    Floats bias = random_floats(n, 3);
    const TensorView bias_view = view(bias, 1, n);
    std::vector<std::unique_ptr<Ops>> all_ops;
    std::vector<std::unique_ptr<PackedMatrix>> matrices, gate_ups;
    for (int num_threads : {1, 2, 5}) {
      all_ops.push_back(ops(num_threads, format));
      matrices.push_back(*all_ops.back()->pack_matrix({&weights.matrix, 1}));
      gate_ups.push_back(*all_ops.back()->pack_gate_up(weights.matrix, up.matrix));
    }
    // Each backend instance has matrices of its own.
    const auto index = [&](Ops& ops) {
      size_t i = 0;
      while (all_ops[i].get() != &ops) ++i;
      return i;
    };
    expect_row_invariant(
        all_ops, k, n,
        [&](Ops& ops, const TensorView& x, const TensorView& out) {
          ops.matmul(x, *matrices[index(ops)], &bias_view, out);
        },
        "matmul");
    expect_row_invariant(
        all_ops, k, n,
        [&](Ops& ops, const TensorView& x, const TensorView& out) {
          ops.matmul_add(x, *matrices[index(ops)], out);
        },
        "matmul_add");
    expect_row_invariant(
        all_ops, k, n,
        [&](Ops& ops, const TensorView& x, const TensorView& out) {
          ops.swiglu(x, *gate_ups[index(ops)], out);
        },
        "swiglu");
    expect_row_invariant(
        all_ops, k, 1,
        [&](Ops& ops, const TensorView& x, const TensorView& out) {
          std::vector<int32_t> token_ids(static_cast<size_t>(x.rows));
          ops.matmul_argmax(x, *matrices[index(ops)], token_ids);
          for (int64_t row = 0; row < x.rows; ++row)
            out.row<float>(row)[0] = static_cast<float>(token_ids[row]);
        },
        "matmul_argmax");
    expect_row_invariant(
        all_ops, n, 8,
        [&](Ops& ops, const TensorView& x, const TensorView& out) {
          std::vector<int32_t> token_ids(static_cast<size_t>(x.rows) * 4);
          std::vector<float> probabilities(token_ids.size());
          ops.top_candidates(x, token_ids, probabilities);
          for (int64_t row = 0; row < x.rows; ++row) {
            for (int64_t i = 0; i < 4; ++i) {
              out.row<float>(row)[i] = static_cast<float>(token_ids[row * 4 + i]);
              out.row<float>(row)[4 + i] = probabilities[row * 4 + i];
            }
          }
        },
        "top_candidates");
  }
}

TEST_P(RowInvarianceTest, Matmuls) {
  matmuls(WeightFormat::kBf16);
}
TEST_P(RowInvarianceTest, Fp8Matmuls) {
  matmuls(WeightFormat::kFp8);
}
TEST_P(RowInvarianceTest, Int8Matmuls) {
  matmuls(WeightFormat::kInt8);
}
TEST_P(RowInvarianceTest, Int4Matmuls) {
  matmuls(WeightFormat::kInt4);
}

TEST_P(RowInvarianceTest, Norms) {
  std::vector<std::unique_ptr<Ops>> all_ops;
  for (int num_threads : {1, 2, 5}) all_ops.push_back(ops(num_threads));
  for (int64_t k : {100, 512}) {
    Floats weight = random_floats(k, 4);
    const TensorView weight_view = view(weight, 1, k);
    expect_row_invariant(
        all_ops, k, k,
        [&](Ops& ops, const TensorView& x, const TensorView& out) {
          ops.rms_norm(x, weight_view, 1e-6f, out);
        },
        "rms_norm");
  }
}

// Two sequences of kLength positions. Every way of cutting them into calls must give each row the
// bits of the first way.
struct SequenceModel {
  static constexpr int kLength = 330;
  QkvLayout layout;
  int window;         // 0: none
  int bidirectional;  // rows in runs of this many see their whole run, as in a draft block; 0:
                      // causal
  Floats qkv[2];
  Floats rope;
  Floats q_weight, k_weight;

  SequenceModel(const QkvLayout& layout, int window, int bidirectional)
      : layout(layout),
        window(window),
        bidirectional(bidirectional),
        rope(rope_table(kLength, layout.head_dim)),
        q_weight(random_floats(layout.head_dim, 5)),
        k_weight(random_floats(layout.head_dim, 6)) {
    for (int s = 0; s < 2; ++s)
      qkv[s] = random_floats(kLength * layout.cols(), static_cast<uint64_t>(7 + s), 1.0f, false);
  }

  int end_of(int position) const {
    if (bidirectional == 0) return position + 1;
    return std::min(kLength, (position / bidirectional + 1) * bidirectional);
  }

  // Both sequences in calls of `chunk` rows each, side by side in one call. Pages are dealt out by
  // `seed`; rows of the second sequence come first when `swap`.
  std::array<Floats, 2> run(Ops& ops, int chunk, int page_size, uint64_t seed, bool swap) const {
    const int pages_each = (kLength + page_size - 1) / page_size;
    auto kv = *ops.create_kv({.num_layers = 1,
                              .num_kv_heads = layout.num_kv_heads,
                              .head_dim = layout.head_dim,
                              .num_pages = 2 * pages_each,
                              .page_size = page_size});
    std::vector<int32_t> pages(static_cast<size_t>(2 * pages_each));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
    const int32_t* tables[2] = {pages.data(), pages.data() + pages_each};
    const int64_t out_cols = layout.num_heads * layout.head_dim;
    std::array<Floats, 2> outs = {Floats(kLength * out_cols), Floats(kLength * out_cols)};
    for (int first = 0; first < kLength; first += chunk) {
      const int count = std::min(chunk, kLength - first);
      std::vector<int32_t> positions, sequences, begin, end;
      Floats x, out(static_cast<size_t>(2 * count * out_cols));
      for (int turn = 0; turn < 2; ++turn) {
        const int s = swap ? 1 - turn : turn;
        for (int p = first; p < first + count; ++p) {
          positions.push_back(p);
          sequences.push_back(s);
          begin.push_back(window > 0 ? std::max(0, p + 1 - window) : 0);
          end.push_back(end_of(p));
        }
        x.insert(x.end(), qkv[s].begin() + first * layout.cols(),
                 qkv[s].begin() + (first + count) * layout.cols());
      }
      Floats rope_copy = rope, q_copy = q_weight, k_copy = k_weight;
      const TensorView q_norm = view(q_copy, 1, layout.head_dim);
      const TensorView k_norm = view(k_copy, 1, layout.head_dim);
      const RowPlaces rows{positions, sequences, tables};
      const TensorView x_view = view(x, 2 * count, layout.cols());
      ops.rope_and_store(x_view, layout, &q_norm, &k_norm, 1e-6f,
                         view(rope_copy, kLength, layout.head_dim), rows, *kv, 0);
      ops.attention(x_view, layout, rows, {begin, end}, *kv, 0, view(out, 2 * count, out_cols));
      for (int turn = 0; turn < 2; ++turn) {
        const int s = swap ? 1 - turn : turn;
        std::copy_n(out.begin() + turn * count * out_cols, count * out_cols,
                    outs[s].begin() + first * out_cols);
      }
    }
    return outs;
  }
};

TEST_P(RowInvarianceTest, AttentionHoweverCut) {
  auto one = ops(1), three = ops(3);
  for (const QkvLayout& layout : {QkvLayout{4, 2, 64}, QkvLayout{3, 1, 80}, QkvLayout{2, 2, 128}}) {
    for (const auto& [window, bidirectional] : {std::pair{0, 0}, {50, 0}, {0, 16}, {90, 16}}) {
      const SequenceModel model(layout, window, bidirectional);
      const auto want = model.run(*one, SequenceModel::kLength, 64, 1, false);
      for (int chunk : {1, 7, 16, 64, 96, SequenceModel::kLength}) {
        // A bidirectional run must be stored whole before any of its rows attends.
        if (bidirectional > 0 && chunk % bidirectional != 0) continue;
        for (int page_size : {32, 96}) {
          const auto got = model.run(chunk % 2 == 0 ? *one : *three, chunk, page_size,
                                     static_cast<uint64_t>(chunk), chunk == 7);
          for (int s = 0; s < 2; ++s)
            expect_same_bits(got[s].data(), want[s].data(), static_cast<int64_t>(want[s].size()),
                             fmt::format("head_dim {} window {} bidirectional {} chunk {} page {}",
                                         layout.head_dim, window, bidirectional, chunk, page_size));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// A row sees the same bits whatever draft was stored behind it and rolled back.
TEST_P(RowInvarianceTest, RolledBackDraftsLeaveNoTrace) {
  const QkvLayout layout{4, 2, 64};
  auto backend = ops(2);
  const SequenceModel model(layout, 0, 0);
  const auto attend = [&](bool with_draft) {
    auto kv = *backend->create_kv(
        {.num_layers = 1, .num_kv_heads = 2, .head_dim = 64, .num_pages = 12, .page_size = 32});
    std::vector<int32_t> pages(12);
    std::iota(pages.begin(), pages.end(), 0);
    const int32_t* tables[1] = {pages.data()};
    Floats x = model.qkv[0], rope = model.rope, out(256);
    const auto store = [&](int first, int count, float factor) {
      std::vector<int32_t> positions(static_cast<size_t>(count)), sequences(positions.size(), 0);
      std::iota(positions.begin(), positions.end(), first);
      Floats rows(x.begin() + first * layout.cols(), x.begin() + (first + count) * layout.cols());
      for (float& value : rows) value *= factor;
      backend->rope_and_store(view(rows, count, layout.cols()), layout, nullptr, nullptr, 1e-6f,
                              view(rope, SequenceModel::kLength, 64),
                              {positions, sequences, tables}, *kv, 0);
    };
    if (with_draft) store(0, 300, -37.0f);
    store(0, 201, 1.0f);
    const std::vector<int32_t> position = {200}, sequence = {0}, begin = {0}, end = {201};
    backend->attention(view(x, SequenceModel::kLength, layout.cols()).row_range(200, 1), layout,
                       {position, sequence, tables}, {begin, end}, *kv, 0, view(out, 1, 256));
    return out;
  };
  const Floats want = attend(false), got = attend(true);
  expect_same_bits(got.data(), want.data(), 256, "after a rollback");
}

// The AVX units do the same arithmetic lane by lane, so they even agree with each other.
TEST(UnitAgreement, Avx2AndAvx512GiveTheSameBits) {
  if (!isa_available(Isa::kAvx2) || !isa_available(Isa::kAvx512))
    GTEST_SKIP() << "not run: this machine lacks avx2 or avx512";
  const Weights gate(90, 130, DType::kBF16, 1), up(90, 130, DType::kBF16, 2);
  Floats x = random_floats(20 * 130, 3, 1.0f, false), a(20 * 90), b(20 * 90);
  std::unique_ptr<Ops> avx2, avx512;
  for (const WeightFormat format :
       {WeightFormat::kFp8, WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kBf16}) {
    avx2 = *make_cpu_ops({.num_threads = 2, .isa = Isa::kAvx2, .weight_format = format});
    avx512 = *make_cpu_ops({.num_threads = 2, .isa = Isa::kAvx512, .weight_format = format});
    for (auto& [ops, out] : {std::pair{avx2.get(), &a}, {avx512.get(), &b}}) {
      ops->swiglu(view(x, 20, 130), **ops->pack_gate_up(gate.matrix, up.matrix),
                  view(*out, 20, 90));
    }
    expect_same_bits(a.data(), b.data(), 20 * 90,
                     fmt::format("swiglu {}", weight_format_name(format)));
  }
  const SequenceModel model({4, 2, 80}, 0, 0);
  const auto first = model.run(*avx2, 50, 32, 1, false),
             second = model.run(*avx512, 33, 64, 2, true);
  for (int s = 0; s < 2; ++s)
    expect_same_bits(first[s].data(), second[s].data(), static_cast<int64_t>(first[s].size()),
                     "attention");
}

}  // namespace
}  // namespace volley
