#pragma once

// Throughput with several requests in flight: plain against drafted, on the same engine.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "app/answer.h"
#include "base/json.h"

namespace volley {

// All requests through the engine, `concurrency` of them at a time, each time one way.
struct BatchResult {
  int concurrency = 0;
  int64_t num_tokens = 0;  // of one way
  double plain_tok_s = 0;  // tokens / time of all steps, prefill included
  double draft_tok_s = 0;
  double speedup = 0;
  double acceptance_length = 0;  // tokens a target pass and sequence, of the drafted way
  double drafted_share = 0;      // of the target passes that had drafts
  bool identical = false;        // token by token
};

// Runs `requests` plainly and under `draft`, in alternating order `rounds` times, and takes
// medians: of each way's rounds, and for the speedup of what neighbouring rounds say. Requests
// beyond the list's end start over, so that there are at least 2 * concurrency. The engine is idle
// and holds at least `concurrency` sequences. Errors: those of Engine::submit().
Result<BatchResult> measure_batch(Engine& engine, const std::vector<GenerationRequest>& requests,
                                  DraftPolicy draft, int concurrency, int rounds,
                                  const std::function<void(const std::string&)>& on_progress);

std::string batch_table(const std::vector<BatchResult>& results);
Json batch_json(const std::vector<BatchResult>& results);

}  // namespace volley
