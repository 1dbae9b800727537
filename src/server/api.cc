#include "server/api.h"

#include <algorithm>
#include <cctype>
#include <ctime>

#include "base/clock.h"

namespace volley::server {
namespace {

// Names of headers as they may be repeated to a browser; empty when they are not fine.
std::string_view clean_header_list(std::string_view given) {
  const bool fine =
      given.size() <= 1024 && std::all_of(given.begin(), given.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 || c == '-' || c == '_' || c == ',' || c == ' ';
      });
  return fine ? given : std::string_view();
}

}  // namespace

Api::Api(ApiConfig config)
    : config_(std::move(config)),
      started_s_(now_s()),
      started_unix_s_(std::time(nullptr)),
      worker_(std::make_unique<Worker>(static_cast<size_t>(config_.max_preparing))) {}

Api::~Api() = default;

void Api::serve(ServedModel model) {
  model_ = std::move(model);
}

const std::vector<Api::Route>& Api::routes() {
  static const std::vector<Route> table = {
      {"/", "GET", false, false, &Api::page},
      {"/health", "GET", false, false, &Api::health},
      {"/ready", "GET", false, false, &Api::ready},
      {"/version", "GET", false, false, &Api::version},
      {"/metrics", "GET", true, false, &Api::metrics},
      {"/v1/models", "GET", true, true, &Api::models},
      {"/v1/completions", "POST", true, true, &Api::completions},
      {"/v1/chat/completions", "POST", true, true, &Api::chat},
      {"/v1/responses", "POST", true, true, &Api::responses},
      {"/generate", "POST", true, true, &Api::native},
      {"/tokenize", "POST", true, true, &Api::tokenize},
      {"/detokenize", "POST", true, true, &Api::detokenize},
  };
  return table;
}

const Api::Route* Api::find_route(const HttpRequest& request, bool& path_known) const {
  path_known = false;
  std::string_view method = request.method;
  if (method == "HEAD") method = "GET";
  std::string_view path = request.path;
  // One model of the list has the list's rules.
  if (path.starts_with("/v1/models/")) path = "/v1/models";
  for (const Route& route : routes()) {
    if (route.path != path) continue;
    path_known = true;
    if (route.method == method) return &route;
  }
  return nullptr;
}

bool Api::cors_allows(std::string_view origin) const {
  return std::any_of(
      config_.cors_origins.begin(), config_.cors_origins.end(),
      [&](const std::string& allowed) { return allowed == "*" || allowed == origin; });
}

// A page of another site would have the visitor's browser call us.
bool Api::is_foreign(const HttpRequest& request) const {
  const std::string_view origin = request.header("origin");
  if (origin.empty() || cors_allows(origin)) return false;
  const size_t scheme = origin.find("://");
  const std::string_view host =
      scheme == std::string_view::npos ? origin : origin.substr(scheme + 3);
  return host != request.header("host");
}

bool Api::host_allowed(const HttpRequest& request) const {
  std::string host(request.header("host"));
  if (!config_.check_host || host.empty()) return true;  // every browser sends one
  if (host.front() == '[') return true;                  // an IPv6 address
  host.resize(std::min(host.find(':'), host.size()));
  for (char& c : host) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const bool is_address = host.find_first_not_of("0123456789.") == std::string::npos;
  const auto& allowed = config_.allowed_hosts;
  return is_address || host == "localhost" || host.ends_with(".localhost") ||
         std::find(allowed.begin(), allowed.end(), host) != allowed.end();
}

void Api::add_cors(const HttpRequest& request,
                   std::vector<std::pair<std::string, std::string>>& headers) const {
  const std::string_view origin = request.header("origin");
  if (origin.empty() || !cors_allows(origin)) return;
  headers.emplace_back("Access-Control-Allow-Origin", std::string(origin));
  headers.emplace_back("Access-Control-Expose-Headers", "X-Request-Id, traceparent, Retry-After");
  headers.emplace_back("Vary", "Origin");
}

HttpResponse Api::refusal(const HttpRequest& request, const ApiError& error) {
  bool path_known = false;
  const Route* route = find_route(request, path_known);
  metrics_.observe_http(route != nullptr ? route->path : "other", error.status);
  HttpResponse response = error_response(error);
  add_cors(request, response.headers);
  return response;
}

