#include "spec/draft_length.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace volley {

CostTable::CostTable(int max_rows) : entries_(max_rows + 1), estimates_(max_rows + 1, 0.0) {
  levels_.reserve(entries_.size());
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
  fitted_ = false;
}

double CostTable::estimate(int num_rows) const {
  if (!fitted_) fit();
  return estimates_[std::clamp(num_rows, 1, static_cast<int>(estimates_.size()) - 1)];
}

// Pool adjacent violators: where more rows were seen to take less time, both take the mean.
void CostTable::fit() const {
  fitted_ = true;
  if (num_known_ == 0) return;
  levels_.clear();
  const int max_rows = static_cast<int>(entries_.size()) - 1;
  for (int rows = 1; rows <= max_rows; ++rows) {
    const Entry& entry = entries_[rows];
    if (entry.count == 0) continue;
    const double weight = std::min(entry.count, kHistory);
    levels_.push_back({rows, rows, weight * entry.median, weight});
    while (levels_.size() > 1 && levels_.end()[-2].seconds() >= levels_.back().seconds()) {
      const Level last = levels_.back();
      levels_.pop_back();
      levels_.back().last_row = last.last_row;
      levels_.back().sum += last.sum;
      levels_.back().weight += last.weight;
    }
  }
  int rows = 1;
  double slope = 0;
  for (size_t i = 0; i < levels_.size(); ++i) {
    const Level& level = levels_[i];
    if (i > 0) {
      const Level& before = levels_[i - 1];
      slope = (level.seconds() - before.seconds()) / (level.first_row - before.last_row);
    }
    for (; rows < level.first_row; ++rows) {
      estimates_[rows] = level.seconds() - slope * (level.first_row - rows);
    }
    for (; rows <= level.last_row; ++rows) estimates_[rows] = level.seconds();
  }
  const double last = levels_.back().seconds();
  for (int past = 1; rows <= max_rows; ++rows, ++past) estimates_[rows] = last + slope * past;
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

void SurvivalEstimate::discount(double share) {
  for (double& trials : trials_) trials *= share;
  for (double& matches : matches_) matches *= share;
}

Confidence::Confidence() {
  constexpr double kPriorTrials = 4;
  for (int i = 0; i <= kBins; ++i) {
    trials_[i] = kPriorTrials;
    matches_[i] = kPriorTrials * i / kBins;
  }
}

void Confidence::observe(double probability, bool matched) {
  constexpr double kDecay = 1 - 1 / 400.0;
  const double at = std::clamp(probability, 0.0, 1.0) * kBins;
  const int low = std::min(static_cast<int>(at), kBins - 1);
  // Both neighbours learn, by their nearness.
  for (int i = 0; i < 2; ++i) {
    const double weight = i == 0 ? low + 1 - at : at - low;
    trials_[low + i] = trials_[low + i] * (1 - weight * (1 - kDecay)) + weight;
    matches_[low + i] = matches_[low + i] * (1 - weight * (1 - kDecay)) + (matched ? weight : 0);
  }
}

double Confidence::operator()(double probability) const {
  const double at = std::clamp(probability, 0.0, 1.0) * kBins;
  const int low = std::min(static_cast<int>(at), kBins - 1);
  const double share = at - low;
  return (1 - share) * matches_[low] / trials_[low] + share * matches_[low + 1] / trials_[low + 1];
}

namespace {

constexpr int kFirstRetryPause = 12;

}  // namespace

DraftOutlook::DraftOutlook(int max_length, const SurvivalEstimate& prior)
    : survival(max_length), retry_after(kFirstRetryPause) {
  // A request starts from what others saw, but is soon its own judge.
  survival.start_from(prior, 6);
}

int DraftPlanner::cost_rows(int num_block_rows, int num_drafts) const {
  // A draft pass fills whole blocks, however few drafts are looked at.
  const double rows = config_.body_share * num_block_rows + (1 - config_.body_share) * num_drafts;
  return std::max(1, static_cast<int>(std::lround(rows)));
}

int DraftPlanner::block_for(int num_drafts) const {
  const auto size =
      std::upper_bound(config_.block_sizes.begin(), config_.block_sizes.end() - 1, num_drafts);
  return *size;
}

double DraftPlanner::seconds(int block_size, int num_drafting, int num_drafts, int num_rows,
                             const Costs& costs) const {
  const double verify_s = costs.verify.estimate(num_rows + num_drafts);
  if (num_drafting == 0) return verify_s;
  const int num_looked_at =
      std::min(num_drafts + num_drafting * config_.extra_drafts, num_drafting * (block_size - 1));
  return verify_s + costs.draft.estimate(cost_rows(num_drafting * block_size, num_looked_at));
}

double DraftPlanner::promise(int num_sequences, const SurvivalEstimate& survival,
                             const CostTable& draft_cost, const CostTable& verify_cost) const {
  if (!draft_cost.known() || !verify_cost.known()) return std::numeric_limits<double>::infinity();
  const Costs costs = {draft_cost, verify_cost};
  const double plain_s = verify_cost.estimate(num_sequences);
  double best = 0;
  for (const int block_size : config_.block_sizes) {
    double reach = 1;
    double tokens = 1;  // of each sequence
    for (int length = 1; length < block_size; ++length) {
      reach *= survival.conditional(length);
      tokens += reach;
      const double cycle_s =
          seconds(block_size, num_sequences, num_sequences * length, num_sequences, costs);
      best = std::max(best, tokens * plain_s / cycle_s);
    }
  }
  return best * kept_share_;
}

void DraftPlanner::observe(double num_tokens, double cycle_s) {
  if (promised_rate_ <= 0 || !(cycle_s > 0)) return;
  const double kept = num_tokens / cycle_s / promised_rate_;
  kept_share_ = std::clamp(kept_share_ + (kept - kept_share_) / 64, 0.75, 1.5);
}

// The tokens per second that blocks of this size promise; bids_ say who drafts how many.
double DraftPlanner::share(std::span<const DraftCandidate> candidates, int block_size, int num_rows,
                           const Costs& costs) {
  const DraftStep* step = steps_.data();
  for (size_t i = 0; i < candidates.size(); ++i) {
    const int length = std::min(candidates[i].max_length, block_size - 1);
    bids_[i].steps = {step, static_cast<size_t>(length)};
    step += candidates[i].max_length;
  }
  return share_rows(std::span(bids_), num_rows, num_rows, /*may_take_none=*/false,
                    [&](int num_drafting, int rows) {
                      return seconds(block_size, num_drafting, rows - num_rows, num_rows, costs);
                    });
}

int DraftPlanner::choose(std::span<DraftCandidate> candidates, int num_others,
                         const CostTable& draft_cost, const CostTable& verify_cost) {
  const Costs costs = {draft_cost, verify_cost};
  const int whole = config_.block_sizes.back();
  promised_rate_ = 0;
  size_t num_steps = 0;
  for (DraftCandidate& candidate : candidates) {
    candidate.length = 0;
    candidate.max_length = std::clamp(candidate.max_length, 0, whole - 1);
    num_steps += candidate.max_length;
  }
  if (num_steps == 0) return whole;
  if (!draft_cost.known() || !verify_cost.known()) {  // measure first
    for (DraftCandidate& candidate : candidates) candidate.length = candidate.max_length;
    return whole;
  }
  steps_.resize(num_steps);
  bids_.resize(candidates.size());
  DraftStep* step = steps_.data();
  for (const DraftCandidate& candidate : candidates) {
    double reach = 1;
    for (int n = 1; n <= candidate.max_length; ++n) {
      reach *= candidate.outlook->survival.conditional(n);
      *step++ = {.value = reach, .rows = 1};
    }
  }
  const int num_rows = static_cast<int>(candidates.size()) + num_others;
  const double plain_s = verify_cost.estimate(num_rows);
  // One of the sizes to look at whatever it promises, or plain decoding, or as usual: the best.
  const auto num_sizes = static_cast<int>(config_.block_sizes.size());
  const bool explores = drafted_steps_ % config_.explore_after == config_.explore_after - 1;
  const int explored =
      explores ? (drafted_steps_ / config_.explore_after + num_sizes) % (num_sizes + 1) : -1;
  double best_rate = 0;
  int block_size = whole;
  for (int i = 0; i < num_sizes; ++i) {
    const double rate = share(candidates, config_.block_sizes[i], num_rows, costs);
    if (rate <= best_rate && i != explored) continue;
    best_rate = std::max(best_rate, rate);
    block_size = config_.block_sizes[i];
    for (size_t j = 0; j < candidates.size(); ++j) candidates[j].length = bids_[j].num_taken;
    if (i == explored) break;
  }
  ++drafted_steps_;
  const bool pays = kept_share_ * best_rate > (1 + config_.margin) * num_rows / plain_s;
  if (pays && explored < num_sizes) {
    promised_rate_ = explored < 0 ? best_rate : 0;
    plain_steps_ = 0;
    plain_s_ = 0;
    retry_left_out(candidates, block_size);
    return block_size;
  }
  if (explored < 0) drafted_steps_ = 0;
  for (DraftCandidate& candidate : candidates) candidate.length = 0;
  ++plain_steps_;
  plain_s_ += plain_s;
  kept_share_ += (1 - kept_share_) / 1024;  // what is not seen is forgotten
  block_size = block_for(config_.probe_length);
  if (!may_probe(candidates, block_size, num_rows, plain_s, costs)) return block_size;
  plain_steps_ = 0;
  plain_s_ = 0;
  for (DraftCandidate& candidate : candidates) {
    candidate.length = std::min({candidate.max_length, config_.probe_length, block_size - 1});
    candidate.outlook->survival.discount(0.5);
  }
  return block_size;
}

// A sequence whose drafts fail while others' succeed gets another chance now and then: the draft
// pass runs anyway.
void DraftPlanner::retry_left_out(std::span<DraftCandidate> candidates, int block_size) const {
  for (DraftCandidate& candidate : candidates) {
    DraftOutlook& outlook = *candidate.outlook;
    if (candidate.length > 0) {
      outlook.steps_without = 0;
      outlook.retry_after = kFirstRetryPause;
    } else if (++outlook.steps_without >= outlook.retry_after) {
      candidate.length = std::min({candidate.max_length, 2, block_size - 1});
      outlook.survival.discount(0.5);
      outlook.steps_without = 0;
      outlook.retry_after = std::min(2 * outlook.retry_after, config_.max_retry_pause);
    }
  }
}

bool DraftPlanner::may_probe(std::span<const DraftCandidate> candidates, int block_size,
                             int num_rows, double plain_s, const Costs& costs) const {
  if (plain_steps_ < config_.min_probe_pause) return false;
  int num_drafts = 0;
  double tokens = num_rows;
  const DraftStep* steps = steps_.data();
  for (const DraftCandidate& candidate : candidates) {
    const int length = std::min({candidate.max_length, config_.probe_length, block_size - 1});
    num_drafts += length;
    for (int n = 0; n < length; ++n) tokens += steps[n].value;
    steps += candidate.max_length;
  }
  const double probe_s =
      seconds(block_size, static_cast<int>(candidates.size()), num_drafts, num_rows, costs);
  const double loss = probe_s - plain_s * tokens / num_rows;
  return loss <= config_.probe_share * plain_s_;
}

}  // namespace volley
