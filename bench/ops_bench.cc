// Times the CPU ops on the matrices of whole models: checks, then times.
//
//   build/ops_bench --shape demo,qwen3-0.6b --rows 1,16 --threads 2
//
// Every layer has weights of its own, so that a pass reads as much memory as a real one. The read
// bandwidth that percentages refer to is measured in the same run, with the same threads.

#include <emmintrin.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ref/ref_ops.h"
#include "tensor/float_formats.h"

namespace volley {
namespace {

struct ModelShape {
  std::string_view name;
  int64_t num_layers, hidden, intermediate, vocab;
  int num_heads, num_kv_heads, head_dim;
};

constexpr ModelShape kShapes[] = {
    {"demo", 8, 512, 1536, 8192, 8, 2, 64},
    {"qwen3-0.6b", 28, 1024, 3072, 151936, 16, 8, 128},
    {"qwen3-1.7b", 28, 2048, 6144, 151936, 16, 8, 128},
};

template <class T>
T unwrap(Result<T> result) {
  if (!result) {
    fmt::print(stderr, "ops_bench: {}\n", result.error().message);
    std::exit(2);
  }
  return std::move(*result);
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}
double median(const std::vector<double>& values) {
  return quantile(values, 0.5);
}

// Best of several sums over 1 GiB; with software prefetching too, as some machines need it.
double read_bandwidth(Ops& ops, int num_threads) {
  const int64_t num_bytes = int64_t{1} << 30;
  const Tensor memory = unwrap(ops.allocate(1, num_bytes / 4, DType::kF32));
  std::memset(memory.view().data, 1, static_cast<size_t>(num_bytes));
  ThreadPool pool(num_threads);
  std::vector<int64_t> sums(static_cast<size_t>(num_threads) * 8);
  double best = 0;
  for (int round = 0; round < 8; ++round) {
    const int64_t ahead = round % 2 == 0 ? 0 : 4096;
    const double start = now_s();
    pool.split(num_bytes / 4096, 1, [&](ItemRange range, int thread_idx) {
      const char* p = static_cast<const char*>(memory.view().data);
      __m128i sum[4] = {};
      for (int64_t at = range.begin * 4096; at < range.end * 4096; at += 64) {
        if (ahead > 0) _mm_prefetch(p + at + ahead, _MM_HINT_T0);
        const auto* line = reinterpret_cast<const __m128i*>(p + at);
        for (int i = 0; i < 4; ++i) sum[i] = _mm_add_epi64(sum[i], _mm_load_si128(line + i));
      }
      const __m128i all =
          _mm_add_epi64(_mm_add_epi64(sum[0], sum[1]), _mm_add_epi64(sum[2], sum[3]));
      sums[thread_idx * 8] = _mm_cvtsi128_si64(all);
    });
    best = std::max(best, static_cast<double>(num_bytes) / (now_s() - start));
  }
  return sums[0] == 42 ? 0 : best;  // keeps the sums
}

std::vector<uint16_t> random_bf16(int64_t count) {
  std::mt19937 random(1);
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (uint16_t& x : values)
    x = float_to_bf16((static_cast<float>(random() % 2048) - 1024.0f) / 16384.0f);
  return values;
}

void fill_random(const TensorView& x) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (int64_t row = 0; row < x.rows; ++row) {
    for (int64_t c = 0; c < x.cols; ++c) x.row<float>(row)[c] = normal(random);
  }
}

struct Layer {
  std::unique_ptr<PackedMatrix> qkv, o, gate_up, down;
};

struct Model {
  const ModelShape& shape;
  std::vector<Layer> layers;
  std::unique_ptr<PackedMatrix> head;
  QkvLayout layout;

