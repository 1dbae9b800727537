#pragma once

// What `volley serve` is told, from a TOML file, the environment (VOLLEY_*) and flags; each wins
// over the one before it. One table names every setting, so all three know the same ones.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/model_folders.h"
#include "app/options.h"
#include "base/log.h"
#include "server/api_request.h"
#include "server/http.h"

namespace volley {

struct ServeOptions {
  ModelOptions model;
  EngineConfig engine{.max_num_seqs = 16, .max_queued = 256};
  std::vector<std::string> served_names;

  std::string host = "127.0.0.1";
  int port = 8080;
  std::vector<std::string> api_keys;
  std::string api_key_file;  // one a line
  std::vector<std::string> cors_origins;
  std::vector<std::string> allowed_hosts;
  server::HttpLimits http;
  server::ApiLimits api;
  double drain_timeout_s = 30;
  server::SpecMetrics spec_metrics = server::SpecMetrics::kNone;
  std::string reasoning_parser = "auto";  // or "none"

  bool log_json = false;
  bool log_requests = true;
  LogLevel log_level = LogLevel::kInfo;

  std::string help;  // not empty: print it and do nothing
};

// `arguments` after "serve". Errors name the setting and where it was given.
Result<ServeOptions> parse_serve_options(const std::vector<std::string>& arguments,
                                         const Environment& environment);

}  // namespace volley
