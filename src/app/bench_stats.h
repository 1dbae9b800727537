#pragma once

// Sums of a benchmark, as numbers, JSON, CSV and a table. Pure functions of the answers.

#include <cstdint>
#include <string>
#include <vector>

#include "app/bench_measure.h"
#include "base/json.h"

namespace volley {

// Speeds are over all answers of a source together: tokens after the first / time of decode steps.
struct SourceSummary {
  std::string name;
  int num_prompts = 0;
  int num_answers = 0;  // more than prompts where they have several turns
  int64_t num_tokens = 0;
  double plain_tok_s = 0;
  double draft_tok_s = 0;
  double speedup = 0;
  double speedup_p10 = 0;  // over its answers
  double speedup_p90 = 0;
  double plain_prefill_ms = 0;  // mean of an answer
  double draft_prefill_ms = 0;
  double plain_total_tok_s = 0;  // all tokens / (prefill + decode)
  double draft_total_tok_s = 0;
  double total_speedup = 0;
  double acceptance_length = 0;          // of BenchAnswer::for_acceptance()
  double timed_acceptance_length = 0;    // of the timed runs, whose draft length may vary
  double mean_draft_length = 0;          // of the timed runs
  double coupled_acceptance_length = 0;  // 0: not compared
  double argmax_acceptance_length = 0;
  std::vector<int64_t> drafted_at;  // of for_acceptance(), summed
  std::vector<int64_t> accepted_at;
  int num_different = 0;  // answers whose tokens were not all the same

  bool identical() const { return num_different == 0; }
  // Share of the drafts at each position that were kept.
  std::vector<double> histogram() const;
};

// Of all `answers`, under one name.
SourceSummary summarize(const std::string& name, const std::vector<const BenchAnswer*>& answers);
// One summary a source, in the order of first appearance.
std::vector<SourceSummary> summarize_by_source(const std::vector<BenchAnswer>& answers);

// The value below which `share` of `values` lie, by linear interpolation; 0 of none.
double percentile(std::vector<double> values, double share);

// {"prompts", "tokens", "plain_tok_s", "draft_tok_s", "speedup", "acceptance_length", "histogram",
// "identical", ...}.
Json summary_json(const SourceSummary& summary);
// {"sources": {NAME: ...}, "overall": ..., "mean_of_sources": ...}.
Json bench_json(const std::vector<BenchAnswer>& answers);
// A header and a line for every answer.
std::string bench_csv(const std::vector<BenchAnswer>& answers);

// The table that people read, with `overall` last where there are several sources.
std::string bench_table(const std::vector<SourceSummary>& sources, const SourceSummary& overall);
// One bar a position, and one line of small bars a source.
std::string acceptance_bars(const std::vector<SourceSummary>& sources,
                            const SourceSummary& overall);

}  // namespace volley
