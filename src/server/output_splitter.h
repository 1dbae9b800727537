#pragma once

// Takes an answer's text apart while it arrives: <think> reasoning, content, and <tool_call> JSON,
// as Qwen and Hermes write them. Works on characters, so the parts do not depend on how the text
// was cut into tokens or steps (law 1).

#include <string>
#include <string_view>
#include <vector>

namespace volley::server {

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text of an object
};

struct OutputParts {
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;

  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }
};

struct OutputSplitterConfig {
  bool split_reasoning = false;      // otherwise <think> is content
  bool starts_in_reasoning = false;  // the prompt ended with an open <think>
  bool parse_tool_calls = false;
  std::string id_prefix;  // of tool calls; their index follows
};

class OutputSplitter {
 public:
  explicit OutputSplitter(const OutputSplitterConfig& config);

  // What is certain now.
  OutputParts push(std::string_view text);
  // The answer has ended: the rest. A tool call without its closing tag counts if it is complete;
  // what cannot be understood is content, unchanged.
  OutputParts finish();

  bool reasoning() const { return state_ == State::kReasoning; }

 private:
  // kStart: only white space so far. kGap: after a part; white space up to the next one vanishes.
  enum class State { kStart, kReasoning, kGap, kContent, kToolCall };

  bool advance(OutputParts& parts);
  bool advance_start();
  bool advance_reasoning(OutputParts& parts);
  bool advance_content(OutputParts& parts);
  bool advance_tool_call(OutputParts& parts);
  bool add_tool_call(std::string_view json, OutputParts& parts);

  OutputSplitterConfig config_;
  State state_;
  std::string held_;
  int num_tool_calls_ = 0;
};

}  // namespace volley::server
