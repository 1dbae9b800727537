// The settings of `volley serve`, of the hub, and the report of `volley bench serve`.

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "app/serve_options.h"
#include "base/temporary_folder.h"
#include "server/load_client.h"

namespace volley {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

class ServeOptionsTest : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) {
    const fs::path path = folder_.path() / name;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << content;
    return path.string();
  }
  Result<ServeOptions> parse(const std::vector<std::string>& arguments) {
    return parse_serve_options(arguments, [this](const char* name) -> const char* {
      const auto found = environment_.find(name);
      return found == environment_.end() ? nullptr : found->second.c_str();
    });
  }
  std::string refusal(const std::vector<std::string>& arguments) {
    const auto options = parse(arguments);
    EXPECT_FALSE(options);
    return options ? "" : options.error().message;
  }

  TemporaryFolder folder_;
  std::map<std::string, std::string> environment_;
};

TEST_F(ServeOptionsTest, FlagsWinOverTheEnvironmentAndThatOverTheFile) {
  const std::string file =
      write("volley.toml",
            "model = \"from-file\"\nport = 1\nmax_num_seqs = 1\n"
            "max_queued = 7\napi_key = [\"a\", \"b\"]\nprefix_caching = false\n");
  environment_ = {{"VOLLEY_PORT", "2"}, {"VOLLEY_MAX_NUM_SEQS", "2"}};
  const ServeOptions options = *parse({"--config", file, "--port", "3"});
  EXPECT_EQ(options.model.target, "from-file");
  EXPECT_EQ(options.port, 3);
  EXPECT_EQ(options.engine.max_num_seqs, 2);
  EXPECT_EQ(options.engine.max_queued, 7);
  EXPECT_FALSE(options.engine.prefix_caching);
  EXPECT_THAT(options.api_keys, ElementsAre("a", "b"));
  environment_["VOLLEY_CONFIG"] = file;
  EXPECT_EQ(parse({})->port, 2);
}

