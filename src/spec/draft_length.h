#pragma once

// How many tokens to draft (law 2). A cycle that drafts n tokens yields 1 + sum_{i<=n} survival_i
// tokens, survival_i being the chance that drafts 1..i all match, and costs draft(n) + verify(1 +
// n) seconds; plain decoding yields one token for verify(1). The chooser picks the n, zero
// included, with the most tokens per second. It is a pure function of the outcomes and costs it was
// told.

#include <cstdint>
#include <span>
#include <vector>

namespace volley {

inline constexpr int kMaxDraftLength = 63;

// Running medians of what passes cost on this machine, by number of rows. Between rows that were
// seen costs are interpolated, beyond them extrapolated; they never fall with more rows.
class CostTable {
 public:
  explicit CostTable(int max_rows);

  // One pass over `num_rows` rows took `seconds`.
  void observe(int num_rows, double seconds);
  bool known() const { return num_known_ > 0; }
  // Expected seconds of a pass over `num_rows` rows; 0 while nothing is known.
  double estimate(int num_rows) const;

 private:
  static constexpr int kHistory = 15;
  struct Entry {
    double recent[kHistory] = {};
    int count = 0;
    double median = 0;
  };
  std::vector<Entry> entries_;  // by number of rows
  int num_known_ = 0;
};

// How far drafts survive: at each index the discounted share of drafts that matched, among those
// whose predecessors all matched.
class SurvivalEstimate {
 public:
  explicit SurvivalEstimate(int max_length, double memory_cycles = 48);

  // `accepted` of `drafted` tokens matched. With censored, the block ended early (a stop token or
  // the token limit): nothing is known of the draft after the last accepted one.
  void observe(int drafted, int accepted, bool censored = false);

  // P(draft `index` (1-based) matches | all before it matched).
  double conditional(int index) const;
  // Replaces this estimate by `prior`, with the weight of at most `max_cycles` cycles.
  void start_from(const SurvivalEstimate& prior, double max_cycles);

 private:
  double decay_;
  std::vector<double> trials_;
  std::vector<double> matches_;
};

struct DraftLengthConfig {
  int max_length = 15;         // block size - 1
  int first_probe_after = 12;  // plain steps before drafting is tried again
  int max_probe_after = 256;   // each failed probe doubles the pause up to this
  double margin = 0.03;        // drafting must promise this much more than plain decoding
};

// Chooses the draft length of one sequence, step by step.
class DraftLengthChooser {
 public:
  DraftLengthChooser(const DraftLengthConfig& config, const SurvivalEstimate& prior);

  // The length to draft next, 0 for plain decoding. `max_length` bounds it for this step.
  // num_sequences decode in this step; the cost of n drafts is judged as if all drafted n, so that
  // where rows are dear, in large batches, drafts get shorter for everyone.
  int choose(int max_length, int num_sequences, const CostTable& draft_cost,
             const CostTable& verify_cost);
  void observe(int drafted, int accepted, bool censored);

  const SurvivalEstimate& survival() const { return survival_; }

 private:
  DraftLengthConfig config_;
  SurvivalEstimate survival_;
  int plain_steps_ = 0;  // since the last draft
  int probe_after_;
  bool probing_ = false;  // the last choice was a probe
};

}  // namespace volley
