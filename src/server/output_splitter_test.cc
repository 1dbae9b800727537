#include "server/output_splitter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace volley::server {
namespace {

// Pushes `text` in pieces of `size` bytes.
OutputParts split(std::string_view text, const OutputSplitterConfig& config, size_t size) {
  OutputSplitter splitter(config);
  OutputParts all;
  const auto add = [&](const OutputParts& parts) {
    all.reasoning += parts.reasoning;
    all.content += parts.content;
    all.tool_calls.insert(all.tool_calls.end(), parts.tool_calls.begin(), parts.tool_calls.end());
  };
  for (size_t i = 0; i < text.size(); i += size) add(splitter.push(text.substr(i, size)));
  add(splitter.finish());
  return all;
}

const OutputSplitterConfig kBoth{
    .split_reasoning = true, .parse_tool_calls = true, .id_prefix = "c"};

TEST(OutputSplitter, PartsDoNotDependOnHowTheTextWasCut) {
  const std::string_view text =
      "\n<think>\nwhat <tool_call> may be\n</think>\n\nAnswer < 3 </think>\n"
      "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, 2]}}\n</tool_call>\n"
      "<tool_call>{\"name\": \"g\", \"arguments\": \"{}\"}</tool_call> end <tool_c";
  for (size_t size = 1; size <= text.size(); ++size) {
    const OutputParts parts = split(text, kBoth, size);
    EXPECT_EQ(parts.reasoning, "\nwhat <tool_call> may be\n");
    EXPECT_EQ(parts.content, "Answer < 3 </think>end <tool_c");
    ASSERT_EQ(parts.tool_calls.size(), 2u);
    EXPECT_EQ(parts.tool_calls[0].name, "f");
    EXPECT_EQ(parts.tool_calls[0].arguments, R"({"x":[1,2]})");
    EXPECT_EQ(parts.tool_calls[0].id, "c0");
    EXPECT_EQ(parts.tool_calls[1].arguments, "{}");
    EXPECT_EQ(parts.tool_calls[1].id, "c1");
  }
}

TEST(OutputSplitter, WhatCannotBeUnderstoodIsContent) {
  const std::string_view texts[] = {"<tool_call>no json</tool_call> x",
                                    "<tool_call>[1]</tool_call>",
                                    "<tool_call>{\"name\": 3}</tool_call>",
                                    "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
                                    "<tool_call>{\"name\": \"f\""};
  for (const std::string_view text : texts) {
    for (const size_t size : {1, 5, 100}) {
      const OutputParts parts = split(text, kBoth, size);
      EXPECT_EQ(parts.content, text);
      EXPECT_THAT(parts.tool_calls, testing::IsEmpty());
    }
  }
}

TEST(OutputSplitter, ACallWithoutItsClosingTagCountsWhenComplete) {
  const OutputParts parts = split("<tool_call>{\"name\": \"f\"}", kBoth, 3);
  ASSERT_EQ(parts.tool_calls.size(), 1u);
  EXPECT_EQ(parts.tool_calls[0].arguments, "{}");
  EXPECT_EQ(parts.content, "");
}

TEST(OutputSplitter, ReasoningMayBeOpenAtTheStartAndAtTheEnd) {
  OutputSplitterConfig open = kBoth;
  open.starts_in_reasoning = true;
  EXPECT_EQ(split("why</think>so", open, 2).reasoning, "why");
  EXPECT_EQ(split("why</think>so", open, 2).content, "so");
  EXPECT_EQ(split("<think>cut of", kBoth, 4).reasoning, "cut of");
  EXPECT_EQ(split("<think>a</thin", kBoth, 1).reasoning, "a</thin");
}

TEST(OutputSplitter, WithoutSplittingEverythingIsContent) {
  const std::string_view text = " <think>a</think>b<tool_call>{}</tool_call>";
  EXPECT_EQ(split(text, {}, 3).content, text);
  EXPECT_EQ(split("   ", kBoth, 1).content, "   ");
}

}  // namespace
}  // namespace volley::server