TEST_F(ServeOptionsTest, OtherProgramsSpellingsMeanTheSame) {
  const auto drafts = [&](const std::vector<std::string>& flags) {
    std::vector<std::string> arguments{"target"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const ServeOptions options = *parse(arguments);
    EXPECT_EQ(options.model.draft, "d");
    return options.model.draft_length.length;
  };
  EXPECT_EQ(drafts({"--draft", "d", "--draft-length", "7"}), 7);
  EXPECT_EQ(drafts({"--speculative-config",
                    R"({"method":"dflash","model":"d","num_speculative_tokens":15})"}),
            15);
  EXPECT_EQ(drafts({"--speculative-algorithm", "DFLASH", "--speculative-draft-model-path", "d",
                    "--speculative-num-draft-tokens", "16"}),
            15);
  EXPECT_EQ(drafts({"--spec-type", "draft-dflash", "-md", "d", "--spec-draft-n-max", "3"}), 3);
  EXPECT_EQ(parse({"-m", "t", "-np", "4", "-c", "512"})->engine.max_num_seqs, 4);
  EXPECT_FALSE(parse({"t", "--no-prefix-caching"})->engine.prefix_caching);
  EXPECT_TRUE(parse({"t", "--enable-prefix-caching"})->engine.prefix_caching);
  EXPECT_EQ(parse({"t", "--port=9"})->port, 9);
}

TEST_F(ServeOptionsTest, WhatIsWrongIsNamed) {
  EXPECT_THAT(refusal({}), HasSubstr("no model"));
  EXPECT_THAT(refusal({"t", "u"}), HasSubstr("named already"));
  EXPECT_THAT(refusal({"t", "--nothing"}), HasSubstr("--nothing"));
  EXPECT_THAT(refusal({"t", "--port"}), HasSubstr("value is missing"));
  EXPECT_THAT(refusal({"t", "--port", "70000"}), HasSubstr("--port: expected a number from 0"));
  EXPECT_THAT(refusal({"t", "--spec-type", "eagle3"}), HasSubstr("draft-dflash"));
  EXPECT_THAT(refusal({"t", "--draft-length", "x"}), HasSubstr("--draft-length"));
  EXPECT_THAT(refusal({"t", "--log-format", "xml"}), HasSubstr("text, json"));
  EXPECT_THAT(refusal({"t", "--config", write("a.toml", "prot = 1")}), HasSubstr("prot"));
  EXPECT_THAT(refusal({"t", "--config", write("b.toml", "port = ")}), HasSubstr("line 1"));
  EXPECT_THAT(refusal({"t", "--config", write("c.toml", "port = {}")}), HasSubstr("port"));
  environment_["VOLLEY_PORT"] = "many";
  EXPECT_THAT(refusal({"t"}), HasSubstr("VOLLEY_PORT"));
}

TEST_F(ServeOptionsTest, HelpNamesEverySetting) {
  const std::string help = parse({"--help"})->help;
  for (const char* flag : {"--model", "--speculative-config", "--max-num-seqs", "--api-key-file",
                           "--per-request-spec-decode-metrics", "--log-format"}) {
    EXPECT_THAT(help, HasSubstr(flag));
  }
}

TEST(PackCacheFolder, TheFlagThenTheEnvironment) {
  std::map<std::string, std::string> variables;
  const Environment environment = [&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
  EXPECT_EQ(pack_cache_folder(environment, ""), "");
  variables["HOME"] = "/home/a";
  EXPECT_EQ(pack_cache_folder(environment, ""), "/home/a/.cache/volley/packed");
  variables["XDG_CACHE_HOME"] = "not/absolute";
  EXPECT_EQ(pack_cache_folder(environment, ""), "/home/a/.cache/volley/packed");
  variables["XDG_CACHE_HOME"] = "/x";
  EXPECT_EQ(pack_cache_folder(environment, ""), "/x/volley/packed");
  variables["VOLLEY_CACHE"] = "/v";
  EXPECT_EQ(pack_cache_folder(environment, ""), "/v/packed");
  EXPECT_EQ(pack_cache_folder(environment, "here"), "here");
  EXPECT_EQ(pack_cache_folder(environment, "off"), "");
}

TEST_F(ServeOptionsTest, TheHubIsToldByTheEnvironment) {
  const auto config = [this](const std::string& cache = "") {
    return hub_config(
        [this](const char* name) -> const char* {
          const auto found = environment_.find(name);
          return found == environment_.end() ? nullptr : found->second.c_str();
        },
        cache);
  };
  environment_ = {{"HOME", folder_.path().string()}};
  EXPECT_EQ(config().cache, folder_.path() / ".cache/huggingface/hub");
  EXPECT_EQ(config().endpoint, "https://huggingface.co");
  EXPECT_EQ(config().token, "");
  EXPECT_FALSE(config().offline);
  EXPECT_EQ(config("/c").cache, "/c");
  environment_ = {{"HF_HOME", folder_.path().string()},
                  {"HF_ENDPOINT", "http://hub.example/"},
                  {"HF_HUB_OFFLINE", "true"}};
  write("token", " of-the-file\n");
  EXPECT_EQ(config().cache, folder_.path() / "hub");
  EXPECT_EQ(config().endpoint, "http://hub.example");
  EXPECT_EQ(config().token, "of-the-file");
  EXPECT_TRUE(config().offline);
  environment_["HF_TOKEN"] = "of-the-environment";
  environment_["HF_HUB_CACHE"] = "/cache";
  EXPECT_EQ(config().token, "of-the-environment");
  EXPECT_EQ(config().cache, "/cache");
}

// As llama-cpp-python's server has it: lines end in CR LF, and no usage comes.
TEST(LoadClient, ReadsStreamsOfOtherServers) {
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(listener, 1), 0);
  ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size);
  std::thread peer([listener] {
    const int socket = ::accept(listener, nullptr, nullptr);
    char request[4096];
    ::recv(socket, request, sizeof(request), 0);
    const auto event = [](const char* text) {
      return fmt::format("data: {{\"choices\": [{{\"delta\": {{\"content\": \"{}\"}}}}]}}\r\n\r\n",
                         text);
    };
    const std::string answer =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" +
        event("a") + ": ping\r\n\r\n" + event("b") + "data: [DONE]\r\n\r\n";
    ::send(socket, answer.data(), answer.size(), MSG_NOSIGNAL);
    ::close(socket);
  });
  const auto results =
      server::run_load({.port = ntohs(address.sin_port)}, {{.body = "{}"}}, [](int) {});
  peer.join();
  ::close(listener);
  ASSERT_TRUE(results);
  EXPECT_TRUE(results->front().ok) << results->front().error;
  EXPECT_EQ(results->front().text, "ab");
  EXPECT_EQ(results->front().num_tokens, 2);
  const Json report = server::load_report(*results, 1, {}, {50});
  EXPECT_EQ(report["answers_without_usage"], 1);
  EXPECT_EQ(report["total_output_tokens"], 2);
}

TEST(LoadReport, CountsAsVllmDoes) {
  std::vector<server::LoadResult> results(3);
  results[0] = {.ok = true,
                .first_token_s = 0.1,
                .end_s = 1.1,
                .gaps_s = {0.5, 0.5},
                .num_prompt_tokens = 10,
                .num_tokens = 11};
  results[1] = {
      .ok = true, .first_token_s = 0.3, .end_s = 0.3, .num_prompt_tokens = 5, .num_tokens = 1};
  results[2] = {.error = "refused"};
  const Json report = server::load_report(results, 2, {.ttft_ms = 200}, {50, 99});
  EXPECT_EQ(report["completed"], 2);
  EXPECT_EQ(report["failed"], 1);
  EXPECT_EQ(report["total_input_tokens"], 15);
  EXPECT_EQ(report["output_throughput"], 6.0);
  EXPECT_EQ(report["request_goodput"], 0.5);
  EXPECT_NEAR(report["mean_ttft_ms"].get<double>(), 200, 1e-9);
  EXPECT_NEAR(report["p99_ttft_ms"].get<double>(), 298, 1e-9);
  EXPECT_NEAR(report["mean_tpot_ms"].get<double>(), 100, 1e-9);
  EXPECT_NEAR(report["median_itl_ms"].get<double>(), 500, 1e-9);
}

}  // namespace
}  // namespace volley
