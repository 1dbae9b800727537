#include "spec/draft_rest.h"

#include <algorithm>
#include <bit>

namespace volley {

CrowdWatch::Record& CrowdWatch::at(int num_live) {
  return records_[std::bit_width(static_cast<uint32_t>(std::max(num_live, 0)))];
}

bool CrowdWatch::new_ones_rest(int num_live) {
  Record& record = at(num_live);
  if (num_live < kCrowd || record.rest_left == 0) return false;
  --record.rest_left;
  return true;
}

void CrowdWatch::record(int num_live, int num_candidates, bool drafted) {
  // A few that draft beside many that rest say nothing of all.
  if (num_live < kCrowd || 2 * num_candidates < num_live) return;
  Record& record = at(num_live);
  ++record.num_steps;
  record.num_drafted += drafted;
  if (record.num_steps < kSteps) return;
  const bool pays = record.num_drafted >= kLeastDrafted * kSteps;
  record.last_rest = pays ? 0 : std::clamp(2 * record.last_rest, kLeastRest, kMostRest);
  record.rest_left = record.last_rest;
  record.num_steps = record.num_drafted = 0;
}

bool RestRegret::add(double promise, double token_s, double restart_s, int64_t num_tokens_left) {
  if (promise < kLeastPromise) return false;
  const double loss_s = token_s * (1 - 1 / promise);
  lost_s_ += loss_s;
  return lost_s_ > restart_s && static_cast<double>(num_tokens_left) * loss_s > restart_s;
}

}  // namespace volley
