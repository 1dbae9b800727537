#include "gemm/product_bench.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <thread>

#include "gemm/fp4.h"
#include "gemm/kernel_text.h"
#include "gemm/reference.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

double weight_bytes(const GemmShape& s) {
  if (!has_fp4_weights(s.mma)) {
    const int weights = s.grouping == Grouping::kAlongK ? 1 : s.num_groups;
    return double{1} * weights * s.n * s.k * (is_fp8(s.mma) ? 1 : 2);
  }
  return double{1} * s.num_groups * ceil_div(s.n, kFp4StripRows) * (s.k / kFp4BlockCols) *
         fp4_tile_bytes(s.mma == MmaKind::kNvFp4);
}

// Row `row` of FP4 weight `weight` as `one`'s only one.
Status download_fp4_row(const GemmShape& s, const ProductOperands& o, int64_t weight, int64_t row,
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

}  // namespace

std::string ProductCase::name() const {
  return fmt::format("{} {}x{}x{}", group, shape.m, shape.n, shape.k);
}

Result<std::unique_ptr<ProductBench>> ProductBench::open(const ProductBenchOptions& options) {
  std::unique_ptr<ProductBench> bench(new ProductBench);
  bench->options_ = options;
  const auto start = BenchClock::now();
  VOLLEY_TRY(bench->gpu_, BenchGpu::open());
  BenchGpu& gpu = *bench->gpu_;
  bench->context_ms_ = us_since(start) / 1e3;

  const auto library_start = BenchClock::now();
  std::optional<jit::Bundle> bundle;
  if (!options.bundle.empty()) {
    VOLLEY_TRY(jit::Bundle opened, jit::Bundle::open(options.bundle));
    bundle = std::move(opened);
  }
  bench->bundle_ms_ = us_since(library_start) / 1e3;
  auto compiler = jit::load_nvrtc();
  bench->kernels_.emplace(jit::KernelLibraryOptions{}, std::move(bundle), std::nullopt,
                          compiler ? std::move(*compiler) : nullptr);
  VOLLEY_TRY(bench->gemm_, Gemm::create(gpu.context(), *bench->kernels_));
  VOLLEY_TRY(bench->first_ms_, bench->first_product_ms());
  bench->first_compiled_ = bench->kernels_->stats().num_compiled;
  VOLLEY_TRY(bench->memset_gb_s_, gpu.memset_gb_s());

  Json& out = bench->out_;
  out["device"] = gpu.context().info().name;
  out["driver"] = gpu.driver().version();
  out["context_ms"] = bench->context_ms_;
  out["bundle_open_ms"] = bench->bundle_ms_;
  out["first_product_ms"] = bench->first_ms_;
  out["first_product_compiled"] = bench->first_compiled_;
  out["memset_gb_s"] = bench->memset_gb_s_;
  auto cublaslt = load_cublaslt(gpu.context());
  if (options.skip_peer || !cublaslt) {
    fmt::print("cuBLASLt: not timed{}{}\n", cublaslt ? "" : ": ",
               cublaslt ? "" : cublaslt.error().message);
  } else {
    bench->cublaslt_ = std::move(*cublaslt);
    out["cublaslt"] = bench->cublaslt_->version();
  }
  return bench;
}

std::vector<ProductCase> ProductBench::chosen(std::vector<ProductCase> cases) const {
  std::vector<ProductCase> kept;
  for (ProductCase& c : cases) {
    if (options_.segments > 0) c.shape.segments = options_.segments;
    if (matches_filter(options_.filter, c.name())) kept.push_back(std::move(c));
  }
  return kept;
}

