#include "app/serve.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <csignal>
#include <ctime>
#include <sstream>
#include <thread>

#include "app/commands.h"
#include "app/load.h"
#include "app/model_folders.h"
#include "app/serve_options.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "engine/engine_thread.h"
#include "server/api.h"
#include "server/http_server.h"
#include "server/web_page.h"
#include "text/chat_template.h"

namespace volley {
namespace {

using server::Api;
using server::ApiConfig;
using server::ApiKeys;
using server::HttpServer;
using server::RequestLog;
using server::ServedModel;

constexpr int64_t kDefaultKvPositions = 32768;

Result<ApiKeys> read_api_keys(const ServeOptions& options) {
  std::vector<std::string> keys = options.api_keys;
  if (!options.api_key_file.empty()) {
    VOLLEY_TRY(const std::string content, read_file(options.api_key_file, 1 << 20));
    std::istringstream lines(content);
    for (std::string line; std::getline(lines, line);) {
      while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back())))
        line.pop_back();
      if (!line.empty()) keys.push_back(line);
    }
  }
  return ApiKeys::create(std::move(keys));
}

std::string utc_time() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &parts);
  return fmt::format("{}.{:03}Z", text, now.tv_nsec / 1'000'000);
}

// Field names follow OpenTelemetry's where it has one.
std::string log_line(const RequestLog& log) {
  Json line;
  line["time"] = utc_time();
  line["level"] = log.status >= 500 ? "warning" : "info";
  line["event"] = "request";
  line["trace_id"] = log.trace.trace_id;
  line["span_id"] = log.trace.span_id;
  if (!log.trace.parent_id.empty()) line["parent_id"] = log.trace.parent_id;
  line["request_id"] = log.request_id;
  line["url.path"] = log.endpoint;
  line["client.address"] = log.peer;
  line["http.response.status_code"] = log.status;
  line["duration_ms"] = 1e3 * (now_s() - log.start_s);
  if (log.client_gone) line["client_gone"] = true;
  if (log.num_answers > 0) {
    line["answers"] = log.num_answers;
    line["prompt_tokens"] = log.num_prompt_tokens;
    line["cached_tokens"] = log.num_cached_tokens;
    line["completion_tokens"] = log.num_tokens;
    line["queue_ms"] = 1e3 * log.queue_s;
    line["ttft_ms"] = 1e3 * log.first_token_s;
    line["acceptance_length"] = log.acceptance_length;
    line["finish_reason"] = log.finish_reason;
  }
  return dump_json(line);
}

void log_request(const RequestLog& log, bool as_json) {
  if (as_json) {
    fmt::print(stderr, "{}\n", log_line(log));
  } else if (log.num_answers > 0) {
    log_info(
        "{} {} {} tokens in {:.0f} ms, first after {:.0f}, {:.2f} a pass; prompt {} ({} cached)"
        "{}; trace {}",
        log.endpoint, log.status, log.num_tokens, 1e3 * (now_s() - log.start_s),
        1e3 * log.first_token_s, log.acceptance_length, log.num_prompt_tokens,
        log.num_cached_tokens, log.client_gone ? "; client gone" : "", log.trace.trace_id);
  } else {
    log_info("{} {}; trace {}", log.endpoint, log.status, log.trace.trace_id);
  }
}

server::SamplingDefaults sampling_defaults(const GenerationDefaults& recommended) {
  server::SamplingDefaults defaults;
  if (recommended.do_sample && !*recommended.do_sample) defaults.temperature = 0;
  if (recommended.temperature) defaults.temperature = static_cast<float>(*recommended.temperature);
  if (recommended.top_p) defaults.top_p = static_cast<float>(*recommended.top_p);
  if (recommended.top_k) defaults.top_k = *recommended.top_k;
  if (recommended.min_p) defaults.min_p = static_cast<float>(*recommended.min_p);
  if (recommended.repetition_penalty) {
    defaults.repetition_penalty = static_cast<float>(*recommended.repetition_penalty);
  }
  return defaults;
}

