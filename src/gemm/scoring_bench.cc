#include "gemm/scoring_bench.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "gemm/bench_tools.h"
#include "gemm/cublaslt_peer.h"
#include "gemm/scoring.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

constexpr double kPeakTflops = 1979;
constexpr double kCopyGbS = 3000;
constexpr size_t kMaxRepeats = 40;

struct BenchCase {
  std::string name;
  ScoringShape shape;
  bool causal = false;  // row i of r sees the keys up to num_keys - r + i
  OutsideRange outside = OutsideRange::kUntouched;
};

std::vector<BenchCase> bench_cases() {
  std::vector<BenchCase> cases;
  for (const KeyKind keys : {KeyKind::kFp8, KeyKind::kMxFp4}) {
    const std::string kind = keys == KeyKind::kFp8 ? "fp8" : "mxfp4";
    for (const int heads : {64, 32}) {
      for (const auto& [rows, num_keys] : {std::pair{2048, 4096}, {4096, 8192}, {4096, 32768}}) {
        for (const bool causal : {false, true}) {
          if (num_keys == 32768 && !causal) continue;
          const ScoringShape shape = {
              .keys = keys, .heads = heads, .num_rows = rows, .num_keys = num_keys};
          cases.push_back({fmt::format("{} prefill{} h{} {}x{}", kind, causal ? " causal" : "",
                                       heads, rows, num_keys),
                           shape, causal});
        }
      }
      for (const int context : {8192, 32768}) {
        for (const int next_n : {1, 2, 3, 4}) {
          if (heads == 32 && next_n % 2 == 1) continue;
          cases.push_back({fmt::format("{} paged h{} 64x{} of {}", kind, heads, next_n, context),
                           {.keys = keys,
                            .paged = true,
                            .heads = heads,
                            .num_rows = 64 * next_n,
                            .num_keys = context,
                            .num_sequences = 64,
                            .next_n = next_n}});
        }
      }
    }
  }
  cases.push_back({"fp8 prefill causal filled h64 4096x8192",
                   {.num_rows = 4096, .num_keys = 8192},
                   true,
                   OutsideRange::kNegativeInfinity});
  cases.push_back({"fp8 paged h64 1x1 of 32768",
                   {.paged = true, .num_rows = 1, .num_keys = 32768, .num_sequences = 1}});
  return cases;
}

class ScoringBench {
 public:
  explicit ScoringBench(const ScoringBenchOptions& options) : options_(options) {}

  Status run() {
    VOLLEY_TRY(gpu_, BenchGpu::open());
    auto compiler = jit::load_nvrtc();
    if (!compiler) return tl::unexpected<Error>(compiler.error());
    kernels_.emplace(jit::KernelLibraryOptions{}, std::nullopt, std::nullopt, std::move(*compiler));
    VOLLEY_TRY(scoring_, Scoring::create(gpu_->context(), *kernels_));
    auto peer = load_cublaslt(gpu_->context());
    if (options_.skip_peer || !peer) {
      fmt::print("cuBLASLt: not timed{}{}\n", peer ? "" : ": ", peer ? "" : peer.error().message);
    } else {
      peer_ = std::move(*peer);
    }
    Json out;
    out["device"] = gpu_->context().info().name;
    out["driver"] = gpu_->driver().version();
    out["peak_tflops"] = kPeakTflops;
    out["copy_gb_s"] = kCopyGbS;
    fmt::print("{}, driver {}\n{:<40} {:>8} {:>8} {:>8} {:>7} {:>6} {:>6}  {:>8} {:>8}  {}\n",
               gpu_->context().info().name, gpu_->driver().version(), "scoring", "cold us",
               "rot us", "floor us", "TFLOP/s", "GB/s", "floor%", "lt same", "lt raw",
               "configuration");
    std::vector<jit::KernelSource> sources;
    for (const BenchCase& c : bench_cases()) {
      if (!matches_filter(options_.filter, c.name)) continue;
      for (const ScoringConfig& config : configs(c.shape)) sources.push_back(kernel_source(config));
    }
    VOLLEY_TRY_STATUS(kernels_->warm_up(
        sources, static_cast<int>(std::max(1U, std::thread::hardware_concurrency())), nullptr));
    Json rows = Json::array();
    for (const BenchCase& c : bench_cases()) {
      if (!matches_filter(options_.filter, c.name)) continue;
      VOLLEY_TRY(Json row, time_case(c));
      rows.push_back(std::move(row));
      out["rows"] = rows;
      VOLLEY_TRY_STATUS(write_bench_json(options_.json, out));
    }
    return {};
  }

