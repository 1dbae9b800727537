#include "app/bench_shape.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <functional>
#include <numeric>

#include "app/bench_stats.h"
#include "app/commands.h"
#include "app/machine.h"
#include "app/progress.h"
#include "app/prompt_text.h"
#include "base/clock.h"
#include "base/file.h"
#include "model/dflash.h"
#include "model/random_weights.h"
#include "model/target.h"
#include "ops/cpu/packing.h"
#include "ops/cpu/roofline.h"

namespace volley {
namespace {

constexpr int kPageSize = 64;
constexpr int kTaps = 5;
constexpr int kDraftLayers = 5;

struct ShapeSizes {
  std::string_view name;
  Architecture architecture;
  int num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, vocab_size;
  bool tied;
  int draft_block;
  double acceptance_length;
  std::string_view acceptance_source;
};

// Sizes from the models' config.json. Acceptance at temperature 0 from arXiv 2602.06036v2.
constexpr std::array<ShapeSizes, 5> kShapes = {{
    {"qwen3-0.6b", Architecture::kQwen3, 28, 1024, 3072, 16, 8, 151936, true, 16, 6.54,
     "that of Qwen3-4B, average of Table 1; none is published for this size"},
    {"qwen3-1.7b", Architecture::kQwen3, 28, 2048, 6144, 16, 8, 151936, true, 16, 6.54,
     "that of Qwen3-4B, average of Table 1; none is published for this size"},
    {"qwen3-4b", Architecture::kQwen3, 36, 2560, 9728, 32, 8, 151936, true, 16, 6.54,
     "Qwen3-4B, average of Table 1"},
    {"qwen3-8b", Architecture::kQwen3, 36, 4096, 12288, 32, 8, 151936, false, 16, 6.49,
     "Qwen3-8B, average of Table 1"},
    {"llama3.1-8b", Architecture::kLlama, 32, 4096, 14336, 32, 8, 128256, false, 10, 4.32,
     "LLaMA-3.1-8B-Instruct on GSM8K, Table 5"},
}};

TargetConfig target_of(const ShapeSizes& s) {
  TargetConfig c;
  c.architecture = s.architecture;
  c.hidden_size = s.hidden_size;
  c.num_layers = s.num_layers;
  c.num_heads = s.num_heads;
  c.num_kv_heads = s.num_kv_heads;
  c.head_dim = 128;
  c.intermediate_size = s.intermediate_size;
  c.vocab_size = s.vocab_size;
  c.max_position_embeddings = 40960;
  c.tie_word_embeddings = s.tied;
  c.qk_norm = s.architecture == Architecture::kQwen3;
  c.rope.theta = c.qk_norm ? 1e6 : 5e5;
  c.layer_window.assign(static_cast<size_t>(s.num_layers), 0);
  return c;
}

DrafterConfig drafter_of(const ShapeSizes& s, const TargetConfig& target) {
  DrafterConfig c;
  c.hidden_size = c.target_hidden_size = s.hidden_size;
  c.num_layers = kDraftLayers;
  c.num_heads = s.num_heads;
  c.num_kv_heads = s.num_kv_heads;
  c.head_dim = target.head_dim;
  c.intermediate_size = s.intermediate_size;
  c.vocab_size = c.draft_vocab_size = s.vocab_size;
  c.max_position_embeddings = target.max_position_embeddings;
  c.rope = target.rope;
  c.block_size = s.draft_block;
  c.mask_token_id = s.vocab_size - 1;
  c.taps = default_taps(s.num_layers, kTaps);
  c.num_target_layers = s.num_layers;
  c.attention.assign(kDraftLayers, {});
  return c;
}

// Elements of every matrix that is packed, times `bytes_of`.
template <class F>
double sum_over_matrices(const BenchShape& shape, F bytes_of) {
  const auto layer = [&](const auto& c) {
    const int64_t q = int64_t{c.num_heads} * c.head_dim, kv = int64_t{c.num_kv_heads} * c.head_dim;
    return bytes_of(q + 2 * kv, c.hidden_size) + bytes_of(c.hidden_size, q) +
           bytes_of(2 * int64_t{c.intermediate_size}, c.hidden_size) +
           bytes_of(c.hidden_size, c.intermediate_size);
  };
  const TargetConfig& t = shape.target;
  const DrafterConfig& d = shape.drafter;
  const int64_t kv = int64_t{d.num_kv_heads} * d.head_dim;
  return t.num_layers * layer(t) + bytes_of(t.vocab_size, t.hidden_size) +
         d.num_layers * (layer(d) + bytes_of(2 * kv, d.hidden_size)) +
         bytes_of(d.hidden_size, static_cast<int64_t>(d.taps.size()) * t.hidden_size);
}

// MemAvailable of /proc/meminfo; 0 where there is none.
double available_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string word; file >> word;) {
    double kib = 0;
    if (word == "MemAvailable:" && file >> kib) return kib * 1024;
  }
  return 0;
}