// Everything behind the endpoints, in the order of its making.
struct Serving {
  LoadedModels models;
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::unique_ptr<server::Constraints> constraints;
  std::unique_ptr<EngineThread> thread;
  int max_live = 0;
};

Result<std::unique_ptr<Serving>> load_serving(const Hub& hub, const HubReport& report,
                                              ServeOptions& options) {
  VOLLEY_TRY(const Backend backend, choose_backend(options.model));
  std::vector<std::string> no_others;
  VOLLEY_TRY_STATUS(find_model_folders(hub, report, options.model, no_others));
  // The config first: it is small and tells best what is wrong with a folder.
  VOLLEY_TRY(const TargetConfig target, read_target_config(options.model.target));
  auto serving = std::make_unique<Serving>();
  VOLLEY_TRY(serving->tokenizer, Tokenizer::load(options.model.target));
  if (auto chat = ChatTemplate::load(options.model.target)) {
    serving->chat_template = std::move(*chat);
  } else if (chat.error().kind != ErrorKind::kNotFound) {
    return tl::unexpected(std::move(chat.error()));
  }
  const std::vector<int32_t> eos_ids(target.eos_token_ids.begin(), target.eos_token_ids.end());
  serving->constraints = std::make_unique<server::Constraints>(
      server::make_token_trie(*serving->tokenizer, target.vocab_size, eos_ids));
  EngineConfig config = options.engine;
  // All that are accepted may be waiting for a moment.
  serving->max_live = config.max_num_seqs + config.max_queued;
  config.max_queued = serving->max_live;
  if (config.kv_positions == 0) {
    const int64_t longest = config.max_model_len > 0
                                ? config.max_model_len
                                : std::min(target.max_position_embeddings, 8192);
    config.kv_positions =
        std::max(longest, std::min<int64_t>(kDefaultKvPositions, longest * config.max_num_seqs));
  }
  VOLLEY_TRY(serving->models,
             load_models(options.model.target, options.model.draft, backend, config));
  serving->thread = std::make_unique<EngineThread>(
      *serving->models.engine, EngineThread::Config{.max_live = serving->max_live});
  return serving;
}

std::string shown_name(const std::string& model) {
  std::string name = std::filesystem::path(model).lexically_normal().string();
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  const size_t slash = name.rfind('/');
  return slash == std::string::npos ? name : name.substr(slash + 1);
}

ServedModel served_model(const ServeOptions& options, const std::string& asked_target,
                         const std::string& asked_draft, Serving& serving) {
  const TargetConfig& config = serving.models.target_config();
  ServedModel model;
  model.names = options.served_names;
  if (model.names.empty()) {
    const bool is_folder = std::filesystem::is_directory(asked_target);
    model.names.push_back(is_folder ? shown_name(asked_target) : asked_target);
  }
  model.tokenizer = &*serving.tokenizer;
  model.chat_template = serving.chat_template ? &*serving.chat_template : nullptr;
  model.constraints = serving.constraints.get();
  model.engine = serving.thread.get();
  model.max_model_len = serving.models.engine->max_model_len();
  model.vocab_size = config.vocab_size;
  model.max_live = serving.max_live;
  model.eos_ids.assign(config.eos_token_ids.begin(), config.eos_token_ids.end());
  model.defaults = sampling_defaults(config.generation);
  model.block_size = serving.models.engine->block_size();
  model.draft = options.model.draft_length.policy(model.block_size);
  model.draft_sampling = options.model.draft_sampling;
  model.splits_reasoning =
      options.reasoning_parser == "auto" && serving.tokenizer->id_of("<think>").has_value();
  model.target = asked_target;
  model.drafter = asked_draft;
  return model;
}

// SIGTERM: no new requests, the present ones finish, then the server ends. A second signal, or the
// time limit, ends it at once.
class Drain {
 public:
  Drain(HttpServer& server, Api& api, double timeout_s)
      : server_(server), api_(api), timeout_s_(timeout_s) {}