 private:
  struct Operands {
    cuda::Buffer q, weights, keys, scales, table, lens, ends, logits;
    ScoringArgs args;
  };

  Result<cuda::Buffer> upload(const void* data, size_t bytes) {
    VOLLEY_TRY(cuda::Buffer buffer, cuda::Buffer::allocate(gpu_->context(), bytes));
    VOLLEY_TRY_STATUS(buffer.upload(data, bytes));
    return buffer;
  }

  // `count` records of `bytes` bytes, `pattern` of them random and then again: the time a tensor
  // core takes depends on its data, not on its repetition megabytes away. make(record) fills one.
  template <class Make>
  Result<cuda::Buffer> records(size_t count, size_t bytes, size_t pattern, Make&& make) {
    pattern = std::min(pattern, count);
    std::vector<uint8_t> some(pattern * bytes);
    for (size_t i = 0; i < pattern; ++i) make(some.data() + i * bytes);
    VOLLEY_TRY(cuda::Buffer buffer, cuda::Buffer::allocate(gpu_->context(), count * bytes));
    for (size_t i = 0; i < count; i += pattern) {
      VOLLEY_TRY_STATUS(
          buffer.upload(some.data(), std::min(pattern, count - i) * bytes, i * bytes));
    }
    return buffer;
  }

  // As a quantiser leaves them: roughly normal, the largest near 448.
  void random_values(uint8_t* out, size_t bytes, KeyKind kind) {
    for (size_t i = 0; i < bytes; ++i) {
      const auto draw = [this] {
        const uint64_t bits = random_();
        return (static_cast<float>((bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) +
                                   (bits >> 48)) /
                    65536.0F -
                2.0F) *
               1.7F;
      };
      out[i] =
          kind == KeyKind::kFp8
              ? float_to_e4m3(draw() * 130.0F)
              : static_cast<uint8_t>(float_to_e2m1(draw() * 2) | float_to_e2m1(draw() * 2) << 4);
    }
  }
  void random_scales(uint8_t* out, size_t num_keys, const ScoringConfig& c) {
    for (size_t i = 0; i < num_keys; ++i) {
      if (c.fp4()) {
        for (int g = 0; g < c.scale_bytes(); ++g)
          *out++ = static_cast<uint8_t>(118 + random_() % 4);
      } else {
        const float scale = 0.001F + 1e-5F * static_cast<float>(random_() % 100);
        std::memcpy(out, &scale, 4);
        out += 4;
      }
    }
  }

