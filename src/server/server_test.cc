// The whole server over random models: every endpoint, the same answer whoever else is served, and
// clients that behave badly.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "server/test_server.h"

namespace volley::server {
namespace {

using testing::HasSubstr;

std::string completion(std::string_view prompt, std::string_view extra) {
  Json body{{"prompt", prompt}};
  body.update(*parse_json(fmt::format("{{{}}}", extra), "extra"));
  return dump_json(body);
}

class ServerTest : public testing::Test {
 protected:
  ServerTest() : server_(TestServer::Options{}) {}
  TestClient client() { return TestClient(server_.port()); }
  Json post(std::string_view path, std::string_view body) {
    const TestResponse response = client().post(path, body);
    EXPECT_EQ(response.status, 200) << response.body;
    return response.status == 200 ? response.json() : Json();
  }
  TestServer server_;
};

TEST_F(ServerTest, SmallEndpointsAnswerOnOneConnection) {
  TestClient one = client();
  EXPECT_EQ(one.get("/health").json()["status"], "alive");
  EXPECT_EQ(one.get("/ready").json()["status"], "ready");
  EXPECT_EQ(one.get("/version").json()["version"], "test");
  EXPECT_THAT(one.get("/").body, HasSubstr("Volley"));
  EXPECT_THAT(one.get("/metrics").body, HasSubstr("vllm:num_requests_running"));
  EXPECT_EQ(one.get("/v1/models").json()["data"][0]["id"], "test-model");
  EXPECT_EQ(one.get("/v1/models/alias").json()["id"], "alias");
  EXPECT_EQ(one.get("/v1/models/%61lias").json()["id"], "alias");
  EXPECT_EQ(one.get("/v1/models/none").status, 404);
  EXPECT_EQ(one.get("/nowhere").status, 404);
  EXPECT_EQ(one.get("/v1/completions").status, 405);
  EXPECT_EQ(one.get("/health").status, 200);
  EXPECT_EQ(server_.num_connections(), 1);
}

TEST_F(ServerTest, TokenizeAndBack) {
  const Json tokens = post("/tokenize", R"({"prompt": "hello world", "return_token_strs": true})");
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  EXPECT_EQ(tokens["token_strs"].size(), tokens["tokens"].size());
  EXPECT_EQ(post("/detokenize", dump_json({{"tokens", tokens["tokens"]}}))["prompt"],
            "hello world");
  const Json chat =
      post("/tokenize", R"({"messages": [{"role": "user", "content": "hello world"}]})");
  EXPECT_GT(chat["count"], tokens["count"]);
}

TEST_F(ServerTest, ACompletionStreamsWhatItAnswersAtOnce) {
  const char* extra = R"("max_tokens": 40, "temperature": 0.8, "seed": 5, "logprobs": 2,
                         "spec_decode_metrics": "detailed", "num_speculative_tokens": 3)";
  const Json whole = post("/v1/completions", completion("once upon", extra));
  const Json& choice = whole["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(whole["usage"]["completion_tokens"], 40);
  EXPECT_EQ(choice["logprobs"]["tokens"].size(), 40u);
  EXPECT_EQ(choice["logprobs"]["top_logprobs"][0].size(), 2u);
  const Json& spec = whole["metrics"]["speculative_decoding"];
  EXPECT_GE(spec["acceptance_length"], 1.0);
  EXPECT_EQ(spec["accepted_per_position"].size(), 3u);

  const TestResponse stream = client().post(
      "/v1/completions",
      completion("once upon",
                 fmt::format(R"({}, "stream": true, "stream_options": {{"include_usage": true}})",
                             extra)));
  EXPECT_THAT(stream.head, HasSubstr("text/event-stream"));
  EXPECT_TRUE(stream.body.ends_with("data: [DONE]\n\n"));
  std::string text;
  size_t num_logprobs = 0;
  int64_t step_tokens = 0;
  const std::vector<Json> events = stream.events();
  for (const Json& event : events) {
    if (event["choices"].empty()) continue;
    text += event["choices"][0]["text"].get<std::string>();
    const Json& logprobs = event["choices"][0]["logprobs"];
    if (!logprobs.is_null()) num_logprobs += logprobs["tokens"].size();
    if (event["choices"][0].contains("step")) {
      step_tokens += event["choices"][0]["step"]["num_tokens"].get<int64_t>();
    }
  }
  EXPECT_EQ(text, choice["text"]);
  EXPECT_EQ(num_logprobs, 40u);
  EXPECT_EQ(step_tokens, 40);
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 40);
}

TEST_F(ServerTest, DraftingChangesNoAnswer) {
  for (const char* sampling :
       {R"("temperature": 0)", R"("temperature": 1, "seed": 9, "top_p": 0.9)",
        R"("temperature": 0.7, "seed": 3, "frequency_penalty": 1,
                                  "repetition_penalty": 1.2, "logit_bias": {"17": 4})"}) {
    std::string plain;
    for (const char* drafts : {"0", "1", "3", "\"auto\""}) {
      const Json answer =
          post("/v1/completions",
               completion("the quick brown",
                          fmt::format(R"({}, "max_tokens": 30, "num_speculative_tokens": {})",
                                      sampling, drafts)));
      const auto text = answer["choices"][0]["text"].get<std::string>();
      if (plain.empty()) plain = text;
      EXPECT_EQ(text, plain) << drafts;
    }
  }
}

TEST_F(ServerTest, SeveralPromptsAndAnswers) {
  const Json both = post("/v1/completions",
                         R"({"prompt": ["a b", "c d"], "n": 2, "max_tokens": 8, "temperature": 1,
                             "seed": 1, "echo": true})");
  ASSERT_EQ(both["choices"].size(), 4u);
  EXPECT_EQ(both["usage"]["completion_tokens"], 32);
  const Json alone =
      post("/v1/completions", R"({"prompt": "c d", "max_tokens": 8, "temperature": 1, "seed": 1})");
  EXPECT_EQ(both["choices"][2]["text"], "c d" + alone["choices"][0]["text"].get<std::string>());
  EXPECT_NE(both["choices"][3]["text"], both["choices"][2]["text"]);
}