Status check_memory(const BenchShape& shape, const ShapeBenchConfig& config, int64_t kv_positions) {
  const auto packed = [&](int64_t n, int64_t k) {
    return static_cast<double>((n + 31) / 32 *
                               cpu::panel_bytes(config.format, cpu::Bf16Layout::kTiles, k));
  };
  const TargetConfig& t = shape.target;
  const double weights = sum_over_matrices(shape, packed);
  const double table = 2.0 * t.vocab_size * t.hidden_size;  // the embedding, and the random values
  const double kv = 2.0 * 2 * kv_positions * t.num_kv_heads * t.head_dim *
                    (t.num_layers + shape.drafter.num_layers);
  const double rows = 4.0 * config.prefill_chunk *
                      (kTaps * t.hidden_size + 4 * t.hidden_size + 2 * t.intermediate_size);
  const double needed =
      weights + 2 * table + kv + rows + static_cast<double>(config.read_buffer_bytes);
  const double available = available_bytes();
  if (available == 0 || needed * 1.03 < available) return {};
  return make_error(
      ErrorKind::kUnsupported,
      "{} in {} needs {:.1f} GB: {:.1f} of weights, {:.1f} of embedding and of random "
      "values, {:.1f} of keys and values for {} positions, {:.1f} to measure the "
      "memory with. {:.1f} GB are free; try a smaller --weight-format",
      shape.name, weight_format_name(config.format), needed * 1e-9, weights * 1e-9,
      2 * table * 1e-9, kv * 1e-9, kv_positions,
      static_cast<double>(config.read_buffer_bytes) * 1e-9, available * 1e-9);
}

// The models of a shape, with the caches and rows that a pass needs.
class ShapeModels {
 public:
  static Result<ShapeModels> create(const BenchShape& shape, const ShapeBenchConfig& config,
                                    Ops& ops, int num_positions) {
    ShapeModels m;
    const TargetConfig& t = shape.target;
    const int64_t largest = std::max(int64_t{t.vocab_size} * t.hidden_size,
                                     int64_t{kTaps} * t.hidden_size * t.hidden_size);
    auto weights = RandomWeights::shared(1, largest);
    const ModelLimits limits{.max_rows = std::max(config.prefill_chunk, 64),
                             .max_output_rows = 64,
                             .max_positions = num_positions};
    VOLLEY_TRY(m.target, TargetModel::create(t, weights.target(t), limits, ops));
    VOLLEY_TRY(m.drafter, DflashDrafter::create(shape.drafter, weights.drafter(shape.drafter),
                                                *m.target, limits, ops));
    m.target->set_taps(shape.drafter.taps);
    const int num_pages = (num_positions + kPageSize - 1) / kPageSize;
    VOLLEY_TRY(m.target_kv, ops.create_kv(m.target->kv_shape(num_pages, kPageSize)));
    VOLLEY_TRY(m.draft_kv, ops.create_kv(m.drafter->kv_shape(num_pages, kPageSize)));
    m.pages.resize(static_cast<size_t>(num_pages));
    std::iota(m.pages.begin(), m.pages.end(), 0);
    VOLLEY_TRY(m.taps, ops.allocate(limits.max_rows, int64_t{kTaps} * t.hidden_size, DType::kF32));
    m.batch = RowBatch(limits.max_rows, 1);
    return m;
  }

