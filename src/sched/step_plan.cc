#include "sched/step_plan.h"

#include <algorithm>

#include "base/check.h"

namespace volley {

std::vector<StepItem> plan_step(std::span<const SequenceState> states, const StepLimits& limits) {
  std::vector<StepItem> plan;
  int rows_left = limits.max_rows;
  int outputs_left = limits.max_output_rows;
  const int num_sequences = static_cast<int>(states.size());

  int num_decoding = 0;
  for (const SequenceState& state : states) {
    CHECK_LE(state.num_computed, state.num_tokens);
    num_decoding += state.num_tokens - state.num_computed == 1;
  }
  for (int i = 0; i < num_sequences && rows_left > 0 && outputs_left > 0; ++i) {
    const SequenceState& state = states[i];
    if (state.num_tokens - state.num_computed != 1) continue;
    --num_decoding;
    // Every decoding sequence gets its anchor before any gets drafts beyond its share.
    const int spare = std::min(rows_left, outputs_left) - 1 - num_decoding;
    const int num_drafts = std::clamp(state.draft_length, 0, std::max(0, spare));
    plan.push_back({.sequence_idx = i, .num_known = 1, .num_drafts = num_drafts, .samples = true});
    rows_left -= 1 + num_drafts;
    outputs_left -= 1 + num_drafts;
  }
  for (int i = 0; i < num_sequences && rows_left > 0; ++i) {
    const SequenceState& state = states[i];
    const int64_t pending = state.num_tokens - state.num_computed;
    if (pending <= 1) continue;
    int chunk = static_cast<int>(
        std::min<int64_t>(pending, std::min(rows_left, std::max(1, state.prefill_chunk))));
    // The last row of a prompt yields a token; without room for its logits it waits a step.
    if (chunk == pending && outputs_left == 0) --chunk;
    if (chunk == 0) continue;
    const bool samples = chunk == pending;
    plan.push_back({.sequence_idx = i, .num_known = chunk, .num_drafts = 0, .samples = samples});
    rows_left -= chunk;
    outputs_left -= samples;
  }
  return plan;
}

}  // namespace volley
