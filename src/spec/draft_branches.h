#pragma once

// Which guesses to verify beside the drafter's best one. A block-diffusion drafter gives a
// distribution for every position at once. Where its best token is doubtful, a row is better spent
// on the second best than on the far end of the block, which seldom survives. Cf. DDTree (arXiv
// 2604.12989), which spends a node budget on a tree of such marginals. Here a branch is a chain of
// rows of its own, the rows before its fork included: the target's attention then sums over keys in
// the very order of plain decoding, and law 1 holds where a tree mask would break it.

#include <span>
#include <vector>

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

// probabilities[i * width + r]: that of the candidate of rank r at position i, under the drafter.
// Spends rows one guess at a time where the chance of a token per row is best. main_length + 1 and
// every branch's length + 1 sum to at most num_rows.
BranchPlan plan_branches(std::span<const float> probabilities, int width,
                         const BranchLimits& limits);

}  // namespace volley
