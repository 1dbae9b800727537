#pragma once

#include <memory>

#include "engine/token_filter.h"
#include "text/grammar/grammar.h"

namespace volley {

// The engine's view of a grammar along one sequence.
class GrammarFilter final : public TokenFilter {
 public:
  explicit GrammarFilter(std::shared_ptr<const CompiledGrammar> grammar)
      : state_(std::move(grammar)) {}

  void allowed(std::span<uint32_t> mask) const override;
  void accept(int32_t token) override;
  std::unique_ptr<TokenFilter> clone() const override;

 private:
  GrammarState state_;
};

}  // namespace volley
