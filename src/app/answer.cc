#include "app/answer.h"

#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "text/detokenizer.h"

namespace volley {

double Answer::decode_tok_s() const {
  return num_tokens() > 1 && decode_s > 0 ? static_cast<double>(num_tokens() - 1) / decode_s : 0;
}

double Answer::total_tok_s() const {
  const double seconds = prefill_s + decode_s;
  return seconds > 0 ? static_cast<double>(num_tokens()) / seconds : 0;
}

double Answer::mean_draft_length() const {
  return speculation.num_draft_passes > 0 ? static_cast<double>(speculation.num_drafted) /
                                                static_cast<double>(speculation.num_draft_passes)
                                          : 0;
}

const char* Answer::finish_name() const {
  switch (finish) {
    case FinishReason::kNone:
      return "none";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "none";
}

Result<Answer> run_answer(Engine& engine, const Tokenizer& tokenizer, AnswerRequest request,
                          const OnAnswerStep& on_step) {
  CHECK(engine.idle());
  Answer answer;
  answer.num_prompt_tokens = static_cast<int>(request.generation.prompt_ids.size());
  StopStringMatcher& stops = request.stop_strings;
  IncrementalDetokenizer detokenizer(tokenizer);
  VOLLEY_TRY(const RequestId id, engine.submit(std::move(request.generation)));

  int num_steps = 0;
  while (answer.finish == FinishReason::kNone) {
    const double start = now_s();
    const std::span<const StepOutput> outputs = engine.step();
    const double seconds = now_s() - start;
    CHECK_EQ(outputs.size(), size_t{1});
    const StepOutput& output = outputs.front();
    (answer.ids.empty() ? answer.prefill_s : answer.decode_s) += seconds;
    answer.finish = output.finish;
    if (output.tokens.empty()) continue;

    AnswerStep step{.step_idx = num_steps++};
    const size_t first = answer.ids.size();
    for (const int32_t token : output.tokens) {
      answer.ids.push_back(token);
      step.text += stops.push(detokenizer.push(token));
      if (!stops.stopped()) continue;
      answer.finish = FinishReason::kStop;
      answer.stop_string = stops.matched();
      break;
    }
    answer.speculation = *engine.stats(id);
    answer.text += step.text;
    step.ids = std::span(answer.ids).subspan(first);
    const bool go_on = !on_step || on_step(step);
    if (!go_on && answer.finish == FinishReason::kNone) answer.finish = FinishReason::kCancelled;
  }
  engine.cancel(id);  // no effect on a request that ended by itself

  AnswerStep rest{.text = stops.push(detokenizer.flush()), .step_idx = num_steps};
  rest.text += stops.flush();
  answer.text += rest.text;
  if (on_step && !rest.text.empty()) on_step(rest);
  return answer;
}

}  // namespace volley
