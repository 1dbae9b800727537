#pragma once

// Counters and histograms in the Prometheus text format. What vLLM measures too has vLLM's names,
// so that its dashboards work; what it has not is called volley:. One thread owns a Metrics.

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine_thread.h"

namespace volley::server {

class Histogram {
 public:
  explicit Histogram(std::vector<double> upper_bounds);  // ascending

  void observe(double value);
  int64_t count() const { return count_; }

  // Appends the series `name`, its label "model_name" set to `model`.
  void render(std::string_view name, std::string_view help, std::string_view model,
              std::string& out) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // by bucket, the last one without bound
  double sum_ = 0;
  int64_t count_ = 0;
};

// What the server knows beside the engine's snapshot.
struct ServerGauges {
  bool ready = false;
  int num_connections = 0;
  int max_live = 0;
  int64_t num_constraints = 0;
  int64_t num_kernel_compiles = 0;  // after readiness; law 3 wants 0
};

class Metrics {
 public:
  Metrics();

  void observe_http(std::string_view endpoint, int status);
  void observe_first_token(double seconds) { first_token_.observe(seconds); }
  // A step's tokens came `seconds` after those of the step before.
  void observe_step_gap(double seconds) { inter_token_.observe(seconds); }
  void observe_answer(double queue_s, double end_to_end_s, double per_token_s,
                      std::string_view finish_reason, double acceptance_length);
  void count_client_gone() { ++num_clients_gone_; }

  std::string render(std::string_view model, const EngineSnapshot& engine,
                     const ServerGauges& gauges) const;

 private:
  Histogram first_token_;
  Histogram inter_token_;
  Histogram per_output_token_;
  Histogram end_to_end_;
  Histogram queue_;
  Histogram acceptance_length_;
  std::map<std::pair<std::string, int>, int64_t> http_;  // by endpoint and status
  std::map<std::string, int64_t> finished_;              // by reason
  int64_t num_clients_gone_ = 0;
};

// A label's value with backslash, quote and newline escaped.
std::string label_text(std::string_view value);

}  // namespace volley::server
