#pragma once

// One answer while it is made: tokens in, text parts out. Stop strings end it at the same byte
// however the tokens were grouped; everything is counted up to the token that completed the answer.

#include <optional>
#include <string>
#include <vector>

#include "engine/engine_thread.h"
#include "server/output_splitter.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"

namespace volley::server {

// What speculation did for one answer.
struct AnswerSpeculation {
  int64_t num_steps = 0;  // target passes that yielded tokens, the prefill's last included
  int64_t num_tokens = 0;
  int64_t num_drafts = 0;
  int64_t num_draft_tokens = 0;
  int64_t num_accepted = 0;
  std::vector<int64_t> drafted_at;  // by position in the draft
  std::vector<int64_t> accepted_at;
  std::vector<int64_t> histogram;  // [a]: steps with drafts that kept a of them

  // One step: it verified `drafted` tokens, at most `depth` in a row, of which it kept `accepted`.
  void observe(int64_t tokens, int drafted, int depth, int accepted);
  // Tokens gained per pass of decoding, the bonus token included; the prefill's token is not
  // counted.
  double acceptance_length() const;
};

// Log-probability of a token, and of the most likely ones.
struct TokenLogprob {
  int32_t id = 0;
  TokenLogprobs value;
};

// What one step added.
struct AnswerDelta {
  OutputParts parts;
  std::string text;  // all parts as the model wrote them
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  int num_drafted = 0;
  int draft_depth = 0;
  int num_accepted = 0;
};

struct AnswerConfig {
  std::vector<std::string> stop;
  bool skip_special_tokens = true;
  OutputSplitterConfig split;
};

class Answer {
 public:
  // `stop` has passed the request's parser.
  Answer(const Tokenizer& tokenizer, const AnswerConfig& config);

  // Takes a step's event. After the answer is done, nothing changes any more.
  AnswerDelta push(const GenerationEvent& event);

  bool done() const { return done_; }
  // A stop string ended it: the engine need not go on.
  bool stopped_by_string() const { return !matched_.empty(); }

  // All so far.
  const OutputParts& parts() const { return parts_; }
  const std::string& text() const { return text_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::vector<TokenLogprob>& logprobs() const { return logprobs_; }
  const AnswerSpeculation& speculation() const { return speculation_; }
  int num_reasoning_tokens() const { return num_reasoning_tokens_; }
  FinishReason finish() const { return finish_; }
  // "stop", "length", "tool_calls" or "abort".
  std::string_view finish_reason() const;
  // What ended it: a stop string's text, or the id of a stop token.
  const std::string& matched_string() const { return matched_; }
  std::optional<int32_t> stop_token() const { return stop_token_; }

 private:
  void add_text(std::string_view text, AnswerDelta& delta);
  void end(FinishReason reason, AnswerDelta& delta);

  IncrementalDetokenizer detokenizer_;
  StopStringMatcher matcher_;
  OutputSplitter splitter_;
  bool done_ = false;
  FinishReason finish_ = FinishReason::kNone;
  std::string matched_;
  std::optional<int32_t> stop_token_;
  OutputParts parts_;
  std::string text_;
  std::vector<int32_t> tokens_;
  std::vector<TokenLogprob> logprobs_;
  AnswerSpeculation speculation_;
  int num_reasoning_tokens_ = 0;
};

}  // namespace volley::server
