#include "gemm/gradient_bench.h"

namespace volley::gemm {
namespace {

// Weights [m, n] whose gradient sums over k tokens; along K: over each group's k tokens.
std::vector<ProductCase> gradient_cases(MmaKind mma) {
  std::vector<ProductCase> cases;
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
      ProductCase c = {"gradient along k",
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

class GradientBench {
 public:
  explicit GradientBench(ProductBench& bench) : bench_(bench) {}

  Status run() {
    const std::vector<ProductCase> cases = bench_.chosen(gradient_cases(bench_.options().mma));
    if (bench_.cublaslt() != nullptr) {
      VOLLEY_TRY(block_cublaslt_, load_cublaslt(bench_.gpu().context()));
    }
    VOLLEY_TRY_STATUS(bench_.warm_up(cases, {}));
    bench_.print_header();
    for (const ProductCase& c : cases) VOLLEY_TRY_STATUS(time_case(c));
    cublaslt_ratios_.print();
    return {};
  }

 private:
  // One product, or one after the other for each group of columns.
  Status launch(CublasLtPeer& peer, const ProductCase& c, const ProductOperands& o) {
    const GemmShape& s = c.shape;
    const int num_products = s.grouping == Grouping::kAlongK ? s.num_groups : 1;
    const auto m = static_cast<uint64_t>(s.m), n = static_cast<uint64_t>(s.n);
    const uint64_t element = has_fp8_tokens(s.mma) ? 1 : 2;
    for (int g = 0; g < num_products; ++g) {
      const auto columns = static_cast<uint64_t>(g) * static_cast<uint64_t>(s.k / num_products);
      VOLLEY_TRY_STATUS(peer.launch({.a = o.a.get() + columns * element,
                                     .a_scale = o.a_scale.get() + columns / 128 * m * 4,
                                     .b = o.b.get() + columns * element,
                                     .b_scale = o.b_scale.get() + columns / 128 * n * 4,
                                     .d = o.d.get() + static_cast<uint64_t>(g) * m * n * 4},
                                    bench_.gpu().stream().get()));
    }
    return {};
  }

  // Makes `peer` a contender and returns its place, or 0 and the reason in `error`.
  size_t add(CublasLtPeer& peer, bool block_scales, ProductRun& run, std::string& error) {
    PeerProblem problem = {run.c.shape, run.c.adds, block_scales};
    if (run.c.shape.grouping == Grouping::kAlongK) problem.shape.k /= run.c.shape.num_groups;
    if (const Status prepared = peer.prepare(problem, run.c.shape.k); !prepared) {
      error = prepared.error().message;
      return 0;
    }
    run.contenders.push_back(
        {.launch = [&run, &peer, this](size_t set) { return launch(peer, run.c, run.sets[set]); },
         .num_sets = run.sets.size()});
    return run.contenders.size() - 1;
  }

  Status time_case(const ProductCase& c) {
    ProductRun run = {.c = c};
    VOLLEY_TRY_STATUS(bench_.prepare(run));
    size_t block_at = 0, tensor_at = 0;
    std::string error;
    if (bench_.cublaslt() != nullptr) {
      if (c.shape.mma == MmaKind::kFp8Rows) block_at = add(*block_cublaslt_, true, run, error);
      tensor_at = add(*bench_.cublaslt(), false, run, error);
    }
    VOLLEY_TRY_STATUS(bench_.gpu().time_contenders(run.contenders, run.configs[0].us));

    const Times& ours = run.ours();
    Json row = bench_.row(run);
    std::string beside = fmt::format("; floor {:.1f}", run.floor_us);
    if (block_at > 0) {
      const Times& block = run.contenders[block_at].times;
      row["cublaslt_block_cold_us"] = block.cold_us;
      row["cublaslt_block_rot_us"] = block.rot_us;
      beside += fmt::format("; block {:.1f} cold {:.1f} rot: {:.2f} {:.2f}", block.cold_us,
                            block.rot_us, block.cold_us / ours.cold_us, block.rot_us / ours.rot_us);
    }
    Times tensor;
    if (tensor_at > 0) {
      tensor = run.contenders[tensor_at].times;
      row["cublaslt_cold_us"] = tensor.cold_us;
      row["cublaslt_rot_us"] = tensor.rot_us;
      cublaslt_ratios_.add(run.c.name(), tensor.cold_us / ours.cold_us, tensor.rot_us / ours.rot_us,
                           tensor.rot_us / run.overlapped_us());
    }
    if (!error.empty()) row["cublaslt_error"] = error;
    bench_.print(run, tensor, {}, beside, row);
    bench_.out()["cublaslt_over_ours"] = cublaslt_ratios_.json();
    return bench_.write_row(std::move(row));
  }

  ProductBench& bench_;
  std::unique_ptr<CublasLtPeer> block_cublaslt_;
  Comparison cublaslt_ratios_{"cuBLASLt"};
};

}  // namespace

Status run_gradient_bench(const ProductBenchOptions& options) {
  VOLLEY_TRY(const auto bench, ProductBench::open(options));
  return GradientBench(*bench).run();
}

}  // namespace volley::gemm
