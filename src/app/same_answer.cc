#include "app/same_answer.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "base/check.h"
#include "base/clock.h"

namespace volley {
namespace {

constexpr int kMaxPromptTokens = 1024;

// Positions of the axes in a row of settings.
enum Axis {
  kIsa,
  kThreads,
  kSequences,
  kPrompt,
  kTemperature,
  kDraftLength,
  kChunk,
  kCached,
  kNumAxes,
};
using Settings = std::vector<int>;

std::vector<int> axis_sizes(const SameAnswerMatrix& m) {
  std::vector<int> sizes(kNumAxes);
  sizes[kIsa] = static_cast<int>(m.isas.size());
  sizes[kThreads] = static_cast<int>(m.num_threads.size());
  sizes[kSequences] = static_cast<int>(m.max_num_seqs.size());
  sizes[kPrompt] = static_cast<int>(m.prompts.size());
  sizes[kTemperature] = static_cast<int>(m.temperatures.size());
  sizes[kDraftLength] = static_cast<int>(m.draft_lengths.size());
  sizes[kChunk] = static_cast<int>(m.prefill_chunks.size());
  sizes[kCached] = static_cast<int>(m.prefix_cached.size());
  return sizes;
}

std::string settings_text(const SameAnswerMatrix& m, const Settings& at) {
  const int chunk = m.prefill_chunks[at[kChunk]];
  return fmt::format(
      "prompt {} ({}), temperature {}, draft length {}, prefill chunk {}, threads {}, {}, {} "
      "sequences in flight, prefix cache {}",
      at[kPrompt], m.prompts[at[kPrompt]].source, m.temperatures[at[kTemperature]],
      m.draft_lengths[at[kDraftLength]].name(), chunk > 0 ? std::to_string(chunk) : "whole",
      m.num_threads[at[kThreads]], isa_name(m.isas[at[kIsa]]), m.max_num_seqs[at[kSequences]],
      m.prefix_cached[at[kCached]] ? "warm" : "cold");
}

// What every run of an engine shares; the engine is loaded anew when it changes.
struct EngineKey {
  int isa_idx = 0;
  int num_threads = 1;
  auto operator<=>(const EngineKey&) const = default;
};

class MatrixRun {
 public:
  MatrixRun(const std::string& target, const std::string& draft, const SameAnswerMatrix& matrix,
            const std::function<void(int64_t, int64_t)>& on_progress)
      : target_(target), draft_(draft), matrix_(matrix), on_progress_(on_progress) {
    for (const SameAnswerPrompt& prompt : matrix.prompts) {
      longest_prompt_ = std::max(longest_prompt_, static_cast<int>(prompt.ids.size()));
    }
  }

  Result<SameAnswerReport> run() {
    const double start = now_s();
    const std::vector<int> sizes = axis_sizes(matrix_);
    std::vector<Settings> rows = matrix_.sample > 0
                                     ? covering_sample(sizes, matrix_.sample, matrix_.seed)
                                     : all_combinations(sizes);
    num_total_ = static_cast<int64_t>(rows.size());
    // By engine, then by sequences in flight; within a group the order of the sample stays, so that
    // different settings share a batch.
    std::map<EngineKey, std::map<int, std::vector<Settings>>> groups;
    for (Settings& row : rows) {
      groups[key_of(row)][matrix_.max_num_seqs[row[kSequences]]].push_back(std::move(row));
    }
    for (int isa = 0; isa < static_cast<int>(matrix_.isas.size()); ++isa) {
      VOLLEY_TRY_STATUS(make_references(isa));
      for (const auto& [key, by_sequences] : groups) {
        if (key.isa_idx != isa) continue;
        VOLLEY_TRY(LoadedModels models, load_engine(key));
        for (const auto& [num_sequences, group] : by_sequences) {
          VOLLEY_TRY_STATUS(run_group(*models.engine, num_sequences, group));
        }
      }
    }
    report_.seconds = now_s() - start;
    return std::move(report_);
  }

