#include "server/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace volley::server {
namespace {

// vLLM's buckets.
std::vector<double> latency_bounds() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
          1.0,   2.5,   5.0,  7.5,  10,   20,   40,   80,  160,  640, 2560};
}
std::vector<double> gap_bounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3,
          0.4,   0.5,    0.75,  1.0,  2.5,   5.0,  7.5,   10,  20,   40,  80};
}
std::vector<double> request_bounds() {
  return {0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10,
          15,   20,   30,  40,  50,  60,  120, 240, 480, 960, 1920};
}

class Page {
 public:
  explicit Page(std::string_view model)
      : label_(fmt::format("model_name=\"{}\"", label_text(model))) {}

  void head(std::string_view name, std::string_view type, std::string_view help) {
    fmt::format_to(std::back_inserter(text_), "# HELP {} {}\n# TYPE {} {}\n", name, help, name,
                   type);
  }
  void row(std::string_view name, double value, std::string_view more_labels = {}) {
    fmt::format_to(std::back_inserter(text_), "{}{{{}{}{}}} {}\n", name, label_,
                   more_labels.empty() ? "" : ",", more_labels, value);
  }
  void row(std::string_view name, int64_t value, std::string_view more_labels = {}) {
    fmt::format_to(std::back_inserter(text_), "{}{{{}{}{}}} {}\n", name, label_,
                   more_labels.empty() ? "" : ",", more_labels, value);
  }
  void counter(std::string_view name, std::string_view help, int64_t value) {
    head(name, "counter", help);
    row(name, value);
  }
  void gauge(std::string_view name, std::string_view help, double value) {
    head(name, "gauge", help);
    row(name, value);
  }
  std::string& text() { return text_; }

 private:
  std::string label_;
  std::string text_;
};

void render_speculation(const EngineSnapshot& engine, Page& page) {
  page.counter("vllm:spec_decode_num_drafts_total", "Draft blocks verified.", engine.num_drafts);
  page.counter("vllm:spec_decode_num_draft_tokens_total", "Tokens drafted.",
               engine.num_draft_tokens);
  page.counter("vllm:spec_decode_num_accepted_tokens_total", "Drafted tokens accepted.",
               engine.num_accepted_drafts);
  page.head("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter",
            "Drafted tokens accepted, by position in the draft.");
  for (size_t i = 0; i < engine.accepted_at.size(); ++i) {
    page.row("vllm:spec_decode_num_accepted_tokens_per_pos_total", engine.accepted_at[i],
             fmt::format("position=\"{}\"", i));
  }
  page.head("volley:spec_decode_num_draft_tokens_per_pos_total", "counter",
            "Tokens drafted, by position in the draft.");
  for (size_t i = 0; i < engine.drafted_at.size(); ++i) {
    page.row("volley:spec_decode_num_draft_tokens_per_pos_total", engine.drafted_at[i],
             fmt::format("position=\"{}\"", i));
  }
}

void render_engine(const EngineSnapshot& engine, Page& page) {
  page.gauge("vllm:num_requests_running", "Requests in the batch.", engine.num_running);
  page.gauge("vllm:num_requests_waiting", "Requests waiting for a place.", engine.num_waiting);
  const int used = engine.num_pages - engine.num_free_pages;
  page.gauge("vllm:kv_cache_usage_perc", "Share of KV pages in use, 1 is all.",
             engine.num_pages > 0 ? static_cast<double>(used) / engine.num_pages : 0);
  page.gauge("volley:kv_pages", "KV pages there are.", engine.num_pages);
  page.gauge("volley:kv_pages_in_use", "KV pages that live requests hold.", used);
  page.counter("vllm:num_preemptions_total", "Requests put back because pages ran out.",
               engine.num_preemptions);
  page.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
               engine.num_prefix_queries);
  page.counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
               engine.num_prefix_hits);
  page.counter("vllm:prompt_tokens_total", "Prompt tokens taken.", engine.num_prompt_tokens);
  page.counter("vllm:generation_tokens_total", "Tokens generated.", engine.num_generated_tokens);
  page.counter("volley:engine_steps_total", "Steps of the engine.", engine.num_steps);
  page.head("volley:engine_busy_seconds_total", "counter", "Seconds spent in steps.");
  page.row("volley:engine_busy_seconds_total", engine.busy_s);
  page.counter("volley:requests_cancelled_total", "Requests cancelled, stop strings included.",
               engine.num_cancelled);
}

}  // namespace