  void set_rows(int count, int first_position) {
    batch.clear();
    batch.begin_sequence(pages.data());
    for (int i = 0; i < count; ++i)
      batch.add((i * 7919 + first_position) % 1000, first_position + i);
  }
  // A pass of the target over rows from `context` on, each with its most likely next token.
  void step(int rows, int context, bool with_taps) {
    set_rows(rows, context);
    const TensorView hidden =
        target->forward(batch, outputs(0, rows), *target_kv, tap_rows(with_taps ? rows : 0));
    target->argmax(hidden, std::span(tokens).first(static_cast<size_t>(rows)));
  }
  void draft(int rows, int context) {
    set_rows(rows, context);
    const TensorView hidden = drafter->draft(batch, outputs(1, rows - 1), *draft_kv);
    drafter->argmax(hidden, std::span(tokens).first(static_cast<size_t>(rows - 1)));
  }
  void inject(int rows, int context) {
    set_rows(rows, context);
    drafter->inject(batch, taps.first_rows(rows), *draft_kv);
  }
  // A prompt, with the logits of its last row.
  void prefill(int num_tokens, int chunk, bool with_drafter) {
    for (int first = 0; first < num_tokens; first += chunk) {
      const int rows = std::min(chunk, num_tokens - first);
      const bool is_last = first + rows == num_tokens;
      set_rows(rows, first);
      const TensorView hidden = target->forward(batch, outputs(rows - 1, is_last ? 1 : 0),
                                                *target_kv, tap_rows(with_drafter ? rows : 0));
      if (is_last) target->argmax(hidden, std::span(tokens).first(1));
      if (with_drafter) inject(rows, first);
    }
  }
  // Fills positions from `known` on with copies of those before, page by page.
  void repeat_pages(int known, Ops& ops) {
    const int num_known = known / kPageSize;
    for (int page = num_known; page < static_cast<int>(pages.size()); ++page) {
      ops.copy_page(*target_kv, page % num_known, page, kPageSize);
      ops.copy_page(*draft_kv, page % num_known, page, kPageSize);
    }
  }

  double kv_bytes(const KvCache& kv, double keys) const {
    return static_cast<double>(kv.num_bytes()) / (static_cast<double>(pages.size()) * kPageSize) *
           keys;
  }

  std::unique_ptr<TargetModel> target;
  std::unique_ptr<DflashDrafter> drafter;
  std::unique_ptr<KvCache> target_kv, draft_kv;
  std::vector<int32_t> pages;
  Tensor taps;
  RowBatch batch;

 private:
  std::span<const int32_t> outputs(int first, int count) {
    output_rows_.resize(static_cast<size_t>(count));
    std::iota(output_rows_.begin(), output_rows_.end(), first);
    return output_rows_;
  }
  TapRows tap_rows(int count) {
    tap_rows_.resize(static_cast<size_t>(count));
    std::iota(tap_rows_.begin(), tap_rows_.end(), 0);
    return {tap_rows_, taps.first_rows(count)};
  }
  std::vector<int32_t> output_rows_;
  std::vector<int32_t> tap_rows_;
  std::vector<int32_t> tokens = std::vector<int32_t>(64);
};

class ShapeBench {
 public:
  ShapeBench(const BenchShape& shape, const ShapeBenchConfig& config, ShapeModels& models,
             cpu::Roofline& roofline, Ops& ops,
             const std::function<void(std::string_view)>& progress)
      : shape_(shape),
        config_(config),
        models_(models),
        roofline_(roofline),
        ops_(ops),
        progress_(progress),
        started_s_(now_s()) {
    report_.shape = shape.name;
    report_.format = config.format;
    report_.ops = std::string(ops.name());
    report_.num_threads = config.num_threads;
    report_.weight_bytes = static_cast<double>(models.target->num_weight_bytes());
    report_.block_size = shape.drafter.block_size;
    report_.acceptance_length = shape.acceptance_length;
    report_.acceptance_source = shape.acceptance_source;
    params_ = sum_over_matrices(shape, [](int64_t n, int64_t k) { return double(n) * double(k); });
  }

