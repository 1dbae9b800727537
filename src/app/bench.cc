// volley bench: plain against drafted decoding over prompt files or synthetic prompts.

#include <cstdio>

#include "app/bench_batch.h"
#include "app/bench_measure.h"
#include "app/bench_plot.h"
#include "app/bench_shape.h"
#include "app/bench_stats.h"
#include "app/commands.h"
#include "app/machine.h"
#include "app/progress.h"
#include "app/prompt_text.h"
#include "base/file.h"
#include "base/log.h"

namespace volley {
namespace {

constexpr int kSyntheticPrompts = 8;

class Bench {
 public:
  Bench(const Options& options, Loaded& loaded, AnswerRequest request)
      : options_(options),
        loaded_(loaded),
        runner_(options, loaded, std::move(request)),
        progress_(terminal_state().err_is_terminal, options.output.quiet,
                  terminal_state().num_columns) {}

  Status play(const std::vector<BenchPrompt>& prompts) {
    num_prompts_ = static_cast<int>(prompts.size());
    for (int i = 0; i < num_prompts_; ++i) VOLLEY_TRY_STATUS(play_one(prompts[i], i));
    if (answers_.empty()) {
      return invalid(
          "no prompt fits: the context has room for {} prompt tokens, the shortest has "
          "{}; see --max-model-len",
          runner_.max_prompt_tokens(), shortest_skipped_);
    }
    return {};
  }

  Status play_synthetic() {
    num_prompts_ = options_.bench.limit > 0 ? options_.bench.limit : kSyntheticPrompts;
    const int num_tokens = options_.bench.prompt_tokens;
    if (num_tokens > runner_.max_prompt_tokens()) {
      return invalid("--prompt-tokens {}: the context has room for {} prompt tokens", num_tokens,
                     runner_.max_prompt_tokens());
    }
    const std::string source = fmt::format("random-{}", num_tokens);
    for (int i = 0; i < num_prompts_; ++i) {
      const auto ids =
          random_prompt(loaded_.text.tokenizer, loaded_.models.target_config().vocab_size,
                        num_tokens, options_.answer.sampling.seed + static_cast<uint64_t>(i));
      VOLLEY_TRY_STATUS(measure(ids, source, i, 0).map([](const BenchAnswer*) {}));
    }
    return {};
  }

  const std::vector<BenchAnswer>& answers() const { return answers_; }
  int num_skipped() const { return num_skipped_; }
  void finish() { progress_.clear(); }

 private:
  Status play_one(const BenchPrompt& prompt, int prompt_idx) {
    std::vector<ChatMessage> messages = prompt.messages;
    for (size_t turn = 0; turn < prompt.turns.size(); ++turn) {
      messages.push_back({"user", prompt.turns[turn]});
      VOLLEY_TRY(const std::vector<int32_t> ids, loaded_.prompt_ids(messages));
      const int num_tokens = static_cast<int>(ids.size());
      if (num_tokens > runner_.max_prompt_tokens()) {
        ++num_skipped_;
        shortest_skipped_ =
            shortest_skipped_ == 0 ? num_tokens : std::min(shortest_skipped_, num_tokens);
        log_debug("{} line {}, turn {}: {} tokens do not fit the context, skipped", prompt.source,
                  prompt.line, turn + 1, num_tokens);
        return {};  // later turns are longer still
      }
      VOLLEY_TRY(const BenchAnswer* answer,
                 measure(ids, prompt.source, prompt_idx, static_cast<int>(turn)));
      messages.push_back({"assistant", answer->plain.text});
    }
    return {};
  }

  // The pointer is valid until the next call.
  Result<const BenchAnswer*> measure(const std::vector<int32_t>& ids, const std::string& source,
                                     int prompt_idx, int turn_idx) {
    if (answers_.empty()) VOLLEY_TRY_STATUS(runner_.warm_up(ids));
    VOLLEY_TRY(BenchAnswer answer, runner_.measure(ids));
    answer.source = source;
    answer.prompt_idx = prompt_idx;
    answer.turn_idx = turn_idx;
    answers_.push_back(std::move(answer));
    const BenchAnswer& last = answers_.back();
    progress_.show(fmt::format("[{}/{}] {}: {:.0f} -> {:.0f} tok/s, acceptance_length {:.2f}{}",
                               prompt_idx + 1, num_prompts_, source, last.plain.decode_tok_s(),
                               last.drafted.decode_tok_s(),
                               last.for_acceptance().speculation.acceptance_length(),
                               last.identical ? "" : ", TOKENS DIFFER"));
    return &last;
  }

