#pragma once

// How many tokens to draft (law 2), decided twice a step. Before the draft pass, DraftPlanner asks
// whether drafting pays at all, from what passes cost at the present batch and how far the drafts
// of each sequence have survived. After it, the drafter's own probabilities, corrected by how often
// they came true, say which of the drafts are worth a row of the target's pass (row_share.h).
// Everything is a pure function of the outcomes and costs it was told.

#include <cstdint>
#include <span>
#include <vector>

#include "spec/row_share.h"

namespace volley {

inline constexpr int kMaxDraftLength = 63;

// Running medians of what passes cost on this machine, by number of rows. Between rows that were
// seen costs are interpolated, beyond them extrapolated; they never fall with more rows (isotonic
// regression over the medians).
class CostTable {
 public:
  explicit CostTable(int max_rows);

  // One pass over `num_rows` rows took `seconds`.
  void observe(int num_rows, double seconds);
  bool known() const { return num_known_ > 0; }
  int max_rows() const { return static_cast<int>(entries_.size()) - 1; }
  // Expected seconds of a pass over `num_rows` rows; 0 while nothing is known.
  double estimate(int num_rows) const;

 private:
  static constexpr int kHistory = 15;
  struct Entry {
    double recent[kHistory] = {};
    int count = 0;
    double median = 0;
  };
  struct Level {  // of the isotonic fit
    int first_row, last_row;
    double sum, weight;
    double seconds() const { return sum / weight; }
  };
  void fit() const;

  std::vector<Entry> entries_;  // by number of rows
  int num_known_ = 0;
  // Made when asked for after an observation.
  mutable bool fitted_ = false;
  mutable std::vector<double> estimates_;  // by number of rows
  mutable std::vector<Level> levels_;
};

// How far drafts survive: at each index the discounted share of drafts that matched, among those
// whose predecessors all matched.
class SurvivalEstimate {
 public:
  explicit SurvivalEstimate(int max_length, double memory_cycles = 48);

  // `accepted` of `drafted` tokens matched. With censored, nothing is known of the draft after the
  // last accepted one: the block ended early.
  void observe(int drafted, int accepted, bool censored = false);

  // P(draft `index` (1-based) matches | all before it matched).
  double conditional(int index) const;
  // Replaces this estimate by `prior`, with the weight of at most `max_cycles` cycles.
  void start_from(const SurvivalEstimate& prior, double max_cycles);
  // What was seen counts for `share` of itself from now on.
  void discount(double share);

 private:
  double decay_;
  std::vector<double> trials_;
  std::vector<double> matches_;
};

// How often a draft matched, by the probability that the drafter gave it, where all before it
// matched. Starts by believing the drafter.
class Confidence {
 public:
  Confidence();
  void observe(double probability, bool matched);
  // P(match).
  double operator()(double probability) const;

 private:
  static constexpr int kBins = 16;
  double trials_[kBins + 1];  // at probability i / kBins
  double matches_[kBins + 1];
};

// What is known of one sequence's drafts.
struct DraftOutlook {
  DraftOutlook(int max_length, const SurvivalEstimate& prior);

  SurvivalEstimate survival;
  int steps_without = 0;  // a draft, while others drafted
  int retry_after;
};

struct DraftCandidate {
  DraftOutlook* outlook = nullptr;
  int max_length = 0;  // in this step
  int length = 0;      // out: drafts to make
};

struct DraftPlannerConfig {
  std::vector<int> block_sizes = {16};  // rising; the rows of a block, its anchor included
  // Of a draft pass's work on a row, the share that every row of a block takes; the rest is done
  // for drafts that are looked at.
  double body_share = 1;
  int extra_drafts = 0;       // looked at beyond those chosen
  double margin = 0.03;       // drafting must promise this much more than plain decoding
  double probe_share = 0.01;  // of the time of plain steps that probes may cost
  int min_probe_pause = 12;   // plain steps between probes
  int probe_length = 3;
  int max_retry_pause = 256;  // steps, for one sequence among others that draft
  // Costs are not known for ever: after so many drafted steps comes a plain one, after as many more
  // a size of block that is not the best, and so on.
  int explore_after = 32;
};

class DraftPlanner {
 public:
  explicit DraftPlanner(const DraftPlannerConfig& config) : config_(config) {}

  // The rows by which a draft pass is known in its CostTable: as many whole ones as take the work
  // of blocks of `num_block_rows` rows in all, of which `num_drafts` drafts are looked at.
  int cost_rows(int num_block_rows, int num_drafts) const;

  // The drafts to make for each candidate, 0 for plain decoding; returns the size of their blocks.
  // `num_others` more sequences decode plainly in this step. Where no drafting pays, all are probed
  // together, as often as the expected loss allows.
  int choose(std::span<DraftCandidate> candidates, int num_others, const CostTable& draft_cost,
             const CostTable& verify_cost);

  // A step for which choose() had drafts made yielded so many tokens, of all sequences, in a cycle
  // that costs `cycle_s` by the same tables. Of a good drafter's guesses the pass takes the surest,
  // which yields more than survival promised; of another's perhaps less.
  void observe(double num_tokens, double cycle_s);

  // Tokens per second of the best blocks for so many sequences of this survival, over plain
  // decoding's; infinite while costs are not known.
  double promise(int num_sequences, const SurvivalEstimate& survival, const CostTable& draft_cost,
                 const CostTable& verify_cost) const;

  // The smallest block that holds so many drafts.
  int block_for(int num_drafts) const;

 private:
  struct Costs {
    const CostTable& draft;
    const CostTable& verify;
  };
  double seconds(int block_size, int num_drafting, int num_drafts, int num_rows,
                 const Costs& costs) const;
  double share(std::span<const DraftCandidate> candidates, int block_size, int num_rows,
               const Costs& costs);
  void retry_left_out(std::span<DraftCandidate> candidates, int block_size) const;
  bool may_probe(std::span<const DraftCandidate> candidates, int block_size, int num_rows,
                 double plain_s, const Costs& costs) const;

  DraftPlannerConfig config_;
  int plain_steps_ = 0;    // since the last draft pass
  int drafted_steps_ = 0;  // since the last plain one
  double plain_s_ = 0;
  double promised_rate_ = 0;  // of this step's drafts; 0: none
  double kept_share_ = 1;     // of what was promised
  std::vector<DraftBid> bids_;
  std::vector<DraftStep> steps_;
};

}  // namespace volley
