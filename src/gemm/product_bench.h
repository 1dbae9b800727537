#pragma once

// What the benchmarks of products share (gemm_bench.cc, gradient_bench.cc): the cases, operands and
// their check, our contenders, the table and the JSON rows.

#include "gemm/bench_tools.h"
#include "gemm/cublaslt_peer.h"
#include "gemm/gemm.h"

namespace volley::gemm {

struct ProductBenchOptions {
  std::string json;      // file to write, or empty
  std::string bundle;    // of kernels, or empty
  std::string filter;    // texts with commas between; a case has one of them in its name
  std::string deepgemm;  // a command that times DeepGEMM, or empty
  int search = 0;        // how many configurations to time of the model's ranking
  int segments = 0;      // another reduction plan, or 0
  bool skip_peer = false;
  MmaKind mma = MmaKind::kFp8;
};

struct ProductCase {
  std::string group;
  GemmShape shape;
  std::vector<int32_t> groups;  // on the host
  double rows = 0;              // that count
  bool adds = false;            // D is C

  std::string name() const;
};

// One set of operands.
struct ProductOperands {
  cuda::Buffer a, a_scale, b, b_scale, d, groups;
  GemmArgs args;
  GemmCall call;
};

// A case while it is timed: our operands, and the contenders, ours first: each configuration alone,
// then overlapping its neighbours.
struct ProductRun {
  const ProductCase& c;
  double bytes = 0, flops = 0, floor_us = 0, host_us = 0;
  std::vector<ProductOperands> sets;
  std::vector<CandidateConfig> configs;
  std::vector<std::vector<GemmCall>> calls;
  std::vector<Contender> contenders;

  const Times& ours() const { return contenders[0].times; }
  double overlapped_us() const { return contenders[1].times.rot_us; }
};

class ProductBench {
 public:
  // Opens the GPU, a bundle, cuBLASLt; times the process's first product.
  static Result<std::unique_ptr<ProductBench>> open(const ProductBenchOptions& options);

  BenchGpu& gpu() { return *gpu_; }
  Gemm& gemm() { return *gemm_; }
  CublasLtPeer* cublaslt() { return cublaslt_.get(); }  // null where it is not timed
  Json& out() { return out_; }
  const ProductBenchOptions& options() const { return options_; }

  // Those that --filter names, with --segments.
  std::vector<ProductCase> chosen(std::vector<ProductCase> cases) const;
  // Compiles what the cases and `others` need.
  Status warm_up(const std::vector<ProductCase>& cases, const std::vector<GemmConfig>& others);
  void print_header() const;
  // Adds the row to the JSON file.
  Status write_row(Json row);

  Result<ProductOperands> make_operands(const ProductCase& c, unsigned seed);
  // Operands, our contenders; their results checked.
  Status prepare(ProductRun& run);
  // After the contenders are timed: what there is to say of ours.
  Json row(const ProductRun& run) const;
  // Prints the table's line, then the configurations of --search that are faster, which go to the
  // row as well. No time of a peer: {}.
  void print(const ProductRun& run, const Times& cublaslt, const Times& deepgemm,
             const std::string& beside, Json& row) const;

 private:
  ProductBench() = default;
  std::vector<CandidateConfig> searched_configs(const GemmShape& shape) const;
  Result<double> first_product_ms();
  Result<double> host_us(const std::vector<ProductOperands>& sets);
  Status spot_check(const ProductCase& c, ProductOperands& o, int num_values);

  ProductBenchOptions options_;
  std::unique_ptr<BenchGpu> gpu_;
  std::optional<jit::KernelLibrary> kernels_;
  std::unique_ptr<Gemm> gemm_;
  std::unique_ptr<CublasLtPeer> cublaslt_;
  double context_ms_ = 0, bundle_ms_ = 0, first_ms_ = 0, memset_gb_s_ = 0;
  size_t first_compiled_ = 0;
  Json out_;
  Json rows_ = Json::array();
};

}  // namespace volley::gemm