TEST_F(ServerTest, StopStringsAndLengths) {
  const std::string all =
      post("/v1/completions", completion("count", R"("max_tokens": 40)"))["choices"][0]["text"];
  ASSERT_GT(all.size(), 12u);
  // The bytes of random tokens need not be UTF-8: take a stop string that is.
  size_t at = 4;
  while (at + 4 < all.size() && !std::all_of(all.begin() + at, all.begin() + at + 4,
                                             [](char c) { return c > 32 && c < 127; })) {
    ++at;
  }
  ASSERT_LT(at + 4, all.size());
  const std::string stop = all.substr(at, 4);
  const Json stopped =
      post("/v1/completions",
           completion("count", fmt::format(R"("max_tokens": 40, "stop": [{}])", dump_json(stop))));
  EXPECT_EQ(stopped["choices"][0]["text"], all.substr(0, all.find(stop)));
  EXPECT_EQ(stopped["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(stopped["choices"][0]["stop_reason"], stop);
  EXPECT_TRUE(server_.rests_without_leak());
}

TEST_F(ServerTest, ChatsStreamAndDoNot) {
  const char* base = R"({"model": "test-model", "messages": [{"role": "user", "content": "hi"}],
                         "max_completion_tokens": 12, "logprobs": true, "top_logprobs": 1)";
  const Json whole = post("/v1/chat/completions", fmt::format("{}}}", base));
  EXPECT_EQ(whole["object"], "chat.completion");
  EXPECT_EQ(whole["choices"][0]["logprobs"]["content"].size(), 12u);
  const auto events =
      client().post("/v1/chat/completions", fmt::format(R"({}, "stream": true}})", base)).events();
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  std::string text;
  for (const Json& event : events) {
    const Json& delta = event["choices"][0]["delta"];
    if (delta.contains("content")) text += delta["content"].get<std::string>();
  }
  EXPECT_EQ(text, whole["choices"][0]["message"]["content"]);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "length");
}

