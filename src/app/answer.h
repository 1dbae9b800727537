#pragma once

// One request from submit to finish: tokens, text, stop strings, time.

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"

namespace volley {

struct AnswerRequest {
  GenerationRequest generation;
  StopStringMatcher stop_strings;
};

// What one engine step added.
struct AnswerStep {
  std::string text;              // certain now
  std::span<const int32_t> ids;  // kept tokens of this step
  int step_idx = 0;              // among the steps that yielded tokens
};
// Called after each step that yielded tokens, and once more when text held back becomes certain at
// the end; false ends the answer.
using OnAnswerStep = std::function<bool(const AnswerStep&)>;

struct Answer {
  std::vector<int32_t> ids;  // a stop token included
  std::string text;          // without it, and cut before a stop string
  FinishReason finish = FinishReason::kNone;
  std::string stop_string;  // the one that ended it
  int num_prompt_tokens = 0;
  double prefill_s = 0;  // up to the first token
  double decode_s = 0;   // the steps after it; callbacks not counted
  SpeculationStats speculation;

  int64_t num_tokens() const { return static_cast<int64_t>(ids.size()); }
  // Tokens after the first a second of decode steps; 0 with fewer than two tokens.
  double decode_tok_s() const;
  // All tokens a second, prefill included.
  double total_tok_s() const;
  // Drafts a draft pass; 0 without any.
  double mean_draft_length() const;
  const char* finish_name() const;  // "stop", "length", "cancelled"
};

// Runs the request alone on an idle engine. Tokens are looked at one by one, so that a stop string
// ends the answer at the same token at every draft length. Errors: those of Engine::submit().
Result<Answer> run_answer(Engine& engine, const Tokenizer& tokenizer, AnswerRequest request,
                          const OnAnswerStep& on_step = {});

}  // namespace volley
