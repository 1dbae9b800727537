#include "app/bench_serve.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <sstream>

#include "app/commands.h"
#include "app/machine.h"
#include "app/progress.h"
#include "app/prompts.h"
#include "base/clock.h"
#include "base/file.h"
#include "server/load_client.h"

namespace volley {
namespace {

using server::LoadConfig;
using server::LoadGoal;
using server::LoadRequest;
using server::LoadResult;

struct BenchServeOptions {
  LoadConfig load;
  std::string model;
  std::vector<std::string> prompt_files;
  int num_prompts = 0;  // 0: each once
  int max_tokens = 128;
  double temperature = 0;
  int64_t seed = 0;
  bool ignore_eos = false;
  double request_rate = 0;           // a second; 0: closed loop
  std::string drafts;                // num_speculative_tokens of every request
  Json extra_body = Json::object();  // more fields of every request
  std::string goodput;               // "ttft:200 tpot:50 e2el:2000"
  std::vector<double> percentiles{50, 90, 99};
  std::string result_file;
  bool quiet = false;
};

Result<BenchServeOptions> parse(const std::vector<std::string>& arguments, std::string& help) {
  BenchServeOptions o;
  std::string extra_body;
  CLI::App app("Load on any OpenAI-compatible server, with the fields of `vllm bench serve`.");
  app.name("volley bench serve");
  app.footer(
      "Examples:\n"
      "  volley bench serve --port 8080 --prompts models/prompts/eval-gsm8k.jsonl "
      "--max-concurrency 8\n"
      "  volley bench serve --port 8080 --prompts FILE --request-rate 4 --goodput 'ttft:200 "
      "tpot:50'");
  app.add_option("--host", o.load.host, "server [127.0.0.1]");
  app.add_option("--port", o.load.port, "its port [8080]")->check(CLI::Range(1, 65535));
  app.add_option("--endpoint", o.load.path,
                 "/v1/chat/completions or /v1/completions [/v1/chat/completions]")
      ->check(CLI::IsMember({"/v1/chat/completions", "/v1/completions"}));
  app.add_option("--api-key", o.load.api_key, "presented as bearer");
  app.add_option("--model", o.model, "[the first that the server names]");
  app.add_option("--prompts,--dataset-path", o.prompt_files, "JSONL, as volley bench reads it")
      ->required();
  app.add_option("--num-prompts", o.num_prompts, "requests; prompts repeat [each prompt once]")
      ->check(CLI::Range(1, 1'000'000));
  app.add_option("--max-concurrency", o.load.max_concurrency, "requests in flight [1]")
      ->check(CLI::Range(1, 16384));
  app.add_option("--request-rate", o.request_rate,
                 "open loop: requests a second at random times (Poisson) [closed loop]")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--max-tokens,--output-len", o.max_tokens, "of an answer [128]")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--temperature", o.temperature, "[0]")->check(CLI::Range(0.0, 100.0));
  app.add_option("--seed", o.seed, "of sampling and arrival times [0]");
  app.add_flag("--ignore-eos", o.ignore_eos, "answers of full length (vLLM, SGLang, Volley)");
  app.add_option("--num-speculative-tokens", o.drafts,
                 "of every request: a number or auto (Volley)");
  app.add_option("--extra-body", extra_body, "JSON object, more fields of every request");
  app.add_option("--goodput", o.goodput, "goals in ms: ttft:200 tpot:50 e2el:2000");
  app.add_option("--percentiles,--metric-percentiles", o.percentiles, "[50,90,99]")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--result-file,--json", o.result_file, "write the report as JSON");
  app.add_option("--timeout", o.load.request_timeout_s, "seconds a request [600]")
      ->check(CLI::Range(1.0, 86400.0));
  app.add_flag("-q,--quiet", o.quiet, "no progress");
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(std::move(reversed));
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    if (app.exit(error, out, err) == 0) {
      help = out.str();
      return o;
    }
    return invalid("{}; see volley bench serve --help", error.what());
  }
  if (!extra_body.empty()) {
    VOLLEY_TRY(o.extra_body, parse_json(extra_body, "--extra-body"));
    if (!o.extra_body.is_object()) return invalid("--extra-body: expected a JSON object");
  }
  return o;
}

Result<LoadGoal> parse_goal(const std::string& text) {
  LoadGoal goal;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const size_t colon = word.find(':');
    const std::string name = word.substr(0, colon);
    double* limit = name == "ttft"   ? &goal.ttft_ms
                    : name == "tpot" ? &goal.tpot_ms
                    : name == "e2el" ? &goal.e2el_ms
                                     : nullptr;
    char* end = nullptr;
    const char* value = colon == std::string::npos ? "" : word.c_str() + colon + 1;
    if (limit != nullptr) *limit = std::strtod(value, &end);
    if (limit == nullptr || end == value || *end != '\0' || !(*limit > 0)) {
      return invalid("--goodput: expected ttft:MS, tpot:MS or e2el:MS, got '{}'", word);
    }
  }
  return goal;
}

Json request_body(const BenchServeOptions& o, const BenchPrompt& prompt, int64_t seed) {
  Json body;
  body["model"] = o.model;
  if (o.load.path == "/v1/completions") {
    body["prompt"] = prompt.turns.front();
  } else {
    body["messages"] = Json::array();
    for (const ChatMessage& message : prompt.messages) {
      body["messages"].push_back({{"role", message.role}, {"content", message.content}});
    }
    body["messages"].push_back({{"role", "user"}, {"content", prompt.turns.front()}});
  }
  body["max_tokens"] = o.max_tokens;
  body["temperature"] = o.temperature;
  body["seed"] = seed;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (o.ignore_eos) body["ignore_eos"] = true;
  if (o.drafts == "auto") {
    body["num_speculative_tokens"] = "auto";
  } else if (!o.drafts.empty()) {
    body["num_speculative_tokens"] = std::atoi(o.drafts.c_str());
  }
  body.update(o.extra_body);
  return body;
}