TEST_F(ServerTest, ResponsesStreamAndDoNot) {
  const Json whole = post("/v1/responses", R"({"input": "hi", "max_output_tokens": 10})");
  EXPECT_EQ(whole["object"], "response");
  EXPECT_EQ(whole["status"], "incomplete");
  EXPECT_EQ(whole["usage"]["output_tokens"], 10);
  const auto events =
      client()
          .post("/v1/responses", R"({"input": "hi", "max_output_tokens": 10, "stream": true})")
          .events();
  std::string text;
  for (size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i]["sequence_number"], i);
    if (events[i]["type"] == "response.output_text.delta") {
      text += events[i]["delta"].get<std::string>();
    }
  }
  EXPECT_EQ(events.front()["type"], "response.created");
  EXPECT_EQ(events.back()["type"], "response.incomplete");
  EXPECT_EQ(text, whole["output"][0]["content"][0]["text"]);
  EXPECT_EQ(events.back()["response"]["output"][0]["content"], whole["output"][0]["content"]);
}

// A random model under a grammar still writes what the schema wants, the same with drafts.
TEST_F(ServerTest, ConstrainedAnswersFollowTheirSchema) {
  const char* chat = R"({{"messages": [{{"role": "user", "content": "x"}}], "temperature": 1,
      "seed": {}, "max_tokens": 120, "num_speculative_tokens": {}, "response_format": {{"type":
      "json_schema", "json_schema": {{"name": "n", "schema": {{"type": "object", "properties":
      {{"ok": {{"type": "boolean"}}, "kind": {{"enum": ["a", "b"]}}}}, "required": ["ok", "kind"],
      "additionalProperties": false}}}}}}}})";
  for (int seed = 0; seed < 4; ++seed) {
    std::string plain;
    for (const int drafts : {0, 3}) {
      const Json answer =
          post("/v1/chat/completions", fmt::format(fmt::runtime(chat), seed, drafts));
      const auto text = answer["choices"][0]["message"]["content"].get<std::string>();
      const auto value = parse_json(text, "answer");
      ASSERT_TRUE(value) << text;
      EXPECT_TRUE((*value)["ok"].is_boolean());
      EXPECT_EQ(answer["choices"][0]["finish_reason"], "stop");
      if (plain.empty()) plain = text;
      EXPECT_EQ(text, plain);
    }
  }
  const Json choice = post("/v1/completions", completion("x", R"("temperature": 1, "max_tokens": 40,
      "structured_outputs": {"choice": ["left", "right"]})"));
  EXPECT_THAT(choice["choices"][0]["text"].get<std::string>(), testing::AnyOf("left", "right"));
}

TEST_F(ServerTest, AForcedToolIsCalled) {
  const char* body = R"({"messages": [{"role": "user", "content": "x"}], "max_tokens": 200,
      "temperature": 1, "seed": 4, "tools": [{"type": "function", "function": {"name": "pick",
      "parameters": {"type": "object", "properties": {"side": {"enum": ["left", "right"]}},
      "required": ["side"], "additionalProperties": false}}}], "tool_choice":
      {"type": "function", "function": {"name": "pick"}})";
  const Json whole = post("/v1/chat/completions", fmt::format("{}}}", body));
  const Json& message = whole["choices"][0]["message"];
  ASSERT_EQ(message["tool_calls"].size(), 1u) << dump_json(whole);
  EXPECT_EQ(whole["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_EQ(message["tool_calls"][0]["function"]["name"], "pick");
  const Json arguments = *parse_json(
      message["tool_calls"][0]["function"]["arguments"].get<std::string>(), "arguments");
  EXPECT_TRUE(arguments["side"] == "left" || arguments["side"] == "right");
  const auto events =
      client().post("/v1/chat/completions", fmt::format(R"({}, "stream": true}})", body)).events();
  Json streamed;
  for (const Json& event : events) {
    const Json& delta = event["choices"][0]["delta"];
    if (delta.contains("tool_calls")) streamed = delta["tool_calls"][0];
  }
  EXPECT_EQ(streamed["function"], message["tool_calls"][0]["function"]);
  EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "tool_calls");
}

TEST_F(ServerTest, PrefixesAreSharedWithinASalt) {
  const auto cached = [&](const char* extra) {
    const Json answer =
        post("/v1/completions",
             dump_json({{"prompt", std::vector<int>(100, 7)}, {"max_tokens", 2}}).insert(1, extra));
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"].get<int>();
  };
  EXPECT_EQ(cached(""), 0);
  EXPECT_EQ(cached(""), 96);
  EXPECT_EQ(cached(R"("cache_salt": "a", )"), 0);
  EXPECT_EQ(cached(R"("cache_salt": "b", )"), 0);
  EXPECT_EQ(cached(R"("cache_salt": "a", )"), 96);
}

