// Times our products beside cuBLASLt's and DeepGEMM's on one GPU, in one run.
//
//   gemm_bench [--json FILE] [--bundle FILE] [--filter TEXT,...] [--search N] [--segments N]
//   [--skip-peer] [--bf16] [--mma fp8|bf16|mxfp4|nvfp4] [--deepgemm COMMAND] [--gradients]
//   gemm_bench --scoring [--json FILE] [--filter TEXT,...] [--search N] [--skip-peer]
//   gemm_bench --quantizers [--json FILE]
//
// cold and rot: bench_tools.h. over: the same graph as rot, of our kernels with Overlap::kWeights,
// each starting beside the end of the one before, as a layer's products do; rot and cold are
// without. --search N also times the N configurations that the model ranks first, which shows where
// the model errs. With FP4 weights our own FP8 product of the same shape is timed too, and
// cuBLASLt's baseline is FP8. --deepgemm runs COMMAND (bench/peers/deepgemm.py) and times DeepGEMM
// in the same rounds, FP8 and bf16. --gradients: gradient_bench.h. --scoring: scoring_bench.h.
// --quantizers: quantizer_bench.h.

#include <algorithm>
#include <cstdlib>

#include "gemm/gradient_bench.h"
#include "gemm/product_bench.h"
#include "gemm/quantizer_bench.h"
#include "gemm/scoring_bench.h"
#include "gemm/shape_file.h"

