#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace volley {

// `volley bench serve`: load on an OpenAI-compatible server. `arguments` after "bench serve".
Result<int> run_bench_serve(const std::vector<std::string>& arguments);

}  // namespace volley
