// Prompt files, colours, chat history, benchmark sums and the sample of the same-answer matrix.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "app/answer_report.h"
#include "app/bench_plot.h"
#include "app/bench_stats.h"
#include "app/block_colors.h"
#include "app/chat_history.h"
#include "app/prompts.h"
#include "app/same_answer.h"

namespace volley {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Prompts, ReadsEveryForm) {
  const auto prompts = parse_prompts(
      "{\"prompt\": \"one\"}\n\n"
      "{\"source\": \"s\", \"question\": \"two\", \"answer\": 3}\r\n"
      "{\"turns\": [\"three\", \"four\"]}\n"
      "{\"messages\": [{\"role\": \"system\", \"content\": \"be kind\"},"
      " {\"role\": \"user\", \"content\": \"five\"}]}",
      "p.jsonl", "file");
  ASSERT_TRUE(prompts.has_value()) << prompts.error().message;
  ASSERT_EQ(prompts->size(), 4u);
  EXPECT_EQ((*prompts)[0], (BenchPrompt{"file", 1, {}, {"one"}}));
  EXPECT_EQ((*prompts)[1], (BenchPrompt{"s", 3, {}, {"two"}}));
  EXPECT_EQ((*prompts)[2], (BenchPrompt{"file", 4, {}, {"three", "four"}}));
  EXPECT_EQ((*prompts)[3], (BenchPrompt{"file", 5, {{"system", "be kind"}}, {"five"}}));
}

TEST(Prompts, MalformedLinesAreNamed) {
  const std::vector<std::string> bad = {
      "{\"prompt\": 3}",
      "{\"prompt\": \"\"}",
      "{\"turns\": []}",
      "{\"turns\": [1]}",
      "{\"messages\": []}",
      "{\"messages\": [{\"role\": \"user\"}]}",
      "{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}",
      "{\"source\": 1, \"prompt\": \"x\"}",
      "{}",
      "[1]",
      "{\"prompt\": ",
  };
  for (const std::string& line : bad) {
    const auto prompts = parse_prompts("{\"prompt\": \"fine\"}\n" + line + "\n", "p.jsonl", "s");
    ASSERT_FALSE(prompts.has_value()) << line;
    EXPECT_THAT(prompts.error().message, HasSubstr("p.jsonl:2")) << line;
    EXPECT_EQ(prompts.error().message.find('\n'), std::string::npos);
  }
  EXPECT_FALSE(parse_prompts("\n \n", "p.jsonl", "s").has_value());
}

TEST(Prompts, TheCommittedFilesAreReadAndLimited) {
  for (const char* name : {"demo", "same-answer", "adversarial", "eval-gsm8k", "eval-humaneval",
                           "eval-mbpp", "eval-mt_bench", "eval-spec_bench", "eval-dialogue"}) {
    const auto prompts = read_prompt_files({std::string("models/prompts/") + name + ".jsonl"}, 0);
    ASSERT_TRUE(prompts.has_value()) << prompts.error().message;
    EXPECT_GE(prompts->size(), 8u) << name;
  }
  const auto few = read_prompt_files({"models/prompts/demo.jsonl"}, 1);
  std::set<std::string> sources;
  for (const BenchPrompt& prompt : few.value()) {
    EXPECT_TRUE(sources.insert(prompt.source).second) << prompt.source;
  }
}

TEST(BlockColors, NeighbouringStepsDiffer) {
  for (int step = 0; step < 10; ++step) {
    EXPECT_NE(tint_step("a", step), tint_step("a", step + 1));
  }
}

TEST(BlockColors, TheTextItselfIsUntouchedAndNoTintCrossesALine) {
  const std::string tinted = tint_step("one\n\ntwo", 1);
  std::string plain;
  for (size_t i = 0; i < tinted.size(); ++i) {
    if (tinted[i] == '\x1b')
      i = tinted.find('m', i);
    else
      plain += tinted[i];
  }
  EXPECT_EQ(plain, "one\n\ntwo");
  EXPECT_THAT(tinted, HasSubstr("one\x1b[0m\n\n\x1b[38"));
  EXPECT_EQ(tint_step("", 3), "");
  EXPECT_EQ(bold("x", false), "x");
}

