#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "model/random_weights.h"
#include "ops/ref/ref_ops.h"

namespace volley {
namespace {

constexpr int kVocab = 97;

TargetConfig small_target() {
  return {.hidden_size = 32,
          .num_layers = 3,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 8,
          .intermediate_size = 48,
          .vocab_size = kVocab,
          .max_position_embeddings = 512,
          .qk_norm = true,
          .layer_window = {0, 0, 0}};
}

DrafterConfig small_drafter() {
  return {.hidden_size = 32,
          .target_hidden_size = 32,
          .num_layers = 2,
          .num_heads = 4,
          .num_kv_heads = 2,
          .head_dim = 8,
          .intermediate_size = 48,
          .vocab_size = kVocab,
          .draft_vocab_size = kVocab,
          .max_position_embeddings = 512,
          .block_size = 8,
          .mask_token_id = 3,
          .taps = {0, 2},
          .attention = {{}, {.window = 5}}};
}

struct Answer {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
};

class EngineTest : public testing::Test {
 protected:
  void SetUp() override { build({.max_num_seqs = 3, .prefill_chunk = 64, .page_size = 32}); }

  void build(const EngineConfig& config, bool with_drafter = true) {
    engine_.reset();
    ops_ = make_ref_ops();
    const TargetConfig target_config = small_target();
    const DrafterConfig draft_config = small_drafter();
    RandomWeights random(7);
    const ModelLimits limits = Engine::model_limits(config, target_config, &draft_config);
    target_ = *TargetModel::create(target_config, random.target(target_config), limits, *ops_);
    drafter_ =
        *DflashDrafter::create(draft_config, random.drafter(draft_config), *target_, limits, *ops_);
    engine_ = *Engine::create(config, *target_, with_drafter ? drafter_.get() : nullptr, *ops_);
  }

  // Runs requests together; answers by id, in the order given.
  std::vector<Answer> run(std::vector<GenerationRequest> requests) {
    std::vector<RequestId> ids;
    for (auto& request : requests) ids.push_back(engine_->submit(std::move(request)).value());
    std::map<RequestId, Answer> answers;
    for (int step = 0; !engine_->idle() && step < 10'000; ++step) {
      for (const StepOutput& output : engine_->step()) {
        Answer& answer = answers[output.id];
        answer.tokens.insert(answer.tokens.end(), output.tokens.begin(), output.tokens.end());
        answer.finish = output.finish;
        num_cached_ = output.num_cached_tokens;
        if (const SpeculationStats* stats = engine_->stats(output.id)) stats_[output.id] = *stats;
      }
    }
    EXPECT_TRUE(engine_->idle());
    const KvPages& pages = engine_->scheduler().pages();
    EXPECT_EQ(pages.num_available(), pages.num_pages());
    std::vector<Answer> ordered;
    for (const RequestId id : ids) ordered.push_back(answers[id]);
    return ordered;
  }

