#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace volley {

// Which tokens may come next: the state of a grammar along one sequence. The engine asks it at
// every position of a block, so constrained decoding composes with drafting.
class TokenFilter {
 public:
  virtual ~TokenFilter() = default;

  // Sets bit t % 32 of mask[t / 32] for every token t that may come next, clears all others.
  // mask has ceil(vocab_size / 32) words. At least one bit is set.
  virtual void allowed(std::span<uint32_t> mask) const = 0;

  // Advances past `token`, which allowed() named.
  virtual void accept(int32_t token) = 0;

  // An independent copy: drafts are tried on it.
  virtual std::unique_ptr<TokenFilter> clone() const = 0;
};

inline bool mask_allows(std::span<const uint32_t> mask, int32_t token) {
  return (mask[token / 32] >> (token % 32)) & 1;
}

}  // namespace volley
