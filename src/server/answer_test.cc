#include "server/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace volley::server {
namespace {

class AnswerTest : public testing::Test {
 protected:
  static const Tokenizer& tokenizer() {
    static const Tokenizer instance = *Tokenizer::load("models/demo-target");
    return instance;
  }
};

// Feeds ids in groups of `size`.
Answer feed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, AnswerConfig config,
            size_t size, FinishReason finish) {
  Answer answer(tokenizer, config);
  std::string streamed;
  for (size_t i = 0; i < ids.size(); i += size) {
    GenerationEvent event;
    event.tokens.assign(ids.begin() + i, ids.begin() + std::min(ids.size(), i + size));
    event.num_drafted = event.draft_depth = static_cast<int>(event.tokens.size()) + 2;
    event.num_accepted_drafts = static_cast<int>(event.tokens.size()) - 1;
    if (i + size >= ids.size()) event.finish = finish;
    streamed += answer.push(event).text;
  }
  EXPECT_EQ(streamed, answer.text());
  return answer;
}

TEST_F(AnswerTest, TextDoesNotDependOnSteps) {
  const std::string text = "Zażółć gęślą jaźń — 日本語 🎉 and then some words, stop here. More.";
  const auto ids = tokenizer().encode(text);
  for (const size_t size : {1, 2, 3, 7, 100}) {
    const Answer whole = feed(tokenizer(), ids, {}, size, FinishReason::kLength);
    EXPECT_EQ(whole.text(), text);
    EXPECT_EQ(whole.finish_reason(), "length");
    EXPECT_EQ(whole.tokens(), ids);
  }
}

TEST_F(AnswerTest, AStopStringEndsTheCountAtTheSameToken) {
  const auto ids = tokenizer().encode("one two three STOP four five six");
  size_t num_tokens = 0;
  for (const size_t size : {1, 2, 5, 100}) {
    const Answer answer =
        feed(tokenizer(), ids, {.stop = {"zzz", "TOP"}}, size, FinishReason::kLength);
    EXPECT_EQ(answer.text(), "one two three S");
    EXPECT_EQ(answer.finish_reason(), "stop");
    EXPECT_EQ(answer.matched_string(), "TOP");
    EXPECT_TRUE(answer.stopped_by_string());
    if (num_tokens == 0) num_tokens = answer.tokens().size();
    EXPECT_EQ(answer.tokens().size(), num_tokens);
    EXPECT_LT(num_tokens, ids.size());
  }
}

TEST_F(AnswerTest, TheStopTokenIsCountedNotShown) {
  auto ids = tokenizer().encode("done");
  ids.push_back(ids[0]);
  const Answer answer = feed(tokenizer(), ids, {}, 100, FinishReason::kStop);
  EXPECT_EQ(answer.text(), "done");
  EXPECT_EQ(answer.tokens().size(), ids.size());
  EXPECT_EQ(answer.stop_token(), ids[0]);
}

TEST_F(AnswerTest, SpeculationIsCountedByPosition) {
  AnswerSpeculation spec;
  spec.observe(1, 0, 0, 0);
  spec.observe(4, 9, 7, 3);
  spec.observe(1, 7, 7, 0);
  spec.observe(3, 3, 3, 2);
  EXPECT_EQ(spec.num_drafts, 3);
  EXPECT_EQ(spec.num_accepted, 5);
  EXPECT_THAT(spec.accepted_at, testing::ElementsAre(2, 2, 1, 0, 0, 0, 0));
  EXPECT_THAT(spec.drafted_at, testing::ElementsAre(3, 3, 3, 2, 2, 2, 2));
  EXPECT_THAT(spec.histogram, testing::ElementsAre(1, 0, 1, 1, 0, 0, 0, 0));
  EXPECT_DOUBLE_EQ(spec.acceptance_length(), 8.0 / 3.0);
}

}  // namespace
}  // namespace volley::server
