// Times our products and cuBLASLt's side by side on one GPU, in one run.
//
//   gemm_bench [--json FILE] [--bundle FILE] [--filter TEXT,...] [--search N] [--skip-peer]
//   [--bf16] [--mma fp8|bf16|mxfp4|nvfp4] [--gradients] [--deepgemm COMMAND]
//   gemm_bench --scoring [--json FILE] [--filter TEXT,...] [--search N] [--skip-peer]
//   gemm_bench --quantizers [--json FILE]
//
// cold: median over launches, the L2 cache flushed before each; includes the events' own cost. rot:
// launches back to back in a graph over operands that together exceed the L2 cache threefold, per
// launch; no event cost, the figure for small shapes; a fill of memory before the graph hides the
// host's part in starting it. over: the same graph of our kernels with
// Overlap::kWeights, each starting beside the end of the one before, as a layer's products do; rot
// and cold are without. All contenders of a shape are timed in turn, round after round. --search N
// also times the N configurations that the model ranks first, which shows where the model errs.
// With FP4 weights our own FP8 product of the same shape is timed too, and cuBLASLt's baseline is
// FP8. --deepgemm runs COMMAND (bench/peers/deepgemm.py) and times DeepGEMM in the same rounds, FP8
// and bf16. --gradients: float output, added to D, dense and grouped along K; FP8 with scales on
// the rows of both sides, beside cuBLASLt with one scale a tensor and ("block") with the same
// scales as ours. --quantizers: bf16 to FP8 and FP4 and scales to their layout, beside the time
// that their bytes take at what a memset writes.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "base/file.h"
#include "base/json.h"
#include "gemm/cublaslt_peer.h"
#include "gemm/deepgemm_peer.h"
#include "gemm/fp4.h"
#include "gemm/gemm.h"
#include "gemm/kernel_text.h"
#include "gemm/quantizer.h"
#include "gemm/reference.h"
#include "gemm/scoring_bench.h"
#include "gemm/shape_file.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string json;
  std::string bundle;
  std::string filter;
  std::string deepgemm;  // a command, or empty
  int search = 0;
  int segments = 0;
  bool skip_peer = false;
  bool gradients = false;
  bool scoring = false;
  bool quantizers = false;
  MmaKind mma = MmaKind::kFp8;
};

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

// Fills device memory with random operands: the time a tensor core takes depends on its data.
constexpr char kFillKernel[] = R"(
extern "C" __global__ void fill(unsigned* out, unsigned long long words, int kind, unsigned seed) {
  for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < words; i += gridDim.x * 256ull) {
    float v[4];
    for (int j = 0; j < 4; ++j) {
      unsigned long long x = (i * 4 + j + 1) * 0x9E3779B97F4A7C15ull + seed;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
      x ^= x >> 31;
      float sum = 0.0f;
      for (int q = 0; q < 4; ++q) sum += (float)((x >> (16 * q)) & 0xFFFF);
      v[j] = (sum / 65536.0f - 2.0f) * 1.7f;
    }
    unsigned word;
    if (kind == 0) {  // four e4m3, as a quantiser leaves them: the largest near 448
      unsigned short low, high;
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v[1] * 130.0f), "f"(v[0] * 130.0f));
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v[3] * 130.0f), "f"(v[2] * 130.0f));
      word = low | (unsigned)high << 16;
    } else if (kind == 1) {  // two bf16
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
    } else if (kind == 3 || kind == 4) {  // packed FP4 tiles: values, then codes that all decode
      const unsigned in_tile = i % (kind == 3 ? 1088 : 1152);
      unsigned long long x = (i + 1) * 0x9E3779B97F4A7C15ull + seed;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
      const unsigned spread = kind == 3 ? 0x18181818 : 0x1F1F1F1F;  // MX: whole powers of two
      word = in_tile < 1024 ? (unsigned)(x >> 32) : 0x28282828 + ((unsigned)(x >> 32) & spread);
    } else {  // a scale
      word = __float_as_uint(0.002f + 0.001f * fabsf(v[0]));
    }
    out[i] = word;
  }
}
)";

// A peer's times over ours, over shapes.
class Comparison {
 public:
  explicit Comparison(std::string peer) : peer_(std::move(peer)) {}

  void add(const std::string& shape, double cold, double rot, double overlapped) {
    cold_log_sum_ += std::log(cold);
    rot_log_sum_ += std::log(rot);
    overlapped_log_sum_ += std::log(overlapped);
    ++count_;
    if (count_ == 1 || cold < worst_cold_) worst_cold_ = cold, worst_cold_shape_ = shape;
    if (count_ == 1 || rot < worst_rot_) worst_rot_ = rot, worst_rot_shape_ = shape;
  }

  void print() const {
    if (count_ == 0) return;
    fmt::print(
        "geometric mean of {} / ours: cold {:.3f}, rot {:.3f}, overlapped {:.3f} over {} shapes; "
        "worst cold {:.2f} ({}), rot {:.2f} ({})\n",
        peer_, mean(cold_log_sum_), mean(rot_log_sum_), mean(overlapped_log_sum_), count_,
        worst_cold_, worst_cold_shape_, worst_rot_, worst_rot_shape_);
  }

  Json json() const {
    if (count_ == 0) return nullptr;
    return Json{{"shapes", count_},          {"cold", mean(cold_log_sum_)},
                {"rot", mean(rot_log_sum_)}, {"overlapped", mean(overlapped_log_sum_)},
                {"worst_cold", worst_cold_}, {"worst_cold_shape", worst_cold_shape_},
                {"worst_rot", worst_rot_},   {"worst_rot_shape", worst_rot_shape_}};
  }

 private:
  double mean(double log_sum) const { return std::exp(log_sum / count_); }

  std::string peer_;
  int count_ = 0;
  double cold_log_sum_ = 0, rot_log_sum_ = 0, overlapped_log_sum_ = 0;
  double worst_cold_ = 0, worst_rot_ = 0;
  std::string worst_cold_shape_, worst_rot_shape_;
};

// A time in the table; none is no time.
std::string us_text(double us) {
  return us > 0 ? fmt::format("{:.1f}", us) : "-";
}
std::string ratio_text(double ratio) {
  return ratio > 0 ? fmt::format("{:.2f}", ratio) : "-";
}

struct BenchCase {
  std::string group;
  GemmShape shape;
  std::vector<int32_t> groups;  // on the host
  double rows = 0;              // that count
  bool adds = false;            // D is C
};