std::vector<LoadRequest> make_requests(const BenchServeOptions& o,
                                       const std::vector<BenchPrompt>& prompts) {
  std::mt19937_64 rng(static_cast<uint64_t>(o.seed));
  std::exponential_distribution<double> gap(o.request_rate > 0 ? o.request_rate : 1);
  std::vector<LoadRequest> requests;
  const size_t count = o.num_prompts > 0 ? static_cast<size_t>(o.num_prompts) : prompts.size();
  double at_s = 0;
  for (size_t i = 0; i < count; ++i) {
    const Json body =
        request_body(o, prompts[i % prompts.size()], o.seed + static_cast<int64_t>(i));
    requests.push_back({.body = dump_json(body), .start_s = at_s});
    at_s += gap(rng);
  }
  return requests;
}

// The sum of a Prometheus counter's rows; nothing when the server has no such counter.
std::optional<double> counter(const std::string& metrics, const std::string& name) {
  std::istringstream lines(metrics);
  std::optional<double> sum;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name) || line.size() == name.size()) continue;
    if (line[name.size()] != '{' && line[name.size()] != ' ') continue;
    sum = sum.value_or(0) + std::strtod(line.c_str() + line.rfind(' '), nullptr);
  }
  return sum;
}

// What the server's speculation counters say of the run.
void add_speculation(const std::string& before, const std::string& after, Json& report) {
  const auto grown = [&](const std::string& name) -> std::optional<double> {
    const auto from = counter(before, name), to = counter(after, name);
    return from && to ? std::optional(*to - *from) : std::nullopt;
  };
  const auto drafts = grown("vllm:spec_decode_num_drafts_total");
  const auto drafted = grown("vllm:spec_decode_num_draft_tokens_total");
  const auto accepted = grown("vllm:spec_decode_num_accepted_tokens_total");
  if (!drafts || !drafted || !accepted) return;
  report["spec_decode_num_drafts"] = *drafts;
  report["spec_decode_draft_tokens"] = *drafted;
  report["spec_decode_accepted_tokens"] = *accepted;
  report["spec_decode_acceptance_rate"] = *drafted > 0 ? *accepted / *drafted : 0;
  report["spec_decode_acceptance_length"] = *drafts > 0 ? 1 + *accepted / *drafts : 1;
}

std::string text_report(const Json& report) {
  std::string text = "============ Serving benchmark ============\n";
  for (const auto& [name, value] : report.items()) {
    if (!value.is_number()) continue;
    text += value.is_number_integer() ? fmt::format("{:32}{:>12}\n", name, value.get<int64_t>())
                                      : fmt::format("{:32}{:>12.2f}\n", name, value.get<double>());
  }
  return text;
}

Result<std::string> first_model(const LoadConfig& load) {
  VOLLEY_TRY(const std::string body, server::http_get(load, "/v1/models"));
  VOLLEY_TRY(const Json list, parse_json(body, "/v1/models"));
  if (!list.contains("data") || !list["data"].is_array() || list["data"].empty() ||
      !list["data"][0].contains("id") || !list["data"][0]["id"].is_string()) {
    return invalid("/v1/models: the server names no model; give one with --model");
  }
  return list["data"][0]["id"].get<std::string>();
}

}  // namespace

Result<int> run_bench_serve(const std::vector<std::string>& arguments) {
  std::string help;
  VOLLEY_TRY(BenchServeOptions o, parse(arguments, help));
  if (!help.empty()) {
    std::fputs(help.c_str(), stdout);
    return kExitOk;
  }
  VOLLEY_TRY(const LoadGoal goal, parse_goal(o.goodput));
  VOLLEY_TRY(const std::vector<BenchPrompt> prompts, read_prompt_files(o.prompt_files, 0));
  if (prompts.empty()) return invalid("--prompts: the files hold no prompt");
  if (o.model.empty()) {
    VOLLEY_TRY(o.model, first_model(o.load));
  }
  o.load.open_loop = o.request_rate > 0;
  if (o.load.open_loop && o.load.max_concurrency == 1) o.load.max_concurrency = 16384;
  const std::vector<LoadRequest> requests = make_requests(o, prompts);

  const TerminalState terminal = terminal_state();
  Progress progress(terminal.err_is_terminal, o.quiet, terminal.num_columns);
  const std::string before = server::http_get(o.load, "/metrics").value_or("");
  const double start = now_s();
  VOLLEY_TRY(
      const std::vector<LoadResult> results, server::run_load(o.load, requests, [&](int done) {
        progress.show(
            fmt::format("{} of {} answered, {:.0f} s", done, requests.size(), now_s() - start));
      }));
  const double duration_s = now_s() - start;
  progress.clear();
  Json report = load_report(results, duration_s, goal, o.percentiles);
  add_speculation(before, server::http_get(o.load, "/metrics").value_or(""), report);
  report["max_concurrency"] = o.load.max_concurrency;
  if (o.load.open_loop) report["request_rate"] = o.request_rate;
  std::fputs(text_report(report).c_str(), stdout);
  std::string first_error;
  for (const LoadResult& result : results) {
    if (!result.ok && first_error.empty()) first_error = result.error;
  }
  if (!o.result_file.empty()) {
    report["model"] = o.model;
    VOLLEY_TRY_STATUS(write_file_atomic(o.result_file, dump_json(report, 2) + "\n"));
  }
  if (first_error.empty()) return kExitOk;
  return make_error(ErrorKind::kIo, "{} of {} requests failed, the first: {}",
                    report["failed"].get<int64_t>(), requests.size(), first_error);
}

}  // namespace volley
