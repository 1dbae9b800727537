#pragma once

// Flags to a request, and an answer to JSON or to a line for people.

#include <string>

#include "app/answer.h"
#include "app/load.h"
#include "app/options.h"
#include "base/json.h"

namespace volley {

// All of a request that the flags alone determine.
Result<AnswerRequest> make_request(const Options& options);

// The rest, which needs the models: draft length and stop tokens.
void bind_to_model(const Options& options, const Loaded& loaded, GenerationRequest& request);

// {"text", "ids", "finish_reason", "stop_reason", "usage", "timings", "speculation"}.
Json answer_json(const Answer& answer);

// "48 tokens, 312.4 tok/s; prefill 23 tokens in 18.2 ms; acceptance_length 3.41, ...".
std::string answer_line(const Answer& answer);

}  // namespace volley