TEST_F(ServerTest, NativeGenerate) {
  const Json one =
      post("/generate", R"({"text": "a b", "sampling_params": {"max_new_tokens": 6}})");
  EXPECT_EQ(one["output_ids"].size(), 6u);
  EXPECT_EQ(one["meta_info"]["finish_reason"]["type"], "length");
  EXPECT_TRUE(post("/generate", R"({"text": ["a", "b"], "sampling_params": {"max_new_tokens": 2}})")
                  .is_array());
  const auto events = client()
                          .post("/generate", R"({"text": "a b", "stream": true,
                                                 "sampling_params": {"max_new_tokens": 6}})")
                          .events();
  EXPECT_EQ(events.back()["text"], one["text"]);
}

TEST_F(ServerTest, RefusalsHaveOpenAisShape) {
  const auto refusal = [&](std::string_view path, std::string_view body, int status) {
    const TestResponse response = client().post(path, body);
    EXPECT_EQ(response.status, status) << body << response.body;
    const Json error = response.json()["error"];
    EXPECT_TRUE(error["message"].is_string() && error["type"].is_string());
    return error;
  };
  EXPECT_EQ(refusal("/v1/completions", R"({"prompt": "a", "n": 100})", 400)["param"], "n");
  EXPECT_EQ(refusal("/v1/completions", R"({"prompt": "a", "model": "gpt-9"})", 404)["code"],
            "model_not_found");
  EXPECT_EQ(
      refusal("/v1/completions", dump_json({{"prompt", std::vector<int>(300, 5)}}), 400)["code"],
      "context_length_exceeded");
  refusal("/v1/completions", R"({"prompt": [100000000]})", 400);
  refusal("/v1/completions", R"({"prompt": "a", "logit_bias": {"99999999": 1}})", 400);
  refusal("/v1/completions", "{", 400);
  refusal("/v1/chat/completions",
          R"({"messages": [{"role": "user", "content": "x"}], "response_format": {"type":
             "json_schema", "json_schema": {"schema": {"type": "unheard"}}}})",
          400);
  refusal("/v1/completions", std::string(5 << 20, ' '), 413);
  EXPECT_TRUE(server_.rests_without_leak());
}

TEST(ServerGates, KeysOpenEverythingButProbes) {
  TestServer server({.api_keys = {"k1", "k2"}});
  TestClient client(server.port());
  EXPECT_EQ(client.get("/health").status, 200);
  EXPECT_EQ(client.get("/ready").status, 200);
  EXPECT_EQ(client.get("/v1/models").status, 401);
  EXPECT_EQ(client.get("/metrics").status, 401);
  EXPECT_EQ(client.get("/v1/models", "Authorization: Bearer k3\r\n").status, 401);
  EXPECT_EQ(client.get("/v1/models", "Authorization: Bearer k2\r\n").status, 200);
  const TestResponse refused = TestClient(server.port()).post("/v1/completions", "{}");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.json()["error"]["type"], "authentication_error");
}

TEST(ServerGates, OtherOriginsAreKeptOutUnlessAllowed) {
  TestServer closed({});
  const char* foreign = "Origin: https://evil.example\r\n";
  const std::string body = R"({"prompt": "a", "max_tokens": 1})";
  EXPECT_EQ(TestClient(closed.port()).post("/v1/completions", body, foreign).status, 403);
  EXPECT_EQ(TestClient(closed.port())
                .post("/v1/completions", body, "Origin: http://127.0.0.1\r\n")
                .status,
            200);
  TestServer open({.cors_origins = {"https://evil.example"}});
  const TestResponse allowed = TestClient(open.port()).post("/v1/completions", body, foreign);
  EXPECT_EQ(allowed.status, 200);
  EXPECT_THAT(allowed.head, HasSubstr("Access-Control-Allow-Origin: https://evil.example"));
  TestClient preflight(open.port());
  ASSERT_TRUE(preflight.send(TestClient::request(
      "OPTIONS", "/v1/completions", "",
      std::string(foreign) + "Access-Control-Request-Headers: authorization, x-stainless-os\r\n")));
  const TestResponse granted = preflight.receive();
  EXPECT_EQ(granted.status, 204);
  EXPECT_THAT(granted.head,
              HasSubstr("Access-Control-Allow-Headers: authorization, x-stainless-os"));
}

