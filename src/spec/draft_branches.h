#pragma once

// Which guesses to verify beside the drafter's best one. A block-diffusion drafter gives a
// distribution for every position at once. Where its best token is doubtful, a row is better spent
// on the second best than on the far end of the block, which seldom survives. Cf. DDTree (arXiv
// 2604.12989), which spends a node budget on a tree of such marginals. Here a branch is a chain of
// rows of its own, the rows before its fork included: the target's attention then sums over keys in
// the very order of plain decoding, and law 1 holds where a tree mask would break it.

#include <span>
#include <vector>

#include "spec/row_share.h"

namespace volley {

// Drafts [0, fork) of the best chain, then the candidate of rank `rank` >= 1 at position `fork`,
// then the best chain's tokens again, `length` drafts in all.
struct DraftBranch {
  int fork = 0;
  int rank = 0;
  int length = 0;

  bool operator==(const DraftBranch&) const = default;
};

struct BranchPlan {
  int main_length = 0;  // drafts of the best chain
  std::vector<DraftBranch> branches;
};

struct BranchLimits {
  int num_rows = 0;  // of all chains, their anchors included
  int max_branches = 0;
  int max_branch_length = 0;
};

// Takes guesses one at a time where the chance of a token per row is best. Reused from step to
// step, so that it allocates once.
class BranchPlanner {
 public:
  // probabilities[i * width + r]: the chance that the candidate of rank r at position i is right
  // where all before it were; falling with r. Kept by reference until the next start().
  void start(std::span<const float> probabilities, int width, const BranchLimits& limits);

  // All guesses in the order they would be taken; their rows sum to at most num_rows - 1.
  std::span<const DraftStep> steps() const { return steps_; }

  // What the first `num_steps` of them are. Valid until the next call.
  const BranchPlan& plan(int num_steps);

 private:
  void rewind();
  bool take(DraftStep& step);

  std::span<const float> probabilities_;
  int width_ = 1;
  BranchLimits limits_;
  int num_positions_ = 0;
  std::vector<double> reach_;  // of the best chain: drafts [0, i) all match
  std::vector<DraftStep> steps_;
  BranchPlan plan_;
  std::vector<double> branch_reach_;
  std::vector<double> open_values_;  // of a branch at [fork, rank], per row
  std::vector<int> next_rank_;       // by fork: the best candidate that has no branch yet
  int rows_left_ = 0;
};

}  // namespace volley
