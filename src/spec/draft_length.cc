#include "spec/draft_length.h"

#include <algorithm>

#include "base/check.h"

namespace volley {

CostTable::CostTable(int max_rows) : entries_(max_rows + 1) {
  CHECK_GT(max_rows, 0);
}

void CostTable::observe(int num_rows, double seconds) {
  if (num_rows <= 0 || num_rows >= static_cast<int>(entries_.size()) || !(seconds > 0)) return;
  Entry& entry = entries_[num_rows];
  if (entry.count == 0) ++num_known_;
  entry.recent[entry.count % kHistory] = seconds;
  ++entry.count;
  // A median, not a mean: on a shared machine single passes may take ten times as long.
  double sorted[kHistory];
  const int n = std::min(entry.count, kHistory);
  std::copy_n(entry.recent, n, sorted);
  std::nth_element(sorted, sorted + n / 2, sorted + n);
  entry.median = sorted[n / 2];
}

double CostTable::estimate(int num_rows) const {
  const int max_rows = static_cast<int>(entries_.size()) - 1;
  num_rows = std::clamp(num_rows, 1, max_rows);
  if (entries_[num_rows].count > 0) return entries_[num_rows].median;
  const auto known_below = [&](int rows) {
    do --rows;
    while (rows > 0 && entries_[rows].count == 0);
    return rows;
  };
  int above = num_rows + 1;
  while (above <= max_rows && entries_[above].count == 0) ++above;
  const int below = known_below(num_rows);
  if (below == 0) return above <= max_rows ? entries_[above].median : 0;
  const double low = entries_[below].median;
  // The line through the neighbours or, past the last one seen, through the last two.
  const int first = above <= max_rows ? below : known_below(below);
  const int second = above <= max_rows ? above : below;
  if (first == 0) return low;
  const double slope = (entries_[second].median - entries_[first].median) / (second - first);
  return low + std::max(0.0, slope) * (num_rows - below);
}

SurvivalEstimate::SurvivalEstimate(int max_length, double memory_cycles)
    : decay_(1 - 1 / memory_cycles),
      // The prior is one optimistic cycle: the first drafts of a request are worth trying.
      trials_(max_length, 1.0),
      matches_(max_length, 0.8) {
  CHECK_GT(memory_cycles, 1.0);
  CHECK_LE(max_length, kMaxDraftLength);
}

void SurvivalEstimate::observe(int drafted, int accepted, bool censored) {
  CHECK_LE(accepted, drafted);
  const int max_length = static_cast<int>(trials_.size());
  const int reached = std::min({max_length, drafted, censored ? accepted : accepted + 1});
  for (int i = 0; i < reached; ++i) {
    trials_[i] = trials_[i] * decay_ + 1;
    matches_[i] = matches_[i] * decay_ + (i < accepted ? 1 : 0);
  }
}

double SurvivalEstimate::conditional(int index) const {
  CHECK(index >= 1 && index <= static_cast<int>(trials_.size()));
  return matches_[index - 1] / trials_[index - 1];
}

void SurvivalEstimate::start_from(const SurvivalEstimate& prior, double max_cycles) {
  CHECK_EQ(prior.trials_.size(), trials_.size());
  for (size_t i = 0; i < trials_.size(); ++i) {
    const double scale = std::min(1.0, max_cycles / prior.trials_[i]);
    trials_[i] = prior.trials_[i] * scale;
    matches_[i] = prior.matches_[i] * scale;
  }
}

DraftLengthChooser::DraftLengthChooser(const DraftLengthConfig& config,
                                       const SurvivalEstimate& prior)
    : config_(config), survival_(config.max_length), probe_after_(config.first_probe_after) {
  // A request starts from what others saw, but is soon its own judge.
  survival_.start_from(prior, 6);
}

int DraftLengthChooser::choose(int max_length, int num_sequences, const CostTable& draft_cost,
                               const CostTable& verify_cost) {
  max_length = std::min(max_length, config_.max_length);
  probing_ = false;
  if (max_length <= 0) return 0;
  if (!draft_cost.known() || !verify_cost.known()) return max_length;  // measure first

  // A draft pass fills whole blocks, however few drafts are kept.
  const double draft_s = draft_cost.estimate(num_sequences * (config_.max_length + 1));
  const double plain_rate = 1 / verify_cost.estimate(num_sequences);
  int best = 0;
  double best_rate = plain_rate * (1 + config_.margin);
  double survival = 1;
  double tokens = 1;
  for (int n = 1; n <= max_length; ++n) {
    survival *= survival_.conditional(n);
    tokens += survival;
    const int rows = num_sequences * (1 + n);
    const double rate = tokens / (draft_s + verify_cost.estimate(rows));
    if (rate > best_rate) {
      best_rate = rate;
      best = n;
    }
  }
  if (best > 0) {
    plain_steps_ = 0;
    return best;
  }
  if (++plain_steps_ >= probe_after_) {
    plain_steps_ = 0;
    probing_ = true;
    return std::min(max_length, 7);
  }
  return 0;
}

void DraftLengthChooser::observe(int drafted, int accepted, bool censored) {
  if (drafted == 0) return;
  survival_.observe(drafted, accepted, censored);
  if (!probing_) {
    probe_after_ = config_.first_probe_after;
  } else if (accepted < 2) {
    probe_after_ = std::min(2 * probe_after_, config_.max_probe_after);
  }
}

}  // namespace volley
