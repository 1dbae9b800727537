#include "server/api_request.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "server/fields.h"
#include "server/parse_params.h"

namespace volley::server {
namespace {

constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxTextBytes = size_t{1} << 30;  // the body is bounded before

// A prompt, a list of prompts, a list of ids, or a list of such lists.
std::vector<PromptInput> read_prompts(Fields& fields, std::string_view name,
                                      const ApiLimits& limits) {
  const Json* value = fields.find(name);
  if (value == nullptr) {
    fields.fail(name, "is required");
    return {};
  }
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array() || value->empty()) {
    fields.fail(name, "expected a string, a list of strings, or token ids, got {}",
                value->is_array() ? "an empty list" : excerpt(*value));
    return {};
  }
  if (value->front().is_number()) {
    const auto ids = fields.token_ids(name, limits.max_prompt_ids);
    return ids ? std::vector<PromptInput>{*ids} : std::vector<PromptInput>{};
  }
  if (value->size() > static_cast<size_t>(limits.max_prompts)) {
    fields.fail(name, "{} prompts, at most {} are accepted", value->size(), limits.max_prompts);
    return {};
  }
  std::vector<PromptInput> prompts;
  for (const Json& item : *value) {
    if (item.is_string()) {
      prompts.emplace_back(item.get<std::string>());
      continue;
    }
    const Json wrapped{{"prompt", item}};
    Fields one(wrapped);
    const auto ids = one.token_ids("prompt", limits.max_prompt_ids);
    if (!ids) {
      fields.fail(name, "expected strings or lists of token ids, got {}", excerpt(item));
      return {};
    }
    prompts.emplace_back(*ids);
  }
  return prompts;
}

ApiError missing_object() {
  return {.message = "body: expected a JSON object with the fields of the request"};
}

// SGLang's sampling_params spell some things differently.
Json openai_spelling(const Json& native) {
  Json params = native;
  const auto rename = [&](const char* from, const char* to) {
    const auto found = params.find(from);
    if (found == params.end() || params.contains(to)) return;
    Json value = *found;
    params.erase(found);
    params[to] = std::move(value);
  };
  rename("max_new_tokens", "max_tokens");
  rename("sampling_seed", "seed");
  for (const char* constraint : {"json_schema", "regex", "ebnf"}) {
    const auto found = params.find(constraint);
    if (found == params.end() || found->is_null()) continue;
    const char* kind = constraint == std::string_view("json_schema") ? "json"
                       : constraint == std::string_view("regex")     ? "regex"
                                                                     : "grammar";
    params["structured_outputs"][kind] = *found;
  }
  return params;
}

}  // namespace

int json_depth(const Json& value) {
  if (!value.is_structured()) return 0;
  int deepest = 0;
  for (const Json& child : value) deepest = std::max(deepest, json_depth(child));
  return 1 + deepest;
}

ApiResult<Json> parse_body(std::string_view body, const ApiLimits& limits) {
  if (body.empty()) return tl::unexpected(missing_object());
  auto json =
      parse_json(body, "body", {.max_bytes = size_t{1} << 30, .max_depth = limits.max_json_depth});
  if (!json) return tl::unexpected(api_error(json.error()));
  if (!json->is_object()) return tl::unexpected(missing_object());
  return std::move(*json);
}

ApiResult<CompletionRequest> parse_completion(const Json& body, const ApiLimits& limits,
                                              const SamplingDefaults& defaults) {
  Fields fields(body);
  CompletionRequest request;
  request.model = fields.string("model", kMaxNameBytes).value_or("");
  request.prompts = read_prompts(fields, "prompt", limits);
  request.echo = fields.boolean("echo").value_or(false);
  request.add_special_tokens = fields.boolean("add_special_tokens").value_or(true);
  request.params = read_generation_params(fields, limits, defaults);
  if (!request.params.max_tokens) request.params.max_tokens = 16;  // as the OpenAI API has it
  if (const auto logprobs = fields.integer("logprobs", 0, limits.max_logprobs)) {
    request.params.num_logprobs = static_cast<int>(*logprobs);
  }
  if (const auto best_of = fields.integer("best_of", 1, limits.max_n);
      best_of && *best_of != request.params.n) {
    fields.fail("best_of", "only the value of n ({}) is supported", request.params.n);
  }
  if (fields.has("suffix") && !fields.string("suffix", kMaxTextBytes).value_or("").empty()) {
    fields.fail("suffix", "is not supported");
  }
  if (request.echo && request.params.num_logprobs >= 0) {
    fields.fail("echo", "cannot be combined with logprobs");
  }
  if (fields.error()) return tl::unexpected(*fields.error());
  const size_t answers = request.prompts.size() * static_cast<size_t>(request.params.n);
  if (answers > static_cast<size_t>(limits.max_prompts)) {
    return bad_request("n", "{} answers in one request, at most {} are accepted", answers,
                       limits.max_prompts);
  }
  return request;
}

