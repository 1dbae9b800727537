#include "server/answer.h"

#include <algorithm>

#include "base/check.h"

namespace volley::server {
namespace {

StopStringMatcher make_matcher(const std::vector<std::string>& stop) {
  Result<StopStringMatcher> matcher = StopStringMatcher::create(stop);
  CHECK(matcher.has_value());
  return std::move(*matcher);
}

}  // namespace

void AnswerSpeculation::observe(int64_t tokens, int drafted, int depth, int accepted) {
  ++num_steps;
  num_tokens += tokens;
  if (drafted == 0) return;
  ++num_drafts;
  num_draft_tokens += drafted;
  num_accepted += accepted;
  const auto size = static_cast<size_t>(depth);
  if (drafted_at.size() < size) {
    drafted_at.resize(size);
    accepted_at.resize(size);
    histogram.resize(size + 1);
  }
  for (int i = 0; i < depth; ++i) ++drafted_at[i];
  for (int i = 0; i < accepted; ++i) ++accepted_at[i];
  ++histogram[accepted];
}

double AnswerSpeculation::acceptance_length() const {
  return num_steps > 1 ? static_cast<double>(num_tokens - 1) / static_cast<double>(num_steps - 1)
                       : 1.0;
}

Answer::Answer(const Tokenizer& tokenizer, const AnswerConfig& config)
    : detokenizer_(tokenizer, config.skip_special_tokens),
      matcher_(make_matcher(config.stop)),
      splitter_(config.split) {}

AnswerDelta Answer::push(const GenerationEvent& event) {
  AnswerDelta delta;
  if (done_) return delta;
  delta.num_drafted = event.num_drafted;
  delta.draft_depth = event.draft_depth;
  delta.num_accepted = event.num_accepted_drafts;
  for (size_t i = 0; i < event.tokens.size() && !matcher_.stopped(); ++i) {
    const int32_t token = event.tokens[i];
    num_reasoning_tokens_ += splitter_.reasoning();
    delta.tokens.push_back(token);
    if (i < event.logprobs.size()) delta.logprobs.push_back({token, event.logprobs[i]});
    // The token that ended the answer is counted, not shown.
    const bool ends = event.finish == FinishReason::kStop && i + 1 == event.tokens.size();
    if (ends) {
      stop_token_ = token;
    } else {
      add_text(matcher_.push(detokenizer_.push(token)), delta);
    }
  }
  if (!event.tokens.empty()) {
    speculation_.observe(static_cast<int64_t>(delta.tokens.size()), event.num_drafted,
                         event.draft_depth, event.num_accepted_drafts);
  }
  tokens_.insert(tokens_.end(), delta.tokens.begin(), delta.tokens.end());
  logprobs_.insert(logprobs_.end(), delta.logprobs.begin(), delta.logprobs.end());
  if (matcher_.stopped()) {
    matched_ = matcher_.matched();
    stop_token_.reset();
    end(FinishReason::kStop, delta);
  } else if (event.finish != FinishReason::kNone) {
    end(event.finish, delta);
  }
  return delta;
}

void Answer::add_text(std::string_view text, AnswerDelta& delta) {
  delta.text += text;
  text_ += text;
  OutputParts parts = splitter_.push(text);
  const auto add = [](OutputParts& to, const OutputParts& from) {
    to.reasoning += from.reasoning;
    to.content += from.content;
    to.tool_calls.insert(to.tool_calls.end(), from.tool_calls.begin(), from.tool_calls.end());
  };
  add(delta.parts, parts);
  add(parts_, parts);
}

void Answer::end(FinishReason reason, AnswerDelta& delta) {
  done_ = true;
  finish_ = reason;
  if (!matcher_.stopped()) {
    std::string rest = matcher_.push(detokenizer_.flush());
    if (!matcher_.stopped()) rest += matcher_.flush();
    add_text(rest, delta);
  }
  OutputParts parts = splitter_.finish();
  delta.parts.reasoning += parts.reasoning;
  delta.parts.content += parts.content;
  parts_.reasoning += parts.reasoning;
  parts_.content += parts.content;
  for (ToolCall& call : parts.tool_calls) {
    delta.parts.tool_calls.push_back(call);
    parts_.tool_calls.push_back(std::move(call));
  }
}

std::string_view Answer::finish_reason() const {
  switch (finish_) {
    case FinishReason::kStop:
      return parts_.tool_calls.empty() ? "stop" : "tool_calls";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "abort";
    case FinishReason::kNone:
      break;
  }
  return "";
}

}  // namespace volley::server