  std::unique_ptr<Ops> ops_;
  std::unique_ptr<TargetModel> target_;
  std::unique_ptr<DflashDrafter> drafter_;
  std::unique_ptr<Engine> engine_;
  std::map<RequestId, SpeculationStats> stats_;
  int num_cached_ = 0;
};

std::vector<int32_t> random_prompt(int length, int seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> prompt(length);
  for (int32_t& id : prompt) id = rng() % kVocab;
  return prompt;
}

// Law 1 over every setting that must not matter, several requests at a time against each alone.
TEST_F(EngineTest, SameAnswerHoweverItIsComputed) {
  const std::vector<DraftPolicy> policies{DraftPolicy::off(),
                                          DraftPolicy::fixed(1),
                                          DraftPolicy::fixed(4),
                                          DraftPolicy::fixed(7),
                                          {.mode = DraftPolicy::Mode::kFixed, .length = 6},
                                          DraftPolicy{}};
  int compared = 0;
  for (int seed = 0; seed < 6; ++seed) {
    SamplingParams sampling{.seed = static_cast<uint64_t>(seed)};
    if (seed % 3 == 1) sampling.temperature = 0.8f;
    if (seed % 3 == 2) {
      sampling.temperature = 1.2f;
      sampling.top_k = 20;
      sampling.top_p = 0.9f;
      sampling.repetition_penalty = 1.3f;
      sampling.frequency_penalty = 0.5f;
      sampling.logit_bias = {{5, 2.0f}};
    }
    const auto prompt = random_prompt(11 + 17 * seed, seed);
    const auto reference = run({{.prompt_ids = prompt,
                                 .max_tokens = 40,
                                 .sampling = sampling,
                                 .draft = DraftPolicy::off()}})[0];
    ASSERT_EQ(reference.tokens.size(), 40u);
    std::vector<GenerationRequest> together;
    for (const DraftPolicy& policy : policies) {
      for (const int chunk : {1, 7, 0}) {
        for (const auto draft_sampling : {DraftSampling::kCoupled, DraftSampling::kArgmax}) {
          together.push_back({.prompt_ids = prompt,
                              .max_tokens = 40,
                              .sampling = sampling,
                              .draft = policy,
                              .draft_sampling = draft_sampling,
                              .prefill_chunk = chunk});
        }
      }
    }
    const size_t count = together.size();
    const auto answers = run(std::move(together));
    for (size_t i = 0; i < count; ++i, ++compared) {
      ASSERT_EQ(answers[i].tokens, reference.tokens) << "seed " << seed << " variant " << i;
    }
  }
  EXPECT_EQ(compared, 216);
}

// Branches win on a weak drafter, and every one that wins leaves the KV and the taps of its own
// rows behind: the answer stays the same to the end.
TEST_F(EngineTest, BranchesChangeNothingButTheSpeed) {
  int64_t accepted[2] = {0, 0};
  for (int seed = 0; seed < 12; ++seed) {
    const auto prompt = random_prompt(5 + 13 * seed, seed);
    const auto plain =
        run({{.prompt_ids = prompt, .max_tokens = 120, .draft = DraftPolicy::off()}})[0];
    for (const bool branches : {false, true}) {
      DraftPolicy policy = DraftPolicy::fixed(7);
      policy.branches = branches;
      const auto drafted = run({{.prompt_ids = prompt, .max_tokens = 120, .draft = policy}})[0];
      ASSERT_EQ(drafted.tokens, plain.tokens) << "seed " << seed;
      accepted[branches] += stats_.rbegin()->second.num_accepted_drafts;
    }
  }
  EXPECT_GT(accepted[true], accepted[false]);
}

// A drafter that is right yields whole blocks; statistics add up.
TEST_F(EngineTest, StatisticsAddUp) {
  run({{.prompt_ids = random_prompt(20, 1), .max_tokens = 64, .draft = DraftPolicy::fixed(7)}});
  ASSERT_EQ(stats_.size(), 1u);
  const SpeculationStats& stats = stats_.begin()->second;
  EXPECT_EQ(stats.num_tokens, 64);
  EXPECT_EQ(stats.num_tokens, stats.num_target_passes + stats.num_accepted_drafts);
  int64_t drafted = 0;
  int64_t accepted = 0;
  for (size_t i = 0; i < stats.drafted_at.size(); ++i) {
    drafted += stats.drafted_at[i];
    accepted += stats.accepted_at[i];
    EXPECT_LE(stats.accepted_at[i], stats.drafted_at[i]);
  }
  EXPECT_EQ(drafted, stats.num_drafted);
  EXPECT_EQ(accepted, stats.num_accepted_drafts);
  EXPECT_GE(stats.acceptance_length(), 1.0);
}

TEST_F(EngineTest, StopTokensEndTheAnswerInsideABlock) {
  const auto prompt = random_prompt(20, 2);
  const auto whole =
      run({{.prompt_ids = prompt, .max_tokens = 40, .draft = DraftPolicy::off()}})[0];
  const int32_t stop = whole.tokens[17];
  const auto first = std::find(whole.tokens.begin(), whole.tokens.end(), stop);
  const std::vector<int32_t> expected(whole.tokens.begin(), first + 1);
  for (const DraftPolicy& policy : {DraftPolicy::off(), DraftPolicy::fixed(7), DraftPolicy{}}) {
    const auto answer =
        run({{.prompt_ids = prompt, .max_tokens = 40, .stop_ids = {stop}, .draft = policy}})[0];
    EXPECT_EQ(answer.tokens, expected);
    EXPECT_EQ(answer.finish, FinishReason::kStop);
  }
}

TEST_F(EngineTest, ContextLimitEndsTheAnswer) {
  build({.max_num_seqs = 2, .max_model_len = 64, .prefill_chunk = 64, .page_size = 32});
  for (const DraftPolicy& policy : {DraftPolicy::off(), DraftPolicy::fixed(7)}) {
    const auto answer =
        run({{.prompt_ids = random_prompt(50, 3), .max_tokens = 1000, .draft = policy}})[0];
    EXPECT_EQ(answer.tokens.size(), 14u);
    EXPECT_EQ(answer.finish, FinishReason::kLength);
  }
}

TEST_F(EngineTest, CancelFreesItsPagesAndNobodyElses) {
  const auto prompt = random_prompt(30, 4);
  const auto alone = run({{.prompt_ids = prompt, .max_tokens = 30}})[0];
  for (int cancel_after = 0; cancel_after < 8; ++cancel_after) {
    std::vector<RequestId> ids;
    for (int i = 0; i < 5; ++i) {  // three run, two wait
      ids.push_back(*engine_->submit({.prompt_ids = prompt, .max_tokens = 30}));
    }
    std::map<RequestId, std::vector<int32_t>> tokens;
    for (int step = 0; !engine_->idle(); ++step) {
      if (step == cancel_after) {
        EXPECT_TRUE(engine_->cancel(ids[1]));
        EXPECT_FALSE(engine_->cancel(ids[1]));
        EXPECT_TRUE(engine_->cancel(ids[4]));
      }
      for (const StepOutput& output : engine_->step()) {
        tokens[output.id].insert(tokens[output.id].end(), output.tokens.begin(),
                                 output.tokens.end());
      }
    }
    for (const int i : {0, 2, 3}) EXPECT_EQ(tokens[ids[i]], alone.tokens);
    const KvPages& pages = engine_->scheduler().pages();
    EXPECT_EQ(pages.num_available(), pages.num_pages());
  }
}

// A prefix hit restores the target's and the drafter's KV together: same answer, same acceptance.
TEST_F(EngineTest, PrefixHitsChangeNothingButTheWork) {
  const auto prompt = random_prompt(150, 6);
  for (const DraftPolicy& policy : {DraftPolicy::fixed(7), DraftPolicy::off(), DraftPolicy{}}) {
    build({.max_num_seqs = 3, .prefill_chunk = 64, .page_size = 32});
    const GenerationRequest request{.prompt_ids = prompt, .max_tokens = 40, .draft = policy};
    const auto cold = run({request})[0];
    const SpeculationStats cold_stats = stats_.rbegin()->second;
    EXPECT_EQ(num_cached_, 0);
    const auto warm = run({request})[0];
    EXPECT_EQ(num_cached_, 128);
    EXPECT_EQ(warm.tokens, cold.tokens);
    if (policy.mode == DraftPolicy::Mode::kFixed) {
      EXPECT_EQ(stats_.rbegin()->second.num_accepted_drafts, cold_stats.num_accepted_drafts);
    }
    // The answer is cached as well: a second turn finds it.
    GenerationRequest second_turn = request;
    second_turn.prompt_ids.insert(second_turn.prompt_ids.end(), cold.tokens.begin(),
                                  cold.tokens.end());
    const auto continued = run({second_turn})[0];
    EXPECT_GE(num_cached_, 160);
    build({.max_num_seqs = 1, .prefill_chunk = 16, .page_size = 64, .prefix_caching = false});
    EXPECT_EQ(run({second_turn})[0].tokens, continued.tokens);
    EXPECT_EQ(num_cached_, 0);
  }
}

// What was cached while decoding plainly has no drafter KV, so a drafting request does not use it.
TEST_F(EngineTest, PlainPagesAreNoHitForADraftingRequest) {
  GenerationRequest request{
      .prompt_ids = random_prompt(100, 8), .max_tokens = 20, .draft = DraftPolicy::off()};
  const auto plain = run({request})[0];
  request.draft = DraftPolicy::fixed(7);
  EXPECT_EQ(run({request})[0].tokens, plain.tokens);
  EXPECT_EQ(num_cached_, 0);
  EXPECT_EQ(run({request})[0].tokens, plain.tokens);
  EXPECT_EQ(num_cached_, 96);
}

// With pages for hardly more than one sequence, the others are preempted and come back unchanged.
TEST_F(EngineTest, PreemptionChangesNothing) {
  build({.max_num_seqs = 3,
         .max_model_len = 256,
         .prefill_chunk = 64,
         .page_size = 32,
         .kv_positions = 320});
  std::vector<GenerationRequest> requests;
  std::vector<Answer> alone;
  for (int i = 0; i < 5; ++i) {
    const GenerationRequest request{.prompt_ids = random_prompt(60, 20 + i),
                                    .max_tokens = 150,
                                    .sampling = {.temperature = i % 2 ? 1.0f : 0.0f, .seed = 5},
                                    .draft = i % 3 ? DraftPolicy{} : DraftPolicy::fixed(5)};
    alone.push_back(run({request})[0]);
    requests.push_back(request);
  }
  const auto together = run(requests);
  EXPECT_GT(engine_->scheduler().num_preemptions(), 0);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(together[i].tokens, alone[i].tokens) << i;
}

// Allows tokens whose id is congruent to the position modulo 3: a grammar with state.
class ModuloFilter : public TokenFilter {
 public:
  void allowed(std::span<uint32_t> mask) const override {
    std::fill(mask.begin(), mask.end(), 0u);
    for (int token = state_; token < kVocab; token += 3) mask[token / 32] |= 1u << (token % 32);
  }
  void accept(int32_t token) override {
    ASSERT_EQ(token % 3, state_);
    state_ = (state_ + 1) % 3;
  }
  std::unique_ptr<TokenFilter> clone() const override {
    return std::make_unique<ModuloFilter>(*this);
  }