ApiResult<NativeRequest> parse_native(const Json& body, const ApiLimits& limits,
                                      const SamplingDefaults& defaults) {
  Fields fields(body);
  NativeRequest request;
  CompletionRequest& completion = request.completion;
  if (fields.has("text") == fields.has("input_ids")) {
    return bad_request("text", "expected one of text and input_ids");
  }
  const char* prompt_name = fields.has("text") ? "text" : "input_ids";
  completion.prompts = read_prompts(fields, prompt_name, limits);
  const Json* prompt = fields.find(prompt_name);
  request.list = prompt->is_array() && !prompt->empty() && !prompt->front().is_number();

  Json params = Json::object();
  if (const Json* given = fields.object("sampling_params")) params = openai_spelling(*given);
  for (const char* name :
       {"stream", "num_speculative_tokens", "spec_decode_metrics", "priority", "cache_salt"}) {
    if (const Json* value = fields.find(name)) params[name] = *value;
  }
  Fields param_fields(params, "sampling_params.");
  completion.params = read_generation_params(param_fields, limits, defaults);
  if (param_fields.error()) fields.fail(*param_fields.error());
  if (!completion.params.max_tokens) completion.params.max_tokens = 128;  // as SGLang has it
  request.return_logprob = fields.boolean("return_logprob").value_or(false);
  const auto top = fields.integer("top_logprobs_num", 0, limits.max_logprobs);
  if (request.return_logprob) completion.params.num_logprobs = static_cast<int>(top.value_or(0));
  request.list |= completion.params.n > 1;
  if (fields.error()) return tl::unexpected(*fields.error());
  if (completion.params.stream && request.list) {
    return bad_request("stream", "streams one answer: give one prompt and n = 1");
  }
  const size_t answers = completion.prompts.size() * static_cast<size_t>(completion.params.n);
  if (answers > static_cast<size_t>(limits.max_prompts)) {
    return bad_request("sampling_params.n", "{} answers in one request, at most {} are accepted",
                       answers, limits.max_prompts);
  }
  return request;
}

ApiResult<TokenizeRequest> parse_tokenize(const Json& body, const ApiLimits& limits) {
  Fields fields(body);
  TokenizeRequest request;
  request.model = fields.string("model", kMaxNameBytes).value_or("");
  request.return_token_strings = fields.boolean("return_token_strs").value_or(false);
  if (fields.has("messages")) {
    auto chat = parse_chat(body, limits, {});
    if (!chat) return tl::unexpected(std::move(chat.error()));
    chat->add_generation_prompt = fields.boolean("add_generation_prompt").value_or(true);
    request.chat = std::move(*chat);
    request.add_special_tokens = fields.boolean("add_special_tokens").value_or(false);
  } else {
    // vLLM's prompt, llama.cpp's content, SGLang's text.
    const char* name = fields.has("content") ? "content" : fields.has("text") ? "text" : "prompt";
    if (!fields.has(name)) fields.fail("prompt", "is required");
    request.text = fields.string(name, kMaxTextBytes).value_or("");
    const bool llama_cpp = fields.has("content");
    request.add_special_tokens =
        fields.boolean(llama_cpp ? "add_special" : "add_special_tokens").value_or(!llama_cpp);
  }
  if (fields.error()) return tl::unexpected(*fields.error());
  return request;
}

ApiResult<DetokenizeRequest> parse_detokenize(const Json& body, const ApiLimits& limits) {
  Fields fields(body);
  DetokenizeRequest request;
  request.model = fields.string("model", kMaxNameBytes).value_or("");
  const auto tokens = fields.token_ids("tokens", limits.max_prompt_ids);
  if (!tokens) fields.fail("tokens", "is required");
  request.tokens = tokens.value_or(std::vector<int32_t>{});
  request.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(false);
  if (fields.error()) return tl::unexpected(*fields.error());
  return request;
}

}  // namespace volley::server
