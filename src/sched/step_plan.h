#pragma once

// What one step computes: a pure function of the sequences' state and the limits, in plain
// integers.

#include <cstdint>
#include <span>
#include <vector>

namespace volley {

// A sequence as the planner sees it. Its tokens [num_computed, num_tokens) have not been through
// the target; num_tokens - num_computed == 1 means that it decodes, more that it prefills.
struct SequenceState {
  int64_t num_tokens = 0;
  int64_t num_computed = 0;
  int prefill_chunk = 0;  // most rows of a prefill in one step
  int draft_length = 0;   // drafts wanted, if it decodes
};

struct StepLimits {
  int max_rows = 0;         // rows of the target's pass
  int max_output_rows = 0;  // rows whose logits are computed
};

struct StepItem {
  int sequence_idx = 0;  // into the states given
  int num_known = 0;     // known tokens to compute, from num_computed on
  int num_drafts = 0;    // draft rows after them
  bool samples = false;  // the last known token is among them: it yields a token
};

// Decoding sequences first, each with its anchor and as many drafts as the limits leave; then
// prefills in the order given, a chunk each. A sequence that finds no room waits a step. Whenever a
// state has work and max_rows and max_output_rows are positive, the plan is not empty.
std::vector<StepItem> plan_step(std::span<const SequenceState> states, const StepLimits& limits);

}  // namespace volley