// Ten tokens a message, and the system's.
Result<std::vector<int32_t>> ten_each(const std::vector<ChatMessage>& messages) {
  return std::vector<int32_t>(10 * messages.size(), 1);
}

TEST(ChatHistory, ForgetsTheOldestTurnsAndNeverTheSystemMessage) {
  ChatHistory history("system");
  for (const char* text : {"a", "b", "c"}) {
    history.add_user(text);
    history.add_assistant("yes");
  }
  history.add_user("d");
  const auto fitted = fit_history(history, 45, ten_each);
  ASSERT_TRUE(fitted.has_value());
  EXPECT_EQ(fitted->num_dropped, 4);
  EXPECT_EQ(fitted->prompt_ids.size(), 40u);
  EXPECT_EQ(history.messages().front().content, "system");
  EXPECT_EQ(history.messages()[1].content, "c");

  const auto too_long = fit_history(history, 15, ten_each);
  ASSERT_FALSE(too_long.has_value());
  EXPECT_THAT(too_long.error().message, HasSubstr("room for 15"));
  EXPECT_EQ(history.messages().size(), 4u);
}

Answer answer_of(int num_tokens, double decode_s, int64_t passes) {
  Answer answer;
  answer.ids.assign(num_tokens, 5);
  answer.text = "text";
  answer.finish = FinishReason::kLength;
  answer.num_prompt_tokens = 4;
  answer.prefill_s = 0.1;
  answer.decode_s = decode_s;
  answer.speculation = {.num_target_passes = passes,
                        .num_tokens = num_tokens,
                        .num_draft_passes = passes - 1,
                        .num_drafted = 3 * (passes - 1),
                        .num_accepted_drafts = num_tokens - passes,
                        .drafted_at = {passes - 1, passes - 1, passes - 1},
                        .accepted_at = {passes - 1, 1, 0}};
  return answer;
}

BenchAnswer bench_answer(const std::string& source, int prompt_idx, double speedup) {
  return {.source = source,
          .prompt_idx = prompt_idx,
          .plain = answer_of(21, 2.0, 21),
          .drafted = answer_of(21, 2.0 / speedup, 11),
          .full = answer_of(21, 1.0, 9),
          .identical = true};
}

TEST(BenchStats, SumsBySource) {
  std::vector<BenchAnswer> answers = {bench_answer("a", 0, 2), bench_answer("b", 1, 1),
                                      bench_answer("a", 2, 4)};
  answers[2].identical = false;
  const auto sources = summarize_by_source(answers);
  ASSERT_EQ(sources.size(), 2u);
  const SourceSummary& a = sources[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.num_prompts, 2);
  EXPECT_EQ(a.num_tokens, 42);
  EXPECT_DOUBLE_EQ(a.plain_tok_s, 10);         // 40 tokens after the first ones in 4 s
  EXPECT_DOUBLE_EQ(a.draft_tok_s, 40 / 1.5);   // in 1 s + 0.5 s
  EXPECT_DOUBLE_EQ(a.acceptance_length, 2.5);  // of the whole block: 20 tokens in 8 passes
  EXPECT_DOUBLE_EQ(a.timed_acceptance_length, 2);
  EXPECT_DOUBLE_EQ(a.speedup_p10, 2.2);
  EXPECT_FALSE(a.identical());
  EXPECT_TRUE(sources[1].identical());
  EXPECT_THAT(a.histogram(), ElementsAre(1.0, 0.125, 0.0));
}

TEST(BenchStats, NothingDividesByZero) {
  BenchAnswer one{
      .source = "s", .plain = answer_of(1, 0, 1), .drafted = answer_of(1, 0, 1), .identical = true};
  const auto sources = summarize_by_source({one});
  EXPECT_EQ(sources[0].speedup, 0);
  EXPECT_EQ(sources[0].acceptance_length, 0);
  EXPECT_EQ(percentile({}, 0.5), 0);
  EXPECT_EQ(percentile({3}, 0.9), 3);
}