 private:
  struct Expected {
    const std::vector<int32_t>* ids;
    const Settings* settings;
    std::vector<int32_t> got;
    bool done = false;
  };

  EngineKey key_of(const Settings& at) const {
    return {at[kIsa], matrix_.num_threads[at[kThreads]]};
  }

  Result<LoadedModels> load_engine(const EngineKey& key) const {
    const Backend backend{.isa = matrix_.isas[key.isa_idx],
                          .num_threads = key.num_threads,
                          .weight_format = matrix_.weight_format};
    EngineConfig config;
    config.max_num_seqs =
        *std::max_element(matrix_.max_num_seqs.begin(), matrix_.max_num_seqs.end());
    config.max_queued = kMaxQueued;
    config.prefill_chunk = std::max(longest_prompt_, 1);
    config.max_model_len = longest_prompt_ + matrix_.max_tokens + 1;
    config.page_size = 32;  // small pages: prompts cross them, and prefixes hit
    // Room for cached prefixes beside the running sequences.
    config.kv_positions = int64_t{8} * config.max_num_seqs * (config.max_model_len + 64);
    config.prefix_caching = true;
    return load_models(target_, draft_, backend, config);
  }

  GenerationRequest request_of(const Settings& at, int block_size) {
    GenerationRequest request;
    request.prompt_ids = matrix_.prompts[at[kPrompt]].ids;
    request.max_tokens = matrix_.max_tokens;
    request.sampling.temperature = matrix_.temperatures[at[kTemperature]];
    request.sampling.seed = matrix_.seed + static_cast<uint64_t>(at[kPrompt]);
    DraftLengthChoice length = matrix_.draft_lengths[at[kDraftLength]];
    if (length.mode == DraftLengthChoice::Mode::kFixed) {
      length.length = std::min(length.length, block_size - 1);
    }
    request.draft = length.policy(block_size);
    const int chunk = matrix_.prefill_chunks[at[kChunk]];
    request.prefill_chunk = chunk > 0 ? chunk : static_cast<int>(request.prompt_ids.size());
    // Runs that may share prefixes have one salt, the others each their own.
    request.cache_salt = matrix_.prefix_cached[at[kCached]] ? 0 : ++next_salt_;
    return request;
  }

  // The reference of every prompt and temperature on one unit.
  Status make_references(int isa_idx) {
    references_.clear();
    Settings at(kNumAxes, 0);
    at[kIsa] = isa_idx;
    VOLLEY_TRY(LoadedModels models, load_engine({isa_idx, 1}));
    for (size_t prompt = 0; prompt < matrix_.prompts.size(); ++prompt) {
      for (size_t temperature = 0; temperature < matrix_.temperatures.size(); ++temperature) {
        at[kPrompt] = static_cast<int>(prompt);
        at[kTemperature] = static_cast<int>(temperature);
        GenerationRequest request = request_of(at, models.engine->block_size());
        request.draft = DraftPolicy::off();
        request.prefill_chunk = static_cast<int>(request.prompt_ids.size());
        request.cache_salt = ++next_salt_;
        VOLLEY_TRY_STATUS(models.engine->submit(std::move(request)));
        std::vector<int32_t>& ids = references_[{at[kPrompt], at[kTemperature]}];
        while (!models.engine->idle()) {
          for (const StepOutput& output : models.engine->step()) {
            ids.insert(ids.end(), output.tokens.begin(), output.tokens.end());
          }
        }
        ++report_.num_references;
      }
    }
    return {};
  }

