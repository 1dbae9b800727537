#pragma once

// The same-answer matrix (law 1): prompts at every setting that may change speed, compared token by
// token. One function, used by `volley bench same-answer` and by the tests.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "app/load.h"
#include "app/options.h"
#include "base/json.h"

namespace volley {

// A sequence of settings drawn from axes of the given sizes, as indices into each axis: every pair
// of values of two axes occurs (every value, with one axis), as far as `count` rows allow; the
// rest is drawn evenly. A pure function of its arguments.
std::vector<std::vector<int>> covering_sample(const std::vector<int>& axis_sizes, int count,
                                              uint64_t seed);
// Every combination, the last axis running fastest.
std::vector<std::vector<int>> all_combinations(const std::vector<int>& axis_sizes);

struct SameAnswerPrompt {
  std::string source;
  std::vector<int32_t> ids;
};

// The axes. Within a CPU unit, all runs of a prompt at a temperature must give the tokens of its
// reference: no drafting, whole prompt in one chunk, one thread, alone, nothing cached.
struct SameAnswerMatrix {
  std::vector<SameAnswerPrompt> prompts;
  std::vector<float> temperatures = {0.0f, 0.7f, 1.0f};
  std::vector<DraftLengthChoice> draft_lengths;     // default: off, 3, 7, full, auto
  std::vector<int> prefill_chunks = {1, 7, 64, 0};  // 0: the whole prompt
  std::vector<int> num_threads = {1, 2};
  std::vector<int> max_num_seqs = {1, 4};           // sequences in flight
  std::vector<bool> prefix_cached = {false, true};  // may read pages that another run left
  std::vector<Isa> isas;                            // units to test, each by itself
  WeightFormat weight_format = WeightFormat::kAuto;
  int max_tokens = 24;
  uint64_t seed = 0;
  int sample = 0;  // runs of a covering sample; 0: every combination

  static std::vector<DraftLengthChoice> default_draft_lengths();
};

// One run that differed.
struct SameAnswerDifference {
  std::string settings;  // all of them, as a person reads them
  int64_t position = 0;  // of the first differing token in the answer
  int32_t expected = 0;  // -1: the answer ended
  int32_t got = 0;
};

struct SameAnswerReport {
  int64_t num_runs = 0;
  int64_t num_tokens = 0;  // compared
  int64_t num_references = 0;
  int64_t num_different_runs = 0;
  int64_t num_drafted = 0;
  int64_t num_accepted_drafts = 0;
  int64_t num_cached_tokens = 0;  // prompt tokens that came from the prefix cache
  std::vector<std::pair<std::string, int64_t>> runs_of_isa;
  std::optional<SameAnswerDifference> first_difference;
  double seconds = 0;

  bool same() const { return num_different_runs == 0; }
  Json json() const;
  std::string text() const;
};

// `target` and `draft` are model folders; models are loaded once for every CPU unit, thread count
// and number of sequences in flight. Errors: those of loading and of submitting.
Result<SameAnswerReport> run_same_answer_matrix(
    const std::string& target, const std::string& draft, const SameAnswerMatrix& matrix,
    const std::function<void(int64_t done, int64_t total)>& on_progress = {});

}  // namespace volley