 private:
  int state_ = 0;
};

// A drafter that never guesses right: in a crowd its sequences soon do without, and say the same.
TEST_F(EngineTest, ACrowdWithAUselessDrafterRests) {
  constexpr int kCount = 16;
  build({.max_num_seqs = kCount, .prefill_chunk = 64, .page_size = 32});
  const auto requests = [](DraftPolicy draft) {
    std::vector<GenerationRequest> result;
    for (int i = 0; i < kCount; ++i) {
      result.push_back({.prompt_ids = random_prompt(9 + i, i), .max_tokens = 40, .draft = draft});
    }
    return result;
  };
  const std::vector<Answer> plain = run(requests(DraftPolicy::off()));
  bool all_rest = false;
  for (int round = 0; round < 12 && !all_rest; ++round) {
    stats_.clear();
    const std::vector<Answer> answers = run(requests({}));
    for (int i = 0; i < kCount; ++i) EXPECT_EQ(answers[i].tokens, plain[i].tokens);
    all_rest = std::all_of(stats_.begin(), stats_.end(),
                           [](const auto& entry) { return entry.second.num_draft_passes == 0; });
  }
  EXPECT_TRUE(all_rest);
  // One that comes later, alone, drafts again.
  stats_.clear();
  run({{.prompt_ids = random_prompt(20, 99), .max_tokens = 40}});
  EXPECT_GT(stats_.begin()->second.num_draft_passes, 0);
}

TEST_F(EngineTest, AGrammarAdvancesInsideTheBlock) {
  for (const float temperature : {0.0f, 1.0f}) {
    std::vector<std::vector<int32_t>> answers;
    for (const DraftPolicy& policy : {DraftPolicy::off(), DraftPolicy::fixed(7), DraftPolicy{}}) {
      answers.push_back(run({{.prompt_ids = random_prompt(20, 9),
                              .max_tokens = 30,
                              .sampling = {.temperature = temperature},
                              .draft = policy,
                              .filter = std::make_shared<ModuloFilter>()}})[0]
                            .tokens);
      for (int i = 0; i < 30; ++i) EXPECT_EQ(answers.back()[i] % 3, i % 3);
    }
    EXPECT_EQ(answers[1], answers[0]);
    EXPECT_EQ(answers[2], answers[0]);
  }
}

TEST_F(EngineTest, LogprobsComeWithEveryToken) {
  std::vector<std::vector<float>> own;
  for (const DraftPolicy& policy : {DraftPolicy::off(), DraftPolicy::fixed(7)}) {
    ASSERT_TRUE(engine_->submit({.prompt_ids = random_prompt(20, 10),
                                 .max_tokens = 12,
                                 .draft = policy,
                                 .num_logprobs = 3}));
    own.emplace_back();
    while (!engine_->idle()) {
      for (const StepOutput& output : engine_->step()) {
        ASSERT_EQ(output.logprobs.size(), output.tokens.size());
        for (size_t i = 0; i < output.tokens.size(); ++i) {
          ASSERT_EQ(output.logprobs[i].top.size(), 3u);
          EXPECT_EQ(output.logprobs[i].top[0].first, output.tokens[i]);  // greedy
          EXPECT_EQ(output.logprobs[i].top[0].second, output.logprobs[i].logprob);
          own.back().push_back(output.logprobs[i].logprob);
        }
      }
    }
  }
  EXPECT_EQ(own[0].size(), 12u);
  EXPECT_EQ(own[1], own[0]);
}

TEST_F(EngineTest, WithoutADrafterItDecodesPlainly) {
  const auto prompt = random_prompt(30, 5);
  const auto drafted = run({{.prompt_ids = prompt, .max_tokens = 30}})[0];
  build({.max_num_seqs = 1, .prefill_chunk = 16, .page_size = 32}, false);
  EXPECT_EQ(run({{.prompt_ids = prompt, .max_tokens = 30}})[0].tokens, drafted.tokens);
}

TEST_F(EngineTest, BadRequestsAreErrors) {
  const auto error = [&](GenerationRequest request) {
    auto id = engine_->submit(std::move(request));
    EXPECT_FALSE(id.has_value());
    return id ? std::string() : id.error().message;
  };
  EXPECT_THAT(error({}), testing::HasSubstr("at least one token"));
  EXPECT_THAT(error({.prompt_ids = {kVocab}}), testing::HasSubstr("outside the vocabulary"));
  EXPECT_THAT(error({.prompt_ids = {-1}}), testing::HasSubstr("outside the vocabulary"));
  EXPECT_THAT(error({.prompt_ids = std::vector<int32_t>(512, 1)}), testing::HasSubstr("context"));
  EXPECT_THAT(error({.prompt_ids = {1}, .max_tokens = 0}), testing::HasSubstr("max_tokens"));
  EXPECT_THAT(error({.prompt_ids = {1}, .sampling = {.top_p = 0}}), testing::HasSubstr("top_p"));
  EXPECT_THAT(error({.prompt_ids = {1}, .draft = DraftPolicy::fixed(8)}),
              testing::HasSubstr("draft length"));
  for (int i = 0; i < 64; ++i) ASSERT_TRUE(engine_->submit({.prompt_ids = {1}, .max_tokens = 1}));
  auto full = engine_->submit({.prompt_ids = {1}});
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().kind, ErrorKind::kExhausted);
}

}  // namespace
}  // namespace volley