  Status run_group(Engine& engine, int num_sequences, const std::vector<Settings>& group) {
    // One more than is asked for where there are several: waiting and admission may not matter.
    const size_t max_live = num_sequences > 1 ? static_cast<size_t>(num_sequences) + 1 : 1;
    std::map<RequestId, Expected> live;
    size_t next = 0;
    while (next < group.size() || !live.empty()) {
      while (next < group.size() && live.size() < max_live) {
        const Settings& at = group[next++];
        VOLLEY_TRY(const RequestId id, engine.submit(request_of(at, engine.block_size())));
        live[id] = {.ids = &references_.at({at[kPrompt], at[kTemperature]}), .settings = &at};
      }
      for (const StepOutput& output : engine.step()) {
        Expected& run = live.at(output.id);
        run.got.insert(run.got.end(), output.tokens.begin(), output.tokens.end());
        report_.num_drafted += output.num_drafted;
        report_.num_accepted_drafts += output.num_accepted_drafts;
        run.done = output.finish != FinishReason::kNone;
        if (run.done) report_.num_cached_tokens += output.num_cached_tokens;
      }
      std::erase_if(live, [&](const auto& entry) {
        if (entry.second.done) compare(entry.second);
        return entry.second.done;
      });
    }
    return {};
  }

  void compare(const Expected& run) {
    ++report_.num_runs;
    report_.num_tokens += static_cast<int64_t>(run.got.size());
    count_isa(std::string(isa_name(matrix_.isas[(*run.settings)[kIsa]])));
    if (on_progress_) on_progress_(report_.num_runs, num_total_);
    if (run.got == *run.ids) return;
    ++report_.num_different_runs;
    if (report_.first_difference) return;
    const auto [expected, got] =
        std::mismatch(run.ids->begin(), run.ids->end(), run.got.begin(), run.got.end());
    report_.first_difference =
        SameAnswerDifference{.settings = settings_text(matrix_, *run.settings),
                             .position = expected - run.ids->begin(),
                             .expected = expected == run.ids->end() ? -1 : *expected,
                             .got = got == run.got.end() ? -1 : *got};
  }

  void count_isa(const std::string& name) {
    for (auto& [known, count] : report_.runs_of_isa) {
      if (known == name) {
        ++count;
        return;
      }
    }
    report_.runs_of_isa.emplace_back(name, 1);
  }

  static constexpr int kMaxQueued = 64;

  const std::string& target_;
  const std::string& draft_;
  const SameAnswerMatrix& matrix_;
  const std::function<void(int64_t, int64_t)>& on_progress_;
  int longest_prompt_ = 0;
  int64_t num_total_ = 0;
  uint64_t next_salt_ = 0;
  std::map<std::pair<int, int>, std::vector<int32_t>> references_;  // by prompt, temperature
  SameAnswerReport report_;
};

// Which pairs of values of two axes a sample has shown.
class PairCover {
 public:
  explicit PairCover(const std::vector<int>& sizes) : sizes_(sizes) {}

  int num_new(const Settings& row) const {
    int count = 0;
    for_each_pair(row, [&](const Pair& pair) { count += covered_.count(pair) == 0 ? 1 : 0; });
    return count;
  }
  void add(const Settings& row) {
    for_each_pair(row, [&](const Pair& pair) { covered_.insert(pair); });
  }
  bool complete() const { return static_cast<int64_t>(covered_.size()) == num_pairs(); }

 private:
  using Pair = std::array<int, 4>;  // axis, value, axis, value

  template <class F>
  void for_each_pair(const Settings& row, F&& visit) const {
    for (int a = 0; a < static_cast<int>(row.size()); ++a) {
      for (int b = a + 1; b < static_cast<int>(row.size()); ++b) visit(Pair{a, row[a], b, row[b]});
    }
  }
  int64_t num_pairs() const {
    int64_t count = 0;
    for (size_t a = 0; a < sizes_.size(); ++a) {
      for (size_t b = a + 1; b < sizes_.size(); ++b) count += int64_t{sizes_[a]} * sizes_[b];
    }
    return count;
  }

