#include "server/api_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace volley::server {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Json body(std::string_view text) {
  return *parse_body(text, {});
}

template <class Parse>
std::string refusal(Parse parse, std::string_view text) {
  const auto json = parse_body(text, {});
  if (!json) return json.error().message;
  const auto result = parse(*json, ApiLimits{}, SamplingDefaults{});
  EXPECT_FALSE(result) << text;
  return result ? "" : result.error().message;
}
std::string chat_refusal(std::string_view extra) {
  return refusal(
      parse_chat,
      fmt::format(R"({{"messages": [{{"role": "user", "content": "hi"}}], {}}})", extra));
}

TEST(ApiRequest, CompletionsTakeEveryKindOfPrompt) {
  const auto parse = [](std::string_view text) {
    return *parse_completion(body(text), {}, {.temperature = 0.7f});
  };
  EXPECT_EQ(std::get<std::string>(parse(R"({"prompt": "a"})").prompts[0]), "a");
  EXPECT_EQ(parse(R"({"prompt": ["a", "b"]})").prompts.size(), 2u);
  EXPECT_THAT(std::get<std::vector<int32_t>>(parse(R"({"prompt": [1, 2]})").prompts[0]),
              ElementsAre(1, 2));
  EXPECT_EQ(parse(R"({"prompt": [[1], [2, 3]]})").prompts.size(), 2u);
  const CompletionRequest defaults = parse(R"({"prompt": "a"})");
  EXPECT_EQ(defaults.params.max_tokens, 16);
  EXPECT_FLOAT_EQ(defaults.params.sampling.temperature, 0.7f);
  EXPECT_EQ(defaults.params.num_logprobs, -1);
  EXPECT_FALSE(defaults.params.draft.has_value());
}

TEST(ApiRequest, SamplingFieldsArrive) {
  const CompletionRequest request = *parse_completion(
      body(R"({"prompt": "a", "max_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": -1,
               "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1, "n": 3,
               "repetition_penalty": 1.1, "seed": -5, "stop": ["x", "yy"], "stop_token_ids": [4],
               "logit_bias": {"7": -100, "8": 2.5}, "logprobs": 2, "stream": true,
               "stream_options": {"include_usage": true}, "num_speculative_tokens": 0,
               "spec_decode_metrics": "detailed", "priority": -2, "user": "ignored"})"),
      {}, {});
  const GenerationParams& params = request.params;
  EXPECT_EQ(params.max_tokens, 7);
  EXPECT_EQ(params.n, 3);
  EXPECT_EQ(params.sampling.temperature, 0);
  EXPECT_EQ(params.sampling.top_k, 0);
  EXPECT_EQ(params.sampling.seed, static_cast<uint64_t>(-5));
  EXPECT_TRUE(params.has_seed);
  EXPECT_THAT(params.stop, ElementsAre("x", "yy"));
  EXPECT_THAT(params.sampling.logit_bias, ElementsAre(std::pair(7, -100.0f), std::pair(8, 2.5f)));
  EXPECT_EQ(params.num_logprobs, 2);
  EXPECT_TRUE(params.stream && params.include_usage);
  EXPECT_EQ(params.draft->mode, DraftPolicy::Mode::kOff);
  EXPECT_EQ(params.spec_metrics, SpecMetrics::kDetailed);
  EXPECT_EQ(params.priority, -2);
}

TEST(ApiRequest, EveryNumberIsBounded) {
  for (const char* extra :
       {R"("n": 0)",
        R"("n": 17)",
        R"("n": 1e300)",
        R"("n": "1")",
        R"("n": 1.5)",
        R"("max_tokens": 0)",
        R"("max_tokens": -1)",
        R"("max_tokens": 99999999999999999999)",
        R"("temperature": -0.1)",
        R"("temperature": 1e9)",
        R"("top_p": 1.1)",
        R"("top_k": -2)",
        R"("min_p": 2)",
        R"("presence_penalty": 3)",
        R"("repetition_penalty": 0)",
        R"("seed": 1e30)",
        R"("seed": "x")",
        R"("logit_bias": {"x": 1})",
        R"("logit_bias": {"1": 101})",
        R"("logit_bias": {"-1": 1})",
        R"("logit_bias": [])",
        R"("stop": "")",
        R"("stop": [1])",
        R"("stop": ["a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a"])",
        R"("stop_token_ids": [-1])",
        R"("stream": "yes")",
        R"("stream_options": {})",
        R"("top_logprobs": 5)",
        R"("top_logprobs": 21, "logprobs": true)",
        R"("num_speculative_tokens": 64)",
        R"("num_speculative_tokens": "some")",
        R"("spec_decode_metrics": "all")",
        R"("priority": 5000)",
        R"("response_format": {"type": "xml"})",
        R"("response_format": {"type": "json_schema"})",
        R"("response_format": "json")",
        R"("structured_outputs": {"choice": []})",
        R"("structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"})",
        R"("functions": [])",
        R"("modalities": ["audio"])",
        R"("chat_template_kwargs": {"messages": []})",
        R"("chat_template_kwargs": 3)"}) {
    EXPECT_NE(chat_refusal(extra), "") << extra;
  }
  EXPECT_THAT(chat_refusal(R"("n": 99)"), HasSubstr("n: expected a whole number from 1 to 16"));
}

