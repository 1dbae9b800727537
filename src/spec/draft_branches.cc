#include "spec/draft_branches.h"

#include <algorithm>

#include "base/check.h"

namespace volley {
namespace {

// After a fork the best chain's later tokens were guessed for another beginning: they fit about
// this often as well.
constexpr double kAfterFork = 0.5;

}  // namespace

void BranchPlanner::start(std::span<const float> probabilities, int width,
                          const BranchLimits& limits) {
  CHECK_GT(width, 0);
  probabilities_ = probabilities;
  width_ = width;
  limits_ = limits;
  num_positions_ = static_cast<int>(probabilities.size()) / width;
  reach_.assign(num_positions_ + 1, 1.0);
  for (int i = 0; i < num_positions_; ++i) reach_[i + 1] = reach_[i] * probabilities[i * width];
  // Per row: its anchor, the shared drafts and the candidate itself.
  open_values_.resize(probabilities.size());
  for (int fork = 0; fork < num_positions_; ++fork) {
    for (int rank = 1; rank < width; ++rank) {
      open_values_[fork * width + rank] =
          reach_[fork] * probabilities[fork * width + rank] / (fork + 2);
    }
  }
  rewind();
  steps_.clear();
  DraftStep step;
  while (take(step)) steps_.push_back(step);
}

void BranchPlanner::rewind() {
  plan_ = {};
  branch_reach_.clear();
  next_rank_.assign(num_positions_, 1);
  rows_left_ = limits_.num_rows - 1;
}

const BranchPlan& BranchPlanner::plan(int num_steps) {
  rewind();
  DraftStep step;
  for (int i = 0; i < num_steps; ++i) CHECK(take(step));
  return plan_;
}

// The next guess: one more row of the best chain, one more of a branch, or a new branch.
bool BranchPlanner::take(DraftStep& step) {
  if (rows_left_ <= 0) return false;
  double best = 0;
  int extended = -1;  // a branch
  DraftBranch opened;
  if (plan_.main_length < num_positions_) best = reach_[plan_.main_length + 1];
  for (size_t b = 0; b < plan_.branches.size(); ++b) {
    const int length = plan_.branches[b].length;
    if (length >= num_positions_ || length >= limits_.max_branch_length) continue;
    const double value = branch_reach_[b] * probabilities_[length * width_] * kAfterFork;
    if (value > best) best = value, extended = static_cast<int>(b);
  }
  if (static_cast<int>(plan_.branches.size()) < limits_.max_branches) {
    const int num_forks = std::min({num_positions_, rows_left_ - 1, limits_.max_branch_length});
    for (int fork = 0; fork < num_forks; ++fork) {
      const int rank = next_rank_[fork];
      if (rank == width_ || open_values_[fork * width_ + rank] <= best) continue;
      best = open_values_[fork * width_ + rank];
      opened = {.fork = fork, .rank = rank, .length = fork + 1};
    }
  }
  if (best <= 0) return false;
  step = {.value = best, .rows = 1};
  if (opened.length > 0) {
    step = {.value = best * (opened.fork + 2), .rows = opened.fork + 2};
    ++next_rank_[opened.fork];
    plan_.branches.push_back(opened);
    branch_reach_.push_back(step.value);
  } else if (extended >= 0) {
    branch_reach_[extended] = best;
    ++plan_.branches[extended].length;
  } else {
    ++plan_.main_length;
  }
  rows_left_ -= step.rows;
  return true;
}

}  // namespace volley