  Result<Operands> make_operands(const BenchCase& c) {
    const ScoringShape& s = c.shape;
    const ScoringConfig layout = {.keys = s.keys, .head_dim = s.head_dim};
    Operands o;
    const auto rows = static_cast<size_t>(s.num_rows), heads = static_cast<size_t>(s.heads);
    const auto key_bytes = static_cast<size_t>(layout.key_bytes());
    VOLLEY_TRY(o.q, records(rows, heads * static_cast<size_t>(s.head_dim), 64, [&](uint8_t* out) {
                 random_values(out, heads * static_cast<size_t>(s.head_dim), KeyKind::kFp8);
               }));
    VOLLEY_TRY(o.weights, records(rows, heads * 4, 64, [&](uint8_t* out) {
                 for (size_t h = 0; h < heads; ++h) {
                   const float w = static_cast<float>(random_() % 2000) * 1e-3F - 0.5F;
                   std::memcpy(out + 4 * h, &w, 4);
                 }
               }));
    o.args.shape = s;
    o.args.q = o.q.get();
    o.args.weights = o.weights.get();
    if (s.paged) {
      const auto page_bytes = static_cast<size_t>(scoring_page_bytes(s.keys, s.head_dim));
      const int pages = ceil_div(s.num_keys, kKeyTile) * s.num_sequences;
      VOLLEY_TRY(o.keys, records(static_cast<size_t>(pages), page_bytes, 509, [&](uint8_t* out) {
                   random_values(out, kKeyTile * key_bytes, s.keys);
                   random_scales(out + kKeyTile * key_bytes, kKeyTile, layout);
                 }));
      std::vector<int32_t> table(static_cast<size_t>(pages)),
          lens(static_cast<size_t>(s.num_sequences), s.num_keys);
      for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i);
      std::shuffle(table.begin(), table.end(), random_);
      VOLLEY_TRY(o.table, upload(table.data(), table.size() * 4));
      VOLLEY_TRY(o.lens, upload(lens.data(), lens.size() * 4));
      o.args.num_pages = pages;
      o.args.block_table = o.table.get();
      o.args.context_lens = o.lens.get();
    } else {
      const auto num_keys = static_cast<size_t>(s.num_keys);
      VOLLEY_TRY(o.keys, records(num_keys, key_bytes, 4099,
                                 [&](uint8_t* out) { random_values(out, key_bytes, s.keys); }));
      VOLLEY_TRY(o.scales, records(num_keys, static_cast<size_t>(layout.scale_bytes()), 4099,
                                   [&](uint8_t* out) { random_scales(out, 1, layout); }));
      o.args.key_scales = o.scales.get();
      if (c.causal) {
        std::vector<int32_t> ends(rows);
        for (int i = 0; i < s.num_rows; ++i) {
          ends[static_cast<size_t>(i)] = s.num_keys - s.num_rows + i + 1;
        }
        VOLLEY_TRY(o.ends, upload(ends.data(), ends.size() * 4));
        o.args.ends = o.ends.get();
      }
    }
    o.args.keys = o.keys.get();
    VOLLEY_TRY(o.logits,
               cuda::Buffer::allocate(gpu_->context(), rows * static_cast<size_t>(s.num_keys) * 4));
    o.args.logits = o.logits.get();
    o.args.outside = c.outside;
    o.args.overlap = Overlap::kNone;
    return o;
  }

  // A few logits of the timed kernel against sums in double: a wrong kernel has no speed.
  Status spot_check(const BenchCase& c, Operands& o, const ScoringCall& call) {
    const ScoringShape& s = c.shape;
    const ScoringConfig layout = {.keys = s.keys, .head_dim = s.head_dim};
    VOLLEY_TRY_STATUS(o.logits.fill(0xFF, gpu_->stream()));
    VOLLEY_TRY_STATUS(scoring_->launch(call, gpu_->stream().get()));
    VOLLEY_TRY_STATUS(gpu_->context().synchronize());
    const auto heads = static_cast<size_t>(s.heads), dim = static_cast<size_t>(s.head_dim);
    for (int i = 0; i < 12; ++i) {
      const int row = static_cast<int>((i * 7919LL) % s.num_rows);
      const int seen = s.paged    ? s.num_keys - (s.next_n - 1 - row % s.next_n)
                       : c.causal ? s.num_keys - s.num_rows + row + 1
                                  : s.num_keys;
      const int key = i % 3 == 0 ? seen - 1 : static_cast<int>((i * 104729LL) % seen);
      std::vector<uint8_t> q(heads * dim), values(static_cast<size_t>(layout.key_bytes())),
          scales(static_cast<size_t>(layout.scale_bytes()));
      std::vector<float> w(heads);
      VOLLEY_TRY_STATUS(o.q.download(q.data(), q.size(), static_cast<size_t>(row) * q.size()));
      VOLLEY_TRY_STATUS(
          o.weights.download(w.data(), heads * 4, static_cast<size_t>(row) * heads * 4));
      size_t value_at = static_cast<size_t>(key) * values.size();
      size_t scale_at = static_cast<size_t>(key) * scales.size();
      if (s.paged) {
        int32_t page = 0;
        const auto entry =
            static_cast<size_t>(row / s.next_n * ceil_div(s.num_keys, kKeyTile) + key / kKeyTile);
        VOLLEY_TRY_STATUS(o.table.download(&page, 4, entry * 4));
        const size_t begin =
            static_cast<size_t>(page) * static_cast<size_t>(scoring_page_bytes(s.keys, s.head_dim));
        value_at = begin + static_cast<size_t>(key % kKeyTile) * values.size();
        scale_at =
            begin + kKeyTile * values.size() + static_cast<size_t>(key % kKeyTile) * scales.size();
      }
      VOLLEY_TRY_STATUS(o.keys.download(values.data(), values.size(), value_at));
      VOLLEY_TRY_STATUS(
          (s.paged ? o.keys : o.scales).download(scales.data(), scales.size(), scale_at));
      double want = 0, magnitude = 0;
      for (size_t h = 0; h < heads; ++h) {
        double raw = 0;
        for (size_t d = 0; d < dim; ++d) {
          double k = 0;
          if (layout.fp4()) {
            k = e2m1_to_float(static_cast<uint8_t>(values[d / 2] >> (4 * (d % 2)) & 15)) *
                std::ldexp(1.0, scales[d / 32] - 127);
          } else {
            float scale = 0;
            std::memcpy(&scale, scales.data(), 4);
            k = double{e4m3_to_float(values[d])} * scale;
          }
          raw += e4m3_to_float(q[h * dim + d]) * k;
          magnitude += std::fabs(w[h] * e4m3_to_float(q[h * dim + d]) * k);
        }
        want += w[h] * std::max(raw, 0.0);
      }
      float got = 0;
      VOLLEY_TRY_STATUS(o.logits.download(
          &got, 4,
          (static_cast<size_t>(row) * static_cast<size_t>(s.num_keys) + static_cast<size_t>(key)) *
              4));
      if (!(std::fabs(got - want) <= magnitude * 3e-4)) {
        return make_error(ErrorKind::kIo, "{} is wrong at row {}, key {}: got {}, reference {}",
                          config_name(call.config), row, key, got, want);
      }
    }
    return {};
  }

  std::vector<ScoringConfig> configs(const ScoringShape& s) const {
    std::vector<ScoringConfig> all = {*choose_scoring_config(s, scoring_->device())};
    if (!options_.search) return all;
    const ScoringConfig chosen = all[0];
    ScoringConfig other = chosen;
    for (const int stages : {6, 8, 12, 16}) {
      other = chosen;
      other.num_stages = stages;
      if (stages != chosen.num_stages &&
          scoring_smem(other).total_bytes <= scoring_->device().max_smem_bytes) {
        all.push_back(other);
      }
    }
    for (const int queries : {2, 3}) {
      if (queries >= chosen.queries) continue;
      other = scoring_config(s.keys, s.paged, s.heads, s.head_dim, queries, scoring_->device());
      all.push_back(other);
    }
    return all;
  }

  Result<Json> time_case(const BenchCase& c) {
    const ScoringShape& s = c.shape;
    double visible = double{1} * s.num_rows * s.num_keys;
    if (c.causal) visible -= 0.5 * s.num_rows * (s.num_rows - 1.0);
    const double keys_read = double{1} * s.num_keys * (s.paged ? s.num_sequences : 1);
    ScoringCost cost = scoring_cost(s, visible, keys_read);
    if (c.outside == OutsideRange::kNegativeInfinity) {
      cost.bytes += 4 * (double{1} * s.num_rows * s.num_keys - visible);
    }
    const double floor_us = std::max(cost.flops / kPeakTflops / 1e6, cost.bytes / kCopyGbS / 1e3);
    const size_t num_sets = num_operand_sets(gpu_->context(), cost.bytes, 12);
    std::vector<Operands> sets;
    for (size_t i = 0; i < num_sets; ++i) {
      VOLLEY_TRY(Operands o, make_operands(c));
      sets.push_back(std::move(o));
    }
    const std::vector<ScoringConfig> tried = configs(s);
    std::vector<std::vector<ScoringCall>> calls;
    std::vector<Contender> contenders;
    for (const ScoringConfig& config : tried) {
      calls.emplace_back();
      for (Operands& o : sets) {
        o.args.config = config;
        VOLLEY_TRY(ScoringCall call, scoring_->prepare(o.args));
        calls.back().push_back(call);
      }
      VOLLEY_TRY_STATUS(spot_check(c, sets[0], calls.back()[0]));
    }
    for (size_t i = 0; i < calls.size(); ++i) {
      contenders.push_back({.launch =
                                [&calls, i, this](size_t set) {
                                  return scoring_->launch(calls[i][set], gpu_->stream().get());
                                },
                            .num_sets = num_sets});
    }
    VOLLEY_TRY_STATUS(gpu_->time_contenders(contenders, floor_us * 1.5, kMaxRepeats));
    Times same, raw;
    if (peer_ != nullptr) {
      VOLLEY_TRY(same, time_same_flops(cost.flops));
      if (!s.paged && !c.causal && s.keys == KeyKind::kFp8) {
        VOLLEY_TRY(raw, time_raw(s, sets[0]));
      }
    }
    const Times& ours = contenders[0].times;
    fmt::print(
        "{:<40} {:>8.1f} {:>8.1f} {:>8.1f} {:>7.0f} {:>6.0f} {:>6.1f}  {:>8.1f} {:>8.1f}  {}\n",
        c.name, ours.cold_us, ours.rot_us, floor_us, cost.flops / ours.rot_us / 1e6,
        cost.bytes / ours.rot_us / 1e3, 100 * floor_us / ours.rot_us, same.rot_us, raw.rot_us,
        config_name(tried[0]));
    Json row;
    row["name"] = c.name;
    row["config"] = config_name(tried[0]);
    row["flops"] = cost.flops;
    row["bytes"] = cost.bytes;
    row["floor_us"] = floor_us;
    row["cold_us"] = ours.cold_us;
    row["cold_p10_us"] = ours.cold_p10;
    row["cold_p90_us"] = ours.cold_p90;
    row["rot_us"] = ours.rot_us;
    row["tflops_rot"] = cost.flops / ours.rot_us / 1e6;
    row["gb_s_rot"] = cost.bytes / ours.rot_us / 1e3;
    if (same.rot_us > 0) row["cublaslt_same_flops_us"] = same.rot_us;
    if (raw.rot_us > 0) row["cublaslt_raw_product_us"] = raw.rot_us;
    Json searched = Json::array();
    for (size_t i = 1; i < contenders.size(); ++i) {
      const Times& other = contenders[i].times;
      fmt::print("    {:.1f} cold {:.1f} rot: {}\n", other.cold_us, other.rot_us,
                 config_name(tried[i]));
      searched.push_back(Json{
          {"config", config_name(tried[i])}, {"cold_us", other.cold_us}, {"rot_us", other.rot_us}});
    }
    if (!searched.empty()) row["searched"] = std::move(searched);
    std::fflush(stdout);
    return row;
  }

  Result<Times> time_product(const GemmShape& shape, cuda::DevicePtr a, cuda::DevicePtr b) {
    VOLLEY_TRY(const cuda::Buffer d,
               cuda::Buffer::allocate(gpu_->context(), static_cast<size_t>(shape.m) *
                                                           static_cast<size_t>(shape.n) * 2));
    VOLLEY_TRY_STATUS(peer_->prepare({.shape = shape}, shape.k));
    std::vector<Contender> one;
    one.push_back({.launch = [&](size_t) {
      return peer_->launch({.a = a, .b = b, .d = d.get()}, gpu_->stream().get());
    }});
    const double flops = 2.0 * shape.m * shape.n * shape.k;
    VOLLEY_TRY_STATUS(gpu_->time_contenders(one, flops / kPeakTflops / 1e6 * 1.5 + 5, kMaxRepeats));
    return one[0].times;
  }

  // Of as many operations, at a shape that suits a matrix product.
  Result<Times> time_same_flops(double flops) {
    constexpr int kSide = 4096;
    const int m = std::max(64, static_cast<int>(flops / 2 / kSide / kSide / 64 + 0.5) * 64);
    if (same_operand_.bytes() < size_t{128} << 20) {
      VOLLEY_TRY(same_operand_, records(size_t{128} << 10, 1024, 4099, [&](uint8_t* out) {
                   random_values(out, 1024, KeyKind::kFp8);
                 }));
    }
    return time_product({.m = std::min(m, 28672), .n = kSide, .k = kSide}, same_operand_.get(),
                        same_operand_.get() + (uint64_t{112} << 20));
  }

  // All queries' heads by all keys, the sums over heads left to do.
  Result<Times> time_raw(const ScoringShape& s, const Operands& o) {
    return time_product({.m = s.num_rows * s.heads, .n = s.num_keys, .k = s.head_dim}, o.q.get(),
                        o.keys.get());
  }

  ScoringBenchOptions options_;
  std::mt19937_64 random_{1};
  std::unique_ptr<BenchGpu> gpu_;
  cuda::Buffer same_operand_;
  std::optional<jit::KernelLibrary> kernels_;
  std::unique_ptr<Scoring> scoring_;
  std::unique_ptr<CublasLtPeer> peer_;
};

}  // namespace

Status run_scoring_bench(const ScoringBenchOptions& options) {
  return ScoringBench(options).run();
}

}  // namespace volley::gemm
