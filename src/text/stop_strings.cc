#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace volley {

Result<StopStringMatcher> StopStringMatcher::create(const std::vector<std::string>& stop_strings,
                                                    const StopStringLimits& limits) {
  if (stop_strings.size() > limits.max_strings) {
    return invalid("stop: at most {} strings, got {}", limits.max_strings, stop_strings.size());
  }
  StopStringMatcher matcher;
  for (const std::string& text : stop_strings) {
    if (text.empty()) return invalid("stop: an empty string would end every answer at once");
    if (text.size() > limits.max_bytes) {
      return invalid("stop: a string may have {} bytes, got {}", limits.max_bytes, text.size());
    }
    Pattern pattern{.text = text, .failure = std::vector<size_t>(text.size(), 0)};
    for (size_t i = 1, length = 0; i < text.size(); ++i) {
      while (length > 0 && text[i] != text[length]) length = pattern.failure[length - 1];
      if (text[i] == text[length]) ++length;
      pattern.failure[i] = length;
    }
    matcher.patterns_.push_back(std::move(pattern));
  }
  return matcher;
}

void StopStringMatcher::advance(Pattern& pattern, char byte) {
  size_t& length = pattern.num_matched;
  while (length > 0 && pattern.text[length] != byte) length = pattern.failure[length - 1];
  if (pattern.text[length] == byte) ++length;
}

std::string StopStringMatcher::push(std::string_view text) {
  if (stopped()) return {};
  if (patterns_.empty()) return std::string(text);
  size_t num_uncertain = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    held_.push_back(text[i]);
    num_uncertain = 0;
    for (size_t j = 0; j < patterns_.size(); ++j) {
      Pattern& pattern = patterns_[j];
      advance(pattern, text[i]);
      num_uncertain = std::max(num_uncertain, pattern.num_matched);
      const bool complete = pattern.num_matched == pattern.text.size();
      const bool longer = matched_idx_ < 0 || pattern.text.size() > matched().size();
      if (complete && longer) matched_idx_ = static_cast<int>(j);
    }
    if (!stopped()) continue;
    held_.resize(held_.size() - matched().size());
    return std::exchange(held_, {});
  }
  if (text.empty()) return {};
  std::string certain = held_.substr(0, held_.size() - num_uncertain);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopStringMatcher::flush() {
  if (stopped()) return {};
  for (Pattern& pattern : patterns_) pattern.num_matched = 0;
  return std::exchange(held_, {});
}

void StopStringMatcher::reset() {
  for (Pattern& pattern : patterns_) pattern.num_matched = 0;
  held_.clear();
  matched_idx_ = -1;
}

}  // namespace volley
