#pragma once

// Who gets the rows of a pass. Each sequence offers guesses in the order it would take them; a pass
// takes those that are worth most per row, until one more would lower the tokens per second.

#include <span>

#include "base/check.h"

namespace volley {

// One more guess of a sequence: the chance that it yields a token, and the rows it takes.
struct DraftStep {
  double value = 0;
  int rows = 1;
};

// A guess worth less than this a row is worth nothing anywhere.
inline constexpr double kLeastValue = 0.01;

struct DraftBid {
  std::span<const DraftStep> steps;
  int num_taken = 0;  // out: the first steps, which the pass takes
};

// The pass has `num_rows` rows that yield `num_tokens` tokens anyway. seconds(num_drafting, rows)
// is what a cycle costs in which num_drafting sequences draft and the pass has `rows` rows. Returns
// the most tokens per second, with which bids' num_taken; a cycle without drafts is not considered
// unless `may_take_none`. Cost: (all steps) x (bids). Free of allocations.
template <class Seconds>
double share_rows(std::span<DraftBid> bids, int num_rows, double num_tokens, bool may_take_none,
                  const Seconds& seconds) {
  for (DraftBid& bid : bids) bid.num_taken = 0;
  const auto next = [&]() -> DraftBid* {
    DraftBid* best = nullptr;
    double best_value = kLeastValue;
    for (DraftBid& bid : bids) {
      if (bid.num_taken == static_cast<int>(bid.steps.size())) continue;
      const DraftStep& step = bid.steps[bid.num_taken];
      const double value = step.rows == 1 ? step.value : step.value / step.rows;
      if (value > best_value) best_value = value, best = &bid;
    }
    return best;
  };
  // Once to find how many to take, once to take them.
  int count = 0;
  double best_rate = may_take_none ? num_tokens / seconds(0, num_rows) : 0;
  int rows = num_rows;
  double tokens = num_tokens;
  int num_drafting = 0;
  for (int taken = 1; DraftBid* bid = next(); ++taken) {
    const DraftStep& step = bid->steps[bid->num_taken++];
    num_drafting += bid->num_taken == 1;
    rows += step.rows;
    tokens += step.value;
    const double rate = tokens / seconds(num_drafting, rows);
    if (rate > best_rate) best_rate = rate, count = taken;
  }
  for (DraftBid& bid : bids) bid.num_taken = 0;
  for (; count > 0; --count) ++next()->num_taken;
  return best_rate;
}

}  // namespace volley
