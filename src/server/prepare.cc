#include "server/prepare.h"

#include <algorithm>

namespace volley::server {
namespace {

ApiResult<void> check_model(const std::string& asked, const ServedModel& model) {
  const bool known = asked.empty() || asked == "default" ||
                     std::find(model.names.begin(), model.names.end(), asked) != model.names.end();
  if (known) return {};
  return tl::unexpected(
      ApiError{.status = 404,
               .message = fmt::format("model \"{}\" is not served here; \"{}\" is",
                                      asked.substr(0, 256), model.names.front()),
               .param = "model",
               .code = "model_not_found"});
}

struct RenderedPrompt {
  std::vector<int32_t> ids;
  bool open_think = false;  // the template left the model inside <think>
};

bool ends_with_open_think(std::string_view prompt) {
  const size_t last = prompt.find_last_not_of(" \n");
  return last != std::string_view::npos && prompt.substr(0, last + 1).ends_with("<think>");
}

ApiResult<RenderedPrompt> render_chat(const ChatRequest& chat, const ServedModel& model) {
  if (model.chat_template == nullptr) {
    return bad_request("messages", "this model has no chat template: use /v1/completions");
  }
  ChatTemplateOptions options;
  options.add_generation_prompt = chat.add_generation_prompt;
  if (chat.tool_choice != ChatRequest::ToolChoice::kNone) options.tools = chat.tools;
  options.extra = chat.template_kwargs;
  const Result<std::string> text = model.chat_template->render(chat.messages, options);
  if (!text) {
    return bad_request("messages", "the model's chat template refused: {}", text.error().message);
  }
  // The template wrote the special tokens that the post-processor would add.
  return RenderedPrompt{model.tokenizer->encode(*text, {.add_special_tokens = false}),
                        ends_with_open_think(*text)};
}

ApiResult<std::vector<int32_t>> prompt_ids(const PromptInput& prompt, bool add_special_tokens,
                                           const ServedModel& model) {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
    for (const int32_t id : *ids) {
      if (id >= model.vocab_size) {
        return bad_request("prompt", "token id {} is outside the vocabulary of {}", id,
                           model.vocab_size);
      }
    }
    return *ids;
  }
  return model.tokenizer->encode(std::get<std::string>(prompt),
                                 {.add_special_tokens = add_special_tokens});
}

// Another answer to the same prompt has another seed; the first has the request's own.
uint64_t seed_of_answer(uint64_t seed, int answer_idx) {
  return seed + 0x9E3779B97F4A7C15u * static_cast<uint64_t>(answer_idx);
}

// Adds the n answers to one prompt.
ApiResult<void> add_answers(const GenerationParams& params, std::vector<int32_t> ids,
                            const AnswerConfig& answer, std::shared_ptr<const TokenFilter> filter,
                            const PrepareContext& context, PreparedGeneration& out) {
  const ServedModel& model = context.model;
  const auto num_prompt_tokens = static_cast<int>(ids.size());
  if (ids.empty()) return bad_request("prompt", "expected at least one token, got none");
  if (num_prompt_tokens >= model.max_model_len) {
    return tl::unexpected(
        ApiError{.message = fmt::format("the prompt has {} tokens, which do not fit the context of "
                                        "{} with room for an answer",
                                        num_prompt_tokens, model.max_model_len),
                 .param = "prompt",
                 .code = "context_length_exceeded"});
  }
  const int room = model.max_model_len - num_prompt_tokens;
  GenerationRequest request;
  request.max_tokens = std::min(params.max_tokens.value_or(room), room);
  request.sampling = params.sampling;
  if (!params.has_seed) request.sampling.seed = context.random_seed;
  if (!params.ignore_eos) request.stop_ids = model.eos_ids;
  request.stop_ids.insert(request.stop_ids.end(), params.stop_token_ids.begin(),
                          params.stop_token_ids.end());
  request.draft = params.draft.value_or(model.draft);
  if (request.draft.mode == DraftPolicy::Mode::kFixed) {
    request.draft.length = std::min(request.draft.length, model.block_size - 1);
  }
  request.draft_sampling = model.draft_sampling;
  request.filter = std::move(filter);
  request.num_logprobs = params.num_logprobs;
  request.priority = -params.priority;
  request.cache_salt = params.cache_salt;
  if (const Status valid = request.sampling.validate(model.vocab_size); !valid) {
    return tl::unexpected(api_error(valid.error()));
  }
  const uint64_t seed = request.sampling.seed;
  for (int i = 0; i < params.n; ++i) {
    PreparedAnswer prepared{.request = request,
                            .answer = answer,
                            .num_prompt_tokens = num_prompt_tokens,
                            .first_of_prompt = i == 0};
    prepared.request.prompt_ids = ids;
    prepared.request.sampling.seed = seed_of_answer(seed, i);
    prepared.answer.split.id_prefix =
        fmt::format("call_{}_{}_", context.response_id, out.answers.size());
    out.answers.push_back(std::move(prepared));
  }
  return {};
}

ApiResult<std::shared_ptr<const TokenFilter>> compile(const Constraint& constraint,
                                                      const Json& tools, bool parallel,
                                                      const ServedModel& model) {
  if (constraint.kind == Constraint::Kind::kNone) return std::shared_ptr<const TokenFilter>();
  auto filter = model.constraints->compile(constraint, tools, parallel);
  if (!filter) {
    const bool tool = constraint.kind == Constraint::Kind::kToolCall;
    return tl::unexpected(api_error(filter.error(), tool ? "tools" : "response_format"));
  }
  return std::move(*filter);
}

FormatConfig format_config(const GenerationParams& params, const std::string& asked_model,
                           const PrepareContext& context) {
  return {.id = context.response_id,
          .model = asked_model.empty() ? context.model.names.front() : asked_model,
          .created_s = context.now_unix_s,
          .include_usage = params.include_usage,
          .spec_metrics = params.spec_metrics.value_or(context.spec_metrics),
          .tokenizer = context.model.tokenizer};
}

ApiResult<void> add_prompts(const CompletionRequest& request, const PrepareContext& context,
                            PreparedGeneration& out) {
  auto filter = compile(request.params.constraint, Json(), true, context.model);
  if (!filter) return tl::unexpected(std::move(filter.error()));
  const AnswerConfig answer{.stop = request.params.stop,
                            .skip_special_tokens = request.params.skip_special_tokens};
  for (const PromptInput& prompt : request.prompts) {
    auto ids = prompt_ids(prompt, request.add_special_tokens, context.model);
    if (!ids) return tl::unexpected(std::move(ids.error()));
    auto added = add_answers(request.params, std::move(*ids), answer, *filter, context, out);
    if (!added) return added;
  }
  out.stream = request.params.stream;
  return {};
}

ApiResult<PreparedGeneration> prepare_completion(const Json& body, const PrepareContext& context) {
  auto request = parse_completion(body, context.limits, context.model.defaults);
  if (!request) return tl::unexpected(std::move(request.error()));
  if (auto known = check_model(request->model, context.model); !known) {
    return tl::unexpected(std::move(known.error()));
  }
  PreparedGeneration prepared;
  if (auto added = add_prompts(*request, context, prepared); !added) {
    return tl::unexpected(std::move(added.error()));
  }
  std::vector<std::string> echoed;
  for (const PromptInput& prompt : request->prompts) {
    if (!request->echo) break;
    const auto* text = std::get_if<std::string>(&prompt);
    echoed.push_back(text != nullptr
                         ? *text
                         : context.model.tokenizer->decode(std::get<std::vector<int32_t>>(prompt)));
  }
  prepared.format = make_completion_format(format_config(request->params, request->model, context),
                                           std::move(echoed), request->params.n);
  return prepared;
}

ApiResult<void> add_chat(const ChatRequest& chat, const PrepareContext& context,
                         PreparedGeneration& out) {
  if (auto known = check_model(chat.model, context.model); !known) return known;
  auto prompt = render_chat(chat, context.model);
  if (!prompt) return tl::unexpected(std::move(prompt.error()));
  auto filter =
      compile(chat.params.constraint, chat.tools, chat.parallel_tool_calls, context.model);
  if (!filter) return tl::unexpected(std::move(filter.error()));
  const bool reasons = context.model.splits_reasoning && chat.split_reasoning;
  // A constrained answer begins with its document.
  const bool constrained = chat.params.constraint.kind != Constraint::Kind::kNone;
  const AnswerConfig answer{
      .stop = chat.params.stop,
      .skip_special_tokens = chat.params.skip_special_tokens,
      .split = {.split_reasoning = reasons && !constrained,
                .starts_in_reasoning = prompt->open_think,
                .parse_tool_calls = chat.tool_choice != ChatRequest::ToolChoice::kNone}};
  out.stream = chat.params.stream;
  return add_answers(chat.params, std::move(prompt->ids), answer, std::move(*filter), context, out);
}

ApiResult<PreparedGeneration> prepare_chat(const Json& body, const PrepareContext& context) {
  auto chat = parse_chat(body, context.limits, context.model.defaults);
  if (!chat) return tl::unexpected(std::move(chat.error()));
  PreparedGeneration prepared;
  if (auto added = add_chat(*chat, context, prepared); !added) {
    return tl::unexpected(std::move(added.error()));
  }
  prepared.format = make_chat_format(format_config(chat->params, chat->model, context));
  return prepared;
}

ApiResult<PreparedGeneration> prepare_responses(const Json& body, const PrepareContext& context) {
  auto request = parse_responses(body, context.limits, context.model.defaults);
  if (!request) return tl::unexpected(std::move(request.error()));
  PreparedGeneration prepared;
  if (auto added = add_chat(request->chat, context, prepared); !added) {
    return tl::unexpected(std::move(added.error()));
  }
  prepared.format = make_responses_format(
      format_config(request->chat.params, request->chat.model, context), std::move(request->echo));
  return prepared;
}

ApiResult<PreparedGeneration> prepare_native(const Json& body, const PrepareContext& context) {
  auto request = parse_native(body, context.limits, context.model.defaults);
  if (!request) return tl::unexpected(std::move(request.error()));
  PreparedGeneration prepared;
  if (auto added = add_prompts(request->completion, context, prepared); !added) {
    return tl::unexpected(std::move(added.error()));
  }
  prepared.format = make_native_format(format_config(request->completion.params, "", context),
                                       request->list, request->return_logprob);
  return prepared;
}

}  // namespace