TEST(BenchStats, JsonHasTheAgreedKeys) {
  const Json json = bench_json({bench_answer("a", 0, 2), bench_answer("b", 1, 1)});
  ASSERT_TRUE(json.contains("sources"));
  for (const char* source : {"a", "b"}) {
    for (const char* key : {"prompts", "tokens", "plain_tok_s", "draft_tok_s", "speedup",
                            "acceptance_length", "histogram", "identical"}) {
      EXPECT_TRUE(json["sources"][source].contains(key)) << key;
    }
  }
  EXPECT_DOUBLE_EQ(json["mean_of_sources"]["speedup"].get<double>(), 1.5);
}

TEST(BenchStats, TableCsvAndPlotsNameEverySource) {
  std::vector<BenchAnswer> answers = {bench_answer("left", 0, 2), bench_answer("a<b", 1, 1)};
  const auto sources = summarize_by_source(answers);
  const SourceSummary overall = summarize("overall", {&answers[0], &answers[1]});
  EXPECT_THAT(bench_table(sources, overall), HasSubstr("left"));
  EXPECT_THAT(bench_table(sources, overall), HasSubstr("overall"));
  EXPECT_THAT(acceptance_bars(sources, overall), HasSubstr("100%"));
  const std::string csv = bench_csv(answers);
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 3);
  const std::string svg = bench_plot_svg(sources, overall, "machine & settings");
  EXPECT_THAT(svg, testing::StartsWith("<svg"));
  EXPECT_THAT(svg, HasSubstr("a&lt;b"));
  EXPECT_THAT(svg, HasSubstr("machine &amp; settings"));
  EXPECT_THAT(bench_plot_html(sources, overall, ""), HasSubstr("</html>"));
}

TEST(AnswerReport, JsonHasUsageTimingsAndSpeculation) {
  Answer answer = answer_of(21, 2.0, 11);
  Json json = answer_json(answer);
  EXPECT_EQ(json["finish_reason"], "length");
  EXPECT_EQ(json["stop_reason"], nullptr);
  EXPECT_EQ(json["usage"]["total_tokens"], 25);
  EXPECT_DOUBLE_EQ(json["timings"]["decode_tok_s"].get<double>(), 10);
  EXPECT_DOUBLE_EQ(json["speculation"]["acceptance_length"].get<double>(), 2);
  EXPECT_EQ(json["speculation"]["accepted_at"].size(), 3u);
  answer.finish = FinishReason::kStop;
  answer.stop_string = "###";
  EXPECT_EQ(answer_json(answer)["stop_reason"], "###");
  EXPECT_EQ(answer_line(answer).find('\n'), std::string::npos);
}

TEST(SameAnswer, ASampleCoversEveryPair) {
  const std::vector<int> sizes = {3, 2, 5, 4, 12, 2};
  const auto rows = covering_sample(sizes, 150, 1);
  ASSERT_EQ(rows.size(), 150u);
  for (size_t a = 0; a < sizes.size(); ++a) {
    for (size_t b = a + 1; b < sizes.size(); ++b) {
      std::set<std::pair<int, int>> seen;
      for (const auto& row : rows) seen.emplace(row[a], row[b]);
      EXPECT_EQ(static_cast<int>(seen.size()), sizes[a] * sizes[b]) << a << " " << b;
    }
  }
  EXPECT_EQ(rows, covering_sample(sizes, 150, 1));
  EXPECT_NE(rows, covering_sample(sizes, 150, 2));
}

TEST(SameAnswer, AllCombinationsAreAll) {
  EXPECT_THAT(all_combinations({2, 2}), ElementsAre(ElementsAre(0, 0), ElementsAre(0, 1),
                                                    ElementsAre(1, 0), ElementsAre(1, 1)));
}

}  // namespace
}  // namespace volley