TEST(ServerGates, AForeignNameForThisMachineIsRefused) {
  TestServer server({.allowed_hosts = {"llm.example"}});
  const auto status = [&](const std::string& host) {
    TestClient client(server.port());
    client.send("GET /v1/models HTTP/1.1\r\nHost: " + host + "\r\n\r\n");
    return client.receive().status;
  };
  for (const char* host : {"127.0.0.1", "127.0.0.1:8080", "localhost:1", "[::1]:80", "a.localhost",
                           "LLM.example:443"}) {
    EXPECT_EQ(status(host), 200) << host;
  }
  for (const char* host :
       {"evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"}) {
    EXPECT_EQ(status(host), 403) << host;
  }
}

TEST(ServerGates, NothingIsServedBeforeReadinessOrWhileDraining) {
  TestServer server({.loaded = false});
  EXPECT_EQ(TestClient(server.port()).get("/health").status, 200);
  EXPECT_EQ(TestClient(server.port()).get("/ready").status, 503);
  EXPECT_EQ(TestClient(server.port()).get("/v1/models").status, 503);
  const TestResponse early =
      TestClient(server.port()).post("/v1/completions", R"({"prompt": "a"})");
  EXPECT_EQ(early.status, 503);
  EXPECT_THAT(early.head, HasSubstr("Retry-After"));
  server.call([&](Api& api) { api.serve(server.served_model()); });
  EXPECT_EQ(TestClient(server.port()).get("/ready").status, 200);
  server.call([](Api& api) { api.drain(); });
  EXPECT_EQ(TestClient(server.port()).get("/ready").status, 503);
  EXPECT_EQ(TestClient(server.port()).post("/v1/completions", R"({"prompt": "a"})").status, 503);
}

TEST(ServerGates, AFullQueueSays429) {
  TestServer server({.max_num_seqs = 1, .max_queued = 1});
  const std::string body = R"({"prompt": "a", "max_tokens": 200, "stream": true})";
  std::vector<TestClient> clients;
  int refused = 0;
  for (int i = 0; i < 6; ++i) clients.emplace_back(server.port());
  for (TestClient& client : clients)
    client.send(TestClient::request("POST", "/v1/completions", body));
  for (TestClient& client : clients) {
    const TestResponse response = client.receive();
    if (response.status != 429) continue;
    ++refused;
    EXPECT_THAT(response.head, HasSubstr("Retry-After: 1"));
    EXPECT_EQ(response.json()["error"]["type"], "rate_limit_error");
  }
  EXPECT_GE(refused, 1);
  EXPECT_TRUE(server.rests_without_leak());
}