ApiResult<PreparedGeneration> prepare_generation(GenerationEndpoint endpoint, std::string_view body,
                                                 const PrepareContext& context) {
  auto json = parse_body(body, context.limits);
  if (!json) return tl::unexpected(std::move(json.error()));
  switch (endpoint) {
    case GenerationEndpoint::kCompletions:
      return prepare_completion(*json, context);
    case GenerationEndpoint::kChat:
      return prepare_chat(*json, context);
    case GenerationEndpoint::kResponses:
      return prepare_responses(*json, context);
    case GenerationEndpoint::kNative:
      break;
  }
  return prepare_native(*json, context);
}

ApiResult<Json> tokenize_answer(std::string_view body, const PrepareContext& context) {
  auto json = parse_body(body, context.limits);
  if (!json) return tl::unexpected(std::move(json.error()));
  auto request = parse_tokenize(*json, context.limits);
  if (!request) return tl::unexpected(std::move(request.error()));
  if (auto known = check_model(request->model, context.model); !known) {
    return tl::unexpected(std::move(known.error()));
  }
  std::vector<int32_t> ids;
  if (request->chat) {
    auto prompt = render_chat(*request->chat, context.model);
    if (!prompt) return tl::unexpected(std::move(prompt.error()));
    ids = std::move(prompt->ids);
  } else {
    ids = context.model.tokenizer->encode(request->text,
                                          {.add_special_tokens = request->add_special_tokens});
  }
  Json answer;
  answer["count"] = ids.size();
  answer["max_model_len"] = context.model.max_model_len;
  answer["tokens"] = ids;
  if (request->return_token_strings) {
    answer["token_strs"] = Json::array();
    for (const int32_t id : ids) {
      answer["token_strs"].push_back(context.model.tokenizer->token_text(id));
    }
  }
  return answer;
}

ApiResult<Json> detokenize_answer(std::string_view body, const PrepareContext& context) {
  auto json = parse_body(body, context.limits);
  if (!json) return tl::unexpected(std::move(json.error()));
  auto request = parse_detokenize(*json, context.limits);
  if (!request) return tl::unexpected(std::move(request.error()));
  if (auto known = check_model(request->model, context.model); !known) {
    return tl::unexpected(std::move(known.error()));
  }
  const std::string text =
      context.model.tokenizer->decode(request->tokens, request->skip_special_tokens);
  Json answer;
  answer["prompt"] = text;   // vLLM's name
  answer["content"] = text;  // llama.cpp's
  answer["text"] = text;     // SGLang's
  return answer;
}

}  // namespace volley::server