std::optional<HttpResponse> Api::refuse(const HttpRequest& head) {
  bool path_known = false;
  const Route* route = find_route(head, path_known);
  if (head.method == "OPTIONS" && path_known && cors_allows(head.header("origin"))) {
    return std::nullopt;  // a preflight
  }
  if (!host_allowed(head)) {
    return refusal(head, {.status = 403,
                          .message = "the server does not go by the name in the Host header; see "
                                     "--allowed-host"});
  }
  if (!path_known) {
    return refusal(head, {.status = 404, .message = "there is no such path; see docs/serving.md"});
  }
  if (route == nullptr) {
    return refusal(head,
                   {.status = 405,
                    .message = fmt::format("{} is not allowed here", head.method.substr(0, 32))});
  }
  if (is_foreign(head)) {
    return refusal(
        head, {.status = 403, .message = "this origin may not call the server; see --cors-origin"});
  }
  if (route->needs_key && config_.keys.required() &&
      !config_.keys.accepts_authorization(head.header("authorization")) &&
      !config_.keys.accepts(head.header("x-api-key"))) {
    HttpResponse response =
        refusal(head, {.status = 401,
                       .message = "a valid API key is needed: Authorization: Bearer KEY",
                       .code = "invalid_api_key"});
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return response;
  }
  if (route->needs_model && !model_) {
    return refusal(head, {.status = 503, .message = "the model is still loading"});
  }
  if (route->needs_model && draining_ && route->method == "POST") {
    return refusal(head, {.status = 503, .message = "the server is shutting down"});
  }
  return std::nullopt;
}

HttpResponse Api::malformed(int status, std::string_view why) {
  metrics_.observe_http("malformed", status);
  return error_response({.status = status, .message = std::string(why)});
}

void Api::handle(HttpRequest request, std::shared_ptr<Responder> responder) {
  Exchange exchange;
  exchange.responder = std::move(responder);
  add_cors(request, exchange.headers);
  if (request.method == "OPTIONS") {
    exchange.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST");
    // The origin is trusted; its clients have headers of their own (OpenAI's: X-Stainless-...).
    const std::string_view wanted =
        clean_header_list(request.header("access-control-request-headers"));
    exchange.headers.emplace_back(
        "Access-Control-Allow-Headers",
        wanted.empty() ? "Authorization, Content-Type, X-Api-Key, X-Request-Id, traceparent"
                       : wanted);
    exchange.headers.emplace_back("Access-Control-Max-Age", "600");
    exchange.request = std::move(request);
    return send(std::move(exchange), {.status = 204, .content_type = ""});
  }
  bool path_known = false;
  const Route* route = find_route(request, path_known);
  RequestLog& log = exchange.log;
  log.endpoint = route->path;
  log.peer = request.peer;
  log.start_s = now_s();
  log.request_id = clean_request_id(request.header("x-request-id"));
  if (log.request_id.empty()) log.request_id = ids_.hex(32);
  log.trace = ids_.trace(request.header("traceparent"));
  exchange.headers.emplace_back("X-Request-Id", log.request_id);
  exchange.headers.emplace_back("traceparent", log.trace.traceparent());
  exchange.request = std::move(request);
  (this->*route->handle)(std::move(exchange));
}

void Api::send(Exchange exchange, HttpResponse response) {
  response.headers.insert(response.headers.end(), exchange.headers.begin(), exchange.headers.end());
  metrics_.observe_http(exchange.log.endpoint.empty() ? "preflight" : exchange.log.endpoint,
                        response.status);
  // Probes and scrapes would drown the log.
  const bool is_work = exchange.request.method == "POST" || exchange.log.endpoint == "/v1/models";
  if (is_work && config_.log) {
    exchange.log.status = response.status;
    config_.log(exchange.log);
  }
  exchange.responder->send(std::move(response));
}

