#include "spec/draft_branches.h"

#include "base/check.h"

namespace volley {
namespace {

// After a fork the best chain's later tokens were guessed for another beginning: they fit about
// this often as well.
constexpr double kAfterFork = 0.5;

}  // namespace

BranchPlan plan_branches(std::span<const float> probabilities, int width,
                         const BranchLimits& limits) {
  CHECK_GT(width, 0);
  const auto num_positions = static_cast<int>(probabilities.size()) / width;
  const auto probability = [&](int position, int rank) {
    return static_cast<double>(probabilities[position * width + rank]);
  };
  std::vector<double> reach(num_positions + 1, 1.0);  // of the best chain: drafts [0, i) all match
  for (int i = 0; i < num_positions; ++i) reach[i + 1] = reach[i] * probability(i, 0);

  BranchPlan plan;
  std::vector<double> branch_reach;
  std::vector<bool> taken(probabilities.size(), false);
  int rows_left = limits.num_rows - 1;
  while (rows_left > 0) {
    // The next guess: one more row of the best chain, one more of a branch, or a new branch.
    double best = 0;
    int extended = -1;  // a branch
    DraftBranch opened;
    if (plan.main_length < num_positions) best = reach[plan.main_length + 1];
    for (size_t b = 0; b < plan.branches.size(); ++b) {
      const int length = plan.branches[b].length;
      if (length >= num_positions || length >= limits.max_branch_length) continue;
      const double value = branch_reach[b] * probability(length, 0) * kAfterFork;
      if (value > best) best = value, extended = static_cast<int>(b);
    }
    if (static_cast<int>(plan.branches.size()) < limits.max_branches) {
      for (int fork = 0; fork < num_positions; ++fork) {
        const int rows = fork + 2;  // its anchor, the shared drafts, the candidate
        if (rows > rows_left || fork + 1 > limits.max_branch_length) break;
        for (int rank = 1; rank < width; ++rank) {
          if (taken[fork * width + rank]) continue;
          const double value = reach[fork] * probability(fork, rank) / rows;
          if (value > best) best = value, opened = {.fork = fork, .rank = rank, .length = fork + 1};
        }
      }
    }
    if (best <= 0) break;
    if (opened.length > 0) {
      taken[opened.fork * width + opened.rank] = true;
      plan.branches.push_back(opened);
      branch_reach.push_back(reach[opened.fork] * probability(opened.fork, opened.rank));
      rows_left -= opened.fork + 2;
    } else if (extended >= 0) {
      DraftBranch& branch = plan.branches[extended];
      branch_reach[extended] *= probability(branch.length, 0) * kAfterFork;
      ++branch.length;
      --rows_left;
    } else {
      ++plan.main_length;
      --rows_left;
    }
  }
  return plan;
}

}  // namespace volley
