#pragma once

// Who gets the rows of a pass. Each sequence offers guesses in the order it would take them; a pass
// takes those that are worth most per row, until one more would lower the tokens per second.

#include <algorithm>
#include <span>
#include <vector>

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

// Once a pass promises no more than this share of the best, no further guess will mend it.
inline constexpr double kHopeless = 0.8;

// The pass has `num_rows` rows that yield `num_tokens` tokens anyway. seconds(num_drafting, rows)
// is what a cycle costs in which num_drafting sequences draft and the pass has `rows` rows. Returns
// the most tokens per second, with which bids' num_taken; a cycle without drafts is not considered
// unless `may_take_none`. Cost: (all steps) x log(bids), and as many calls of seconds().
template <class Seconds>
double share_rows(std::span<DraftBid> bids, int num_rows, double num_tokens, bool may_take_none,
                  const Seconds& seconds) {
  struct Offer {  // the next step of a bid
    double value;
    int bid;
  };
  // The best first; among equals the first bid.
  const auto is_worse = [](const Offer& a, const Offer& b) {
    return a.value != b.value ? a.value < b.value : a.bid > b.bid;
  };
  static thread_local std::vector<Offer> offers;
  offers.clear();
  const auto offer_next = [&](int index) {
    const DraftBid& bid = bids[index];
    if (bid.num_taken == static_cast<int>(bid.steps.size())) return;
    const DraftStep& step = bid.steps[bid.num_taken];
    const double value = step.rows == 1 ? step.value : step.value / step.rows;
    if (value <= kLeastValue) return;
    offers.push_back({value, index});
    std::push_heap(offers.begin(), offers.end(), is_worse);
  };
  const auto restart = [&] {
    offers.clear();
    for (size_t i = 0; i < bids.size(); ++i) {
      bids[i].num_taken = 0;
      offer_next(static_cast<int>(i));
    }
  };
  const auto take_best = [&]() -> const DraftStep& {
    const int index = offers.front().bid;
    std::pop_heap(offers.begin(), offers.end(), is_worse);
    offers.pop_back();
    const DraftStep& step = bids[index].steps[bids[index].num_taken++];
    offer_next(index);
    return step;
  };
  // Once to find how many to take, once to take them.
  int count = 0;
  double best_rate = may_take_none ? num_tokens / seconds(0, num_rows) : 0;
  int rows = num_rows;
  double tokens = num_tokens;
  int num_drafting = 0;
  restart();
  for (int taken = 1; !offers.empty(); ++taken) {
    num_drafting += bids[offers.front().bid].num_taken == 0;
    const DraftStep& step = take_best();
    rows += step.rows;
    tokens += step.value;
    const double rate = tokens / seconds(num_drafting, rows);
    if (rate > best_rate) best_rate = rate, count = taken;
    if (rate < kHopeless * best_rate) break;  // what follows is worth less and less
  }
  restart();
  for (; count > 0; --count) take_best();
  return best_rate;
}

}  // namespace volley