// Weights [m, n] whose gradient sums over k tokens; along K: over each group's k tokens.
std::vector<BenchCase> gradient_cases(MmaKind mma) {
  std::vector<BenchCase> cases;
  for (const auto& [m, n, k] : {std::tuple{2112, 7168, 4096},
                                {7168, 2048, 4096},
                                {4096, 7168, 4096},
                                {7168, 16384, 4096},
                                {24576, 1536, 4096},
                                {4096, 7168, 8192}}) {
    cases.push_back({"gradient",
                     {.mma = mma, .out = OutKind::kF32, .m = m, .n = n, .k = k, .segments = 1},
                     {},
                     static_cast<double>(m),
                     true});
  }
  for (const auto& [groups, k] : {std::pair{4, 8192}, {8, 4096}, {64, 512}}) {
    for (const auto& [m, n] : {std::pair{4096, 7168}, {7168, 2048}}) {
      if (groups == 64 && m == 4096) continue;  // 7 GB of D
      BenchCase c = {"gradient along k",
                     {.mma = mma,
                      .out = OutKind::kF32,
                      .grouping = Grouping::kAlongK,
                      .m = m,
                      .n = n,
                      .k = groups * k,
                      .num_groups = groups},
                     {},
                     static_cast<double>(m),
                     true};
      for (int g = 1; g <= groups; ++g) c.groups.push_back(g * k);
      cases.push_back(c);
    }
  }
  return cases;
}

