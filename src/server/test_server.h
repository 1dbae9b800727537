#pragma once

// For tests: a whole server on a free port of the loopback, over small random models that speak the
// demo pair's vocabulary, and a plain blocking client.

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "engine/engine_thread.h"
#include "server/api.h"
#include "server/http_server.h"

namespace volley::server {

class TestServer {
 public:
  struct Options {
    int max_num_seqs = 8;
    int max_queued = 64;
    int max_model_len = 256;
    HttpLimits http;
    std::vector<std::string> api_keys;
    std::vector<std::string> cors_origins;
    std::vector<std::string> allowed_hosts;  // not empty: Host headers are checked
    bool loaded = true;
  };
  explicit TestServer(const Options& options);
  ~TestServer();

  int port() const { return http_->port(); }
  EngineThread& engine() { return *thread_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Runs on the server's thread, and waits.
  void call(const std::function<void(Api&)>& task);
  int num_connections();
  ServedModel served_model();

  // Waits until nothing is live; true when every page is free again.
  bool rests_without_leak();

 private:
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<TargetModel> target_;
  std::unique_ptr<DflashDrafter> drafter_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineThread> thread_;
  std::optional<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_template_;
  std::unique_ptr<Constraints> constraints_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<HttpServer> http_;
  std::thread loop_;
  int max_live_ = 0;
};

struct TestResponse {
  int status = 0;  // 0: no HTTP came back
  std::string head;
  std::string body;  // chunks joined

  Json json() const { return *parse_json(body, "response"); }
  // The data of its server-sent events, "[DONE]" left out.
  std::vector<Json> events() const;
};

// A blocking TCP connection to the loopback.
class TestClient {
 public:
  // `receive_buffer`: of the socket, in bytes; 0: the system's.
  explicit TestClient(int port, int timeout_s = 60, int receive_buffer = 0);
  ~TestClient();
  TestClient(TestClient&& other) noexcept : socket_(std::exchange(other.socket_, -1)) {}
  TestClient& operator=(TestClient&&) = delete;

  bool send(std::string_view bytes);
  void shut_write();
  // Reads one response; of a stream, all of it.
  TestResponse receive();
  // What is there at once, up to `max_bytes`; empty at the end or after the time limit.
  std::string receive_some(size_t max_bytes = 4096);

  TestResponse get(std::string_view path, std::string_view headers = {});
  TestResponse post(std::string_view path, std::string_view body, std::string_view headers = {});

  static std::string request(std::string_view method, std::string_view path, std::string_view body,
                             std::string_view headers = {});

 private:
  int socket_;
  std::string buffer_;
};

}  // namespace volley::server
