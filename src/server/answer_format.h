#pragma once

// How an endpoint spells its answers: whole, and as server-sent events. One object a request; it
// keeps what a stream must remember. Pure text in, text out.

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "server/answer.h"
#include "server/api_request.h"

namespace volley::server {

// One of the answers to a request, and its times in seconds since the request came.
struct AnswerRecord {
  const Answer* answer = nullptr;
  int num_prompt_tokens = 0;
  int num_cached_tokens = 0;
  bool first_of_prompt = true;  // of several answers to one prompt, the one that accounts for it
  double queue_s = 0;
  double first_token_s = 0;
  double end_s = 0;
};

struct FormatConfig {
  std::string id;  // of the response, without a prefix
  std::string model;
  int64_t created_s = 0;  // Unix time
  bool include_usage = false;
  SpecMetrics spec_metrics = SpecMetrics::kNone;
  const Tokenizer* tokenizer = nullptr;
};

class AnswerFormat {
 public:
  explicit AnswerFormat(FormatConfig config) : config_(std::move(config)) {}
  virtual ~AnswerFormat() = default;

  // The stream: events once it opens, for a step of one answer, when an answer is complete, and at
  // the end of all.
  virtual std::string begin() { return {}; }
  virtual std::string step(int answer_idx, const AnswerRecord& record,
                           const AnswerDelta& delta) = 0;
  virtual std::string end_answer(int answer_idx, const AnswerRecord& record) = 0;
  virtual std::string end(std::span<const AnswerRecord> records) = 0;
  // In place of the rest, when the engine fails.
  virtual std::string error(const ApiError& error);

  // Everything at once.
  virtual Json whole(std::span<const AnswerRecord> records) = 0;

 protected:
  Json token_usage(std::span<const AnswerRecord> records) const;
  bool tells_steps() const { return config_.spec_metrics == SpecMetrics::kDetailed; }

  const FormatConfig config_;
};

// "data: {json}\n\n", with "event: name\n" before it where the API names its events.
std::string sse_event(const Json& data, std::string_view name = {});
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";

// {"speculative_decoding": {...}, times}, as far as `level` wants it.
Json metrics_json(const AnswerRecord& record, SpecMetrics level);
// What a step was: {"num_tokens", "num_draft_tokens", "num_accepted_tokens"}.
Json step_json(const AnswerDelta& delta);

std::unique_ptr<AnswerFormat> make_completion_format(FormatConfig config,
                                                     std::vector<std::string> echoed_prompts,
                                                     int n);
std::unique_ptr<AnswerFormat> make_chat_format(FormatConfig config);
std::unique_ptr<AnswerFormat> make_responses_format(FormatConfig config, Json request_echo);
// SGLang's /generate. `list`: the whole answer is a list.
std::unique_ptr<AnswerFormat> make_native_format(FormatConfig config, bool list,
                                                 bool return_logprob);

}  // namespace volley::server