// As many of the model's ranking as --search names, the first always; of the first two also other
// orders of the tiles, where there are many rows of tiles.
std::vector<CandidateConfig> ProductBench::searched_configs(const GemmShape& shape) const {
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

Status ProductBench::warm_up(const std::vector<ProductCase>& cases,
                             const std::vector<GemmConfig>& others) {
  std::vector<jit::KernelSource> sources;
  std::set<std::string> names;
  const auto add = [&](const GemmConfig& config) {
    if (names.insert(config_name(config)).second) sources.push_back(kernel_source(config));
  };
  for (const ProductCase& c : cases) {
    for (const CandidateConfig& candidate : searched_configs(c.shape)) add(candidate.config);
  }
  for (const GemmConfig& config : others) add(config);
  const auto start = BenchClock::now();
  VOLLEY_TRY_STATUS(kernels_->warm_up(
      sources, static_cast<int>(std::max(1U, std::thread::hardware_concurrency())), nullptr));
  const auto stats = kernels_->stats();
  fmt::print("{} kernels from the bundle, {} compiled, in {:.2f} s on {} threads\n",
             stats.num_bundled, stats.num_compiled, us_since(start) / 1e6,
             std::thread::hardware_concurrency());
  return {};
}

void ProductBench::print_header() const {
  fmt::print(
      "{}, driver {}; context {:.0f} ms, bundle {:.2f} ms, first product {:.1f} ms ({} compiled),"
      " memset {:.0f} GB/s\n",
      gpu_->context().info().name, gpu_->driver().version(), context_ms_, bundle_ms_, first_ms_,
      first_compiled_, memset_gb_s_);
  fmt::print(
      "{:<19} {:>6} {:>6} {:>6} {:>3}  {:>8} {:>8} {:>8} {:>7} {:>6} {:>6}  {:>8} {:>8} {:>8} "
      "{:>8} {:>5} {:>5}  {}\n",
      "group", "m", "n", "k", "G", "cold us", "rot us", "over us", "TFLOP/s", "GB/s", "model",
      "lt cold", "lt rot", "dg cold", "dg rot", "cold", "rot", "configuration");
}

Status ProductBench::write_row(Json row) {
  rows_.push_back(std::move(row));
  out_["rows"] = rows_;
  return write_bench_json(options_.json, out_);
}

// From the first call of Gemm::prepare() in the process to the first finished product.
Result<double> ProductBench::first_product_ms() {
  VOLLEY_TRY(const cuda::Buffer memory,
             gpu_->random_buffer(size_t{64} << 20, RandomKind::kE4m3, 1));
  VOLLEY_TRY_STATUS(gpu_->context().synchronize());
  const auto start = BenchClock::now();
  GemmArgs args;
  args.shape = {.m = 16, .n = 4096, .k = 4096};
  args.a = memory.get();
  args.b = memory.get() + (1 << 20);
  args.d = memory.get() + (32 << 20);
  args.a_scale = memory.get() + (40 << 20);
  args.b_scale = memory.get() + (48 << 20);
  VOLLEY_TRY(const GemmCall call, gemm_->prepare(args));
  VOLLEY_TRY_STATUS(gemm_->launch(call, gpu_->stream().get()));
  VOLLEY_TRY_STATUS(gpu_->context().synchronize());
  return us_since(start) / 1e3;
}

Result<ProductOperands> ProductBench::make_operands(const ProductCase& c, unsigned seed) {
  const GemmShape& s = c.shape;
  const bool fp8 = has_fp8_tokens(s.mma), fp4 = has_fp4_weights(s.mma);
  const size_t bytes = fp8 ? 1 : 2;
  const RandomKind values = fp8 ? RandomKind::kE4m3 : RandomKind::kBf16;
  const bool along_k = s.grouping == Grouping::kAlongK, by_rows = s.mma == MmaKind::kFp8Rows;
  const size_t rows = static_cast<size_t>(s.m) *
                      static_cast<size_t>(s.grouping == Grouping::kMasked ? s.num_groups : 1);
  const size_t d_rows = rows * static_cast<size_t>(along_k ? s.num_groups : 1);
  ProductOperands o;
  const auto k = static_cast<size_t>(s.k), n = static_cast<size_t>(s.n),
             g = static_cast<size_t>(along_k ? 1 : s.num_groups);
  VOLLEY_TRY(o.a, gpu_->random_buffer(rows * k * bytes, values, 4 * seed));
  if (fp4) {
    VOLLEY_TRY(o.b, gpu_->random_buffer(static_cast<size_t>(weight_bytes(s)),
                                        s.mma == MmaKind::kNvFp4 ? RandomKind::kNvFp4Tiles
                                                                 : RandomKind::kMxFp4Tiles,
                                        4 * seed + 1));
  } else {
    VOLLEY_TRY(o.b, gpu_->random_buffer(g * n * k * bytes, values, 4 * seed + 1));
  }
  const size_t d_bytes = d_rows * n * (s.out == OutKind::kBf16 ? 2 : 4);
  VOLLEY_TRY(o.d, cuda::Buffer::allocate(gpu_->context(), d_bytes));
  if (c.adds) {
    VOLLEY_TRY_STATUS(o.d.fill(0, gpu_->stream()));
    o.args.c = o.d.get();
  }
  o.args.shape = s;
  if (fp8) {
    VOLLEY_TRY(o.a_scale, gpu_->random_buffer((rows + 4 * g) * (k / 128) * 4, RandomKind::kScales,
                                              4 * seed + 2));
    const size_t b_scales = fp4       ? g * ((n + 63) / 64 * 64)
                            : by_rows ? n * (k / 128)
                                      : g * ((n + 127) / 128) * (k / 128);
    VOLLEY_TRY(o.b_scale, gpu_->random_buffer(b_scales * 4, RandomKind::kScales, 4 * seed + 3));
    o.args.a_scale = o.a_scale.get();
    o.args.b_scale = o.b_scale.get();
  }
  if (!c.groups.empty()) {
    VOLLEY_TRY(o.groups, cuda::Buffer::allocate(gpu_->context(), c.groups.size() * 4));
    VOLLEY_TRY_STATUS(o.groups.upload(c.groups.data(), o.groups.bytes()));
    o.args.groups = o.groups.get();
  }
  o.args.a = o.a.get();
  o.args.b = o.b.get();
  o.args.d = o.d.get();
  VOLLEY_TRY(o.call, gemm_->prepare(o.args));
  return o;
}

Status ProductBench::prepare(ProductRun& run) {
  const ProductCase& c = run.c;
  const GemmShape& s = c.shape;
  const bool along_k = s.grouping == Grouping::kAlongK;
  const double in_bytes = has_fp8_tokens(s.mma) ? 1 : 2;
  const double d_bytes =
      c.rows * s.n * (along_k ? s.num_groups : 1) * (s.out == OutKind::kBf16 ? 2 : 4);
  run.bytes = c.rows * s.k * in_bytes + weight_bytes(s) + d_bytes * (c.adds ? 2 : 1);
  run.flops = 2 * c.rows * s.n * s.k;
  const double peak = (has_fp8_tokens(s.mma) ? 8192.0 : 4096.0) * gpu_->context().info().num_sms;
  run.floor_us = std::max(run.flops / (peak * gemm_->device().clock_ghz * 1e3),
                          run.bytes / gemm_->device().dram_bytes_per_ns / 1e3);
  const size_t num_sets = num_operand_sets(gpu_->context(), run.bytes, 64);
  for (size_t i = 0; i < num_sets; ++i) {
    VOLLEY_TRY(ProductOperands o, make_operands(c, static_cast<unsigned>(i + 1)));
    run.sets.push_back(std::move(o));
  }
  run.configs = searched_configs(s);
  VOLLEY_TRY_STATUS(spot_check(c, run.sets[0], 24));
  VOLLEY_TRY(run.host_us, host_us(run.sets));
  for (const CandidateConfig& candidate : run.configs) {
    for (const Overlap overlap : {Overlap::kNone, Overlap::kWeights}) {
      run.calls.emplace_back();
      for (ProductOperands& o : run.sets) {
        o.args.config = candidate.config;
        o.args.overlap = overlap;
        VOLLEY_TRY(o.call, gemm_->prepare(o.args));
        run.calls.back().push_back(o.call);
      }
    }
    if (run.configs.size() > 1) VOLLEY_TRY_STATUS(spot_check(c, run.sets[0], 4));
  }
  for (size_t i = 0; i < run.calls.size(); ++i) {
    run.contenders.push_back({.launch =
                                  [&run, i, this](size_t set) {
                                    return gemm_->launch(run.calls[i][set], gpu_->stream().get());
                                  },
                              .cold = i % 2 == 0,
                              .num_sets = num_sets});
  }
  return {};
}

// Of one launch() into a stream that is already busy.
Result<double> ProductBench::host_us(const std::vector<ProductOperands>& sets) {
  std::vector<double> us;
  for (int i = 0; i < 20; ++i) {
    VOLLEY_TRY_STATUS(gpu_->context().synchronize());
    VOLLEY_TRY_STATUS(gpu_->flush(0));
    const auto start = BenchClock::now();
    for (int j = 0; j < 10; ++j) {
      VOLLEY_TRY_STATUS(
          gemm_->launch(sets[static_cast<size_t>(j) % sets.size()].call, gpu_->stream().get()));
    }
    us.push_back(us_since(start) / 10);
  }
  VOLLEY_TRY_STATUS(gpu_->context().synchronize());
  return quantile(us, 0.5);
}

// A few values of the timed kernel's output against the reference: a wrong kernel has no speed.
Status ProductBench::spot_check(const ProductCase& c, ProductOperands& o, int num_values) {
  HostProblem host;
  host.shape = c.shape;
  host.groups = c.groups;
  const GemmShape& s = c.shape;
  VOLLEY_TRY_STATUS(o.d.fill(c.adds ? 0 : 0xFF, gpu_->stream()));
  VOLLEY_TRY_STATUS(gemm_->launch(o.call, gpu_->stream().get()));
  VOLLEY_TRY_STATUS(gpu_->context().synchronize());
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
      VOLLEY_TRY_STATUS(o.b.download(one.b.data(), row_bytes, row_at(weight * int64_t{s.n} + col)));
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

Json ProductBench::row(const ProductRun& run) const {
  const GemmShape& s = run.c.shape;
  const Times& ours = run.ours();
  const std::string config = config_name(run.sets[0].call.config);
  Json row;
  row["group"] = run.c.group;
  row["mma"] = config.substr(0, config.find('-'));
  row["m"] = s.m;
  row["n"] = s.n;
  row["k"] = s.k;
  row["groups"] = s.num_groups;
  row["rows"] = run.c.rows;
  row["config"] = config_name(run.configs[0].config);
  row["model_us"] = run.configs[0].us;
  row["cold_us"] = ours.cold_us;
  row["cold_p10_us"] = ours.cold_p10;
  row["cold_p90_us"] = ours.cold_p90;
  row["rot_us"] = ours.rot_us;
  row["overlapped_us"] = run.overlapped_us();
  row["tflops_cold"] = run.flops / ours.cold_us / 1e6;
  row["gb_s_rot"] = run.bytes / ours.rot_us / 1e3;
  row["gb_s_overlapped"] = run.bytes / run.overlapped_us() / 1e3;
  row["host_us"] = run.host_us;
  row["floor_us"] = run.floor_us;
  return row;
}

void ProductBench::print(const ProductRun& run, const Times& cublaslt, const Times& deepgemm,
                         const std::string& beside, Json& row) const {
  const GemmShape& s = run.c.shape;
  const Times& ours = run.ours();
  const Times best = faster(cublaslt, deepgemm);
  fmt::print(
      "{:<19} {:>6} {:>6} {:>6} {:>3}  {:>8.1f} {:>8.1f} {:>8.1f} {:>7.0f} {:>6.0f} {:>6.1f}  "
      "{:>8} {:>8} {:>8} {:>8} {:>5} {:>5}  {}{}\n",
      run.c.group, s.m, s.n, s.k, s.num_groups, ours.cold_us, ours.rot_us, run.overlapped_us(),
      run.flops / ours.cold_us / 1e6, run.bytes / ours.rot_us / 1e3, run.configs[0].us,
      us_text(cublaslt.cold_us), us_text(cublaslt.rot_us), us_text(deepgemm.cold_us),
      us_text(deepgemm.rot_us), ratio_text(best.cold_us / ours.cold_us),
      ratio_text(best.rot_us / ours.rot_us), config_name(run.configs[0].config), beside);
  Json searched = Json::array();
  for (size_t i = 1; i < run.configs.size(); ++i) {
    const Times& other = run.contenders[2 * i].times;
    const double other_overlapped = run.contenders[2 * i + 1].times.rot_us;
    searched.push_back(Json{{"config", config_name(run.configs[i].config)},
                            {"model_us", run.configs[i].us},
                            {"cold_us", other.cold_us},
                            {"rot_us", other.rot_us},
                            {"overlapped_us", other_overlapped}});
    if (other.rot_us < 0.98 * ours.rot_us) {
      fmt::print("    {:.1f} cold {:.1f} rot {:.1f} overlapped (model {:.1f}): {}\n", other.cold_us,
                 other.rot_us, other_overlapped, run.configs[i].us,
                 config_name(run.configs[i].config));
    }
  }
  if (!searched.empty()) row["searched"] = std::move(searched);
  std::fflush(stdout);
}

}  // namespace volley::gemm