void Api::page(Exchange exchange) {
  HttpResponse response{.content_type = "text/html; charset=utf-8",
                        .body = std::string(config_.page)};
  // The page is one file and calls no other host.
  response.headers = {
      {"Content-Security-Policy",
       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
       "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
       "form-action 'none'"},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cache-Control", "no-cache"}};
  send(std::move(exchange), std::move(response));
}

void Api::health(Exchange exchange) {
  send(std::move(exchange), {.body = R"({"status":"alive"})"});
}

void Api::ready(Exchange exchange) {
  if (model_ && !draining_) return send(std::move(exchange), {.body = R"({"status":"ready"})"});
  HttpResponse response{.status = 503,
                        .body = draining_ ? R"({"status":"draining"})" : R"({"status":"loading"})"};
  response.headers.emplace_back("Retry-After", "1");
  send(std::move(exchange), std::move(response));
}

void Api::version(Exchange exchange) {
  send(std::move(exchange), {.body = dump_json(Json{{"version", config_.version}})});
}

void Api::metrics(Exchange exchange) {
  ServerGauges gauges;
  gauges.ready = model_ && !draining_;
  gauges.num_connections = server_->num_connections();
  EngineSnapshot engine;
  std::string name;
  if (model_) {
    name = model_->names.front();
    engine = model_->engine->snapshot();
    gauges.max_live = model_->max_live;
    gauges.num_constraints = model_->constraints->num_compiled();
  }
  send(std::move(exchange), {.content_type = "text/plain; version=0.0.4; charset=utf-8",
                             .body = metrics_.render(name, engine, gauges)});
}

void Api::models(Exchange exchange) {
  const auto model_json = [this](const std::string& name) {
    Json model;
    model["id"] = name;
    model["object"] = "model";
    model["created"] = started_unix_s_;
    model["owned_by"] = "volley";
    model["root"] = model_->target;
    model["parent"] = Json();
    model["max_model_len"] = model_->max_model_len;
    model["speculative"] = model_->drafter.empty()
                               ? Json()
                               : Json{{"method", "dflash"},
                                      {"model", model_->drafter},
                                      {"num_speculative_tokens", model_->block_size - 1}};
    return model;
  };
  constexpr std::string_view kPrefix = "/v1/models/";
  if (exchange.request.path.starts_with(kPrefix)) {
    const std::string name = percent_decoded(exchange.request.path.substr(kPrefix.size()));
    const auto& names = model_->names;
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return send(std::move(exchange), error_response({.status = 404,
                                                       .message = "this model is not served here",
                                                       .param = "model",
                                                       .code = "model_not_found"}));
    }
    return send(std::move(exchange), {.body = dump_json(model_json(name))});
  }
  Json list = Json::array();
  for (const std::string& name : model_->names) list.push_back(model_json(name));
  Json body{{"object", "list"}};
  body["data"] = std::move(list);
  send(std::move(exchange), {.body = dump_json(body)});
}

PrepareContext Api::prepare_context() {
  return {.model = *model_,
          .limits = config_.limits,
          .response_id = ids_.hex(24),
          .now_unix_s = std::time(nullptr),
          .random_seed = ids_.number(),
          .spec_metrics = config_.spec_metrics};
}

void Api::generate(GenerationEndpoint endpoint, Exchange exchange) {
  // Tasks for the worker must be copyable.
  auto shared = std::make_shared<Exchange>(std::move(exchange));
  const bool queued = worker_->post([this, endpoint, shared, context = prepare_context()] {
    auto prepared = std::make_shared<ApiResult<PreparedGeneration>>(
        prepare_generation(endpoint, shared->request.body, context));
    // `shared` goes along: what it holds belongs to the server's thread.
    server_->post([this, shared, prepared] {
      if (!*prepared) return send(std::move(*shared), error_response(prepared->error()));
      TaskContext task{
          .engine = model_->engine,
          .tokenizer = model_->tokenizer,
          .post = [this](std::function<void()> event) { server_->post(std::move(event)); },
          .metrics = &metrics_,
          .log =
              [this](const RequestLog& log) {
                metrics_.observe_http(log.endpoint, log.client_gone ? 499 : log.status);
                if (config_.log) config_.log(log);
              },
          .headers = std::move(shared->headers)};
      std::make_shared<GenerationTask>(std::move(task), std::move(**prepared),
                                       std::move(shared->log), std::move(shared->responder))
          ->start();
    });
  });
  if (!queued) {
    send(std::move(*shared),
         error_response({.status = 429, .message = "too many requests wait to be read"}));
  }
}

void Api::text_answer(ApiResult<Json> (*answer)(std::string_view, const PrepareContext&),
                      Exchange exchange) {
  auto shared = std::make_shared<Exchange>(std::move(exchange));
  const bool queued = worker_->post([this, answer, shared, context = prepare_context()] {
    const ApiResult<Json> json = answer(shared->request.body, context);
    HttpResponse response =
        json ? HttpResponse{.body = dump_json(*json)} : error_response(json.error());
    server_->post(
        [this, shared, response = std::move(response)] { send(std::move(*shared), response); });
  });
  if (!queued) {
    send(std::move(*shared),
         error_response({.status = 429, .message = "too many requests wait to be read"}));
  }
}

}  // namespace volley::server
