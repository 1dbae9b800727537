#pragma once

// Split patterns that no hand-coded splitter knows, on PCRE2. `tokenizers` runs Oniguruma (Ruby
// syntax), so a pattern is accepted only when both engines read it alike. General categories follow
// the package's Unicode version, scripts and other properties PCRE2's.

#include <memory>
#include <string_view>

#include "base/result.h"
#include "text/pretokenizer.h"

namespace volley {

// Per-thread PCRE2 state: match block, context with its limits, JIT stack.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// Errors: kUnsupported for a construct that Oniguruma and PCRE2 read differently, kInvalidInput for
// a pattern that does not compile. When a match exceeds its step limit, the rest of the text stays
// one span, as in `tokenizers` with an engine that gives up.
Result<std::unique_ptr<PatternFinder>> make_pcre2_finder(std::string_view pattern);

}  // namespace volley
