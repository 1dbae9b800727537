#pragma once

// The one acceptance rule (law 1). The target samples every position of the block with noise that
// belongs to the position; a draft is kept while it equals that sample. The first sample that
// differs from its draft is itself the next token, so a block always yields at least one token, and
// the tokens are those that plain decoding would have sampled.

#include <cstdint>
#include <span>
#include <vector>

namespace volley {

// Walks the block. sample(i) returns the target's token after block row i, given that rows 0..i are
// known to be right; it is called in order, for i = 0 .. accepted drafts, and never past a
// mismatch, so a caller may advance penalties or a grammar inside it. keep_going(token) is asked
// after each sampled token; false (a stop token, say) ends the walk. Appends the samples to
// `tokens` and returns how many drafts were accepted.
template <class SampleFn, class KeepGoingFn>
int accept_draft(std::span<const int32_t> drafts, SampleFn&& sample, KeepGoingFn&& keep_going,
                 std::vector<int32_t>& tokens) {
  const int num_drafts = static_cast<int>(drafts.size());
  for (int i = 0;; ++i) {
    const int32_t token = sample(i);
    tokens.push_back(token);
    const bool matches = i < num_drafts && drafts[i] == token;
    if (!matches) return i;
    if (!keep_going(token)) return i + 1;
  }
}

}  // namespace volley