  const std::vector<int>& sizes_;
  std::set<Pair> covered_;
};

}  // namespace

std::vector<std::vector<int>> covering_sample(const std::vector<int>& axis_sizes, int count,
                                              uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&] {
    Settings row;
    for (const int size : axis_sizes) {
      row.push_back(static_cast<int>(random() % static_cast<uint64_t>(size)));
    }
    return row;
  };
  // Greedy: of some random rows, the one that shows most pairs not seen yet.
  constexpr int kCandidates = 24;
  PairCover cover(axis_sizes);
  std::vector<Settings> rows;
  while (static_cast<int>(rows.size()) < count) {
    Settings best = draw();
    if (!cover.complete()) {
      int best_new = cover.num_new(best);
      for (int i = 1; i < kCandidates; ++i) {
        Settings candidate = draw();
        const int num_new = cover.num_new(candidate);
        if (num_new <= best_new) continue;
        best_new = num_new;
        best = std::move(candidate);
      }
      cover.add(best);
    }
    rows.push_back(std::move(best));
  }
  return rows;
}

std::vector<std::vector<int>> all_combinations(const std::vector<int>& axis_sizes) {
  std::vector<Settings> rows = {{}};
  for (const int size : axis_sizes) {
    std::vector<Settings> longer;
    for (const Settings& row : rows) {
      for (int value = 0; value < size; ++value) {
        longer.push_back(row);
        longer.back().push_back(value);
      }
    }
    rows = std::move(longer);
  }
  return rows;
}

std::vector<DraftLengthChoice> SameAnswerMatrix::default_draft_lengths() {
  using Mode = DraftLengthChoice::Mode;
  return {{.mode = Mode::kFixed, .length = 0},
          {.mode = Mode::kFixed, .length = 3},
          {.mode = Mode::kFixed, .length = 7},
          {.mode = Mode::kFull},
          {.mode = Mode::kAuto}};
}

Json SameAnswerReport::json() const {
  Json isas = Json::object();
  for (const auto& [name, count] : runs_of_isa) isas[name] = count;
  Json json = {{"runs", num_runs},
               {"tokens", num_tokens},
               {"references", num_references},
               {"different_runs", num_different_runs},
               {"drafted", num_drafted},
               {"accepted_drafts", num_accepted_drafts},
               {"cached_prompt_tokens", num_cached_tokens},
               {"runs_of_isa", std::move(isas)},
               {"seconds", seconds},
               {"same", same()}};
  if (first_difference) {
    json["first_difference"] = {{"settings", first_difference->settings},
                                {"position", first_difference->position},
                                {"expected", first_difference->expected},
                                {"got", first_difference->got}};
  }
  return json;
}

std::string SameAnswerReport::text() const {
  std::string isas;
  for (const auto& [name, count] : runs_of_isa) {
    isas += fmt::format("{}{} {}", isas.empty() ? "" : ", ", name, count);
  }
  std::string text = fmt::format(
      "{} runs ({}) against {} references, {} tokens compared in {:.1f} s\n"
      "{} drafts verified, {} kept; {} prompt tokens came from the prefix cache\n"
      "{} runs differ\n",
      num_runs, isas, num_references, num_tokens, seconds, num_drafted, num_accepted_drafts,
      num_cached_tokens, num_different_runs);
  if (first_difference) {
    text += fmt::format("first difference: token {} of the answer, expected {}, got {}\n  {}\n",
                        first_difference->position, first_difference->expected,
                        first_difference->got, first_difference->settings);
  }
  return text;
}

Result<SameAnswerReport> run_same_answer_matrix(
    const std::string& target, const std::string& draft, const SameAnswerMatrix& matrix,
    const std::function<void(int64_t done, int64_t total)>& on_progress) {
  for (const int size : axis_sizes(matrix)) {
    if (size == 0) return invalid("same-answer: every axis needs at least one value");
  }
  for (const SameAnswerPrompt& prompt : matrix.prompts) {
    if (prompt.ids.empty() || prompt.ids.size() > kMaxPromptTokens) {
      return invalid("same-answer: a prompt may have 1 to {} tokens, one has {}", kMaxPromptTokens,
                     prompt.ids.size());
    }
  }
  return MatrixRun(target, draft, matrix, on_progress).run();
}

}  // namespace volley