namespace volley::gemm {
namespace {

std::vector<ProductCase> gemm_cases(MmaKind mma) {
  std::vector<ProductCase> cases;
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
      ProductCase c = {"grouped contiguous",
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

class GemmBench {
 public:
  explicit GemmBench(ProductBench& bench) : bench_(bench) {}

  Status run() {
    const std::vector<ProductCase> cases = bench_.chosen(gemm_cases(bench_.options().mma));
    std::vector<GemmConfig> fp8_configs;
    for (const ProductCase& c : cases) {
      if (!has_fp4_weights(c.shape.mma)) continue;
      VOLLEY_TRY(const GemmConfig config, choose_config(in_fp8(c).shape, bench_.gemm().device()));
      fp8_configs.push_back(config);
    }
    VOLLEY_TRY_STATUS(bench_.warm_up(cases, fp8_configs));
    if (!bench_.options().deepgemm.empty()) start_deepgemm(cases);
    bench_.print_header();
    for (const ProductCase& c : cases) VOLLEY_TRY_STATUS(time_case(c));
    for (const Comparison* comparison : {&cublaslt_ratios_, &deepgemm_ratios_, &best_ratios_}) {
      comparison->print();
    }
    return {};
  }

 private:
  static ProductCase in_fp8(const ProductCase& c) {
    ProductCase wide = c;
    wide.shape.mma = MmaKind::kFp8;
    return wide;
  }

  bool deepgemm_times(const ProductCase& c) const {
    return deepgemm_ && DeepGemmPeer::has(c.shape);
  }

  static DeepGemmProblem deepgemm_problem(const ProductCase& c) {
    return {c.shape, static_cast<int>(c.rows) / c.shape.num_groups};
  }

  // Without it, or with one that cannot compile, the others are timed all the same.
  void start_deepgemm(const std::vector<ProductCase>& cases) {
    auto peer = DeepGemmPeer::start(bench_.options().deepgemm);
    if (!peer) {
      fmt::print("DeepGEMM: not timed: {}\n", peer.error().message);
      return;
    }
    deepgemm_ = std::move(*peer);
    bench_.out()["deepgemm"] = deepgemm_->version();
    std::vector<DeepGemmProblem> problems;
    for (const ProductCase& c : cases) {
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

  // Our FP8 product beside one with FP4 weights.
  struct Fp8Beside {
    std::vector<ProductOperands> sets;
    std::vector<GemmCall> calls[2];  // alone, overlapping
    size_t at = 0;                   // its first contender
  };

  Status add_fp8(ProductRun& run, Fp8Beside& fp8) {
    const ProductCase wide = in_fp8(run.c);
    for (size_t i = 0; i < run.sets.size(); ++i) {
      VOLLEY_TRY(ProductOperands o, bench_.make_operands(wide, static_cast<unsigned>(i + 1)));
      for (const int overlapped : {0, 1}) {
        o.args.overlap = overlapped == 1 ? Overlap::kWeights : Overlap::kNone;
        VOLLEY_TRY(o.call, bench_.gemm().prepare(o.args));
        fp8.calls[overlapped].push_back(o.call);
      }
      fp8.sets.push_back(std::move(o));
    }
    fp8.at = run.contenders.size();
    for (const int overlapped : {0, 1}) {
      run.contenders.push_back({.launch =
                                    [&fp8, overlapped, this](size_t set) {
                                      return bench_.gemm().launch(fp8.calls[overlapped][set],
                                                                  bench_.gpu().stream().get());
                                    },
                                .cold = overlapped == 0,
                                .num_sets = run.sets.size()});
    }
    return {};
  }

  // Makes cuBLASLt a contender.
  Status add_cublaslt(const std::vector<ProductOperands>& sets, ProductRun& run) {
    CublasLtPeer& peer = *bench_.cublaslt();
    const GemmShape& shape = sets[0].args.shape;
    VOLLEY_TRY_STATUS(peer.prepare({.shape = shape}, shape.k));
    run.contenders.push_back({.launch =
                                  [&peer, &sets, this](size_t set) {
                                    const ProductOperands& o = sets[set];
                                    return peer.launch({.a = o.a.get(),
                                                        .a_scale = o.a_scale.get(),
                                                        .b = o.b.get(),
                                                        .b_scale = o.b_scale.get(),
                                                        .d = o.d.get()},
                                                       bench_.gpu().stream().get());
                                  },
                              .num_sets = sets.size()});
    return {};
  }

  Status add_deepgemm(ProductRun& run) {
    const size_t num_sets = run.sets.size();
    VOLLEY_TRY_STATUS(deepgemm_->prepare(deepgemm_problem(run.c), num_sets,
                                         graph_repeats(num_sets, run.configs[0].us)));
    run.contenders.push_back({.round = [this](int round) { return deepgemm_->round(round); }});
    return {};
  }

  Status time_case(const ProductCase& c) {
    ProductRun run = {.c = c};
    VOLLEY_TRY_STATUS(bench_.prepare(run));
    Fp8Beside fp8;
    if (has_fp4_weights(c.shape.mma)) VOLLEY_TRY_STATUS(add_fp8(run, fp8));
    Status cublaslt_added, deepgemm_added;
    size_t cublaslt_at = 0, deepgemm_at = 0;
    if (bench_.cublaslt() != nullptr && c.shape.grouping == Grouping::kDense) {
      cublaslt_added = add_cublaslt(fp8.sets.empty() ? run.sets : fp8.sets, run);
      if (cublaslt_added) cublaslt_at = run.contenders.size() - 1;
    }
    if (deepgemm_times(c)) {
      deepgemm_added = add_deepgemm(run);
      if (deepgemm_added) deepgemm_at = run.contenders.size() - 1;
    }
    VOLLEY_TRY_STATUS(bench_.gpu().time_contenders(run.contenders, run.configs[0].us));

    Json row = bench_.row(run);
    std::string beside;
    if (fp8.at > 0) beside = compare_with_fp8(run, fp8, row);
    const Times cublaslt = cublaslt_at > 0 ? run.contenders[cublaslt_at].times : Times{};
    const Times deepgemm = deepgemm_at > 0 ? run.contenders[deepgemm_at].times : Times{};
    compare("cublaslt", cublaslt, run, cublaslt_ratios_, &row);
    compare("deepgemm", deepgemm, run, deepgemm_ratios_, &row);
    if (deepgemm_) compare("", faster(cublaslt, deepgemm), run, best_ratios_, nullptr);
    if (!cublaslt_added) row["cublaslt_error"] = cublaslt_added.error().message;
    std::string deepgemm_error = deepgemm_added ? "" : deepgemm_added.error().message;
    if (deepgemm_at > 0) deepgemm_error = run.contenders[deepgemm_at].error;
    if (!deepgemm_error.empty()) {
      row["deepgemm_error"] = deepgemm_error;
      beside += "; DeepGEMM: " + deepgemm_error;
    }
    bench_.print(run, cublaslt, deepgemm, beside, row);
    bench_.out()["cublaslt_over_ours"] = cublaslt_ratios_.json();
    bench_.out()["deepgemm_over_ours"] = deepgemm_ratios_.json();
    bench_.out()["best_over_ours"] = best_ratios_.json();
    return bench_.write_row(std::move(row));
  }

  static std::string compare_with_fp8(const ProductRun& run, const Fp8Beside& fp8, Json& row) {
    const Times& ours = run.ours();
    const Times& times = run.contenders[fp8.at].times;
    const double overlapped = run.contenders[fp8.at + 1].times.rot_us;
    row["fp8_cold_us"] = times.cold_us;
    row["fp8_rot_us"] = times.rot_us;
    row["fp8_overlapped_us"] = overlapped;
    return fmt::format("; our fp8 {:.1f} cold {:.1f} rot {:.1f} over: {:.2f} {:.2f} {:.2f}",
                       times.cold_us, times.rot_us, overlapped, ours.cold_us / times.cold_us,
                       ours.rot_us / times.rot_us, run.overlapped_us() / overlapped);
  }

  static void compare(const std::string& name, const Times& peer, const ProductRun& run,
                      Comparison& ratios, Json* row) {
    if (peer.rot_us <= 0) return;
    if (row != nullptr) {
      (*row)[name + "_cold_us"] = peer.cold_us;
      (*row)[name + "_rot_us"] = peer.rot_us;
    }
    const int num_groups = run.c.shape.num_groups;
    ratios.add(run.c.name() + (num_groups > 1 ? fmt::format(", {} groups", num_groups) : ""),
               peer.cold_us / run.ours().cold_us, peer.rot_us / run.ours().rot_us,
               peer.rot_us / run.overlapped_us());
  }

  ProductBench& bench_;
  std::unique_ptr<DeepGemmPeer> deepgemm_;
  Comparison cublaslt_ratios_{"cuBLASLt"}, deepgemm_ratios_{"DeepGEMM"};
  Comparison best_ratios_{"the faster of both"};
};

enum class What { kProducts, kGradients, kScoring, kQuantizers };

struct Options {
  ProductBenchOptions products;
  What what = What::kProducts;
};

Result<Options> parse(int argc, char** argv) {
  Options options;
  ProductBenchOptions& products = options.products;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (word == "--json") {
      products.json = value();
    } else if (word == "--bundle") {
      products.bundle = value();
    } else if (word == "--filter") {
      products.filter = value();
    } else if (word == "--deepgemm") {
      products.deepgemm = value();
    } else if (word == "--search") {
      products.search = std::atoi(value().c_str());
    } else if (word == "--segments") {
      products.segments = std::atoi(value().c_str());
    } else if (word == "--skip-peer") {
      products.skip_peer = true;
    } else if (word == "--quantizers") {
      options.what = What::kQuantizers;
    } else if (word == "--gradients") {
      options.what = What::kGradients;
    } else if (word == "--scoring") {
      options.what = What::kScoring;
    } else if (word == "--bf16") {
      products.mma = MmaKind::kBf16;
    } else if (word == "--mma") {
      VOLLEY_TRY(products.mma, mma_from_name(value()));
    } else {
      return invalid(
          "unknown argument {}; expected --json FILE, --bundle FILE, --filter TEXT, "
          "--search N, --segments N, --skip-peer, --bf16, --mma NAME, --gradients, --quantizers, "
          "--scoring, --deepgemm COMMAND",
          word);
    }
  }
  const bool gradients = options.what == What::kGradients;
  if (gradients && products.mma == MmaKind::kFp8) products.mma = MmaKind::kFp8Rows;
  if (gradients != (products.mma == MmaKind::kFp8Rows) && products.mma != MmaKind::kBf16) {
    return invalid("--gradients are those of fp8rows or bf16, and fp8rows is for them");
  }
  return options;
}

Status run(const Options& options) {
  const ProductBenchOptions& products = options.products;
  switch (options.what) {
    case What::kGradients:
      return run_gradient_bench(products);
    case What::kScoring:
      return run_scoring_bench({.json = products.json,
                                .filter = products.filter,
                                .search = products.search > 0,
                                .skip_peer = products.skip_peer});
    case What::kQuantizers:
      return run_quantizer_bench(products.json);
    case What::kProducts:
      break;
  }
  VOLLEY_TRY(const auto bench, ProductBench::open(products));
  return GemmBench(*bench).run();
}

}  // namespace
}  // namespace volley::gemm

int main(int argc, char** argv) {
  const auto options = volley::gemm::parse(argc, argv);
  if (!options) {
    fmt::print(stderr, "gemm_bench: {}\n", options.error().message);
    return 2;
  }
  const volley::Status status = volley::gemm::run(*options);
  if (!status) {
    const bool no_device = status.error().kind == volley::ErrorKind::kUnsupported;
    fmt::print(stderr, "gemm_bench: {}{}\n", no_device ? "not run: " : "", status.error().message);
    return no_device ? 77 : 1;
  }
  return 0;
}