  Model(Ops& ops, const ModelShape& s) : shape(s), layout{s.num_heads, s.num_kv_heads, s.head_dim} {
    const int64_t widest = std::max({s.vocab, s.intermediate, layout.cols()});
    const std::vector<uint16_t> source = random_bf16(widest * std::max(s.hidden, s.intermediate));
    const auto matrix = [&](int64_t n, int64_t k) {
      return HostMatrix{HostTensor::of(source.data(), DType::kBF16, {n, k}), {}};
    };
    const auto pack = [&](int64_t n, int64_t k) {
      const HostMatrix m = matrix(n, k);
      return unwrap(ops.pack_matrix({&m, 1}));
    };
    const double start = now_s();
    for (int64_t i = 0; i < s.num_layers; ++i) {
      layers.push_back({pack(layout.cols(), s.hidden), pack(s.hidden, q_cols()),
                        unwrap(ops.pack_gate_up(matrix(s.intermediate, s.hidden),
                                                matrix(s.intermediate, s.hidden))),
                        pack(s.hidden, s.intermediate)});
    }
    head = pack(s.vocab, s.hidden);
    int64_t bytes = head->num_bytes();
    for (const Layer& l : layers)
      bytes += l.qkv->num_bytes() + l.o->num_bytes() + l.gate_up->num_bytes() + l.down->num_bytes();
    fmt::print("\n{}: {:.0f} MB of weights, packed in {:.2f} s\n", s.name,
               static_cast<double>(bytes) * 1e-6, now_s() - start);
  }
  int64_t q_cols() const { return int64_t{shape.num_heads} * shape.head_dim; }
};

// A few rows of one matrix against ops/ref, so that no time is printed for a wrong result.
void check(Ops& ops, float tolerance) {
  const int64_t m = 17, n = 96, k = 256;
  auto ref = make_ref_ops();
  const std::vector<uint16_t> source = random_bf16(n * k);
  const HostMatrix matrix{HostTensor::of(source.data(), DType::kBF16, {n, k}), {}};
  const Tensor a = unwrap(ops.allocate(m, k, DType::kF32));
  const Tensor got = unwrap(ops.allocate(m, n, DType::kF32));
  const Tensor want = unwrap(ops.allocate(m, n, DType::kF32));
  fill_random(a);
  ops.matmul(a, *unwrap(ops.pack_matrix({&matrix, 1})), nullptr, got);
  ref->matmul(a, *unwrap(ref->pack_matrix({&matrix, 1})), nullptr, want);
  for (int64_t i = 0; i < m * n; ++i)
    CHECK_LT(std::abs(got.view().row<float>(0)[i] - want.view().row<float>(0)[i]), tolerance);
}

enum Part { kQkv, kO, kGateUp, kDown, kHead, kNumParts };
constexpr std::string_view kPartNames[] = {"qkv", "o", "gate_up", "down", "head", "pass"};

struct PassTimes {
  double seconds[kNumParts + 1] = {};  // medians of one call; the last: all matmuls of a pass
  double low[kNumParts + 1] = {};      // tenth percentiles
  double bytes[kNumParts] = {};
};

PassTimes time_pass(Ops& ops, const Model& model, int64_t m) {
  const ModelShape& s = model.shape;
  const auto tensor = [&](int64_t cols) { return unwrap(ops.allocate(m, cols, DType::kF32)); };
  const Tensor x = tensor(s.hidden), qkv = tensor(model.layout.cols()),
               attn = tensor(model.q_cols());
  const Tensor act = tensor(s.intermediate), residual = tensor(s.hidden);
  fill_random(x);
  fill_random(attn);
  std::vector<int32_t> token_ids(static_cast<size_t>(m));
  std::vector<double> samples[kNumParts + 1];
  PassTimes times;
  const auto timed = [&](Part part, const PackedMatrix& w, bool keep, auto call) {
    const double start = now_s();
    call();
    if (keep) samples[part].push_back(now_s() - start);
    times.bytes[part] = static_cast<double>(w.num_bytes());
  };
  const double started = now_s();
  for (int round = 0; round < 2 || (round < 12 && now_s() - started < 0.5); ++round) {
    const bool keep = round > 0;
    const double start = now_s();
    for (const Layer& l : model.layers) {
      timed(kQkv, *l.qkv, keep, [&] { ops.matmul(x, *l.qkv, nullptr, qkv); });
      timed(kO, *l.o, keep, [&] { ops.matmul_add(attn, *l.o, residual); });
      timed(kGateUp, *l.gate_up, keep, [&] { ops.swiglu(x, *l.gate_up, act); });
      timed(kDown, *l.down, keep, [&] { ops.matmul_add(act, *l.down, residual); });
    }
    // A prefill needs one row of logits.
    const int64_t head_rows = m <= 64 ? m : 1;
    timed(kHead, *model.head, keep, [&] {
      ops.matmul_argmax(x.first_rows(head_rows), *model.head,
                        std::span(token_ids).first(static_cast<size_t>(head_rows)));
    });
    if (keep) samples[kNumParts].push_back(now_s() - start);
  }
  for (int part = 0; part <= kNumParts; ++part) {
    times.seconds[part] = median(samples[part]);
    times.low[part] = quantile(samples[part], 0.1);
  }
  return times;
}

void bench_matmuls(Ops& ops, const Model& model, const std::vector<int64_t>& row_counts,
                   double bandwidth) {
  fmt::print("{:>5} {:>8} {:>10} {:>10} {:>8} {:>7} {:>8} {:>9}\n", "rows", "matrix", "us",
             "p10 us", "GB/s", "% read", "x first", "GFLOP/s");
  PassTimes one;
  for (int64_t m : row_counts) {
    const PassTimes times = time_pass(ops, model, m);
    if (m == row_counts.front()) one = times;
    double pass_bytes = static_cast<double>(model.head->num_bytes());
    for (int part = 0; part < kHead; ++part)
      pass_bytes += times.bytes[part] * static_cast<double>(model.layers.size());
    for (int part = 0; part <= kNumParts; ++part) {
      if (part == kHead && m > 64) continue;
      const double rate =
          (part == kNumParts ? pass_bytes : times.bytes[part]) / times.seconds[part];
      fmt::print("{:>5} {:>8} {:>10.1f} {:>10.1f} {:>8.2f} {:>7.1f} {:>8.2f} {:>9.0f}\n", m,
                 kPartNames[part], times.seconds[part] * 1e6, times.low[part] * 1e6, rate * 1e-9,
                 100 * rate / bandwidth, times.seconds[part] / one.seconds[part],
                 rate * static_cast<double>(m) * 1e-9);
    }
  }
}

// Attention of one layer at a time, over as many layers as the model has.
void bench_attention(Ops& ops, const Model& model, double bandwidth) {
  const ModelShape& s = model.shape;
  const int page_size = 64;
  fmt::print("{:>5} {:>8} {:>10} {:>8} {:>7} {:>8} {:>8}\n", "rows", "context", "attend us", "GB/s",
             "% read", "rope us", "norm us");
  for (int context : {128, 2048, 8192}) {
    const int num_pages = context / page_size + 1;
    auto kv = unwrap(ops.create_kv({.num_layers = static_cast<int>(s.num_layers),
                                    .num_kv_heads = s.num_kv_heads,
                                    .head_dim = s.head_dim,
                                    .num_pages = num_pages,
                                    .page_size = page_size}));
    std::vector<int32_t> pages(static_cast<size_t>(num_pages));
    std::iota(pages.begin(), pages.end(), 0);
    std::shuffle(pages.begin(), pages.end(), std::mt19937(3));
    const int32_t* tables[] = {pages.data()};
    const Tensor rope = unwrap(ops.allocate(context, s.head_dim, DType::kF32));
    fill_random(rope);
    for (int64_t m : {1, 16, 512}) {
      if (m > context) continue;
      const Tensor qkv = unwrap(ops.allocate(m, model.layout.cols(), DType::kF32));
      const Tensor out = unwrap(ops.allocate(m, model.q_cols(), DType::kF32));
      const Tensor x = unwrap(ops.allocate(m, s.hidden, DType::kF32));
      const Tensor weight = unwrap(ops.allocate(1, s.hidden, DType::kF32));
      std::vector<int32_t> positions, sequences(static_cast<size_t>(m), 0), begin = sequences, end;
      for (int64_t row = 0; row < m; ++row) {
        positions.push_back(static_cast<int32_t>(context - m + row));
        end.push_back(positions.back() + 1);
      }
      const RowPlaces rows{positions, sequences, tables};
      fill_random(qkv);
      std::vector<double> attend, store, norm;
      for (int round = 0; round < 3; ++round) {
        for (int layer = 0; layer < static_cast<int>(s.num_layers); ++layer) {
          const double t0 = now_s();
          ops.rope_and_store(qkv, model.layout, nullptr, nullptr, 1e-6f, rope, rows, *kv, layer);
          const double t1 = now_s();
          ops.attention(qkv, model.layout, rows, {begin, end}, *kv, layer, out);
          const double t2 = now_s();
          ops.rms_norm(x, weight, 1e-6f, x);
          norm.push_back(now_s() - t2);
          attend.push_back(t2 - t1);
          store.push_back(t1 - t0);
        }
      }
      const double rate =
          static_cast<double>(kv->num_bytes()) / static_cast<double>(s.num_layers) / median(attend);
      fmt::print("{:>5} {:>8} {:>10.1f} {:>8.2f} {:>7.1f} {:>8.1f} {:>8.1f}\n", m, context,
                 median(attend) * 1e6, rate * 1e-9, 100 * rate / bandwidth, median(store) * 1e6,
                 median(norm) * 1e6);
    }
  }
}

void bench_dispatch(int num_threads) {
  ThreadPool pool(num_threads);
  std::vector<double> samples;
  for (int i = 0; i < 20000; ++i) {
    const double start = now_s();
    pool.run([](int) {});
    samples.push_back(now_s() - start);
  }
  fmt::print("dispatch to {} threads: {:.2f} us\n", num_threads, median(samples) * 1e6);
}

}  // namespace
}  // namespace volley