  ShapeReport run() {
    read_memory(3);
    for (int i = 0; i < 3; ++i)
      report_.multiply_flop_s = std::max(report_.multiply_flop_s, roofline_.multiply_rate());
    const int base = config_.contexts.front();
    const int longest = *std::max_element(config_.prefills.begin(), config_.prefills.end());
    models_.prefill(longest, config_.prefill_chunk, true);  // touches every weight
    models_.repeat_pages(longest, ops_);

    step_ms_ = time_s([&] { models_.step(1, base, false); }) * 1e3;
    for (const int context : config_.contexts)
      if (wants("step")) add_step(context);
    for (const int rows : config_.rows)
      if (wants("verify")) add_verify(rows, base);
    if (wants("draft")) add_draft(base);
    for (const int tokens : config_.prefills)
      if (wants("prefill")) add_prefill(tokens);
    report_.read_bytes_s = percentile(reads_, 0.5);
    report_.read_p10_bytes_s = percentile(reads_, 0.1);
    report_.read_p90_bytes_s = percentile(reads_, 0.9);
    return std::move(report_);
  }

 private:
  template <class F>
  static double time_s(F body) {
    const double start = now_s();
    body();
    return now_s() - start;
  }

  bool wants(std::string_view pass) const {
    return std::find(config_.passes.begin(), config_.passes.end(), pass) != config_.passes.end();
  }

  void read_memory(int count) {
    for (int i = 0; i < count; ++i) reads_.push_back(roofline_.read_bandwidth());
  }

  // How many samples of `ms` each fit into this figure's part of the budget.
  int samples_for(double ms, double share) const {
    const double budget_ms = config_.budget_s * 1e3 * share;
    return std::clamp(static_cast<int>(budget_ms / std::max(ms, 1e-3)), 1, 41);
  }

  ShapeFigure summarize(std::string_view name, int rows, int context,
                        const std::vector<double>& ms) {
    progress_(fmt::format("{} {}: {} of {} rows at {}: {:.1f} ms ({:.0f} s so far)", shape_.name,
                          weight_format_name(config_.format), name, rows, context,
                          percentile(ms, 0.5), now_s() - started_s_));
    return {.name = std::string(name),
            .rows = rows,
            .context = context,
            .ms = percentile(ms, 0.5),
            .p10_ms = percentile(ms, 0.1),
            .p90_ms = percentile(ms, 0.9),
            .num_samples = static_cast<int>(ms.size())};
  }

  // Products with weights, and the two of attention over `keys` keys a row.
  double target_flops(double rows, double keys) const {
    const TargetConfig& t = shape_.target;
    const double weights = target_params();
    return 2 * rows * weights + 4.0 * rows * keys * t.num_heads * t.head_dim * t.num_layers;
  }
  double target_params() const {
    const TargetConfig& t = shape_.target;
    const double q = double(t.num_heads) * t.head_dim, kv = double(t.num_kv_heads) * t.head_dim;
    const double layer = (2 * q + 2 * kv + 3.0 * t.intermediate_size) * t.hidden_size;
    return layer * t.num_layers + double(t.vocab_size) * t.hidden_size;
  }

  void add_step(int context) {
    std::vector<double> ms;
    models_.step(1, context, false);
    for (int i = samples_for(step_ms_, 0.1); i > 0; --i)
      ms.push_back(time_s([&] { models_.step(1, context, false); }) * 1e3);
    ShapeFigure figure = summarize("step", 1, context, ms);
    figure.bytes = report_.weight_bytes + models_.kv_bytes(*models_.target_kv, context + 1);
    figure.flops = target_flops(1, context + 1);
    report_.figures.push_back(figure);
    read_memory(2);
  }