  void begin(bool serving) {
    if (api_.draining() || !serving) return server_.stop();
    api_.drain();
    deadline_s_ = now_s() + timeout_s_;
    log_info("draining: {} requests in flight, {:.0f} s at most", server_.num_answering(),
             timeout_s_);
    poll();
  }

 private:
  // Until the last byte of the last answer has left, tokenizing and slow readers included.
  void poll() {
    if (server_.num_answering() == 0 || now_s() >= deadline_s_) {
      // What the system still holds is sent.
      return server_.post_after(0.1, [this] { server_.stop(); });
    }
    server_.post_after(0.05, [this] { poll(); });
  }

  HttpServer& server_;
  Api& api_;
  double timeout_s_;
  double deadline_s_ = 0;
};

std::string url_of(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return fmt::format("http://{}{}{}:{}", v6 ? "[" : "", host, v6 ? "]" : "", port);
}

Result<int> serve(ServeOptions options, const Hub& hub) {
  const std::string asked_target = options.model.target;
  const std::string asked_draft = options.model.draft;
  ApiConfig api_config;
  api_config.limits = options.api;
  VOLLEY_TRY(api_config.keys, read_api_keys(options));
  api_config.cors_origins = options.cors_origins;
  api_config.spec_metrics = options.spec_metrics;
  api_config.version = "0.1.0";
  api_config.page = server::web_page();
  // Who is accepted to wait for the engine may wait for the tokenizer as well.
  api_config.max_preparing = options.engine.max_num_seqs + options.engine.max_queued;
  if (options.log_requests) {
    api_config.log = [as_json = options.log_json](const RequestLog& log) {
      log_request(log, as_json);
    };
  }
  const bool local =
      options.host == "127.0.0.1" || options.host == "localhost" || options.host == "::1";
  api_config.check_host = local && !api_config.keys.required();
  for (std::string name : options.allowed_hosts) {
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    api_config.allowed_hosts.push_back(std::move(name));
  }
  if (!local && !api_config.keys.required()) {
    log_warning("listening on {} without an API key: everybody who reaches it may use it",
                options.host);
  }
  Api api(std::move(api_config));
  VOLLEY_TRY(const std::unique_ptr<HttpServer> http,
             HttpServer::create(options.host, options.port, options.http, api));
  api.attach(*http);

  // The port answers from the first moment; /ready says when the model does.
  std::unique_ptr<Serving> serving;
  std::optional<Error> load_error;
  std::atomic<bool> ending = false;
  std::thread loader([&] {
    const HubReport report = download_line(/*quiet=*/false, [&] { return !ending; });
    auto loaded =
        std::make_shared<Result<std::unique_ptr<Serving>>>(load_serving(hub, report, options));
    http->post([&, loaded] {
      if (!*loaded) {
        load_error = std::move(loaded->error());
        return http->stop();
      }
      serving = std::move(**loaded);
      api.serve(served_model(options, asked_target, asked_draft, *serving));
      log_info("ready: {} (the page, the OpenAI API at /v1)", url_of(options.host, http->port()));
    });
  });
  Drain drain(*http, api, options.drain_timeout_s);
  http->on_signals({SIGTERM, SIGINT}, [&](int) { drain.begin(serving != nullptr); });
  http->run();
  ending = true;
  loader.join();
  // What is still under way must end before the sockets it would answer to.
  api.shut_down();
  if (serving) serving->thread.reset();
  if (load_error) return tl::unexpected(std::move(*load_error));
  log_info("done");
  return kExitOk;
}

}  // namespace

Result<int> run_serve(const std::vector<std::string>& arguments, const Environment& environment) {
  VOLLEY_TRY(ServeOptions options, parse_serve_options(arguments, environment));
  if (!options.help.empty()) {
    std::fputs(options.help.c_str(), stdout);
    return kExitOk;
  }
  set_log_level(options.log_level);
  const Hub hub(hub_config(environment, options.model.hub_cache));
  options.model.pack_cache = pack_cache_folder(environment, options.model.pack_cache);
  return serve(std::move(options), hub);
}

}  // namespace volley