std::string label_text(std::string_view value) {
  std::string text;
  for (const char c : value) {
    if (c == '\\' || c == '"') text += '\\';
    if (c == '\n') {
      text += "\\n";
    } else {
      text += c;
    }
  }
  return text;
}

Histogram::Histogram(std::vector<double> upper_bounds)
    : bounds_(std::move(upper_bounds)), counts_(bounds_.size() + 1) {}

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  ++counts_[bucket];
  sum_ += value;
  ++count_;
}

void Histogram::render(std::string_view name, std::string_view help, std::string_view model,
                       std::string& out) const {
  const std::string label = label_text(model);
  fmt::format_to(std::back_inserter(out), "# HELP {} {}\n# TYPE {} histogram\n", name, help, name);
  int64_t cumulated = 0;
  for (size_t i = 0; i <= bounds_.size(); ++i) {
    cumulated += counts_[i];
    const std::string bound = i < bounds_.size() ? fmt::format("{}", bounds_[i]) : "+Inf";
    fmt::format_to(std::back_inserter(out), "{}_bucket{{model_name=\"{}\",le=\"{}\"}} {}\n", name,
                   label, bound, cumulated);
  }
  fmt::format_to(std::back_inserter(out),
                 "{}_sum{{model_name=\"{}\"}} {}\n{}_count{{model_name=\"{}\"}} {}\n", name, label,
                 sum_, name, label, count_);
}

Metrics::Metrics()
    : first_token_(latency_bounds()),
      inter_token_(gap_bounds()),
      per_output_token_(gap_bounds()),
      end_to_end_(request_bounds()),
      queue_(request_bounds()),
      acceptance_length_({1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 64}) {}

void Metrics::observe_http(std::string_view endpoint, int status) {
  ++http_[{std::string(endpoint), status}];
}

void Metrics::observe_answer(double queue_s, double end_to_end_s, double per_token_s,
                             std::string_view finish_reason, double acceptance_length) {
  queue_.observe(queue_s);
  end_to_end_.observe(end_to_end_s);
  if (per_token_s > 0) per_output_token_.observe(per_token_s);
  acceptance_length_.observe(acceptance_length);
  ++finished_[std::string(finish_reason)];
}

std::string Metrics::render(std::string_view model, const EngineSnapshot& engine,
                            const ServerGauges& gauges) const {
  Page page(model);
  render_engine(engine, page);
  render_speculation(engine, page);
  page.head("vllm:request_success_total", "counter", "Answers completed, by reason.");
  for (const auto& [reason, count] : finished_) {
    page.row("vllm:request_success_total", count,
             fmt::format("finished_reason=\"{}\"", label_text(reason)));
  }
  page.head("volley:http_requests_total", "counter", "HTTP requests, by endpoint and status.");
  for (const auto& [key, count] : http_) {
    page.row("volley:http_requests_total", count,
             fmt::format("endpoint=\"{}\",status=\"{}\"", label_text(key.first), key.second));
  }
  page.counter("volley:clients_gone_total", "Clients that left before their answer was complete.",
               num_clients_gone_);
  page.gauge("volley:ready", "1 once requests are served.", gauges.ready ? 1 : 0);
  page.gauge("volley:connections", "Open connections.", gauges.num_connections);
  page.gauge("volley:max_live_requests", "Requests accepted at a time; more get 429.",
             gauges.max_live);
  page.counter("volley:constrained_requests_total", "Requests under a grammar or a schema.",
               gauges.num_constraints);
  page.counter("volley:kernel_compiles_total", "Kernels compiled since the server became ready.",
               gauges.num_kernel_compiles);

  const auto histogram = [&](const Histogram& values, const char* name, const char* help) {
    values.render(name, help, model, page.text());
  };
  histogram(first_token_, "vllm:time_to_first_token_seconds", "From request to first token.");
  histogram(inter_token_, "vllm:inter_token_latency_seconds",
            "Between two steps of an answer; a step may bring several tokens.");
  histogram(per_output_token_, "vllm:request_time_per_output_token_seconds",
            "Mean time a token after the first, by answer.");
  histogram(end_to_end_, "vllm:e2e_request_latency_seconds", "From request to last token.");
  histogram(queue_, "vllm:request_queue_time_seconds", "From request to first step.");
  histogram(acceptance_length_, "volley:request_acceptance_length",
            "Tokens a target pass, bonus token included, by answer.");
  return std::move(page.text());
}

}  // namespace volley::server
