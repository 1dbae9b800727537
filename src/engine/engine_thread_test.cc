#include "engine/engine_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <random>

#include "model/random_weights.h"
#include "ops/ref/ref_ops.h"

namespace volley {
namespace {

constexpr int kVocab = 97;

// Collects one request's events; done() is ready after the last.
class Answer {
 public:
  GenerationSink sink() {
    return [this](GenerationEvent&& event) {
      ++num_events_;
      tokens_.insert(tokens_.end(), event.tokens.begin(), event.tokens.end());
      if (!event.last()) return;
      finish_ = event.finish;
      error_ = event.error;
      done_.set_value();
    };
  }
  void wait() { ASSERT_EQ(ready_.wait_for(std::chrono::seconds(60)), std::future_status::ready); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  FinishReason finish() const { return finish_; }
  const std::optional<Error>& error() const { return error_; }
  int num_events() const { return num_events_; }

 private:
  std::vector<int32_t> tokens_;
  FinishReason finish_ = FinishReason::kNone;
  std::optional<Error> error_;
  std::atomic<int> num_events_ = 0;
  std::promise<void> done_;
  std::future<void> ready_ = done_.get_future();
};

class EngineThreadTest : public testing::Test {
 protected:
  void SetUp() override {
    const EngineConfig config{
        .max_num_seqs = 4, .max_queued = 64, .prefill_chunk = 32, .page_size = 32};
    const TargetConfig target{.hidden_size = 32,
                              .num_layers = 3,
                              .num_heads = 4,
                              .num_kv_heads = 2,
                              .head_dim = 8,
                              .intermediate_size = 48,
                              .vocab_size = kVocab,
                              .max_position_embeddings = 4096,
                              .qk_norm = true,
                              .layer_window = {0, 0, 0}};
    const DrafterConfig drafter{.hidden_size = 32,
                                .target_hidden_size = 32,
                                .num_layers = 2,
                                .num_heads = 4,
                                .num_kv_heads = 2,
                                .head_dim = 8,
                                .intermediate_size = 48,
                                .vocab_size = kVocab,
                                .draft_vocab_size = kVocab,
                                .max_position_embeddings = 4096,
                                .block_size = 8,
                                .mask_token_id = 3,
                                .taps = {0, 2},
                                .attention = {{}, {}}};
    ops_ = make_ref_ops();
    RandomWeights random(7);
    const ModelLimits limits = Engine::model_limits(config, target, &drafter);
    target_ = *TargetModel::create(target, random.target(target), limits, *ops_);
    drafter_ = *DflashDrafter::create(drafter, random.drafter(drafter), *target_, limits, *ops_);
    engine_ = *Engine::create(config, *target_, drafter_.get(), *ops_);
    free_at_rest_ = EngineThread(*engine_, {}).snapshot().num_free_pages;
    thread_ = std::make_unique<EngineThread>(*engine_, EngineThread::Config{.max_live = 32});
  }

  Result<Ticket> submit(GenerationRequest request, Answer& answer) {
    std::vector<Submission> group;
    group.push_back({std::move(request), answer.sink()});
    VOLLEY_TRY(const std::vector<Ticket> tickets, thread_->submit(std::move(group)));
    return tickets[0];
  }