  // Steps of one row alternate with passes of `rows`, so that both see the same machine.
  void add_verify(int rows, int context) {
    std::vector<double> ms, ratios;
    models_.step(rows, context, true);
    const double share = 0.35 / static_cast<double>(config_.rows.size());
    // One disturbed sample must not decide what is asked of 16 rows.
    const int num_samples = std::max(samples_for(2.3 * step_ms_, share), rows == 16 ? 3 : 1);
    for (int i = num_samples; i > 0; --i) {
      const double one = time_s([&] { models_.step(1, context, false); });
      const double all = time_s([&] { models_.step(rows, context, true); });
      ms.push_back(all * 1e3);
      ratios.push_back(all / one);
    }
    ShapeFigure figure = summarize("verify", rows, context, ms);
    figure.times_one_row = percentile(ratios, 0.5);
    figure.bytes = report_.weight_bytes + models_.kv_bytes(*models_.target_kv, context + rows);
    figure.flops = target_flops(rows, context + rows);
    report_.figures.push_back(figure);
    read_memory(1);
  }

  void add_draft(int context) {
    const int block = shape_.drafter.block_size;
    const int accepted = static_cast<int>(std::lround(shape_.acceptance_length));
    std::vector<double> draft_ms, inject_ms;
    models_.draft(block, context);
    const double draft_bytes = static_cast<double>(models_.drafter->num_weight_bytes());
    const double expected = step_ms_ * draft_bytes / report_.weight_bytes;
    for (int i = samples_for(expected * 1.3, 0.1); i > 0; --i) {
      inject_ms.push_back(time_s([&] { models_.inject(accepted, context - accepted); }) * 1e3);
      draft_ms.push_back(time_s([&] { models_.draft(block, context); }) * 1e3);
    }
    ShapeFigure draft = summarize("draft", block, context, draft_ms);
    draft.bytes = draft_bytes + models_.kv_bytes(*models_.draft_kv, context + block);
    draft.flops = 2.0 * block * draft_params();
    report_.figures.push_back(draft);
    ShapeFigure inject = summarize("inject", accepted, context, inject_ms);
    inject.bytes = static_cast<double>(models_.drafter->num_inject_bytes());
    inject.flops = 2.0 * accepted * (params_ - target_params() - draft_params());
    report_.figures.push_back(inject);
    read_memory(2);
  }
  double draft_params() const {
    const DrafterConfig& d = shape_.drafter;
    const double q = double(d.num_heads) * d.head_dim, kv = double(d.num_kv_heads) * d.head_dim;
    return (2 * q + 2 * kv + 3.0 * d.intermediate_size) * d.hidden_size * d.num_layers;
  }

  void add_prefill(int num_tokens) {
    const double flops = target_flops(num_tokens, 0.5 * num_tokens) -
                         2.0 * (num_tokens - 1) * shape_.target.vocab_size *
                             shape_.target.hidden_size;  // logits of one row alone
    std::vector<double> ms;
    const double expected = 1e3 * flops / (0.3 * report_.multiply_flop_s);
    for (int i = std::min(5, samples_for(expected, 0.2)); i > 0; --i)
      ms.push_back(time_s([&] { models_.prefill(num_tokens, config_.prefill_chunk, false); }) *
                   1e3);
    ShapeFigure figure = summarize("prefill", num_tokens, 0, ms);
    const double passes = std::ceil(double(num_tokens) / config_.prefill_chunk);
    figure.bytes = passes * report_.weight_bytes;
    figure.flops = flops;
    report_.figures.push_back(figure);
    read_memory(1);
  }

  const BenchShape& shape_;
  const ShapeBenchConfig& config_;
  ShapeModels& models_;
  cpu::Roofline& roofline_;
  Ops& ops_;
  const std::function<void(std::string_view)>& progress_;
  double started_s_;
  double step_ms_ = 0;
  double params_ = 0;
  std::vector<double> reads_;
  ShapeReport report_;
};

}  // namespace

