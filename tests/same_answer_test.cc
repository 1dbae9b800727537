// Law 1 on whole checkpoints: a covering sample of the same-answer matrix.

#include <gtest/gtest.h>

#include <filesystem>

#include "app/machine.h"
#include "app/prompts.h"
#include "app/same_answer.h"

namespace volley {
namespace {

namespace fs = std::filesystem;

SameAnswerMatrix matrix_of_this_machine() {
  SameAnswerMatrix matrix;
  matrix.draft_lengths = SameAnswerMatrix::default_draft_lengths();
  matrix.isas = available_isas();
  matrix.max_tokens = 16;
  return matrix;
}

void expect_same(const std::string& target, const std::string& draft,
                 const SameAnswerMatrix& matrix) {
  const auto report = run_same_answer_matrix(target, draft, matrix);
  ASSERT_TRUE(report.has_value()) << report.error().message;
  EXPECT_EQ(report->num_runs, matrix.sample);
  EXPECT_TRUE(report->same()) << report->text();
  EXPECT_GT(report->num_drafted, 0);
  EXPECT_GT(report->num_cached_tokens, 0);
  std::cout << report->text();
}

// Random weights: drafts seldom match, so nearly every block is rolled back.
TEST(SameAnswer, RandomCheckpoints) {
  SameAnswerMatrix matrix = matrix_of_this_machine();
  if (matrix.isas.empty()) GTEST_SKIP() << "this processor has no AVX2";
  uint32_t state = 1;
  for (const int length : {1, 9, 33, 70, 130}) {
    SameAnswerPrompt prompt{.source = "random"};
    for (int i = 0; i < length; ++i) {
      state = state * 1664525u + 1013904223u;
      prompt.ids.push_back(static_cast<int32_t>((state >> 16) % 256));
    }
    matrix.prompts.push_back(std::move(prompt));
  }
  matrix.sample = 600;
  for (const char* drafter : {"drafter-z-lab", "drafter-z-lab-window", "drafter-speculators"}) {
    SCOPED_TRACE(drafter);
    expect_same("tests/golden/qwen3-tied-bf16-sharded", std::string("tests/golden/") + drafter,
                matrix);
  }
}

// The same with quantised weights, whose products have kernels of their own for few and for many
// rows.
TEST(SameAnswer, QuantizedWeights) {
  SameAnswerMatrix matrix = matrix_of_this_machine();
  if (matrix.isas.empty()) GTEST_SKIP() << "this processor has no AVX2";
  for (const int length : {5, 40, 131}) {
    SameAnswerPrompt prompt{.source = "counted"};
    for (int i = 0; i < length; ++i) prompt.ids.push_back((i * 37 + length) % 256);
    matrix.prompts.push_back(std::move(prompt));
  }
  matrix.sample = 200;
  for (const WeightFormat format : {WeightFormat::kFp8, WeightFormat::kInt8, WeightFormat::kInt4}) {
    SCOPED_TRACE(weight_format_name(format));
    matrix.weight_format = format;
    expect_same("tests/golden/qwen3-tied-bf16-sharded", "tests/golden/drafter-z-lab", matrix);
  }
}

// The demo pair on prompts of GSM8K, HumanEval, MT-Bench and dialogue: blocks are accepted in part.
TEST(SameAnswer, DemoPair) {
  if (!fs::exists("models/demo-draft/config.json")) {
    GTEST_SKIP() << "models/demo-draft is not in this tree";
  }
  SameAnswerMatrix matrix = matrix_of_this_machine();
  if (matrix.isas.empty()) GTEST_SKIP() << "this processor has no AVX2";
  const auto text = load_text("models/demo-target");
  ASSERT_TRUE(text.has_value()) << text.error().message;
  const auto prompts = read_prompt_files({"models/prompts/same-answer.jsonl"}, 1);
  ASSERT_TRUE(prompts.has_value()) << prompts.error().message;
  for (const BenchPrompt& prompt : *prompts) {
    std::vector<ChatMessage> messages = prompt.messages;
    messages.push_back({"user", prompt.turns.front()});
    auto ids = encode_messages(*text, false, messages);
    ASSERT_TRUE(ids.has_value()) << ids.error().message;
    matrix.prompts.push_back({prompt.source, std::move(*ids)});
  }
  matrix.max_tokens = 12;
  matrix.max_num_seqs = {1, 4, 8};  // most runs share passes, or a thousand would take long
  matrix.sample = 1000;
#ifdef VOLLEY_SANITIZED
  // An engine of the AVX2 unit took four minutes to measure its passes; the small checkpoints above
  // run on every unit.
  matrix.isas = {matrix.isas.back()};
  matrix.sample = 100;
#endif
  expect_same("models/demo-target", "models/demo-draft", matrix);
}

}  // namespace
}  // namespace volley