  std::unique_ptr<Ops> ops_;
  std::unique_ptr<TargetModel> target_;
  std::unique_ptr<DflashDrafter> drafter_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<EngineThread> thread_;
  int free_at_rest_ = 0;
};

std::vector<int32_t> random_prompt(int length, int seed) {
  std::mt19937 rng(seed);
  std::vector<int32_t> prompt(length);
  for (int32_t& id : prompt) id = rng() % kVocab;
  return prompt;
}

TEST_F(EngineThreadTest, AnswersFromManyThreadsEqualThoseAlone) {
  constexpr int kThreads = 4;
  constexpr int kEach = 6;
  std::vector<std::vector<int32_t>> alone;
  for (int i = 0; i < kThreads * kEach; ++i) {
    Answer answer;
    ASSERT_TRUE(submit(
        {.prompt_ids = random_prompt(5 + i, i), .max_tokens = 24, .draft = DraftPolicy::off()},
        answer));
    answer.wait();
    EXPECT_EQ(answer.finish(), FinishReason::kLength);
    alone.push_back(answer.tokens());
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::vector<Answer> answers(kEach);
      for (int i = 0; i < kEach; ++i) {
        const int idx = t * kEach + i;
        ASSERT_TRUE(submit({.prompt_ids = random_prompt(5 + idx, idx),
                            .max_tokens = 24,
                            .draft = DraftPolicy::fixed(i)},
                           answers[i]));
      }
      for (int i = 0; i < kEach; ++i) {
        answers[i].wait();
        EXPECT_EQ(answers[i].tokens(), alone[t * kEach + i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const EngineSnapshot now = thread_->snapshot();
  EXPECT_EQ(now.num_length, 2 * kThreads * kEach);
  EXPECT_EQ(now.num_generated_tokens, 24 * 2 * kThreads * kEach);
  EXPECT_GT(now.num_drafts, 0);
  EXPECT_EQ(now.num_free_pages, free_at_rest_);
}

TEST_F(EngineThreadTest, CancelFreesPagesAtOnce) {
  for (int round = 0; round < 20; ++round) {
    Answer answer;
    const auto ticket =
        submit({.prompt_ids = random_prompt(40, round), .max_tokens = 4000}, answer);
    ASSERT_TRUE(ticket);
    while (round % 2 == 0 && answer.num_events() < 2) std::this_thread::yield();
    thread_->cancel(*ticket);
    thread_->cancel(*ticket);
    answer.wait();
    EXPECT_EQ(answer.finish(), FinishReason::kCancelled);
    EXPECT_EQ(thread_->snapshot().num_free_pages, free_at_rest_);
  }
  thread_->cancel(Ticket{12345});
  EXPECT_EQ(thread_->snapshot().num_cancelled, 20);
}

TEST_F(EngineThreadTest, GroupsAreTakenWholeOrNotAtAll) {
  std::vector<Answer> answers(33);
  std::vector<Submission> group;
  for (Answer& answer : answers) {
    group.push_back({{.prompt_ids = {1, 2}, .max_tokens = 4}, answer.sink()});
  }
  const auto refused = thread_->submit(std::move(group));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::kExhausted);
  EXPECT_EQ(thread_->num_live(), 0);
}

TEST_F(EngineThreadTest, ABadRequestHearsWhy) {
  Answer answer;
  ASSERT_TRUE(submit({.prompt_ids = {1, kVocab}}, answer));
  answer.wait();
  ASSERT_TRUE(answer.error().has_value());
  EXPECT_EQ(answer.error()->kind, ErrorKind::kInvalidInput);
  EXPECT_EQ(thread_->num_live(), 0);
}

TEST_F(EngineThreadTest, DrainRefusesAndWaits) {
  Answer answer;
  ASSERT_TRUE(submit({.prompt_ids = random_prompt(9, 1), .max_tokens = 100}, answer));
  EXPECT_TRUE(thread_->drain(60));
  answer.wait();
  EXPECT_EQ(answer.tokens().size(), 100u);
  Answer late;
  EXPECT_FALSE(submit({.prompt_ids = {1}}, late));
}

TEST_F(EngineThreadTest, EndingTheThreadCancelsWhatLives) {
  std::vector<Answer> answers(8);
  for (Answer& answer : answers) {
    ASSERT_TRUE(submit({.prompt_ids = random_prompt(9, 1), .max_tokens = 240}, answer));
  }
  thread_.reset();
  for (Answer& answer : answers) {
    answer.wait();
    EXPECT_EQ(answer.finish(), FinishReason::kCancelled);
  }
}

}  // namespace
}  // namespace volley
