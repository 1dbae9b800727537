#pragma once

// What an engine keeps of a live request. Private to the engine's own sources.

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace volley {

// Rows of target_hidden a sequence may owe its drafter while it decodes plainly; then they are
// injected together, since one pass over fc and the key projections serves them all.
inline constexpr int kPendingHiddenRows = 32;

// Branches of one sequence, and the candidates of a position that may start one.
inline constexpr int kMaxBranches = 6;
inline constexpr int kCandidates = 4;

// A second guess beside the best chain of drafts, verified as a sequence of its own that shares all
// pages but the one the block begins in.
struct Engine::Branch {
  int32_t page;                     // a copy of that page, with this branch's keys
  std::vector<int32_t> page_table;  // the sequence's, with `page` in place of the original
};

// A live request: what the scheduler does not know of it.
struct Engine::Sequence {
  Sequence(RequestId request_id, GenerationRequest&& source, int block_size,
           const SurvivalEstimate& prior)
      : id(request_id),
        request(std::move(source)),
        filter(request.filter != nullptr ? request.filter->clone() : nullptr),
        outlook(std::max(1, block_size - 1), prior) {}

  // Its states are kept for the drafter.
  bool uses_drafter() const { return request.draft.mode != DraftPolicy::Mode::kOff && !rests; }
  bool greedy() const {
    return request.sampling.temperature == 0 && !request.sampling.edits_logits() &&
           filter == nullptr && request.num_logprobs < 0;
  }
  // The drafter's probabilities decide which of its guesses are verified.
  bool graded() const { return greedy() && (is_auto() || request.draft.branches); }
  bool is_auto() const { return request.draft.mode == DraftPolicy::Mode::kAuto; }
  bool is_stop(int32_t token) const {
    return std::find(request.stop_ids.begin(), request.stop_ids.end(), token) !=
           request.stop_ids.end();
  }

  RequestId id;
  GenerationRequest request;
  std::unique_ptr<TokenFilter> filter;
  TokenCounts counts;
  // Tapped states of positions [num_injected, num_computed), which the drafter is owed; held while
  // the sequence runs. [kPendingHiddenRows + block_size, num_taps * hidden_size]
  Tensor hidden;
  bool rests = false;  // it does without its drafter (spec/draft_rest.h)
  RestRegret regret;
  int draft_length = 0;  // asked of the next step
  int draft_block = 0;   // rows of its block there
  // Of this step: all that the drafter's best guess says, with its probabilities where graded, and
  // what of it is verified: the best chain, then its branches.
  std::vector<int32_t> guess;
  std::vector<float> guess_probabilities;
  int first_guess_row = 0;           // of draft_logits_
  std::vector<float> match_chances;  // [guess.size(), kCandidates]
  BranchPlanner branch_planner;
  std::vector<std::vector<int32_t>> chains;
  std::vector<Branch> branches;  // chains[1], chains[2], ...
  std::vector<int32_t> fresh;    // tokens of this step
  std::vector<TokenLogprobs> fresh_logprobs;
  DraftOutlook outlook;
  SpeculationStats stats;
  FinishReason finish = FinishReason::kNone;
  ScheduledSequence* scheduled = nullptr;
};

}  // namespace volley
