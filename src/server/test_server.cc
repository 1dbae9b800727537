#include "server/test_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>

#include "model/random_weights.h"
#include "ops/ref/ref_ops.h"

namespace volley::server {
namespace {

constexpr int32_t kEndToken = 2;

}  // namespace

TestServer::TestServer(const Options& options) {
  tokenizer_ = *Tokenizer::load("models/demo-target");
  chat_template_ = *ChatTemplate::load("models/demo-target");
  const int vocab_size = tokenizer_->vocab_size();
  constraints_ = std::make_unique<Constraints>(
      make_token_trie(*tokenizer_, vocab_size, std::vector<int32_t>{kEndToken}));
  const TargetConfig target{.hidden_size = 16,
                            .num_layers = 3,
                            .num_heads = 2,
                            .num_kv_heads = 1,
                            .head_dim = 8,
                            .intermediate_size = 16,
                            .vocab_size = vocab_size,
                            .max_position_embeddings = options.max_model_len,
                            .qk_norm = true,
                            .layer_window = {0, 0, 0}};
  const DrafterConfig drafter{.hidden_size = 16,
                              .target_hidden_size = 16,
                              .num_layers = 1,
                              .num_heads = 2,
                              .num_kv_heads = 1,
                              .head_dim = 8,
                              .intermediate_size = 16,
                              .vocab_size = vocab_size,
                              .draft_vocab_size = vocab_size,
                              .max_position_embeddings = options.max_model_len,
                              .block_size = 4,
                              .mask_token_id = 3,
                              .taps = {0, 2},
                              .attention = {{}}};
  max_live_ = options.max_num_seqs + options.max_queued;
  const EngineConfig config{.max_num_seqs = options.max_num_seqs,
                            .max_queued = max_live_,
                            .prefill_chunk = 64,
                            .page_size = 32};
  ops_ = make_ref_ops();
  RandomWeights random(7);
  const ModelLimits limits = Engine::model_limits(config, target, &drafter);
  target_ = *TargetModel::create(target, random.target(target), limits, *ops_);
  drafter_ = *DflashDrafter::create(drafter, random.drafter(drafter), *target_, limits, *ops_);
  engine_ = *Engine::create(config, *target_, drafter_.get(), *ops_);
  thread_ = std::make_unique<EngineThread>(*engine_, EngineThread::Config{.max_live = max_live_});

  ApiConfig api_config;
  api_config.keys = *ApiKeys::create(options.api_keys);
  api_config.cors_origins = options.cors_origins;
  api_config.check_host = !options.allowed_hosts.empty();
  api_config.allowed_hosts = options.allowed_hosts;
  api_config.version = "test";
  api_config.page = "<!doctype html><title>Volley</title>";
  api_ = std::make_unique<Api>(std::move(api_config));
  http_ = *HttpServer::create("127.0.0.1", 0, options.http, *api_);
  api_->attach(*http_);
  if (options.loaded) api_->serve(served_model());
  loop_ = std::thread([this] { http_->run(); });
}

TestServer::~TestServer() {
  http_->stop();
  loop_.join();
  api_->shut_down();
  thread_.reset();
}

ServedModel TestServer::served_model() {
  ServedModel model;
  model.names = {"test-model", "alias"};
  model.tokenizer = &*tokenizer_;
  model.chat_template = &*chat_template_;
  model.constraints = constraints_.get();
  model.eos_ids = {kEndToken};
  model.engine = thread_.get();
  model.max_model_len = engine_->max_model_len();
  model.vocab_size = tokenizer_->vocab_size();
  model.max_live = max_live_;
  model.block_size = engine_->block_size();
  model.defaults.temperature = 0;
  model.splits_reasoning = true;
  return model;
}

void TestServer::call(const std::function<void(Api&)>& task) {
  std::promise<void> done;
  http_->post([&] {
    task(*api_);
    done.set_value();
  });
  done.get_future().wait();
}

int TestServer::num_connections() {
  int count = 0;
  call([&](Api&) { count = http_->num_connections(); });
  return count;
}

bool TestServer::rests_without_leak() {
  for (int i = 0; i < 6000 && thread_->num_live() > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const EngineSnapshot now = thread_->snapshot();
  return thread_->num_live() == 0 && now.num_free_pages == now.num_pages;
}

std::vector<Json> TestResponse::events() const {
  std::vector<Json> events;
  size_t at = 0;
  while ((at = body.find("data: ", at)) != std::string::npos) {
    const size_t end = body.find("\n\n", at);
    const std::string data = body.substr(at + 6, end - at - 6);
    if (data != "[DONE]") events.push_back(*parse_json(data, "event"));
    at = end;
  }
  return events;
}

TestClient::TestClient(int port, int timeout_s, int receive_buffer)
    : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
  if (receive_buffer > 0) {
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  }
  const timeval limit{.tv_sec = timeout_s, .tv_usec = 0};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
}

TestClient::~TestClient() {
  if (socket_ >= 0) ::close(socket_);
}

bool TestClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

void TestClient::shut_write() {
  ::shutdown(socket_, SHUT_WR);
}

std::string TestClient::receive_some(size_t max_bytes) {
  std::string bytes(max_bytes, '\0');
  const ssize_t got = ::recv(socket_, bytes.data(), bytes.size(), 0);
  bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return bytes;
}

TestResponse TestClient::receive() {
  TestResponse response;
  const auto fill = [&] {
    const std::string more = receive_some(16384);
    buffer_ += more;
    return !more.empty();
  };
  size_t head_end;
  while ((head_end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (!fill()) return response;
  }
  response.head = buffer_.substr(0, head_end + 2);
  buffer_.erase(0, head_end + 4);
  response.status = std::atoi(response.head.substr(9, 3).c_str());
  if (response.status == 100) return receive();
  if (response.status == 204) return response;
  if (response.head.find("Transfer-Encoding: chunked") != std::string::npos) {
    for (;;) {
      size_t line_end;
      while ((line_end = buffer_.find("\r\n")) == std::string::npos) {
        if (!fill()) return response;
      }
      const size_t size = std::strtoul(buffer_.c_str(), nullptr, 16);
      while (buffer_.size() < line_end + 2 + size + 2) {
        if (!fill()) return response;
      }
      response.body += buffer_.substr(line_end + 2, size);
      buffer_.erase(0, line_end + 2 + size + 2);
      if (size == 0) return response;
    }
  }
  const size_t length_at = response.head.find("Content-Length: ");
  if (length_at == std::string::npos) {
    while (fill()) {
    }
    response.body = std::exchange(buffer_, {});
    return response;
  }
  const size_t length = std::strtoul(response.head.c_str() + length_at + 16, nullptr, 10);
  while (buffer_.size() < length && fill()) {
  }
  response.body = buffer_.substr(0, length);
  buffer_.erase(0, response.body.size());
  return response;
}

std::string TestClient::request(std::string_view method, std::string_view path,
                                std::string_view body, std::string_view headers) {
  std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: 127.0.0.1\r\n{}", method, path, headers);
  if (method == "POST") {
    text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  return text + "\r\n" + std::string(body);
}

TestResponse TestClient::get(std::string_view path, std::string_view headers) {
  if (!send(request("GET", path, "", headers))) return {};
  return receive();
}

TestResponse TestClient::post(std::string_view path, std::string_view body,
                              std::string_view headers) {
  if (!send(request("POST", path, body, headers))) return {};
  return receive();
}

}  // namespace volley::server
