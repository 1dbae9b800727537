#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine_thread.h"
#include "server/api_request.h"
#include "server/constraints.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace volley::server {

// A loaded model as the endpoints see it. What is pointed to outlives the server.
struct ServedModel {
  std::vector<std::string> names;  // the first is shown; requests may use any
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: chats are refused
  EngineThread* engine = nullptr;
  int max_model_len = 0;
  int64_t vocab_size = 0;  // of the model; the tokenizer's may be smaller
  int max_live = 0;
  std::vector<int32_t> eos_ids;
  SamplingDefaults defaults;
  DraftPolicy draft;  // of requests that do not say
  DraftSampling draft_sampling = DraftSampling::kCoupled;
  bool splits_reasoning = false;  // the model thinks in <think> tags
  std::string target;             // for /v1/models
  std::string drafter;            // empty: none
  int block_size = 1;
  Constraints* constraints = nullptr;
};

}  // namespace volley::server