  const Options& options_;
  Loaded& loaded_;
  BenchRunner runner_;
  Progress progress_;
  std::vector<BenchAnswer> answers_;
  int num_prompts_ = 0;
  int num_skipped_ = 0;
  int shortest_skipped_ = 0;
};

Json settings_json(const Options& options, const Loaded& loaded) {
  return {{"target", options.model.target},
          {"draft", options.model.draft},
          {"machine", cpu_model_name()},
          {"ops", loaded.models.ops->name()},
          {"threads", loaded.models.num_threads},
          {"draft_length", options.model.draft_length.name()},
          {"draft_sampling",
           options.model.draft_sampling == DraftSampling::kCoupled ? "coupled" : "argmax"},
          {"block_size", loaded.models.engine->block_size()},
          {"max_tokens", options.answer.max_tokens},
          {"temperature", options.answer.sampling.temperature},
          {"seed", options.answer.sampling.seed},
          {"chat_template", !options.model.raw && loaded.text.chat.has_template()}};
}

void print_footnotes(const Options& options, const Loaded& loaded, const SourceSummary& overall,
                     int num_skipped) {
  fmt::print("\ntok/s: tokens after the first / time of decode steps, prefill excluded.\n");
  if (options.model.draft_length.mode == DraftLengthChoice::Mode::kAuto) {
    fmt::print(
        "acceptance_length: tokens gained a target pass with the whole block of {} drafted. "
        "The timed runs\nchose their draft lengths (auto): {:.1f} drafts a block, {:.2f} "
        "tokens a pass.\n",
        loaded.models.engine->block_size() - 1, overall.mean_draft_length,
        overall.timed_acceptance_length);
  } else {
    fmt::print("acceptance_length: tokens gained a target pass, the bonus token included.\n");
  }
  fmt::print("End to end, prefill included: {:.1f} -> {:.1f} tok/s ({:.2f}x).\n",
             overall.plain_total_tok_s, overall.draft_total_tok_s, overall.total_speedup);
  if (num_skipped > 0) {
    fmt::print("{} turns were too long for the context of {} and left out.\n", num_skipped,
               loaded.models.engine->max_model_len());
  }
}

// bench --concurrency: every prompt's first turn, by throughput.
Result<int> bench_batches(const Options& options, Loaded& loaded, const AnswerRequest& request,
                          const std::vector<BenchPrompt>& prompts) {
  Engine& engine = *loaded.models.engine;
  std::vector<GenerationRequest> requests;
  const auto add = [&](std::vector<int32_t> ids) {
    if (static_cast<int>(ids.size()) >= engine.max_model_len()) return;
    requests.push_back(request.generation);
    requests.back().prompt_ids = std::move(ids);
  };
  for (const BenchPrompt& prompt : prompts) {
    std::vector<ChatMessage> messages = prompt.messages;
    if (!prompt.turns.empty()) messages.push_back({"user", prompt.turns.front()});
    VOLLEY_TRY(std::vector<int32_t> ids, loaded.prompt_ids(messages));
    add(std::move(ids));
  }
  const int num_synthetic = options.bench.limit > 0 ? options.bench.limit : kSyntheticPrompts;
  for (int i = 0; options.bench.synthetic && i < num_synthetic; ++i) {
    add(random_prompt(loaded.text.tokenizer, loaded.models.target_config().vocab_size,
                      options.bench.prompt_tokens,
                      options.answer.sampling.seed + static_cast<uint64_t>(i)));
  }
  if (requests.empty()) {
    return invalid("no prompt fits the context of {}: see --max-model-len", engine.max_model_len());
  }

  Progress progress(terminal_state().err_is_terminal, options.output.quiet,
                    terminal_state().num_columns);
  std::vector<BatchResult> results;
  const DraftPolicy draft = options.model.draft_length.policy(engine.block_size());
  for (const int concurrency : options.bench.concurrency) {
    VOLLEY_TRY(BatchResult result,
               measure_batch(engine, requests, draft, concurrency, options.bench.rounds,
                             [&](const std::string& line) { progress.show(line); }));
    results.push_back(result);
  }
  progress.clear();
  fmt::print(
      "{}, {}, {} thread{}; draft length {}; {} prompts\n\n{}\n"
      "tok/s: all tokens / time of all steps, prefill included; medians of {} rounds, in turns.\n",
      cpu_model_name(), loaded.models.ops->name(), loaded.models.num_threads,
      loaded.models.num_threads == 1 ? "" : "s", options.model.draft_length.name(), requests.size(),
      batch_table(results), options.bench.rounds);
  if (!options.bench.json_file.empty()) {
    Json json = batch_json(results);
    json["settings"] = settings_json(options, loaded);
    VOLLEY_TRY_STATUS(write_file_atomic(options.bench.json_file, dump_json(json, 2) + "\n"));
  }
  const bool identical = std::all_of(results.begin(), results.end(),
                                     [](const BatchResult& result) { return result.identical; });
  return identical ? kExitOk : kExitFailed;
}

}  // namespace

Result<int> run_bench(const Options& options) {
  if (!options.bench.shapes.empty()) return run_shape_bench(options);
  for (const std::string& path :
       {options.bench.json_file, options.bench.csv_file, options.bench.plot_file}) {
    VOLLEY_TRY_STATUS(check_writable(path));
  }
  VOLLEY_TRY(AnswerRequest request, make_request(options));
  std::vector<BenchPrompt> prompts;
  if (!options.bench.synthetic) {
    VOLLEY_TRY(prompts, read_prompt_files(options.bench.prompt_files, options.bench.limit));
  }
  VOLLEY_TRY(Loaded loaded, load(options.model, /*prefix_caching=*/false));
  bind_to_model(options, loaded, request.generation);
  if (options.bench.synthetic) request.generation.stop_ids.clear();
  if (!options.bench.concurrency.empty()) return bench_batches(options, loaded, request, prompts);

  Bench bench(options, loaded, std::move(request));
  VOLLEY_TRY_STATUS(options.bench.synthetic ? bench.play_synthetic() : bench.play(prompts));
  bench.finish();

  std::vector<const BenchAnswer*> all;
  for (const BenchAnswer& answer : bench.answers()) all.push_back(&answer);
  const SourceSummary overall = summarize("overall", all);
  const std::vector<SourceSummary> sources = summarize_by_source(bench.answers());
  fmt::print("{}, {}, {} thread{}; draft length {}\n\n{}\n{}", cpu_model_name(),
             loaded.models.ops->name(), loaded.models.num_threads,
             loaded.models.num_threads == 1 ? "" : "s", options.model.draft_length.name(),
             bench_table(sources, overall), acceptance_bars(sources, overall));
  print_footnotes(options, loaded, overall, bench.num_skipped());

  if (!options.bench.json_file.empty()) {
    Json json = bench_json(bench.answers());
    json["settings"] = settings_json(options, loaded);
    json["skipped_turns"] = bench.num_skipped();
    VOLLEY_TRY_STATUS(write_file_atomic(options.bench.json_file, dump_json(json, 2) + "\n"));
  }
  if (!options.bench.csv_file.empty()) {
    VOLLEY_TRY_STATUS(write_file_atomic(options.bench.csv_file, bench_csv(bench.answers())));
  }
  if (!options.bench.plot_file.empty()) {
    const std::string subtitle = fmt::format(
        "{}, {}, {} threads; {} tokens, temperature {}, draft length {}", cpu_model_name(),
        loaded.models.ops->name(), loaded.models.num_threads, options.answer.max_tokens,
        options.answer.sampling.temperature, options.model.draft_length.name());
    VOLLEY_TRY_STATUS(write_file_atomic(options.bench.plot_file,
                                        options.bench.plot_file.ends_with(".html")
                                            ? bench_plot_html(sources, overall, subtitle)
                                            : bench_plot_svg(sources, overall, subtitle)));
  }
  return overall.identical() ? kExitOk : kExitFailed;
}

}  // namespace volley
