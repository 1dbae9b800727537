#pragma once

// volley bench --shape: how near the passes of a model come to what the machine can do. Weights are
// random and made in memory, so no checkpoint is needed and acceptance cannot be measured; speedups
// are computed from measured passes at a stated acceptance_length.

#include <functional>
#include <string>
#include <vector>

#include "app/options.h"
#include "base/json.h"
#include "tensor/weight_format.h"
#include "weights/config.h"
#include "weights/drafter_config.h"

namespace volley {

struct BenchShape {
  std::string name;
  TargetConfig target;
  DrafterConfig drafter;
  double acceptance_length = 0;  // published, greedy
  std::string acceptance_source;
};

// qwen3-0.6b, 1.7b, 4b, 8b and llama3.1-8b, each with a DFlash drafter of 5 layers in its own
// dimensions. Errors: another name.
Result<BenchShape> bench_shape(const std::string& name);

// One kind of pass. Times in milliseconds.
struct ShapeFigure {
  std::string name;  // "step", "verify", "draft", "inject", "prefill"
  int rows = 1;
  int context = 0;  // keys before the first row
  double ms = 0;    // median
  double p10_ms = 0;
  double p90_ms = 0;
  int num_samples = 0;
  double bytes = 0;          // weights and keys and values that it must read
  double flops = 0;          // of its products
  double times_one_row = 0;  // median over neighbouring pairs of (this, a step); 0: not compared
};

// What this project asks of a figure, and what was measured.
struct ShapeBar {
  std::string name;
  double value = 0;
  double bar = 0;
  bool at_least = false;  // or at most

  bool met() const { return at_least ? value >= bar : value <= bar; }
};

struct ShapeReport {
  std::string shape;
  WeightFormat format = WeightFormat::kBf16;
  std::string ops;
  int num_threads = 1;
  double read_bytes_s = 0;  // median of passes between the figures
  double read_p10_bytes_s = 0;
  double read_p90_bytes_s = 0;
  double multiply_flop_s = 0;
  double load_s = 0;
  double weight_bytes = 0;
  std::vector<ShapeFigure> figures;
  int block_size = 0;
  double acceptance_length = 0;
  std::string acceptance_source;

  // The least time that the bytes and the products of a figure take.
  double floor_ms(const ShapeFigure& figure) const;
  const ShapeFigure* find(std::string_view name, int rows, int context) const;
  // Of the figures that are there: a step's share of the read bandwidth (bf16 88%, others 80%), 16
  // rows over one (1.20), a draft pass over its floor (1.15).
  std::vector<ShapeBar> bars() const;
  // Speed of drafted over plain decoding that follows from the figures; 0 where some are missing.
  double computed_speedup() const;
  std::string table() const;
  Json json() const;
};

struct ShapeBenchConfig {
  std::string isa = "auto";
  int num_threads = 0;
  WeightFormat format = WeightFormat::kBf16;
  double budget_s = 60;  // of measuring, loading aside; every figure is taken at least once
  std::vector<std::string> passes = {"step", "verify", "draft", "prefill"};  // which to take
  std::vector<int> rows = {2, 4, 8, 16, 24, 32, 48, 64};
  std::vector<int> contexts = {128, 2048, 8192};
  std::vector<int> prefills = {512, 2048};
  int prefill_chunk = 512;
  int64_t read_buffer_bytes = int64_t{2} << 30;
};

// Errors: the shape does not fit this machine's free memory, with the numbers, before anything is
// allocated; the unit cannot run here.
Result<ShapeReport> measure_shape(const BenchShape& shape, const ShapeBenchConfig& config,
                                  const std::function<void(std::string_view)>& progress);

// Time against rows and against context, a curve for each report, each over its floor.
std::string shape_plot_svg(const std::vector<ShapeReport>& reports, const std::string& subtitle);

Result<int> run_shape_bench(const Options& options);

}  // namespace volley