std::vector<BenchCase> bench_cases(MmaKind mma) {
  std::vector<BenchCase> cases;
  const auto dense = [&](int m, int n, int k) {
    cases.push_back({"dense", {.mma = mma, .m = m, .n = n, .k = k}, {}, static_cast<double>(m)});
  };
  for (const int m : {64, 128, 4096}) {
    for (const auto& [n, k] : {std::pair{2112, 7168},
                               {24576, 1536},
                               {32768, 512},
                               {7168, 16384},
                               {4096, 7168},
                               {7168, 2048}}) {
      dense(m, n, k);
    }
  }
  dense(8192, 8192, 8192);
  for (const int m : {1, 16, 64, 256}) {
    for (const auto& [n, k] :
         {std::pair{6144, 4096}, {4096, 4096}, {24576, 4096}, {4096, 12288}, {151936, 4096}}) {
      dense(m, n, k);
    }
  }
  for (const auto& [n, k] : {std::pair{4096, 7168}, {7168, 2048}}) {
    for (const auto& [groups, rows] : {std::pair{4, 8192}, {8, 4096}}) {
      BenchCase c = {"grouped contiguous",
                     {.mma = mma,
                      .grouping = Grouping::kRowIndex,
                      .m = groups * rows,
                      .n = n,
                      .k = k,
                      .num_groups = groups},
                     {},
                     static_cast<double>(groups) * rows};
      for (int r = 0; r < groups * rows; ++r) c.groups.push_back(r / rows);
      cases.push_back(c);
      c.group = "grouped prefix sum";
      c.shape.grouping = Grouping::kPrefixSum;
      c.groups.clear();
      for (int g = 1; g <= groups; ++g) c.groups.push_back(g * rows);
      cases.push_back(c);
    }
    for (const auto& [groups, rows] : {std::pair{1, 1024}, {2, 512}, {4, 256}, {8, 64}, {16, 32}}) {
      cases.push_back({"grouped masked",
                       {.mma = mma,
                        .grouping = Grouping::kMasked,
                        .m = std::max(rows * 2, 128),
                        .n = n,
                        .k = k,
                        .num_groups = groups,
                        .expected_m = rows},
                       std::vector<int32_t>(static_cast<size_t>(groups), rows),
                       static_cast<double>(groups) * rows});
    }
  }
  return cases;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}

  Status run() {
    const auto start = Clock::now();
    VOLLEY_TRY(driver_, cuda::Driver::load());
    VOLLEY_TRY(cuda::Context context, cuda::Context::open(*driver_));
    context_.emplace(std::move(context));
    VOLLEY_TRY(cuda::Stream stream, cuda::Stream::create(*context_));
    stream_.emplace(std::move(stream));
    VOLLEY_TRY(start_event_, cuda::Event::create(*context_));
    VOLLEY_TRY(end_event_, cuda::Event::create(*context_));
    const double context_ms = us_since(start) / 1e3;

    const auto library_start = Clock::now();
    std::optional<jit::Bundle> bundle;
    if (!options_.bundle.empty()) {
      VOLLEY_TRY(jit::Bundle opened, jit::Bundle::open(options_.bundle));
      bundle = std::move(opened);
    }
    const double bundle_ms = us_since(library_start) / 1e3;
    auto compiler = jit::load_nvrtc();
    kernels_.emplace(jit::KernelLibraryOptions{}, std::move(bundle), std::nullopt,
                     compiler ? std::move(*compiler) : nullptr);
    VOLLEY_TRY(gemm_, Gemm::create(*context_, *kernels_));
    VOLLEY_TRY_STATUS(load_fill());
    VOLLEY_TRY(flush_, cuda::Buffer::allocate(*context_, size_t{256} << 20));
    VOLLEY_TRY(const double first_ms, first_product_ms());
    const auto stats = kernels_->stats();

    Json out;
    out["device"] = context_->info().name;
    out["driver"] = driver_->version();
    out["context_ms"] = context_ms;
    out["bundle_open_ms"] = bundle_ms;
    out["first_product_ms"] = first_ms;
    out["first_product_compiled"] = stats.num_compiled;
    VOLLEY_TRY(const double copy, copy_gb_s());
    out["memset_gb_s"] = copy;
    auto peer = load_cublaslt(*context_);
    if (options_.skip_peer || !peer) {
      fmt::print("cuBLASLt: not timed{}{}\n", peer ? "" : ": ", peer ? "" : peer.error().message);
    } else {
      peer_ = std::move(*peer);
      VOLLEY_TRY(block_peer_, load_cublaslt(*context_));
      out["cublaslt"] = peer_->version();
    }
    if (options_.quantizers) return time_quantizers(out, copy);
    VOLLEY_TRY_STATUS(warm_up());
    if (!options_.deepgemm.empty()) {
      start_deepgemm();
      if (deepgemm_) out["deepgemm"] = deepgemm_->version();
    }
    fmt::print(
        "{}, driver {}; context {:.0f} ms, bundle {:.2f} ms, first product {:.1f} ms ({} compiled),"
        " memset {:.0f} GB/s\n",
        context_->info().name, driver_->version(), context_ms, bundle_ms, first_ms,
        stats.num_compiled, copy);
    fmt::print(
        "{:<19} {:>6} {:>6} {:>6} {:>3}  {:>8} {:>8} {:>8} {:>7} {:>6} {:>6}  {:>8} {:>8} {:>8} "
        "{:>8} {:>5} {:>5}  {}\n",
        "group", "m", "n", "k", "G", "cold us", "rot us", "over us", "TFLOP/s", "GB/s", "model",
        "lt cold", "lt rot", "dg cold", "dg rot", "cold", "rot", "configuration");
    Json rows = Json::array();
    for (const BenchCase& c : cases()) {
      VOLLEY_TRY(Json row, time_case(c));
      rows.push_back(std::move(row));
      out["rows"] = rows;
      out["cublaslt_over_ours"] = cublaslt_ratios_.json();
      out["deepgemm_over_ours"] = deepgemm_ratios_.json();
      out["best_over_ours"] = best_ratios_.json();
      if (!options_.json.empty())
        VOLLEY_TRY_STATUS(write_file_atomic(options_.json, dump_json(out, 1)));
    }
    for (const Comparison* comparison : {&cublaslt_ratios_, &deepgemm_ratios_, &best_ratios_}) {
      comparison->print();
    }
    return {};
  }

 private:
  std::vector<BenchCase> cases() const {
    std::vector<BenchCase> kept;
    for (BenchCase& c :
         options_.gradients ? gradient_cases(options_.mma) : bench_cases(options_.mma)) {
      if (options_.segments > 0) c.shape.segments = options_.segments;
      if (matches(case_name(c))) kept.push_back(std::move(c));
    }
    return kept;
  }

  static std::string case_name(const BenchCase& c) {
    return fmt::format("{} {}x{}x{}", c.group, c.shape.m, c.shape.n, c.shape.k);
  }

  // --filter is a list of texts with commas between; a case has one of them in its name.
  bool matches(const std::string& name) const {
    size_t from = 0;
    for (;;) {
      const size_t comma = options_.filter.find(',', from);
      if (name.find(options_.filter.substr(from, comma - from)) != std::string::npos) return true;
      if (comma == std::string::npos) return false;
      from = comma + 1;
    }
  }

  // What is timed of a shape: as many of the model's ranking as --search names, the first always;
  // of the first two also other orders of the tiles, where there are many rows of tiles.
  std::vector<CandidateConfig> searched_configs(const GemmShape& shape) const {
    const auto ranked = rank_configs(shape, gemm_->device());
    const auto count = std::min(ranked.size(), static_cast<size_t>(std::max(1, options_.search)));
    std::vector<CandidateConfig> configs(ranked.begin(),
                                         ranked.begin() + static_cast<ptrdiff_t>(count));
    for (size_t i = 0; i < std::min<size_t>(count, 2) && count > 1; ++i) {
      for (const int raster : {4, 16}) {
        if (shape.m < raster * ranked[i].config.tile_m) continue;
        configs.push_back(ranked[i]);
        configs.back().config.raster = raster;
      }
    }
    return configs;
  }

  Status warm_up() {
    std::vector<jit::KernelSource> sources;
    std::set<std::string> names;
    for (const BenchCase& c : cases()) {
      for (const CandidateConfig& candidate : searched_configs(c.shape)) {
        if (names.insert(config_name(candidate.config)).second) {
          sources.push_back(kernel_source(candidate.config));
        }
      }
      if (has_fp4_weights(c.shape.mma)) {
        GemmShape wide = c.shape;
        wide.mma = MmaKind::kFp8;
        VOLLEY_TRY(const GemmConfig config, choose_config(wide, gemm_->device()));
        sources.push_back(kernel_source(config));
      }
    }
    const auto start = Clock::now();
    VOLLEY_TRY_STATUS(kernels_->warm_up(
        sources, static_cast<int>(std::max(1U, std::thread::hardware_concurrency())), nullptr));
    const auto stats = kernels_->stats();
    fmt::print("{} kernels from the bundle, {} compiled, in {:.2f} s on {} threads\n",
               stats.num_bundled, stats.num_compiled, us_since(start) / 1e6,
               std::thread::hardware_concurrency());
    return {};
  }

  bool deepgemm_times(const BenchCase& c) const {
    return deepgemm_ && !c.adds && DeepGemmPeer::has(c.shape);
  }

  static DeepGemmProblem deepgemm_problem(const BenchCase& c) {
    return {c.shape, static_cast<int>(c.rows) / c.shape.num_groups};
  }

  // Without it, or with one that cannot compile, the others are timed all the same.
  void start_deepgemm() {
    auto peer = DeepGemmPeer::start(options_.deepgemm);
    if (!peer) {
      fmt::print("DeepGEMM: not timed: {}\n", peer.error().message);
      return;
    }
    deepgemm_ = std::move(*peer);
    std::vector<DeepGemmProblem> problems;
    for (const BenchCase& c : cases()) {
      if (deepgemm_times(c)) problems.push_back(deepgemm_problem(c));
    }
    if (problems.empty()) return;
    const auto seconds = deepgemm_->compile(problems);
    fmt::print(
        "DeepGEMM {}: {}\n", deepgemm_->version(),
        seconds ? fmt::format("kernels of {} shapes ready in {:.1f} s", problems.size(), *seconds)
                : "not all compiled: " + seconds.error().message);
    std::fflush(stdout);
  }

  Status load_fill() {
    auto compiler = jit::load_nvrtc();
    if (!compiler) return tl::unexpected<Error>(compiler.error());
    VOLLEY_TRY(
        const jit::Compiled compiled,
        (*compiler)->compile({.name = "fill", .entry = "fill", .text = kFillKernel}, "sm_90a"));
    VOLLEY_TRY(fill_module_, cuda::Module::load(*context_, compiled.cubin));
    VOLLEY_TRY(fill_, fill_module_.kernel("fill", 0));
    return {};
  }

  Result<cuda::Buffer> random_buffer(size_t bytes, int kind, unsigned seed) {
    VOLLEY_TRY(cuda::Buffer buffer, cuda::Buffer::allocate(*context_, (bytes + 15) / 16 * 16));
    cuda::DevicePtr pointer = buffer.get();
    unsigned long long words = buffer.bytes() / 4;
    void* params[] = {&pointer, &words, &kind, &seed};
    VOLLEY_TRY_STATUS(cuda::launch(*driver_, fill_.function, {.num_ctas = 1056, .num_threads = 256},
                                   params, stream_->get()));
    return buffer;
  }

  // One set of operands.
  struct Operands {
    cuda::Buffer a, a_scale, b, b_scale, d, groups;
    GemmArgs args;
    GemmCall call;
  };

  static double weight_bytes(const GemmShape& s) {
    if (!has_fp4_weights(s.mma)) {
      const int weights = s.grouping == Grouping::kAlongK ? 1 : s.num_groups;
      return double{1} * weights * s.n * s.k * (is_fp8(s.mma) ? 1 : 2);
    }
    return double{1} * s.num_groups * ceil_div(s.n, kFp4StripRows) * (s.k / kFp4BlockCols) *
           fp4_tile_bytes(s.mma == MmaKind::kNvFp4);
  }

  Result<Operands> make_operands(const BenchCase& c, unsigned seed) {
    const GemmShape& s = c.shape;
    const bool fp8 = has_fp8_tokens(s.mma), fp4 = has_fp4_weights(s.mma);
    const size_t bytes = fp8 ? 1 : 2;
    const bool along_k = s.grouping == Grouping::kAlongK, by_rows = s.mma == MmaKind::kFp8Rows;
    const size_t rows = static_cast<size_t>(s.m) *
                        static_cast<size_t>(s.grouping == Grouping::kMasked ? s.num_groups : 1);
    const size_t d_rows = rows * static_cast<size_t>(along_k ? s.num_groups : 1);
    Operands o;
    const auto k = static_cast<size_t>(s.k), n = static_cast<size_t>(s.n),
               g = static_cast<size_t>(along_k ? 1 : s.num_groups);
    VOLLEY_TRY(o.a, random_buffer(rows * k * bytes, fp8 ? 0 : 1, 4 * seed));
    if (fp4) {
      VOLLEY_TRY(o.b, random_buffer(static_cast<size_t>(weight_bytes(s)),
                                    s.mma == MmaKind::kNvFp4 ? 4 : 3, 4 * seed + 1));
    } else {
      VOLLEY_TRY(o.b, random_buffer(g * n * k * bytes, fp8 ? 0 : 1, 4 * seed + 1));
    }
    const size_t d_bytes = d_rows * n * (s.out == OutKind::kBf16 ? 2 : 4);
    VOLLEY_TRY(o.d, cuda::Buffer::allocate(*context_, d_bytes));
    if (c.adds) {
      VOLLEY_TRY_STATUS(o.d.fill(0, *stream_));
      o.args.c = o.d.get();
    }
    o.args.shape = s;
    if (fp8) {
      VOLLEY_TRY(o.a_scale, random_buffer((rows + 4 * g) * (k / 128) * 4, 2, 4 * seed + 2));
      const size_t b_scales = fp4       ? g * ((n + 63) / 64 * 64)
                              : by_rows ? n * (k / 128)
                                        : g * ((n + 127) / 128) * (k / 128);
      VOLLEY_TRY(o.b_scale, random_buffer(b_scales * 4, 2, 4 * seed + 3));
      o.args.a_scale = o.a_scale.get();
      o.args.b_scale = o.b_scale.get();
    }
    if (!c.groups.empty()) {
      VOLLEY_TRY(o.groups, cuda::Buffer::allocate(*context_, c.groups.size() * 4));
      VOLLEY_TRY_STATUS(o.groups.upload(c.groups.data(), o.groups.bytes()));
      o.args.groups = o.groups.get();
    }
    o.args.a = o.a.get();
    o.args.b = o.b.get();
    o.args.d = o.d.get();
    VOLLEY_TRY(o.call, gemm_->prepare(o.args));
    return o;
  }

  // Process time from the first call of prepare() to the first finished product.
  Result<double> first_product_ms() {
    BenchCase c = {"", {.m = 16, .n = 4096, .k = 4096}, {}, 16};
    VOLLEY_TRY(const cuda::Buffer memory, random_buffer(size_t{64} << 20, 0, 1));
    VOLLEY_TRY_STATUS(context_->synchronize());
    const auto start = Clock::now();
    GemmArgs args;
    args.shape = c.shape;
    args.a = memory.get();
    args.b = memory.get() + (1 << 20);
    args.d = memory.get() + (32 << 20);
    args.a_scale = memory.get() + (40 << 20);
    args.b_scale = memory.get() + (48 << 20);
    VOLLEY_TRY(const GemmCall call, gemm_->prepare(args));
    VOLLEY_TRY_STATUS(gemm_->launch(call, stream_->get()));
    VOLLEY_TRY_STATUS(context_->synchronize());
    return us_since(start) / 1e3;
  }

  Result<double> copy_gb_s() {
    std::vector<double> ms;
    for (int i = 0; i < 12; ++i) {
      VOLLEY_TRY_STATUS(start_event_.record(*stream_));
      VOLLEY_TRY_STATUS(flush_.fill(static_cast<unsigned char>(i), *stream_));
      VOLLEY_TRY_STATUS(end_event_.record(*stream_));
      VOLLEY_TRY_STATUS(end_event_.synchronize());
      VOLLEY_TRY(const float elapsed, end_event_.ms_since(start_event_));
      ms.push_back(elapsed);
    }
    return static_cast<double>(flush_.bytes()) / quantile(ms, 0.5) / 1e6;
  }

  struct Times {
    double cold_us = 0, cold_p10 = 0, cold_p90 = 0, rot_us = 0;
  };

  // One of several ways to the same product, timed side by side.
  struct Contender {
    std::function<Status(size_t)> launch;  // one product of operand set `set` on the stream
    bool cold = true;                      // time it cold too
    // Instead of launch: a round that another process measures. Its failure is its own.
    std::function<Result<DeepGemmRound>(int)> round;
    std::string error;
    Times times;
    cuda::Graph graph;
    std::vector<double> cold_us, rot_us;
  };

  // How often a graph launches each operand set: it takes 1.5 ms.
  static size_t graph_repeats(size_t num_sets, double guess_us) {
    return static_cast<size_t>(
        std::max(1.0, std::ceil(1500.0 / guess_us / static_cast<double>(num_sets))));
  }

  // Rounds of one measurement of each contender: clocks and temperature change while they run, and
  // the first one timed would pay for a GPU that has idled.
  Status time_contenders(std::vector<Contender>& contenders, size_t num_sets, double guess_us) {
    const size_t per_graph = graph_repeats(num_sets, guess_us);
    for (Contender& c : contenders) {
      if (c.round) continue;
      VOLLEY_TRY(c.graph, cuda::Graph::capture(*stream_, [&]() -> Status {
                   for (size_t r = 0; r < per_graph; ++r) {
                     for (size_t set = 0; set < num_sets; ++set) VOLLEY_TRY_STATUS(c.launch(set));
                   }
                   return {};
                 }));
    }
    constexpr int kRounds = 11;
    for (int i = 0; i < kRounds; ++i) {
      for (Contender& c : contenders) {
        if (c.round) {
          time_other_process(c, i);
          continue;
        }
        VOLLEY_TRY_STATUS(flush_.fill(static_cast<unsigned char>(i), *stream_));
        VOLLEY_TRY_STATUS(start_event_.record(*stream_));
        VOLLEY_TRY_STATUS(c.graph.launch(*stream_));
        VOLLEY_TRY_STATUS(end_event_.record(*stream_));
        VOLLEY_TRY_STATUS(end_event_.synchronize());
        VOLLEY_TRY(const float ms, end_event_.ms_since(start_event_));
        if (i > 0) c.rot_us.push_back(ms * 1e3 / static_cast<double>(per_graph * num_sets));
        if (!c.cold) continue;
        for (size_t j = 0; j < 2; ++j) {
          VOLLEY_TRY_STATUS(flush_.fill(static_cast<unsigned char>(i), *stream_));
          VOLLEY_TRY_STATUS(start_event_.record(*stream_));
          VOLLEY_TRY_STATUS(c.launch((2 * static_cast<size_t>(i) + j) % num_sets));
          VOLLEY_TRY_STATUS(end_event_.record(*stream_));
          VOLLEY_TRY_STATUS(end_event_.synchronize());
          VOLLEY_TRY(const float cold_ms, end_event_.ms_since(start_event_));
          if (i > 0) c.cold_us.push_back(cold_ms * 1e3);
        }
      }
    }
    for (Contender& c : contenders) {
      if (!c.error.empty()) continue;
      c.times.rot_us = quantile(c.rot_us, 0.5);
      if (!c.cold) continue;
      c.times.cold_us = quantile(c.cold_us, 0.5);
      c.times.cold_p10 = quantile(c.cold_us, 0.1);
      c.times.cold_p90 = quantile(c.cold_us, 0.9);
    }
    return {};
  }

  static void time_other_process(Contender& c, int round) {
    if (!c.error.empty()) return;
    auto measured = c.round(round);
    if (!measured) {
      c.error = measured.error().message;
    } else if (round > 0) {
      c.rot_us.push_back(measured->rot_us);
      c.cold_us.insert(c.cold_us.end(), measured->cold_us.begin(), measured->cold_us.end());
    }
  }

  // Host time of one launch() into a stream that is already busy.
  Result<double> host_us(const std::vector<Operands>& sets) {
    std::vector<double> us;
    for (int i = 0; i < 20; ++i) {
      VOLLEY_TRY_STATUS(context_->synchronize());
      VOLLEY_TRY_STATUS(flush_.fill(0, *stream_));
      const auto start = Clock::now();
      for (int j = 0; j < 10; ++j) {
        VOLLEY_TRY_STATUS(
            gemm_->launch(sets[static_cast<size_t>(j) % sets.size()].call, stream_->get()));
      }
      us.push_back(us_since(start) / 10);
    }
    VOLLEY_TRY_STATUS(context_->synchronize());
    return quantile(us, 0.5);
  }

  // Row `row` of FP4 weight `weight` as `one`'s only one.
  static Status download_fp4_row(const GemmShape& s, const Operands& o, int64_t weight, int64_t row,
                                 HostProblem& one) {
    const auto strip_bytes = static_cast<size_t>(s.k / kFp4BlockCols) *
                             static_cast<size_t>(fp4_tile_bytes(s.mma == MmaKind::kNvFp4));
    const int64_t strip = weight * ceil_div(s.n, kFp4StripRows) + row / kFp4StripRows;
    std::vector<uint8_t> tiles(strip_bytes);
    std::vector<float> scales(kFp4StripRows);
    VOLLEY_TRY_STATUS(
        o.b.download(tiles.data(), strip_bytes, static_cast<size_t>(strip) * strip_bytes));
    VOLLEY_TRY_STATUS(o.b_scale.download(scales.data(), scales.size() * 4,
                                         static_cast<size_t>(strip) * scales.size() * 4));
    one.b_values.resize(static_cast<size_t>(s.k));
    for (int64_t i = 0; i < s.k; ++i) {
      one.b_values[static_cast<size_t>(i)] = static_cast<float>(
          packed_fp4_value(s.mma, tiles, scales, kFp4StripRows, s.k, 0, row % kFp4StripRows, i));
    }
    return {};
  }

  // A few values of the timed kernel's output against the reference: a wrong kernel has no speed.
  Status spot_check(const BenchCase& c, Operands& o, int num_values) {
    HostProblem host;
    host.shape = c.shape;
    host.groups = c.groups;
    const GemmShape& s = c.shape;
    VOLLEY_TRY_STATUS(o.d.fill(c.adds ? 0 : 0xFF, *stream_));
    VOLLEY_TRY_STATUS(gemm_->launch(o.call, stream_->get()));
    VOLLEY_TRY_STATUS(context_->synchronize());
    // One row of A and one of B at a time, in a problem of one row and 128 columns.
    const bool fp8 = has_fp8_tokens(s.mma), fp4 = has_fp4_weights(s.mma);
    const auto weights = row_weights(s, c.groups);
    const int all_blocks = s.k / 128, n_groups = ceil_div(s.n, 128);
    for (int i = 0; i < num_values; ++i) {
      const auto rows = static_cast<int64_t>(weights.size());
      const int64_t row = (i * 7919LL) % rows, col = (i * 104729LL) % s.n;
      const int weight = weights[static_cast<size_t>(row)];
      if (weight < 0) continue;
      // Along K only the columns of the row's group.
      const bool along_k = s.grouping == Grouping::kAlongK;
      const Columns columns =
          along_k ? group_columns(s, c.groups)[static_cast<size_t>(row / s.m)] : Columns{0, s.k};
      const auto blocks = static_cast<int>((columns.end - columns.begin) / 128);
      const int first = static_cast<int>(columns.begin / 128);
      const int64_t a_row = along_k ? row % s.m : row;
      const size_t element = fp8 ? 1 : 2, row_bytes = static_cast<size_t>(blocks) * 128 * element;
      const auto row_at = [&](int64_t index) {
        return static_cast<size_t>(index * s.k + columns.begin) * element;
      };
      HostProblem one;
      one.shape = {.mma = s.mma, .out = s.out, .m = 1, .n = 8, .k = blocks * 128};
      one.a.resize(row_bytes);
      VOLLEY_TRY_STATUS(o.a.download(one.a.data(), row_bytes, row_at(a_row)));
      if (fp4) {
        VOLLEY_TRY_STATUS(download_fp4_row(s, o, weight, col, one));
      } else {
        one.b.resize(row_bytes);
        VOLLEY_TRY_STATUS(
            o.b.download(one.b.data(), row_bytes, row_at(weight * int64_t{s.n} + col)));
      }
      if (fp8) {
        const int64_t stride = round_up(s.m, 4), slab = a_row / s.m;
        one.a_scale_stride = 4;
        one.a_scale.resize(static_cast<size_t>(blocks) * 4);
        one.b_scale.resize(static_cast<size_t>(blocks));
        for (int b = 0; b < blocks; ++b) {
          VOLLEY_TRY_STATUS(o.a_scale.download(
              &one.a_scale[static_cast<size_t>(b) * 4], 4,
              static_cast<size_t>((slab * all_blocks + first + b) * stride + row % s.m) * 4));
        }
        if (s.mma == MmaKind::kFp8Rows) {
          one.b_scale.resize(static_cast<size_t>(blocks) * 8);  // of 8 rows, like one.a_scale of 4
          for (int b = 0; b < blocks; ++b) {
            VOLLEY_TRY_STATUS(
                o.b_scale.download(&one.b_scale[static_cast<size_t>(b) * 8], 4,
                                   static_cast<size_t>((first + b) * int64_t{s.n} + col) * 4));
          }
        } else if (!fp4) {
          VOLLEY_TRY_STATUS(o.b_scale.download(
              one.b_scale.data(), one.b_scale.size() * 4,
              static_cast<size_t>((weight * int64_t{n_groups} + col / 128) * blocks) * 4));
        }
      }
      const std::vector<int32_t> only = {0};
      const ReferenceValue want = reference_value(one, only, 0, 0);
      const auto at = static_cast<size_t>(row * s.n + col);
      float got = 0;
      if (s.out == OutKind::kF32) {
        VOLLEY_TRY_STATUS(o.d.download(&got, 4, at * 4));
      } else {
        uint16_t bits = 0;
        VOLLEY_TRY_STATUS(o.d.download(&bits, 2, at * 2));
        got = bf16_to_float(bits);
      }
      if (!(std::fabs(got - want.value) <= error_bound(one.shape, want))) {
        return make_error(ErrorKind::kIo, "{} is wrong at ({}, {}): got {}, reference {}",
                          config_name(o.call.config), row, col, got, want.value);
      }
    }
    return {};
  }

  // Each quantiser over a few matrices; their results are the test's matter (quantizer_test.cc).
  Status time_quantizers(Json& out, double memset_gb_s) {
    VOLLEY_TRY(const auto quantizer, Quantizer::create(*context_, *kernels_));
    const Quantizer& q = *quantizer;
    fmt::print("{:<12} {:>6} {:>6} {:>9} {:>9} {:>9} {:>7} {:>6}\n", "kernel", "rows", "cols",
               "cold us", "rot us", "floor us", "GB/s", "of it");
    out["quantizers"] = Json::array();
    for (const auto& [rows, cols] : {std::pair{64, 7168}, {4096, 7168}, {8192, 8192}}) {
      const double size = double{1} * rows * cols;
      const int num_sets = static_cast<int>(
          std::clamp(std::ceil(3.0 * static_cast<double>(context_->info().l2_bytes) / size / 2) + 1,
                     2.0, 64.0));
      std::vector<cuda::Buffer> inputs, values, scales, tensors;
      std::vector<Bf16Matrix> x;
      for (int i = 0; i < num_sets; ++i) {
        const auto bytes = static_cast<size_t>(size);
        VOLLEY_TRY(cuda::Buffer input, random_buffer(2 * bytes, 1, static_cast<unsigned>(i)));
        VOLLEY_TRY(cuda::Buffer value, cuda::Buffer::allocate(*context_, 2 * bytes));
        VOLLEY_TRY(cuda::Buffer scale, cuda::Buffer::allocate(*context_, bytes / 16 + 65536));
        VOLLEY_TRY(cuda::Buffer tensor, cuda::Buffer::allocate(*context_, 16));
        x.push_back({.data = input.get(), .rows = rows, .cols = cols});
        inputs.push_back(std::move(input));
        values.push_back(std::move(value));
        scales.push_back(std::move(scale));
        tensors.push_back(std::move(tensor));
      }
      // For the packers: weights that were quantised before.
      struct Weight {
        cuda::Buffer values, scales, tensor_scales, tiles, row_scales;
      };
      std::vector<Weight> weights[2];
      const MmaKind formats[] = {MmaKind::kMxFp4, MmaKind::kNvFp4};
      for (const int nv : {0, 1}) {
        for (const Bf16Matrix& matrix : x) {
          const auto bytes = static_cast<size_t>(size);
          Weight w;
          VOLLEY_TRY(w.values, cuda::Buffer::allocate(*context_, bytes / 2));
          VOLLEY_TRY(w.scales, cuda::Buffer::allocate(*context_, bytes / 16));
          VOLLEY_TRY(w.tensor_scales, cuda::Buffer::allocate(*context_, 16));
          VOLLEY_TRY(w.tiles, cuda::Buffer::allocate(*context_, bytes * 9 / 16));
          VOLLEY_TRY(w.row_scales,
                     cuda::Buffer::allocate(*context_, static_cast<size_t>(rows) * 4));
          VOLLEY_TRY_STATUS(q.quantize_fp4(matrix, formats[nv], w.values.get(), w.scales.get(),
                                           w.tensor_scales.get(), stream_->get()));
          weights[nv].push_back(std::move(w));
        }
      }
      const auto pack = [&](int nv, size_t i) {
        const Weight& w = weights[nv][i];
        return q.pack_fp4(formats[nv], 1, rows, cols, w.values.get(), w.scales.get(),
                          w.tensor_scales.get(), w.tiles.get(), w.row_scales.get(), 0,
                          stream_->get());
      };
      struct Named {
        const char* name;
        double bytes;  // of a value
        std::function<Status(size_t)> launch;
      };
      const cuda::CuStream s = stream_->get();
      const double fp8 = 3 + 4.0 / 128;
      const std::vector<Named> kernels = {
          {"rows", fp8,
           [&](size_t i) {
             return q.quantize_rows(x[i], ScaleKind::kAny, values[i].get(), scales[i].get(), 0, s);
           }},
          {"columns", fp8 * (rows % 128 == 0 ? 1.0 : 128.0 / rows),
           [&](size_t i) {
             return q.quantize_columns(x[i], ScaleKind::kAny, values[i].get(), scales[i].get(), 0,
                                       s);
           }},
          {"blocks", 3,
           [&](size_t i) {
             return q.quantize_blocks(x[i], ScaleKind::kAny, values[i].get(), scales[i].get(), s);
           }},
          {"mxfp4", 2.5 + 1.0 / 32,
           [&](size_t i) {
             return q.quantize_fp4(x[i], MmaKind::kMxFp4, values[i].get(), scales[i].get(), 0, s);
           }},
          {"nvfp4", 4.5 + 1.0 / 16,
           [&](size_t i) {
             return q.quantize_fp4(x[i], MmaKind::kNvFp4, values[i].get(), scales[i].get(),
                                   tensors[i].get(), s);
           }},
          {"pack mx", 1 + 1.0 / 16, [&](size_t i) { return pack(0, i); }},
          {"pack nv", 1 + 1.0 / 8, [&](size_t i) { return pack(1, i); }},
          // The scales of a matrix 128 times as wide.
          {"scales", 8, [&](size_t i) {
             return q.scales_to_m_major(inputs[i].get(), 1, rows, cols / 4, values[i].get(), 0, s);
           }}};
      std::vector<Contender> contenders;
      for (const Named& kernel : kernels) contenders.push_back({.launch = kernel.launch});
      VOLLEY_TRY_STATUS(time_contenders(contenders, static_cast<size_t>(num_sets),
                                        std::max(5.0, size * 3 / 3e6)));
      for (size_t i = 0; i < kernels.size(); ++i) {
        const Times& t = contenders[i].times;
        const bool is_scales = std::string_view(kernels[i].name) == "scales";
        const double bytes = size * kernels[i].bytes / (is_scales ? 4 : 1);
        const double floor_us = bytes / memset_gb_s / 1e3;
        fmt::print("{:<12} {:>6} {:>6} {:>9.1f} {:>9.1f} {:>9.1f} {:>7.0f} {:>5.0f}%\n",
                   kernels[i].name, rows, is_scales ? cols / 4 : cols, t.cold_us, t.rot_us,
                   floor_us, bytes / t.rot_us / 1e3, 100 * floor_us / t.rot_us);
        out["quantizers"].push_back(Json{{"kernel", kernels[i].name},
                                         {"rows", rows},
                                         {"cols", is_scales ? cols / 4 : cols},
                                         {"cold_us", t.cold_us},
                                         {"rot_us", t.rot_us},
                                         {"floor_us", floor_us}});
      }
    }
    return options_.json.empty() ? Status() : write_file_atomic(options_.json, dump_json(out, 1));
  }

  Result<Json> time_case(const BenchCase& c) {
    const GemmShape& s = c.shape;
    const double in_bytes = has_fp8_tokens(s.mma) ? 1 : 2;
    const bool along_k = s.grouping == Grouping::kAlongK;
    const double d_bytes =
        c.rows * s.n * (along_k ? s.num_groups : 1) * (s.out == OutKind::kBf16 ? 2 : 4);
    const double bytes = c.rows * s.k * in_bytes + weight_bytes(s) + d_bytes * (c.adds ? 2 : 1);
    const double flops = 2 * c.rows * s.n * s.k;
    const double peak = (has_fp8_tokens(s.mma) ? 8192.0 : 4096.0) * context_->info().num_sms;
    const double floor_us = std::max(flops / (peak * gemm_->device().clock_ghz * 1e3),
                                     bytes / gemm_->device().dram_bytes_per_ns / 1e3);
    const auto num_sets = static_cast<size_t>(std::clamp(
        std::ceil(3.0 * static_cast<double>(context_->info().l2_bytes) / bytes) + 1, 2.0, 64.0));
    std::vector<Operands> sets;
    for (size_t i = 0; i < num_sets; ++i) {
      VOLLEY_TRY(Operands o, make_operands(c, static_cast<unsigned>(i + 1)));
      sets.push_back(std::move(o));
    }
    const std::vector<CandidateConfig> configs = searched_configs(s);
    VOLLEY_TRY_STATUS(spot_check(c, sets[0], 24));
    VOLLEY_TRY(const double host, host_us(sets));

    // Each configuration alone and overlapping its neighbours, then cuBLASLt.
    std::vector<std::vector<GemmCall>> calls;
    for (const CandidateConfig& candidate : configs) {
      for (const Overlap overlap : {Overlap::kNone, Overlap::kWeights}) {
        calls.emplace_back();
        for (Operands& o : sets) {
          o.args.config = candidate.config;
          o.args.overlap = overlap;
          VOLLEY_TRY(o.call, gemm_->prepare(o.args));
          calls.back().push_back(o.call);
        }
      }
      if (configs.size() > 1) VOLLEY_TRY_STATUS(spot_check(c, sets[0], 4));
    }
    std::vector<Contender> contenders;
    for (size_t i = 0; i < calls.size(); ++i) {
      contenders.push_back(
          {.launch = [&calls, i,
                      this](size_t set) { return gemm_->launch(calls[i][set], stream_->get()); },
           .cold = i % 2 == 0});
    }
    // FP4 weights: our FP8 product of the same shape.
    BenchCase wide = c;
    std::vector<Operands> wide_sets;
    std::vector<GemmCall> wide_calls[2];
    if (has_fp4_weights(s.mma)) {
      wide.shape.mma = MmaKind::kFp8;
      for (size_t i = 0; i < num_sets; ++i) {
        VOLLEY_TRY(Operands o, make_operands(wide, static_cast<unsigned>(i + 1)));
        for (const int overlapped : {0, 1}) {
          o.args.overlap = overlapped == 1 ? Overlap::kWeights : Overlap::kNone;
          VOLLEY_TRY(o.call, gemm_->prepare(o.args));
          wide_calls[overlapped].push_back(o.call);
        }
        wide_sets.push_back(std::move(o));
      }
      for (const int overlapped : {0, 1}) {
        contenders.push_back({.launch =
                                  [&wide_calls, overlapped, this](size_t set) {
                                    return gemm_->launch(wide_calls[overlapped][set],
                                                         stream_->get());
                                  },
                              .cold = overlapped == 0});
      }
    }
    const std::vector<Operands>& peer_sets = wide_sets.empty() ? sets : wide_sets;
    std::string peer_error;
    bool has_peer = peer_ != nullptr && (s.grouping == Grouping::kDense || along_k);
    // cuBLASLt's products: one, or one after the other for each group of columns.
    PeerProblem problem = {wide.shape, c.adds, false};
    if (along_k) problem.shape.k = s.k / s.num_groups;
    const auto peer_launch = [&, this](CublasLtPeer& peer, size_t set) -> Status {
      const Operands& o = peer_sets[set];
      for (int g = 0; g < (along_k ? s.num_groups : 1); ++g) {
        const auto columns = static_cast<uint64_t>(g) * static_cast<uint64_t>(problem.shape.k);
        const auto element = static_cast<uint64_t>(in_bytes);
        VOLLEY_TRY_STATUS(peer.launch(
            {.a = o.a.get() + columns * element,
             .a_scale = o.a_scale.get() + columns / 128 * static_cast<uint64_t>(s.m) * 4,
             .b = o.b.get() + columns * element,
             .b_scale = o.b_scale.get() + columns / 128 * static_cast<uint64_t>(s.n) * 4,
             .d = o.d.get() + static_cast<uint64_t>(g) * static_cast<uint64_t>(s.m) *
                                  static_cast<uint64_t>(s.n) * 4},
            stream_->get()));
      }
      return {};
    };
    const auto add_peer = [&](CublasLtPeer& peer) -> bool {
      if (const Status prepared = peer.prepare(problem, s.k); !prepared) {
        peer_error = prepared.error().message;
        return false;
      }
      contenders.push_back(
          {.launch = [&peer, &peer_launch](size_t set) { return peer_launch(peer, set); }});
      return true;
    };
    problem.block_scales = true;
    const bool has_block_peer = has_peer && s.mma == MmaKind::kFp8Rows && add_peer(*block_peer_);
    problem.block_scales = false;
    has_peer = has_peer && add_peer(*peer_);
    const size_t after_cublaslt = contenders.size();
    std::string deepgemm_error;
    if (deepgemm_times(c)) {
      const Status prepared =
          deepgemm_->prepare(deepgemm_problem(c), num_sets, graph_repeats(num_sets, configs[0].us));
      if (prepared) {
        contenders.push_back({.round = [this](int round) { return deepgemm_->round(round); }});
      } else {
        deepgemm_error = prepared.error().message;
      }
    }
    VOLLEY_TRY_STATUS(time_contenders(contenders, num_sets, configs[0].us));

    const Times& ours = contenders[0].times;
    const double overlapped_us = contenders[1].times.rot_us;
    const Times theirs = has_peer ? contenders[after_cublaslt - 1].times : Times{};
    const Times block =
        has_block_peer ? contenders[after_cublaslt - (has_peer ? 2 : 1)].times : Times{};
    Times deepgemm;
    if (contenders.size() > after_cublaslt) {
      deepgemm = contenders.back().times;
      deepgemm_error = contenders.back().error;
    }
    Json row;
    row["group"] = c.group;
    row["mma"] =
        config_name(sets[0].call.config).substr(0, config_name(sets[0].call.config).find('-'));
    row["m"] = s.m;
    row["n"] = s.n;
    row["k"] = s.k;
    row["groups"] = s.num_groups;
    row["rows"] = c.rows;
    row["config"] = config_name(configs[0].config);
    row["model_us"] = configs[0].us;
    row["cold_us"] = ours.cold_us;
    row["cold_p10_us"] = ours.cold_p10;
    row["cold_p90_us"] = ours.cold_p90;
    row["rot_us"] = ours.rot_us;
    row["overlapped_us"] = overlapped_us;
    row["tflops_cold"] = flops / ours.cold_us / 1e6;
    row["gb_s_rot"] = bytes / ours.rot_us / 1e3;
    row["gb_s_overlapped"] = bytes / overlapped_us / 1e3;
    row["host_us"] = host;
    row["floor_us"] = floor_us;
    std::string beside;
    if (c.adds) beside = fmt::format("; floor {:.1f}", floor_us);
    if (has_block_peer) {
      row["cublaslt_block_cold_us"] = block.cold_us;
      row["cublaslt_block_rot_us"] = block.rot_us;
      beside += fmt::format("; block {:.1f} cold {:.1f} rot: {:.2f} {:.2f}", block.cold_us,
                            block.rot_us, block.cold_us / ours.cold_us, block.rot_us / ours.rot_us);
    }
    if (!wide_sets.empty()) {
      const Times& fp8 = contenders[calls.size()].times;
      const double fp8_overlapped = contenders[calls.size() + 1].times.rot_us;
      row["fp8_cold_us"] = fp8.cold_us;
      row["fp8_rot_us"] = fp8.rot_us;
      row["fp8_overlapped_us"] = fp8_overlapped;
      beside = fmt::format("; our fp8 {:.1f} cold {:.1f} rot {:.1f} over: {:.2f} {:.2f} {:.2f}",
                           fp8.cold_us, fp8.rot_us, fp8_overlapped, ours.cold_us / fp8.cold_us,
                           ours.rot_us / fp8.rot_us, overlapped_us / fp8_overlapped);
    }
    const std::string shape_name =
        case_name(c) + (s.num_groups > 1 ? fmt::format(", {} groups", s.num_groups) : "");
    Times best;  // of each peer's
    const auto beside_ours = [&](const char* name, const Times& peer, Comparison& ratios) {
      if (peer.rot_us <= 0) return;
      row[fmt::format("{}_cold_us", name)] = peer.cold_us;
      row[fmt::format("{}_rot_us", name)] = peer.rot_us;
      ratios.add(shape_name, peer.cold_us / ours.cold_us, peer.rot_us / ours.rot_us,
                 peer.rot_us / overlapped_us);
      if (best.rot_us <= 0 || peer.cold_us < best.cold_us) best.cold_us = peer.cold_us;
      if (best.rot_us <= 0 || peer.rot_us < best.rot_us) best.rot_us = peer.rot_us;
    };
    beside_ours("cublaslt", theirs, cublaslt_ratios_);
    beside_ours("deepgemm", deepgemm, deepgemm_ratios_);
    if (deepgemm_ && best.rot_us > 0) {
      best_ratios_.add(shape_name, best.cold_us / ours.cold_us, best.rot_us / ours.rot_us,
                       best.rot_us / overlapped_us);
    }
    if (!peer_error.empty()) row["cublaslt_error"] = peer_error;
    if (!deepgemm_error.empty()) {
      row["deepgemm_error"] = deepgemm_error;
      beside += "; DeepGEMM: " + deepgemm_error;
    }
    fmt::print(
        "{:<19} {:>6} {:>6} {:>6} {:>3}  {:>8.1f} {:>8.1f} {:>8.1f} {:>7.0f} {:>6.0f} {:>6.1f}  "
        "{:>8} {:>8} {:>8} {:>8} {:>5} {:>5}  {}{}\n",
        c.group, s.m, s.n, s.k, s.num_groups, ours.cold_us, ours.rot_us, overlapped_us,
        flops / ours.cold_us / 1e6, bytes / ours.rot_us / 1e3, configs[0].us,
        us_text(theirs.cold_us), us_text(theirs.rot_us), us_text(deepgemm.cold_us),
        us_text(deepgemm.rot_us), ratio_text(best.cold_us / ours.cold_us),
        ratio_text(best.rot_us / ours.rot_us), config_name(configs[0].config), beside);
    Json searched = Json::array();
    for (size_t i = 1; i < configs.size(); ++i) {
      const Times& other = contenders[2 * i].times;
      const double other_overlapped = contenders[2 * i + 1].times.rot_us;
      searched.push_back(Json{{"config", config_name(configs[i].config)},
                              {"model_us", configs[i].us},
                              {"cold_us", other.cold_us},
                              {"rot_us", other.rot_us},
                              {"overlapped_us", other_overlapped}});
      if (other.rot_us < 0.98 * ours.rot_us) {
        fmt::print("    {:.1f} cold {:.1f} rot {:.1f} overlapped (model {:.1f}): {}\n",
                   other.cold_us, other.rot_us, other_overlapped, configs[i].us,
                   config_name(configs[i].config));
      }
    }
    if (!searched.empty()) row["searched"] = std::move(searched);
    std::fflush(stdout);
    return row;
  }

  Options options_;
  std::unique_ptr<cuda::Driver> driver_;
  std::optional<cuda::Context> context_;
  std::optional<cuda::Stream> stream_;
  cuda::Event start_event_, end_event_;
  std::optional<jit::KernelLibrary> kernels_;
  std::unique_ptr<Gemm> gemm_;
  cuda::Module fill_module_;
  cuda::Kernel fill_;
  cuda::Buffer flush_;
  std::unique_ptr<CublasLtPeer> peer_, block_peer_;
  std::unique_ptr<DeepGemmPeer> deepgemm_;
  Comparison cublaslt_ratios_{"cuBLASLt"}, deepgemm_ratios_{"DeepGEMM"};
  Comparison best_ratios_{"the faster of both"};
};

