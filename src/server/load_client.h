#pragma once

// Load on an OpenAI-compatible server, and what came of it. One thread, any number of streams.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace volley::server {

struct LoadRequest {
  std::string body;    // JSON of a streaming request
  double start_s = 0;  // open loop: when it is sent, from the beginning of the run
};

struct LoadConfig {
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string path = "/v1/chat/completions";
  std::string api_key;
  int max_concurrency = 1;  // requests in flight; the open loop's upper bound
  bool open_loop = false;   // start_s counts; otherwise as soon as a place is free
  double request_timeout_s = 600;
};

struct LoadResult {
  bool ok = false;
  std::string error;
  double start_s = 0;          // when it was sent
  double first_token_s = 0;    // from its start
  double end_s = 0;            // from its start
  std::vector<double> gaps_s;  // between two chunks that carried text
  int64_t num_text_events = 0;
  bool has_usage = true;
  int64_t num_prompt_tokens = 0;  // as the server counts
  int64_t num_tokens = 0;         // likewise; without usage, num_text_events
  std::string text;
};

// Runs all requests; results in their order. `on_done(count)` is called after each.
Result<std::vector<LoadResult>> run_load(const LoadConfig& config,
                                         const std::vector<LoadRequest>& requests,
                                         const std::function<void(int)>& on_done);

// One GET; the body of a 200.
Result<std::string> http_get(const LoadConfig& config, const std::string& path);

// Percentiles and means of a run, as `vllm bench serve` reports them.
struct LoadGoal {
  double ttft_ms = 0;  // 0: no goal; a request that meets all goals counts as good
  double tpot_ms = 0;
  double e2el_ms = 0;
};
Json load_report(const std::vector<LoadResult>& results, double duration_s, const LoadGoal& goal,
                 const std::vector<double>& percentiles);

}  // namespace volley::server