TEST(ApiRequest, BodiesAreObjectsOfBoundedDepth) {
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("3"), std::string("nul"),
        std::string("{\"prompt\": 1e999}"), std::string(100, '['),
        std::string("{\"a\":\"\\ud800\"}"), std::string("\x00\x01", 2)}) {
    EXPECT_FALSE(parse_body(text, {})) << text;
  }
}

TEST(ApiRequest, ChatsBecomeWhatTemplatesWant) {
  const ChatRequest chat = *parse_chat(body(R"({"messages": [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": null, "tool_calls": [
          {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"}],
      "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
      "tool_choice": {"type": "function", "function": {"name": "f"}},
      "max_tokens": 3, "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 4})"),
                                       {}, {});
  EXPECT_EQ(chat.messages[0]["role"], "system");
  EXPECT_EQ(chat.messages[1]["content"], "ab");
  EXPECT_EQ(chat.messages[2]["tool_calls"][0]["function"]["arguments"]["x"], 1);
  EXPECT_EQ(chat.messages[3]["tool_call_id"], "1");
  EXPECT_EQ(chat.tool_choice, ChatRequest::ToolChoice::kNamed);
  EXPECT_EQ(chat.params.constraint.kind, Constraint::Kind::kToolCall);
  EXPECT_EQ(chat.params.constraint.tool, "f");
  EXPECT_EQ(chat.params.max_tokens, 5);
  EXPECT_EQ(chat.params.num_logprobs, 4);
}

TEST(ApiRequest, BadChatsAreRefused) {
  for (const char* text :
       {R"({})", R"({"messages": []})", R"({"messages": {}})", R"({"messages": [3]})",
        R"({"messages": [{"role": "king", "content": "x"}]})",
        R"({"messages": [{"role": "user"}]})", R"({"messages": [{"role": "user", "content": 3}]})",
        R"({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]})",
        R"({"messages": [{"role": "user", "content": [{}]}]})",
        R"({"messages": [{"role": "assistant", "tool_calls": [{}]}]})"}) {
    EXPECT_NE(refusal(parse_chat, text), "") << text;
  }
  for (const char* extra :
       {R"("tools": [{"type": "retrieval"}])", R"("tools": [{"type": "function"}])",
        R"("tools": [{"type": "function", "function": {"name": "a b"}}])",
        R"("tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}])",
        R"("tool_choice": "required")", R"("tool_choice": "some")",
        R"("tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": {"type":
           "function", "function": {"name": "g"}})"}) {
    EXPECT_NE(chat_refusal(extra), "") << extra;
  }
}

TEST(ApiRequest, ResponsesBecomeChats) {
  const ResponsesRequest request = *parse_responses(body(R"({"instructions": "be brief", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "42"}],
      "max_output_tokens": 9, "tools": [{"type": "function", "name": "f", "parameters": {}}],
      "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}})"),
                                                    {}, {});
  ASSERT_EQ(request.chat.messages.size(), 4u);
  EXPECT_EQ(request.chat.messages[0]["content"], "be brief");
  EXPECT_EQ(request.chat.messages[2]["tool_calls"][0]["function"]["name"], "f");
  EXPECT_EQ(request.chat.params.constraint.kind, Constraint::Kind::kJsonSchema);
  EXPECT_EQ(request.chat.params.max_tokens, 9);
  for (const char* text :
       {R"({})", R"({"input": []})", R"({"input": 3})",
        R"({"input": "a", "previous_response_id": "x"})",
        R"({"input": [{"type": "web_search_call"}]})", R"({"input": "a", "background": true})"}) {
    EXPECT_NE(refusal(parse_responses, text), "") << text;
  }
}

TEST(ApiRequest, NativeRequestsAreSglangs) {
  const NativeRequest request =
      *parse_native(body(R"({"text": "a", "sampling_params": {"max_new_tokens": 5, "temperature": 0,
               "json_schema": "{\"type\": \"object\"}", "sampling_seed": 3},
               "return_logprob": true, "top_logprobs_num": 2})"),
                    {}, {});
  EXPECT_EQ(request.completion.params.max_tokens, 5);
  EXPECT_EQ(request.completion.params.sampling.seed, 3u);
  EXPECT_EQ(request.completion.params.constraint.kind, Constraint::Kind::kJsonSchema);
  EXPECT_EQ(request.completion.params.num_logprobs, 2);
  EXPECT_FALSE(request.list);
  EXPECT_TRUE(parse_native(body(R"({"input_ids": [[1], [2]]})"), {}, {})->list);
  EXPECT_NE(refusal(parse_native, R"({"text": "a", "input_ids": [1]})"), "");
  EXPECT_NE(refusal(parse_native, R"({"text": "a", "sampling_params": {"max_new_tokens": 0}})"),
            "");
}

TEST(ApiRequest, TokenizeSpeaksThreeDialects) {
  EXPECT_EQ(parse_tokenize(body(R"({"prompt": "a"})"), {})->text, "a");
  EXPECT_TRUE(parse_tokenize(body(R"({"prompt": "a"})"), {})->add_special_tokens);
  EXPECT_FALSE(parse_tokenize(body(R"({"content": "a"})"), {})->add_special_tokens);
  EXPECT_TRUE(
      parse_tokenize(body(R"({"messages": [{"role": "user", "content": "a"}]})"), {})->chat);
  EXPECT_FALSE(parse_tokenize(body(R"({})"), {}));
  EXPECT_FALSE(parse_detokenize(body(R"({"tokens": [1, "a"]})"), {}));
}

}  // namespace
}  // namespace volley::server