int main(int argc, char** argv) {
  using namespace volley;
  std::vector<std::string> shapes = {"demo", "qwen3-0.6b"};
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 17, 32, 64, 512};
  std::string isa = "auto";
  std::string format = "bf16";
  int num_threads = static_cast<int>(std::thread::hardware_concurrency());
  bool attention = true;
  CLI::App app("Times the CPU ops on the matrices of whole models");
  app.add_option("--shape", shapes, "demo, qwen3-0.6b, qwen3-1.7b")->delimiter(',');
  app.add_option("--rows", rows, "rows of a call; ratios refer to the first")->delimiter(',');
  app.add_option("--isa", isa, "auto, avx2, avx512, amx-bf16");
  app.add_option("--weight-format", format, "bf16, fp8, int8, int4");
  app.add_option("--threads", num_threads);
  app.add_flag("!--no-attention", attention);
  CLI11_PARSE(app, argc, argv);

  auto ops = unwrap(make_cpu_ops(
      {.num_threads = num_threads,
       .isa = unwrap(parse_isa(isa)),
       .weight_format = weight_format_from_name(format).value_or(WeightFormat::kBf16)}));
  check(*ops, format == "int4" ? 0.2f : format == "fp8" ? 0.1f : 0.02f);
  const double bandwidth = read_bandwidth(*ops, num_threads);
  fmt::print("{}, {} threads, read bandwidth {:.2f} GB/s\n", ops->name(), num_threads,
             bandwidth * 1e-9);
  bench_dispatch(num_threads);
  for (const std::string& name : shapes) {
    const auto* shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                     [&](const ModelShape& s) { return s.name == name; });
    if (shape == std::end(kShapes)) {
      fmt::print(stderr, "ops_bench: unknown shape '{}'\n", name);
      return 2;
    }
    const Model model(*ops, *shape);
    bench_matmuls(*ops, model, rows, bandwidth);
    if (attention) bench_attention(*ops, model, bandwidth);
  }
  return 0;
}
