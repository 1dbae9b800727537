#include "server/answer_format.h"

#include <algorithm>

namespace volley::server {

std::string sse_event(const Json& data, std::string_view name) {
  std::string event;
  if (!name.empty()) event = fmt::format("event: {}\n", name);
  return event + "data: " + dump_json(data) + "\n\n";
}

std::string AnswerFormat::error(const ApiError& error) {
  return sse_event(error_json(error)) + std::string(kSseDone);
}

Json AnswerFormat::token_usage(std::span<const AnswerRecord> records) const {
  int64_t completion = 0;
  int64_t reasoning = 0;
  int64_t accepted = 0;
  int64_t drafted = 0;
  for (const AnswerRecord& record : records) {
    completion += static_cast<int64_t>(record.answer->tokens().size());
    reasoning += record.answer->num_reasoning_tokens();
    accepted += record.answer->speculation().num_accepted;
    drafted += record.answer->speculation().num_draft_tokens;
  }
  int64_t prompt = 0;
  int64_t cached = 0;
  for (const AnswerRecord& record : records) {
    if (!record.first_of_prompt) continue;
    prompt += record.num_prompt_tokens;
    cached += record.num_cached_tokens;
  }
  Json usage;
  usage["prompt_tokens"] = prompt;
  usage["completion_tokens"] = completion;
  usage["total_tokens"] = prompt + completion;
  usage["prompt_tokens_details"] = {{"cached_tokens", cached}};
  usage["completion_tokens_details"] = {{"reasoning_tokens", reasoning},
                                        {"accepted_prediction_tokens", accepted},
                                        {"rejected_prediction_tokens", drafted - accepted}};
  return usage;
}

Json step_json(const AnswerDelta& delta) {
  Json step;
  step["num_tokens"] = delta.tokens.size();
  step["num_draft_tokens"] = delta.num_drafted;
  step["draft_depth"] = delta.draft_depth;
  step["num_accepted_tokens"] = delta.num_accepted;
  return step;
}

Json metrics_json(const AnswerRecord& record, SpecMetrics level) {
  const AnswerSpeculation& spec = record.answer->speculation();
  Json speculation;
  speculation["acceptance_length"] = spec.acceptance_length();
  speculation["mean_acceptance_length"] =
      spec.num_drafts == 0
          ? 1.0
          : 1.0 + static_cast<double>(spec.num_accepted) / static_cast<double>(spec.num_drafts);
  speculation["draft_acceptance_rate"] =
      spec.num_draft_tokens == 0
          ? 0.0
          : static_cast<double>(spec.num_accepted) / static_cast<double>(spec.num_draft_tokens);
  speculation["num_steps"] = spec.num_steps;
  speculation["num_spec_steps"] = spec.num_drafts;
  speculation["num_draft_tokens"] = spec.num_draft_tokens;
  speculation["num_accepted_tokens"] = spec.num_accepted;
  if (level == SpecMetrics::kDetailed) {
    speculation["drafted_per_position"] = spec.drafted_at;
    speculation["accepted_per_position"] = spec.accepted_at;
    speculation["acceptance_histogram"] = spec.histogram;
  }
  const double decode_s = record.end_s - record.first_token_s;
  const auto num_tokens = static_cast<double>(record.answer->tokens().size());
  Json metrics;
  metrics["speculative_decoding"] = std::move(speculation);
  metrics["queue_ms"] = 1e3 * record.queue_s;
  metrics["time_to_first_token_ms"] = 1e3 * record.first_token_s;
  metrics["end_to_end_ms"] = 1e3 * record.end_s;
  metrics["tokens_per_second"] = decode_s > 0 && num_tokens > 1 ? (num_tokens - 1) / decode_s : 0.0;
  return metrics;
}

}  // namespace volley::server