Result<Options> parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (word == "--json") {
      options.json = value();
    } else if (word == "--bundle") {
      options.bundle = value();
    } else if (word == "--filter") {
      options.filter = value();
    } else if (word == "--deepgemm") {
      options.deepgemm = value();
    } else if (word == "--search") {
      options.search = std::atoi(value().c_str());
    } else if (word == "--segments") {
      options.segments = std::atoi(value().c_str());
    } else if (word == "--skip-peer") {
      options.skip_peer = true;
    } else if (word == "--quantizers") {
      options.quantizers = true;
    } else if (word == "--gradients") {
      options.gradients = true;
    } else if (word == "--scoring") {
      options.scoring = true;
    } else if (word == "--bf16") {
      options.mma = MmaKind::kBf16;
    } else if (word == "--mma") {
      VOLLEY_TRY(options.mma, mma_from_name(value()));
    } else {
      return invalid(
          "unknown argument {}; expected --json FILE, --bundle FILE, --filter TEXT, "
          "--search N, --segments N, --skip-peer, --bf16, --mma NAME, --gradients, --quantizers, "
          "--scoring, --deepgemm COMMAND",
          word);
    }
  }
  if (options.gradients && options.mma == MmaKind::kFp8) options.mma = MmaKind::kFp8Rows;
  if (options.gradients != (options.mma == MmaKind::kFp8Rows) && options.mma != MmaKind::kBf16) {
    return invalid("--gradients are those of fp8rows or bf16, and fp8rows is for them");
  }
  return options;
}

}  // namespace
}  // namespace volley::gemm

int main(int argc, char** argv) {
  const auto options = volley::gemm::parse(argc, argv);
  if (!options) {
    fmt::print(stderr, "gemm_bench: {}\n", options.error().message);
    return 2;
  }
  const volley::Status status =
      options->scoring ? volley::gemm::run_scoring_bench({.json = options->json,
                                                          .filter = options->filter,
                                                          .search = options->search > 0,
                                                          .skip_peer = options->skip_peer})
                       : volley::gemm::Bench(*options).run();
  if (!status) {
    const bool no_device = status.error().kind == volley::ErrorKind::kUnsupported;
    fmt::print(stderr, "gemm_bench: {}{}\n", no_device ? "not run: " : "", status.error().message);
    return no_device ? 77 : 1;
  }
  return 0;
}
