#pragma once

// The endpoints: which there are, who may call them, and what answers them.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "server/api_keys.h"
#include "server/generation_task.h"
#include "server/http.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/served_model.h"
#include "server/trace.h"
#include "server/worker.h"

namespace volley::server {

struct ApiConfig {
  ApiLimits limits;
  ApiKeys keys;
  std::vector<std::string> cors_origins;  // that may call from a browser; "*": all
  // Refuse a Host header that is neither an address, nor localhost, nor one of these: a page whose
  // name was made to resolve to this machine (DNS rebinding) would pass for one of our own.
  bool check_host = false;
  std::vector<std::string> allowed_hosts;         // without port
  SpecMetrics spec_metrics = SpecMetrics::kNone;  // for requests that do not say
  std::string version;
  std::string_view page;    // what / shows
  int max_preparing = 256;  // requests whose prompt is being tokenized or waits for it
  std::function<void(const RequestLog&)> log;  // may be null
};

class Api : public HttpHandler {
 public:
  explicit Api(ApiConfig config);
  ~Api() override;

  // Before the server runs. `server` calls this object and is called by it.
  void attach(HttpServer& server) { server_ = &server; }

  // Until then, and after drain(), requests that need a model get 503. On the server's thread.
  void serve(ServedModel model);
  void drain() { draining_ = true; }
  bool draining() const { return draining_; }
  // After the server stopped: drops what waits to be read. Nothing may be called afterwards.
  void shut_down() { worker_.reset(); }

  std::optional<HttpResponse> refuse(const HttpRequest& head) override;
  void handle(HttpRequest request, std::shared_ptr<Responder> responder) override;
  HttpResponse malformed(int status, std::string_view why) override;

 private:
  struct Exchange {
    HttpRequest request;
    std::shared_ptr<Responder> responder;
    RequestLog log;
    std::vector<std::pair<std::string, std::string>> headers;
  };
  using Method = void (Api::*)(Exchange);
  struct Route {
    std::string_view path;
    std::string_view method;
    bool needs_key;
    bool needs_model;
    Method handle;
  };
  static const std::vector<Route>& routes();
  const Route* find_route(const HttpRequest& request, bool& path_known) const;

  void page(Exchange exchange);
  void health(Exchange exchange);
  void ready(Exchange exchange);
  void version(Exchange exchange);
  void metrics(Exchange exchange);
  void models(Exchange exchange);
  void completions(Exchange exchange) {
    generate(GenerationEndpoint::kCompletions, std::move(exchange));
  }
  void chat(Exchange exchange) { generate(GenerationEndpoint::kChat, std::move(exchange)); }
  void responses(Exchange exchange) {
    generate(GenerationEndpoint::kResponses, std::move(exchange));
  }
  void native(Exchange exchange) { generate(GenerationEndpoint::kNative, std::move(exchange)); }
  void tokenize(Exchange exchange) { text_answer(&tokenize_answer, std::move(exchange)); }
  void detokenize(Exchange exchange) { text_answer(&detokenize_answer, std::move(exchange)); }

  void generate(GenerationEndpoint endpoint, Exchange exchange);
  void text_answer(ApiResult<Json> (*answer)(std::string_view, const PrepareContext&),
                   Exchange exchange);
  PrepareContext prepare_context();
  void send(Exchange exchange, HttpResponse response);
  bool cors_allows(std::string_view origin) const;
  bool is_foreign(const HttpRequest& request) const;
  bool host_allowed(const HttpRequest& request) const;
  void add_cors(const HttpRequest& request,
                std::vector<std::pair<std::string, std::string>>& headers) const;
  HttpResponse refusal(const HttpRequest& request, const ApiError& error);

  const ApiConfig config_;
  HttpServer* server_ = nullptr;
  std::optional<ServedModel> model_;
  bool draining_ = false;
  double started_s_ = 0;
  int64_t started_unix_s_ = 0;
  IdMaker ids_;
  Metrics metrics_;
  std::unique_ptr<Worker> worker_;
};

}  // namespace volley::server