Result<BenchShape> bench_shape(const std::string& name) {
  std::string names;
  for (const ShapeSizes& s : kShapes) {
    if (s.name == name) {
      const TargetConfig target = target_of(s);
      return BenchShape{name, target, drafter_of(s, target), s.acceptance_length,
                        std::string(s.acceptance_source)};
    }
    names += fmt::format("{}{}", names.empty() ? "" : ", ", s.name);
  }
  return invalid("--shape: expected one of {}, got '{}'", names, name);
}

Result<ShapeReport> measure_shape(const BenchShape& shape, const ShapeBenchConfig& config,
                                  const std::function<void(std::string_view)>& progress) {
  const int longest = std::max(*std::max_element(config.contexts.begin(), config.contexts.end()),
                               *std::max_element(config.prefills.begin(), config.prefills.end()));
  const int num_positions = (longest + 64 + kPageSize - 1) / kPageSize * kPageSize;
  VOLLEY_TRY_STATUS(check_memory(shape, config, num_positions));
  VOLLEY_TRY(const Isa isa, isa_of_flag(config.isa));
  const CpuOpsConfig ops_config = {
      .num_threads = config.num_threads, .isa = isa, .weight_format = config.format};
  progress(fmt::format("{} {}: making weights", shape.name, weight_format_name(config.format)));
  const double start = now_s();
  VOLLEY_TRY(const auto ops, make_cpu_ops(ops_config));
  VOLLEY_TRY(ShapeModels models, ShapeModels::create(shape, config, *ops, num_positions));
  const double load_s = now_s() - start;
  VOLLEY_TRY(cpu::Roofline roofline, cpu::Roofline::create(ops_config, config.read_buffer_bytes));
  ShapeReport report = ShapeBench(shape, config, models, roofline, *ops, progress).run();
  report.load_s = load_s;
  return report;
}

Result<int> run_shape_bench(const Options& options) {
  for (const std::string& path : {options.bench.json_file, options.bench.plot_file})
    VOLLEY_TRY_STATUS(check_writable(path));
  Progress line(terminal_state().err_is_terminal, options.output.quiet,
                terminal_state().num_columns);
  std::vector<BenchShape> shapes;  // a wrong name is told before minutes of measuring
  for (const std::string& name : options.bench.shapes) {
    VOLLEY_TRY(BenchShape shape, bench_shape(name));
    if (options.bench.acceptance_length > 0) {
      shape.acceptance_length = options.bench.acceptance_length;
      shape.acceptance_source = "as asked for";
    }
    shapes.push_back(std::move(shape));
  }
  std::vector<ShapeReport> reports;
  Json runs = Json::array();
  for (const BenchShape& shape : shapes) {
    for (const std::string& format : options.bench.formats) {
      ShapeBenchConfig config;
      config.isa = options.model.isa;
      config.num_threads =
          options.model.num_threads > 0 ? options.model.num_threads : usable_cores();
      config.format = weight_format_from_name(format).value_or(WeightFormat::kBf16);
      if (config.format == WeightFormat::kAuto) config.format = WeightFormat::kBf16;
      config.budget_s = options.bench.budget_s;
      config.passes = options.bench.passes;
      config.contexts = options.bench.contexts;
      config.prefills = options.bench.prefills;
      VOLLEY_TRY(ShapeReport report,
                 measure_shape(shape, config, [&](std::string_view text) { line.show(text); }));
      line.clear();
      fmt::print("{}{}", reports.empty() ? cpu_model_name() + "\n\n" : "\n", report.table());
      std::fflush(stdout);
      runs.push_back(report.json());
      reports.push_back(std::move(report));
    }
  }
  if (!options.bench.json_file.empty()) {
    const Json json = {{"machine", cpu_model_name()}, {"runs", runs}};
    VOLLEY_TRY_STATUS(write_file_atomic(options.bench.json_file, dump_json(json, 2) + "\n"));
  }
  if (!options.bench.plot_file.empty()) {
    const std::string subtitle =
        fmt::format("{}, {}, {} threads", cpu_model_name(), reports[0].ops, reports[0].num_threads);
    VOLLEY_TRY_STATUS(
        write_file_atomic(options.bench.plot_file, shape_plot_svg(reports, subtitle)));
  }
  return kExitOk;
}

}  // namespace volley
