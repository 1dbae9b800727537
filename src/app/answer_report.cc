#include "app/answer_report.h"

namespace volley {

Result<AnswerRequest> make_request(const Options& options) {
  AnswerRequest request;
  VOLLEY_TRY(request.stop_strings, StopStringMatcher::create(options.answer.stop_strings));
  request.generation.max_tokens = options.answer.max_tokens;
  request.generation.sampling = options.answer.sampling;
  request.generation.draft_sampling = options.model.draft_sampling;
  return request;
}

void bind_to_model(const Options& options, const Loaded& loaded, GenerationRequest& request) {
  request.draft = loaded.models.drafter != nullptr
                      ? options.model.draft_length.policy(loaded.models.engine->block_size())
                      : DraftPolicy::off();
  if (!options.answer.ignore_eos) {
    request.stop_ids = loaded.models.target_config().eos_token_ids;
  }
}

Json answer_json(const Answer& answer) {
  const SpeculationStats& stats = answer.speculation;
  Json stop_reason = nullptr;  // vLLM's: the stop string or token that ended it
  if (!answer.stop_string.empty()) {
    stop_reason = answer.stop_string;
  } else if (answer.finish == FinishReason::kStop && !answer.ids.empty()) {
    stop_reason = answer.ids.back();
  }
  return {
      {"text", answer.text},
      {"ids", answer.ids},
      {"finish_reason", answer.finish_name()},
      {"stop_reason", stop_reason},
      {"usage",
       {{"prompt_tokens", answer.num_prompt_tokens},
        {"completion_tokens", answer.num_tokens()},
        {"total_tokens", answer.num_prompt_tokens + answer.num_tokens()}}},
      {"timings",
       {{"prefill_ms", 1e3 * answer.prefill_s},
        {"decode_ms", 1e3 * answer.decode_s},
        {"decode_tok_s", answer.decode_tok_s()},
        {"total_tok_s", answer.total_tok_s()}}},
      {"speculation",
       {{"acceptance_length", stats.acceptance_length()},
        {"num_target_passes", stats.num_target_passes},
        {"num_draft_passes", stats.num_draft_passes},
        {"num_drafted", stats.num_drafted},
        {"num_accepted_drafts", stats.num_accepted_drafts},
        {"mean_draft_length", answer.mean_draft_length()},
        {"drafted_at", stats.drafted_at},
        {"accepted_at", stats.accepted_at}}},
  };
}

std::string answer_line(const Answer& answer) {
  std::string line = fmt::format("{} tokens ({}), {:.1f} tok/s; prefill {} tokens in {:.1f} ms",
                                 answer.num_tokens(), answer.finish_name(), answer.decode_tok_s(),
                                 answer.num_prompt_tokens, 1e3 * answer.prefill_s);
  if (answer.speculation.num_draft_passes > 0) {
    line += fmt::format("; acceptance_length {:.2f}, {:.1f} drafts a block",
                        answer.speculation.acceptance_length(), answer.mean_draft_length());
  }
  return line;
}

}  // namespace volley
