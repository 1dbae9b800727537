#pragma once

// The one acceptance rule (law 1). The target samples every position of the block with noise that
// belongs to the position; a draft is kept while it equals that sample. The first sample that
// differs from its draft is itself the next token, so a block always yields at least one token, and
// the tokens are those that plain decoding would have sampled.

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace volley {

// Chains of drafts for the same positions: the drafter's best guess and branches from it. Chains
// that begin alike are verified side by side, each in its own rows.
using DraftChains = std::span<const std::vector<int32_t>>;

struct Acceptance {
  int num_accepted = 0;  // drafts
  int chain = 0;         // whose rows 0 .. num_accepted hold the accepted tokens
};

// Walks the block. sample(chain, i) returns the target's token after row i of a chain whose drafts
// before that row all matched; it is called once for each i, in order, and never past the last
// match, so a caller may advance penalties or a grammar inside it. Which chain it names does not
// matter to its value (law 1). keep_going(token) is asked after each match; false (a stop token,
// say) ends the walk. Appends the samples to `tokens`.
template <class SampleFn, class KeepGoingFn>
Acceptance accept_drafts(DraftChains chains, SampleFn&& sample, KeepGoingFn&& keep_going,
                         std::vector<int32_t>& tokens) {
  const size_t first_token = tokens.size();
  // A chain is alive while its drafts equal the tokens so far; those are few and short, so it is
  // simply compared again.
  const auto alive = [&](const std::vector<int32_t>& drafts) {
    const size_t count = tokens.size() - first_token;
    return drafts.size() >= count && std::equal(tokens.begin() + static_cast<int64_t>(first_token),
                                                tokens.end(), drafts.begin());
  };
  Acceptance result;
  while (true) {
    const int32_t token = sample(result.chain, result.num_accepted);
    tokens.push_back(token);
    const auto next = std::find_if(chains.begin(), chains.end(), alive);
    if (next == chains.end()) return result;
    result.chain = static_cast<int>(next - chains.begin());
    ++result.num_accepted;
    if (!keep_going(token)) return result;
  }
}

}  // namespace volley
