#include "app/prompts.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/file.h"
#include "base/json.h"

namespace volley {
namespace {

Result<std::string> text_of(const Json& value, std::string_view where, std::string_view key) {
  if (!value.is_string()) {
    return invalid("{}: \"{}\": expected a string, got {}", where, key, value.type_name());
  }
  std::string text = value.get<std::string>();
  if (text.empty()) return invalid("{}: \"{}\" is empty", where, key);
  return text;
}

Result<ChatMessage> message_of(const Json& value, std::string_view where) {
  if (!value.is_object() || !value.contains("role") || !value.contains("content")) {
    return invalid("{}: \"messages\": expected objects with \"role\" and \"content\"", where);
  }
  ChatMessage message;
  VOLLEY_TRY(message.role, text_of(value["role"], where, "role"));
  if (!value["content"].is_string()) {
    return invalid("{}: \"content\": expected a string, got {}", where,
                   value["content"].type_name());
  }
  message.content = value["content"].get<std::string>();
  return message;
}

Status read_messages(const Json& list, std::string_view where, const PromptLimits& limits,
                     BenchPrompt& prompt) {
  if (!list.is_array() || list.empty() || list.size() > limits.max_messages) {
    return invalid("{}: \"messages\": expected a list of 1 to {} messages", where,
                   limits.max_messages);
  }
  for (const Json& value : list) {
    VOLLEY_TRY(ChatMessage message, message_of(value, where));
    prompt.messages.push_back(std::move(message));
  }
  if (prompt.messages.back().role != "user") {
    return invalid("{}: \"messages\": the last one must be the user's, it is the {}'s", where,
                   prompt.messages.back().role);
  }
  prompt.turns.push_back(std::move(prompt.messages.back().content));
  prompt.messages.pop_back();
  return {};
}

Status read_turns(const Json& list, std::string_view where, const PromptLimits& limits,
                  BenchPrompt& prompt) {
  if (!list.is_array() || list.empty() || list.size() > limits.max_turns) {
    return invalid("{}: \"turns\": expected a list of 1 to {} strings", where, limits.max_turns);
  }
  for (const Json& value : list) {
    VOLLEY_TRY(std::string turn, text_of(value, where, "turns"));
    prompt.turns.push_back(std::move(turn));
  }
  return {};
}

Result<BenchPrompt> prompt_of(const Json& object, std::string_view where,
                              std::string_view default_source, const PromptLimits& limits) {
  if (!object.is_object()) {
    return invalid("{}: expected a JSON object, got {}", where, object.type_name());
  }
  BenchPrompt prompt;
  prompt.source = default_source;
  if (const auto source = object.find("source"); source != object.end()) {
    VOLLEY_TRY(prompt.source, text_of(*source, where, "source"));
  }
  // The most telling form first: datasets often carry a flat prompt beside the conversation.
  if (const auto turns = object.find("turns"); turns != object.end()) {
    VOLLEY_TRY_STATUS(read_turns(*turns, where, limits, prompt));
    return prompt;
  }
  if (const auto messages = object.find("messages"); messages != object.end()) {
    VOLLEY_TRY_STATUS(read_messages(*messages, where, limits, prompt));
    return prompt;
  }
  for (const char* key : {"prompt", "question"}) {
    const auto text = object.find(key);
    if (text == object.end()) continue;
    VOLLEY_TRY(std::string turn, text_of(*text, where, key));
    prompt.turns.push_back(std::move(turn));
    return prompt;
  }
  return invalid("{}: expected \"prompt\", \"messages\" or \"turns\", found none of them", where);
}

}  // namespace

Result<std::vector<BenchPrompt>> parse_prompts(std::string_view text, std::string_view what,
                                               std::string_view default_source,
                                               const PromptLimits& limits) {
  std::vector<BenchPrompt> prompts;
  for (int line_number = 1; !text.empty(); ++line_number) {
    const size_t newline = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, newline);
    text.remove_prefix(std::min(newline + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", what, line_number);
    if (line.size() > limits.max_line_bytes) {
      return invalid("{}: a line may have {} bytes, got {}", where, limits.max_line_bytes,
                     line.size());
    }
    VOLLEY_TRY(const Json object, parse_json(line, where));
    VOLLEY_TRY(BenchPrompt prompt, prompt_of(object, where, default_source, limits));
    prompt.line = line_number;
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) return invalid("{}: expected a prompt a line, the file has none", what);
  return prompts;
}

Result<std::vector<BenchPrompt>> read_prompt_files(const std::vector<std::string>& paths,
                                                   int max_per_source) {
  std::vector<BenchPrompt> all;
  std::map<std::string, int> counts;
  for (const std::string& path : paths) {
    VOLLEY_TRY(const std::string text, read_file(path, PromptLimits{}.max_file_bytes));
    const std::string stem = std::filesystem::path(path).stem().string();
    VOLLEY_TRY(std::vector<BenchPrompt> prompts, parse_prompts(text, path, stem));
    for (BenchPrompt& prompt : prompts) {
      const int count = ++counts[prompt.source];
      if (max_per_source > 0 && count > max_per_source) continue;
      all.push_back(std::move(prompt));
    }
  }
  return all;
}

}  // namespace volley
