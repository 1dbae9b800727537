#pragma once

// Prompt files: one JSON object a line.

#include <string>
#include <string_view>
#include <vector>

#include "app/chat_format.h"
#include "base/result.h"

namespace volley {

// A conversation to play: what was said before, then the user's turns, each answered in order.
struct BenchPrompt {
  std::string source;
  int line = 0;                       // in its file, from 1
  std::vector<ChatMessage> messages;  // before the first turn
  std::vector<std::string> turns;     // never empty

  bool operator==(const BenchPrompt&) const = default;
};

struct PromptLimits {
  size_t max_file_bytes = size_t{256} << 20;
  size_t max_line_bytes = size_t{16} << 20;
  size_t max_messages = 1024;
  size_t max_turns = 256;
};

// Lines with "prompt" (or "question"), "messages" ({role, content}, the last from the user) or
// "turns" (strings), and an optional "source"; `default_source` stands in for a missing one. Empty
// lines are skipped; other keys are ignored. Errors name `what`, the line, what was expected and
// what came.
Result<std::vector<BenchPrompt>> parse_prompts(std::string_view text, std::string_view what,
                                               std::string_view default_source,
                                               const PromptLimits& limits = {});

// The files in order; a missing source is the file's name without ".jsonl". With max_per_source >
// 0, the first ones of each source.
Result<std::vector<BenchPrompt>> read_prompt_files(const std::vector<std::string>& paths,
                                                   int max_per_source);

}  // namespace volley
