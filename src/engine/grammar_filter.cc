#include "engine/grammar_filter.h"

#include "base/check.h"

namespace volley {

void GrammarFilter::allowed(std::span<uint32_t> mask) const {
  state_.allowed(mask);
}

void GrammarFilter::accept(int32_t token) {
  CHECK(state_.accept(token));
}

std::unique_ptr<TokenFilter> GrammarFilter::clone() const {
  return std::make_unique<GrammarFilter>(*this);
}

}  // namespace volley
