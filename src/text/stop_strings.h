#pragma once

// Ends an answer at a stop string while its text arrives in pieces.

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley {

struct StopStringLimits {
  size_t max_strings = 64;
  size_t max_bytes = 4096;  // of one string
};

// Lets through the text that is certain to stand before every stop string and holds back what may
// still become one. Works byte by byte, so that where a text is cut does not depend on how it was
// split into tokens or steps (law 1): the stop string that is complete first ends the answer; of
// two complete at the same byte, the longer. The stop string itself is not part of the answer.
class StopStringMatcher {
 public:
  StopStringMatcher() = default;  // no stop strings: lets everything through

  // Errors: an empty string, too many, one too long.
  static Result<StopStringMatcher> create(const std::vector<std::string>& stop_strings,
                                          const StopStringLimits& limits = {});

  // Takes more text and returns what is certain now. After a stop, nothing.
  std::string push(std::string_view text);

  // The answer ended otherwise: what was held back belongs to it.
  std::string flush();

  // The stop string that ended the answer; empty while none did.
  std::string_view matched() const {
    return matched_idx_ < 0 ? std::string_view() : std::string_view(patterns_[matched_idx_].text);
  }
  bool stopped() const { return matched_idx_ >= 0; }

  // Begins a new answer.
  void reset();

 private:
  // Knuth, Morris, Pratt: `failure[i]` is the length of the longest proper prefix of the pattern
  // that is a suffix of its first i + 1 bytes; `num_matched` the length of the longest prefix that
  // ends the text so far.
  struct Pattern {
    std::string text;
    std::vector<size_t> failure;
    size_t num_matched = 0;
  };

  static void advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;
  int matched_idx_ = -1;
};

}  // namespace volley
