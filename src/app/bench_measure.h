#pragma once

// One prompt decoded plainly and with drafts, on the same models, in the same run.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/answer.h"
#include "app/answer_report.h"
#include "app/load.h"
#include "app/options.h"
#include "app/prompts.h"

namespace volley {

// One answer of a benchmark, in every way it was decoded.
struct BenchAnswer {
  std::string source;
  int prompt_idx = 0;  // among all prompts
  int turn_idx = 0;
  Answer plain;
  Answer drafted;  // with the draft length asked for; this one is timed against plain
  // With the drafter's whole block, where `drafted` used another length: what acceptance_length is
  // measured on, as papers do. nullopt: `drafted` itself.
  std::optional<Answer> full;
  std::optional<Answer> other_sampling;  // as `full`, with the other draft sampling
  bool drafted_is_coupled = true;        // which sampling `drafted` and `full` used
  bool identical = false;                // all of them, token by token

  const Answer& for_acceptance() const { return full ? *full : drafted; }
};

class BenchRunner {
 public:
  // `request` holds the sampling parameters, the limit and the stops. `loaded` and `options`
  // outlive the runner.
  BenchRunner(const Options& options, Loaded& loaded, AnswerRequest request);

  // A few tokens each way, thrown away: the first passes touch cold memory.
  Status warm_up(const std::vector<int32_t>& prompt_ids);

  // Decodes both ways; which goes first alternates from call to call. The callback sees the drafted
  // answer's steps.
  Result<BenchAnswer> measure(const std::vector<int32_t>& prompt_ids,
                              const OnAnswerStep& on_drafted_step = {},
                              const std::function<void(const Answer&)>& on_plain = {});

  // Prompts longer than this leave no room for an answer.
  int max_prompt_tokens() const { return loaded_.models.engine->max_model_len() - 1; }

 private:
  Result<Answer> answer(const std::vector<int32_t>& prompt_ids, DraftPolicy draft,
                        DraftSampling sampling, const OnAnswerStep& on_step = {});

  const Options& options_;
  Loaded& loaded_;
  AnswerRequest request_;
  int num_measured_ = 0;
};

// A prompt of tokens drawn evenly from the vocabulary, special ones left out.
std::vector<int32_t> random_prompt(const Tokenizer& tokenizer, int vocab_size, int num_tokens,
                                   uint64_t seed);

}  // namespace volley
