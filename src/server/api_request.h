#pragma once

// What clients ask for. JSON to bounded structs, as pure functions: everything that reaches the
// engine has passed here, or became a 400.

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/engine.h"
#include "server/api_error.h"

namespace volley::server {

// The most that one request may ask for. See docs/serving.md.
struct ApiLimits {
  int max_n = 16;                // answers a prompt
  int max_prompts = 64;          // of one completions request
  int max_tokens = 1 << 20;      // of one answer; the context is the tighter bound
  int max_prompt_ids = 1 << 20;  // when a client sends ids
  int max_stop_strings = 16;
  size_t max_stop_bytes = 256;
  int max_stop_ids = 64;
  int max_logit_bias = 1024;
  int max_logprobs = 20;
  int max_messages = 2048;
  int max_tools = 128;
  size_t max_schema_bytes = 64 << 10;
  int max_schema_depth = 32;
  int max_choices = 1024;  // of "choice" constraints
  int max_template_kwargs = 32;
  size_t max_template_kwargs_bytes = 16 << 10;
  int max_json_depth = 64;
  size_t max_salt_bytes = 256;
};

// How much a response tells about its speculation.
enum class SpecMetrics { kNone, kSummary, kDetailed };

// What an answer must look like.
struct Constraint {
  enum class Kind { kNone, kJsonObject, kJsonSchema, kRegex, kGrammar, kChoice, kToolCall };
  Kind kind = Kind::kNone;
  Json schema;                       // kJsonSchema
  std::string text;                  // kRegex, kGrammar
  std::vector<std::string> choices;  // kChoice
  std::string tool;                  // kToolCall: this tool; empty: any
};

// What every endpoint that generates has in common.
struct GenerationParams {
  int n = 1;
  std::optional<int> max_tokens;
  SamplingParams sampling;
  bool has_seed = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  int num_logprobs = -1;  // alternatives a token; -1: no logprobs
  bool stream = false;
  bool include_usage = false;
  std::optional<DraftPolicy> draft;
  std::optional<SpecMetrics> spec_metrics;
  int priority = 0;         // lower runs first
  uint64_t cache_salt = 0;  // prefixes are shared among requests of one salt alone
  Constraint constraint;
};

using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  std::string model;
  std::vector<PromptInput> prompts;
  bool echo = false;
  bool add_special_tokens = true;
  GenerationParams params;
};

struct ChatRequest {
  enum class ToolChoice { kNone, kAuto, kRequired, kNamed };

  std::string model;
  Json messages = Json::array();  // as chat templates want them
  Json tools;                     // null, or a list of {"type": "function", ...}
  ToolChoice tool_choice = ToolChoice::kAuto;
  std::string tool_name;  // kNamed
  bool parallel_tool_calls = true;
  Json template_kwargs = Json::object();
  bool add_generation_prompt = true;
  bool split_reasoning = true;
  GenerationParams params;
};

// What of a /v1/responses request its response repeats.
struct ResponsesRequest {
  ChatRequest chat;
  Json echo;  // instructions, tools, temperature, ...
};

// SGLang's /generate.
struct NativeRequest {
  CompletionRequest completion;
  bool list = false;  // the answer is a list: several prompts or n > 1
  bool return_logprob = false;
};

struct TokenizeRequest {
  std::string model;
  std::optional<ChatRequest> chat;  // tokenizes what the template renders
  std::string text;
  bool add_special_tokens = true;
  bool return_token_strings = false;
};

struct DetokenizeRequest {
  std::string model;
  std::vector<int32_t> tokens;
  bool skip_special_tokens = false;
};

// What a request that does not say gets: the checkpoint's recommendation.
struct SamplingDefaults {
  float temperature = 1;
  float top_p = 1;
  int top_k = 0;
  float min_p = 0;
  float repetition_penalty = 1;
};

// A request's body as a JSON object.
ApiResult<Json> parse_body(std::string_view body, const ApiLimits& limits);

ApiResult<CompletionRequest> parse_completion(const Json& body, const ApiLimits& limits,
                                              const SamplingDefaults& defaults);
ApiResult<ChatRequest> parse_chat(const Json& body, const ApiLimits& limits,
                                  const SamplingDefaults& defaults);
ApiResult<ResponsesRequest> parse_responses(const Json& body, const ApiLimits& limits,
                                            const SamplingDefaults& defaults);
ApiResult<NativeRequest> parse_native(const Json& body, const ApiLimits& limits,
                                      const SamplingDefaults& defaults);
ApiResult<TokenizeRequest> parse_tokenize(const Json& body, const ApiLimits& limits);
ApiResult<DetokenizeRequest> parse_detokenize(const Json& body, const ApiLimits& limits);

// JSON nesting, 1 for a flat object.
int json_depth(const Json& value);

}  // namespace volley::server
