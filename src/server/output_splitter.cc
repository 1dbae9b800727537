#include "server/output_splitter.h"

#include <algorithm>

#include "base/json.h"

namespace volley::server {
namespace {

constexpr std::string_view kThink = "<think>";
constexpr std::string_view kEndThink = "</think>";
constexpr std::string_view kToolCall = "<tool_call>";
constexpr std::string_view kEndToolCall = "</tool_call>";
constexpr std::string_view kSpace = " \t\r\n";

// Length of the longest suffix of `text` that could begin `marker`.
size_t partial_marker(std::string_view text, std::string_view marker) {
  for (size_t n = std::min(text.size(), marker.size() - 1); n > 0; --n) {
    if (text.ends_with(marker.substr(0, n))) return n;
  }
  return 0;
}

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

}  // namespace

OutputSplitter::OutputSplitter(const OutputSplitterConfig& config)
    : config_(config), state_(State::kStart) {
  if (config.starts_in_reasoning && config.split_reasoning) {
    state_ = State::kReasoning;
  } else if (!config.split_reasoning) {
    state_ = State::kContent;
  }
}

OutputParts OutputSplitter::push(std::string_view text) {
  held_ += text;
  OutputParts parts;
  while (!held_.empty() && advance(parts)) {
  }
  return parts;
}

// Moves what is certain from held_ to `parts`. True when the state changed.
bool OutputSplitter::advance(OutputParts& parts) {
  switch (state_) {
    case State::kStart:
      return advance_start();
    case State::kReasoning:
      return advance_reasoning(parts);
    case State::kGap:
      held_.erase(0, std::min(held_.find_first_not_of(kSpace), held_.size()));
      if (held_.empty()) return false;
      state_ = State::kContent;
      return true;
    case State::kContent:
      return advance_content(parts);
    case State::kToolCall:
      return advance_tool_call(parts);
  }
  return false;
}

bool OutputSplitter::advance_start() {
  const size_t first = held_.find_first_not_of(kSpace);
  if (first == std::string::npos) return false;
  const std::string_view rest = std::string_view(held_).substr(first);
  if (rest.starts_with(kThink)) {
    held_.erase(0, first + kThink.size());
    state_ = State::kReasoning;
    return true;
  }
  if (kThink.starts_with(rest)) return false;
  state_ = State::kContent;
  return true;
}

bool OutputSplitter::advance_reasoning(OutputParts& parts) {
  const size_t end = held_.find(kEndThink);
  if (end != std::string::npos) {
    parts.reasoning += held_.substr(0, end);
    held_.erase(0, end + kEndThink.size());
    state_ = State::kGap;
    return true;
  }
  const size_t certain = held_.size() - partial_marker(held_, kEndThink);
  parts.reasoning += held_.substr(0, certain);
  held_.erase(0, certain);
  return false;
}

bool OutputSplitter::advance_content(OutputParts& parts) {
  if (!config_.parse_tool_calls) {
    parts.content += held_;
    held_.clear();
    return false;
  }
  const size_t start = held_.find(kToolCall);
  size_t certain = start;
  if (start == std::string::npos) certain = held_.size() - partial_marker(held_, kToolCall);
  // White space before a call is none of the content's.
  const size_t last = std::string_view(held_).substr(0, certain).find_last_not_of(kSpace);
  const size_t keep = last == std::string::npos ? 0 : last + 1;
  parts.content += held_.substr(0, keep);
  if (start == std::string::npos) {
    held_.erase(0, keep);
    return false;
  }
  held_.erase(0, start + kToolCall.size());
  state_ = State::kToolCall;
  return true;
}

bool OutputSplitter::advance_tool_call(OutputParts& parts) {
  const size_t end = held_.find(kEndToolCall);
  if (end == std::string::npos) return false;
  const std::string json = held_.substr(0, end);
  held_.erase(0, end + kEndToolCall.size());
  if (add_tool_call(json, parts)) {
    state_ = State::kGap;
  } else {
    parts.content += fmt::format("{}{}{}", kToolCall, json, kEndToolCall);
    state_ = State::kContent;
  }
  return true;
}

bool OutputSplitter::add_tool_call(std::string_view json, OutputParts& parts) {
  const auto call = parse_json(trim(json), "tool call");
  if (!call || !call->is_object() || !call->contains("name") || !(*call)["name"].is_string()) {
    return false;
  }
  const auto arguments = call->find("arguments");
  Json value = Json::object();
  if (arguments != call->end()) value = *arguments;
  if (value.is_string()) {  // some models quote the object
    auto parsed = parse_json(value.get_ref<const std::string&>(), "arguments");
    if (!parsed) return false;
    value = std::move(*parsed);
  }
  if (!value.is_object()) return false;
  parts.tool_calls.push_back({.id = fmt::format("{}{}", config_.id_prefix, num_tool_calls_++),
                              .name = (*call)["name"].get<std::string>(),
                              .arguments = dump_json(value)});
  return true;
}

OutputParts OutputSplitter::finish() {
  OutputParts parts;
  switch (state_) {
    case State::kReasoning:
      parts.reasoning = held_;
      break;
    case State::kToolCall:
      if (!add_tool_call(held_, parts)) parts.content = std::string(kToolCall) + held_;
      break;
    case State::kStart:
    case State::kGap:
    case State::kContent:
      parts.content = held_;
      break;
  }
  held_.clear();
  return parts;
}

}  // namespace volley::server
