#pragma once

// The part of a request's way that costs time and needs no socket: JSON to what the engine takes.
// Pure functions of the body and the model, run beside the server's thread.

#include <memory>
#include <string>
#include <vector>

#include "server/answer_format.h"
#include "server/served_model.h"

namespace volley::server {

enum class GenerationEndpoint { kCompletions, kChat, kResponses, kNative };

struct PreparedAnswer {
  GenerationRequest request;
  AnswerConfig answer;
  int num_prompt_tokens = 0;
  bool first_of_prompt = true;
};

// A request that generates, ready for the engine.
struct PreparedGeneration {
  std::vector<PreparedAnswer> answers;
  std::unique_ptr<AnswerFormat> format;
  bool stream = false;
};

struct PrepareContext {
  const ServedModel& model;
  const ApiLimits& limits;
  std::string response_id;
  int64_t now_unix_s = 0;
  uint64_t random_seed = 0;                       // for requests without one
  SpecMetrics spec_metrics = SpecMetrics::kNone;  // for requests that do not say
};

ApiResult<PreparedGeneration> prepare_generation(GenerationEndpoint endpoint, std::string_view body,
                                                 const PrepareContext& context);

ApiResult<Json> tokenize_answer(std::string_view body, const PrepareContext& context);
ApiResult<Json> detokenize_answer(std::string_view body, const PrepareContext& context);

}  // namespace volley::server
