#include "app/bench_measure.h"

#include <random>

namespace volley {

BenchRunner::BenchRunner(const Options& options, Loaded& loaded, AnswerRequest request)
    : options_(options), loaded_(loaded), request_(std::move(request)) {}

Result<Answer> BenchRunner::answer(const std::vector<int32_t>& prompt_ids, DraftPolicy draft,
                                   DraftSampling sampling, const OnAnswerStep& on_step) {
  AnswerRequest request = request_;
  request.generation.prompt_ids = prompt_ids;
  request.generation.draft = draft;
  request.generation.draft_sampling = sampling;
  return run_answer(*loaded_.models.engine, loaded_.text.tokenizer, std::move(request), on_step);
}

Status BenchRunner::warm_up(const std::vector<int32_t>& prompt_ids) {
  AnswerRequest request = request_;
  request.generation.prompt_ids = prompt_ids;
  request.generation.max_tokens = std::min(16, request.generation.max_tokens);
  const int block_size = loaded_.models.engine->block_size();
  for (const DraftPolicy& draft :
       {DraftPolicy::off(), options_.model.draft_length.policy(block_size)}) {
    request.generation.draft = draft;
    VOLLEY_TRY_STATUS(run_answer(*loaded_.models.engine, loaded_.text.tokenizer, request));
  }
  return {};
}

Result<BenchAnswer> BenchRunner::measure(const std::vector<int32_t>& prompt_ids,
                                         const OnAnswerStep& on_drafted_step,
                                         const std::function<void(const Answer&)>& on_plain) {
  const int block_size = loaded_.models.engine->block_size();
  const DraftLengthChoice& length = options_.model.draft_length;
  const DraftPolicy policy = length.policy(block_size);
  const DraftSampling sampling = options_.model.draft_sampling;
  const DraftSampling other_sampling =
      sampling == DraftSampling::kCoupled ? DraftSampling::kArgmax : DraftSampling::kCoupled;

  BenchAnswer result;
  result.drafted_is_coupled = sampling == DraftSampling::kCoupled;
  const bool plain_first = num_measured_++ % 2 == 0;
  for (const bool plain : {plain_first, !plain_first}) {
    if (plain) {
      VOLLEY_TRY(result.plain, answer(prompt_ids, DraftPolicy::off(), sampling));
      if (on_plain) on_plain(result.plain);
    } else {
      VOLLEY_TRY(result.drafted, answer(prompt_ids, policy, sampling, on_drafted_step));
    }
  }
  // A length asked for is measured as it is; auto's own choice says little about the drafter.
  const bool is_auto = length.mode == DraftLengthChoice::Mode::kAuto;
  const DraftPolicy whole = is_auto ? DraftPolicy::fixed(block_size - 1) : policy;
  if (is_auto) {
    VOLLEY_TRY(result.full, answer(prompt_ids, whole, sampling));
  }
  if (options_.bench.compare_samplings) {
    VOLLEY_TRY(result.other_sampling, answer(prompt_ids, whole, other_sampling));
  }
  result.identical = result.drafted.ids == result.plain.ids &&
                     (!result.full || result.full->ids == result.plain.ids) &&
                     (!result.other_sampling || result.other_sampling->ids == result.plain.ids);
  return result;
}

std::vector<int32_t> random_prompt(const Tokenizer& tokenizer, int vocab_size, int num_tokens,
                                   uint64_t seed) {
  std::vector<int32_t> candidates;
  for (int32_t id = 0; id < std::min(vocab_size, tokenizer.vocab_size()); ++id) {
    if (tokenizer.is_token(id) && !tokenizer.is_special(id)) candidates.push_back(id);
  }
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids;
  for (int i = 0; i < num_tokens; ++i) {
    ids.push_back(candidates.empty() ? 0 : candidates[random() % candidates.size()]);
  }
  return ids;
}

}  // namespace volley