TEST(ServerHttp, OldAndOddRequestsAreAnswered) {
  TestServer server({});
  TestClient old(server.port());
  old.send("GET /health HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.receive().status, 200);
  EXPECT_EQ(old.receive_some(), "");
  // Two requests in one packet.
  TestClient eager(server.port());
  const std::string twice =
      TestClient::request("POST", "/v1/completions", R"({"prompt": "a", "max_tokens": 3})") +
      TestClient::request("GET", "/health", "");
  eager.send(twice);
  EXPECT_EQ(eager.receive().json()["usage"]["completion_tokens"], 3);
  EXPECT_EQ(eager.receive().json()["status"], "alive");
  // A body in chunks, after asking.
  TestClient chunked(server.port());
  chunked.send(
      "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: "
      "100-continue\r\n\r\n");
  EXPECT_THAT(chunked.receive_some(), HasSubstr("100 Continue"));
  chunked.send("7\r\n{\"promp\r\n8\r\nt\": \"a\"}\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.receive().status, 200);
  TestClient head(server.port());
  head.send("HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nGET /ready HTTP/1.1\r\nHost: x\r\n\r\n");
  std::string bytes;
  while (bytes.find("ready") == std::string::npos) {
    const std::string more = head.receive_some();
    ASSERT_FALSE(more.empty());
    bytes += more;
  }
  EXPECT_EQ(bytes.find("alive"), std::string::npos);
}

TEST(ServerHttp, SlowRequestsRunIntoTheClock) {
  TestServer server({.http = {.idle_timeout_s = 0.3, .read_timeout_s = 0.3}});
  TestClient idle(server.port());
  EXPECT_EQ(idle.receive_some(), "");
  TestClient slow(server.port());
  slow.send("POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
  EXPECT_EQ(slow.receive().status, 408);
  TestClient huge(server.port());
  huge.send("GET /health HTTP/1.1\r\nX: " + std::string(40000, 'a') + "\r\n\r\n");
  EXPECT_EQ(huge.receive().status, 431);
}

TEST(ServerHttp, TooManyConnectionsAreTurnedAway) {
  TestServer server({.http = {.max_connections = 3}});
  std::vector<TestClient> clients;
  for (int i = 0; i < 3; ++i) {
    clients.emplace_back(server.port());
    EXPECT_EQ(clients.back().get("/health").status, 200);
  }
  TestClient extra(server.port());
  EXPECT_EQ(extra.receive().status, 503);
}

// Clients that vanish, and clients that stop reading, free what they held; others go on.
TEST(ServerClients, LeaversFreeTheirPages) {
  TestServer server(
      {.max_num_seqs = 4, .http = {.max_outbound_bytes = 4096, .write_timeout_s = 0.5}});
  const std::string body =
      completion("leave", R"("max_tokens": 200, "stream": true, "logprobs": 5)");
  for (int round = 0; round < 10; ++round) {
    std::vector<TestClient> leavers;
    for (int i = 0; i < 4; ++i) {
      leavers.emplace_back(server.port());
      leavers.back().send(TestClient::request("POST", "/v1/completions", body));
      if (i % 2 == 0) leavers.back().receive_some(100);
    }
  }
  EXPECT_TRUE(server.rests_without_leak());
  EXPECT_GT(server.engine().snapshot().num_cancelled, 0);
  EXPECT_EQ(TestClient(server.port()).post("/v1/completions", R"({"prompt": "a"})").status, 200);
}

// A client that stops reading costs the tokens that fill its buffers, not the answer it asked for.
TEST(ServerClients, OneThatStallsIsDroppedLongBeforeItsAnswerIsWhole) {
  TestServer server({.max_num_seqs = 2,
                     .max_model_len = 2048,
                     .http = {.socket_buffer_bytes = 4096, .max_outbound_bytes = 4096}});
  TestClient stalled(server.port(), 60, /*receive_buffer=*/4096);
  stalled.send(TestClient::request(
      "POST", "/v1/completions",
      completion("stall", R"("max_tokens": 1900, "stream": true, "ignore_eos": true)")));
  EXPECT_NE(stalled.receive_some(100), "");
  EXPECT_TRUE(server.rests_without_leak());
  EXPECT_LT(server.engine().snapshot().num_generated_tokens, 1000);
  EXPECT_EQ(server.engine().snapshot().num_cancelled, 1);
}

// Mixed requests at once, by threads, against each alone with drafting off.
TEST(ServerLoad, EveryAnswerIsTheOneItHasAlone) {
  TestServer server({.max_num_seqs = 8, .max_queued = 128});
  const auto request_body = [](int i, bool alone) {
    const std::string prompt = i % 3 == 0 ? "a shared and rather long beginning of all " +
                                                std::string(i % 2 == 0 ? "this" : "that")
                                          : fmt::format("prompt number {}", i);
    std::string extra = fmt::format(R"("max_tokens": {})", 4 + i % 29);
    if (i % 4 == 1) extra += fmt::format(R"(, "temperature": 0.9, "seed": {})", i);
    if (i % 4 == 2) extra += R"(, "frequency_penalty": 0.7)";
    if (i % 5 == 0) extra += R"(, "stop": ["e", "zz"])";
    if (alone) extra += R"(, "num_speculative_tokens": 0)";
    return completion(prompt, extra);
  };
  constexpr int kKinds = 60;
  std::vector<std::string> alone;
  TestClient quiet(server.port());
  for (int i = 0; i < kKinds; ++i) {
    alone.push_back(
        quiet.post("/v1/completions", request_body(i, true)).json()["choices"][0]["text"]);
  }
  std::atomic<int> next = 0;
  std::atomic<int> wrong = 0;
  constexpr int kRequests = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&] {
      auto client = std::make_unique<TestClient>(server.port());
      for (int i; (i = next++) < kRequests;) {
        if (i % 11 == 7) {  // cancelled half-way
          TestClient leaver(server.port());
          leaver.send(
              TestClient::request("POST", "/v1/completions",
                                  completion("gone", R"("max_tokens": 100, "stream": true)")));
          leaver.receive_some(1);
          continue;
        }
        const TestResponse response =
            client->post("/v1/completions", request_body(i % kKinds, false));
        const bool ok =
            response.status == 200 && response.json()["choices"][0]["text"] == alone[i % kKinds];
        if (!ok && wrong++ == 0) {
          ADD_FAILURE() << "request " << i << ": status " << response.status << ", "
                        << response.body << "\nalone: " << alone[i % kKinds];
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_TRUE(server.rests_without_leak());
}

// Requests that are no requests: 4xx or a closed connection, never a crash, and the server lives
// on.
TEST(ServerFuzz, MalformedRequests) {
  TestServer server({.http = {.idle_timeout_s = 5, .read_timeout_s = 5}});
  std::mt19937 rng(20261122);
  const auto pick = [&](int n) { return static_cast<int>(rng() % n); };
  const std::vector<std::string> bodies = {
      R"({"prompt": "a", "max_tokens": 2, "logit_bias": {"5": 1}, "stop": ["x"]})",
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 2,
          "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]})",
      R"({"input": [{"role": "user", "content": "x"}], "max_output_tokens": 2})",
      R"({"text": "a", "sampling_params": {"max_new_tokens": 2, "temperature": 0.5}})"};
  const std::vector<std::string> paths = {"/v1/completions", "/v1/chat/completions",
                                          "/v1/responses",   "/generate",
                                          "/tokenize",       "/detokenize"};
  const std::vector<std::string> splices = {"[",
                                            "{",
                                            "}",
                                            "]",
                                            "\"",
                                            ",",
                                            ":",
                                            "null",
                                            "-1",
                                            "1e999",
                                            "99999999999999999999",
                                            "\\u0000",
                                            "\\ud800",
                                            "\xff\xfe",
                                            "true",
                                            std::string(70, '['),
                                            "{}",
                                            "[]",
                                            "0.5",
                                            "NaN"};
  int bad = 0;
  int answered = 0;
  constexpr int kRequests = 10000;
  auto client = std::make_unique<TestClient>(server.port(), 10);
  for (int i = 0; i < kRequests; ++i) {
    std::string body = bodies[pick(static_cast<int>(bodies.size()))];
    for (int edits = 1 + pick(3); edits > 0; --edits) {
      const size_t at = rng() % (body.size() + 1);
      if (pick(2) == 0) {
        body.insert(at, splices[pick(static_cast<int>(splices.size()))]);
      } else if (at < body.size()) {
        body.erase(at, 1 + pick(6));
      }
    }
    std::string request =
        TestClient::request("POST", paths[pick(static_cast<int>(paths.size()))], body);
    const bool breaks_http = pick(4) == 0;
    if (breaks_http) {
      for (int edits = 1 + pick(3); edits > 0; --edits) {
        const size_t head = request.find("\r\n\r\n");
        const size_t at = rng() % std::max<size_t>(1, std::min(head, request.size()));
        switch (pick(5)) {
          case 0:
            request.erase(at, 1 + pick(8));
            break;
          case 1:
            request.insert(at, 1, static_cast<char>(rng()));
            break;
          case 2:
            request.insert(at, "\r\nTransfer-Encoding: chunked\r\n");
            break;
          case 3:
            request.insert(at, "\r\nContent-Length: 18446744073709551616\r\n");
            break;
          default:
            request[at] = static_cast<char>(rng());
            break;
        }
        if (request.empty()) request = "x";
      }
    }
    client->send(request);
    if (breaks_http) client->shut_write();
    const TestResponse response = client->receive();
    answered += response.status != 0;
    bad += response.status >= 500;
    if (breaks_http || response.status == 0 ||
        response.head.find("Connection: close") != std::string::npos) {
      client = std::make_unique<TestClient>(server.port(), 10);
    }
  }
  EXPECT_EQ(bad, 0);
  EXPECT_GT(answered, kRequests * 7 / 10);
  EXPECT_TRUE(server.rests_without_leak());
  EXPECT_EQ(TestClient(server.port()).get("/health").status, 200);
}

}  // namespace
}  // namespace volley::server
