#include "app/bench_batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "base/check.h"
#include "base/clock.h"

namespace volley {
namespace {

struct Round {
  std::vector<std::vector<int32_t>> tokens;  // of each request
  int64_t num_tokens = 0;
  double seconds = 0;
  int64_t num_passes = 0;  // that yielded tokens after the first, over all sequences
  int64_t num_draft_passes = 0;

  double tok_s() const { return seconds > 0 ? static_cast<double>(num_tokens) / seconds : 0; }
};

Result<Round> run_round(Engine& engine, const std::vector<GenerationRequest>& requests,
                        DraftPolicy draft, int concurrency) {
  CHECK(engine.idle());
  Round round;
  const size_t count = std::max(requests.size(), size_t{2} * static_cast<size_t>(concurrency));
  round.tokens.resize(count);
  std::unordered_map<RequestId, size_t> live;
  size_t next = 0;
  while (next < count || !live.empty()) {
    while (next < count && static_cast<int>(live.size()) < concurrency) {
      GenerationRequest request = requests[next % requests.size()];
      request.draft = draft;
      VOLLEY_TRY(const RequestId id, engine.submit(std::move(request)));
      live.emplace(id, next++);
    }
    const double start = now_s();
    const std::span<const StepOutput> outputs = engine.step();
    round.seconds += now_s() - start;
    for (const StepOutput& output : outputs) {
      const auto found = live.find(output.id);
      CHECK(found != live.end());
      std::vector<int32_t>& tokens = round.tokens[found->second];
      tokens.insert(tokens.end(), output.tokens.begin(), output.tokens.end());
      round.num_tokens += static_cast<int64_t>(output.tokens.size());
      if (output.finish == FinishReason::kNone) continue;
      const SpeculationStats* stats = engine.stats(output.id);
      CHECK(stats != nullptr);
      round.num_passes += stats->num_target_passes - 1;
      round.num_draft_passes += stats->num_draft_passes;
      live.erase(found);
    }
  }
  return round;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Result<BatchResult> measure_batch(Engine& engine, const std::vector<GenerationRequest>& requests,
                                  DraftPolicy draft, int concurrency, int rounds,
                                  const std::function<void(const std::string&)>& on_progress) {
  CHECK(!requests.empty());
  BatchResult result{.concurrency = concurrency, .identical = true};
  std::vector<std::vector<int32_t>> expected;
  std::vector<double> plain_tok_s;
  std::vector<double> draft_tok_s;
  for (int i = 0; i < 2 * rounds; ++i) {
    // plain, drafted, drafted, plain, ...
    const bool plain = (i + 1) / 2 % 2 == 0;
    VOLLEY_TRY(Round round,
               run_round(engine, requests, plain ? DraftPolicy::off() : draft, concurrency));
    (plain ? plain_tok_s : draft_tok_s).push_back(round.tok_s());
    result.num_tokens = round.num_tokens;
    if (!plain && round.num_passes > 0) {
      const auto num_passes = static_cast<double>(round.num_passes);
      const auto num_later = static_cast<double>(round.num_tokens - std::ssize(round.tokens));
      result.acceptance_length = num_later / num_passes;
      result.drafted_share = static_cast<double>(round.num_draft_passes) / num_passes;
    }
    if (expected.empty())
      expected = std::move(round.tokens);
    else
      result.identical &= round.tokens == expected;
    if (on_progress) {
      on_progress(fmt::format("{} in flight, round {} of {}: {:.0f} tok/s {}", concurrency,
                              i / 2 + 1, rounds, round.tok_s(), plain ? "plain" : "drafted"));
    }
  }
  std::vector<double> speedups;
  for (int i = 0; i < rounds; ++i) speedups.push_back(draft_tok_s[i] / plain_tok_s[i]);
  result.plain_tok_s = median(std::move(plain_tok_s));
  result.draft_tok_s = median(std::move(draft_tok_s));
  result.speedup = median(std::move(speedups));
  return result;
}

std::string batch_table(const std::vector<BatchResult>& results) {
  std::string table =
      fmt::format("{:>9}  {:>11}  {:>13}  {:>7}  {:>17}  {:>13}  {}\n", "in flight", "plain tok/s",
                  "drafted tok/s", "speedup", "acceptance_length", "passes drafted", "identical");
  for (const BatchResult& r : results) {
    table += fmt::format("{:>9}  {:>11.1f}  {:>13.1f}  {:>6.2f}x  {:>17.2f}  {:>13.0f}%  {}\n",
                         r.concurrency, r.plain_tok_s, r.draft_tok_s, r.speedup,
                         r.acceptance_length, 100 * r.drafted_share, r.identical ? "yes" : "NO");
  }
  return table;
}

Json batch_json(const std::vector<BatchResult>& results) {
  Json rows = Json::array();
  for (const BatchResult& r : results) {
    rows.push_back({{"concurrency", r.concurrency},
                    {"tokens", r.num_tokens},
                    {"plain_tok_s", r.plain_tok_s},
                    {"draft_tok_s", r.draft_tok_s},
                    {"speedup", r.speedup},
                    {"acceptance_length", r.acceptance_length},
                    {"drafted_share", r.drafted_share},
                    {"identical", r.identical}});
  }
  return {{"concurrency", rows}};
}

}  // namespace volley
