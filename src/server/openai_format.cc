// /v1/completions and /v1/chat/completions.

#include <algorithm>

#include "server/answer_format.h"

namespace volley::server {
namespace {

Json byte_list(std::string_view text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

Json chat_token(const Tokenizer& tokenizer, int32_t id, float logprob) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  Json token;
  token["token"] = bytes;
  token["logprob"] = std::max(logprob, -9999.0f);  // JSON has no infinity
  token["bytes"] = byte_list(bytes);
  return token;
}

Json chat_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& tokens) {
  Json content = Json::array();
  for (const TokenLogprob& token : tokens) {
    Json entry = chat_token(tokenizer, token.id, token.value.logprob);
    Json top = Json::array();
    for (const auto& [id, logprob] : token.value.top) {
      top.push_back(chat_token(tokenizer, id, logprob));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return Json{{"content", std::move(content)}};
}

// `offset`: bytes of the answer before the first of `tokens`; moved past the last.
Json completion_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& tokens,
                         int64_t& offset) {
  Json texts = Json::array(), logprobs = Json::array(), tops = Json::array(),
       offsets = Json::array();
  for (const TokenLogprob& token : tokens) {
    const std::string_view text = tokenizer.token_bytes(token.id);
    texts.push_back(text);
    logprobs.push_back(std::max(token.value.logprob, -9999.0f));
    Json top = Json::object();
    for (const auto& [id, logprob] : token.value.top) {
      top[std::string(tokenizer.token_bytes(id))] = std::max(logprob, -9999.0f);
    }
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    offset += static_cast<int64_t>(text.size());
  }
  Json result;
  result["tokens"] = std::move(texts);
  result["token_logprobs"] = std::move(logprobs);
  result["top_logprobs"] = std::move(tops);
  result["text_offset"] = std::move(offsets);
  return result;
}

Json stop_reason(const Answer& answer) {
  if (!answer.matched_string().empty()) return answer.matched_string();
  return {};
}

// What the two endpoints have in common: a list of choices, and how each of them ends.
class ChoicesFormat : public AnswerFormat {
 public:
  std::string end(std::span<const AnswerRecord> records) override {
    std::string events;
    if (config_.include_usage) {
      Json event = head(words_.event);
      event["choices"] = Json::array();
      event["usage"] = token_usage(records);
      events = sse_event(event);
    }
    return events + std::string(kSseDone);
  }

  Json whole(std::span<const AnswerRecord> records) override {
    Json body = head(words_.whole);
    Json choices = Json::array();
    for (size_t i = 0; i < records.size(); ++i) {
      const Answer& answer = *records[i].answer;
      Json choice = whole_choice(static_cast<int>(i), answer);
      choice["finish_reason"] = answer.finish_reason();
      choice["stop_reason"] = stop_reason(answer);
      if (records.size() > 1) add_metrics(records[i], choice);
      choices.push_back(std::move(choice));
    }
    body["choices"] = std::move(choices);
    body["usage"] = token_usage(records);
    if (records.size() == 1) add_metrics(records[0], body);
    return body;
  }

 protected:
  struct Words {
    std::string_view id_prefix;
    std::string_view whole, event;  // objects
    std::string_view piece;         // of an answer, in an event
  };

  ChoicesFormat(FormatConfig config, const Words& words)
      : AnswerFormat(std::move(config)), words_(words) {}

  // "index", the answer and its "logprobs".
  virtual Json whole_choice(int idx, const Answer& answer) const = 0;

  Json choice_event(int idx, Json piece, Json finish_reason) const {
    Json event = head(words_.event);
    Json choice;
    choice["index"] = idx;
    choice[std::string(words_.piece)] = std::move(piece);
    choice["logprobs"] = Json();
    choice["finish_reason"] = std::move(finish_reason);
    event["choices"] = Json::array({std::move(choice)});
    return event;
  }

  // The last of an answer; `piece` is empty.
  std::string last_event(int idx, Json piece, const AnswerRecord& record) const {
    Json event = choice_event(idx, std::move(piece), record.answer->finish_reason());
    event["choices"][0]["stop_reason"] = stop_reason(*record.answer);
    add_metrics(record, event);
    return sse_event(event);
  }

 private:
  Json head(std::string_view object) const {
    Json body;
    body["id"] = std::string(words_.id_prefix) + config_.id;
    body["object"] = object;
    body["created"] = config_.created_s;
    body["model"] = config_.model;
    return body;
  }

  void add_metrics(const AnswerRecord& record, Json& to) const {
    if (config_.spec_metrics == SpecMetrics::kNone) return;
    to["metrics"] = metrics_json(record, config_.spec_metrics);
  }

  const Words words_;
};

class CompletionFormat : public ChoicesFormat {
 public:
  CompletionFormat(FormatConfig config, std::vector<std::string> echoed, int n)
      : ChoicesFormat(std::move(config), {"cmpl-", "text_completion", "text_completion", "text"}),
        echoed_(std::move(echoed)),
        n_(n) {}

  std::string step(int idx, const AnswerRecord&, const AnswerDelta& delta) override {
    if (static_cast<int>(offsets_.size()) <= idx) offsets_.resize(idx + 1, -1);
    std::string text;
    if (offsets_[idx] < 0) {
      text = echo_of(idx);
      offsets_[idx] = 0;
    }
    text += delta.text;
    if (text.empty() && delta.logprobs.empty() && !tells_steps()) return {};
    Json event = choice_event(idx, text, Json());
    if (!delta.logprobs.empty()) {
      event["choices"][0]["logprobs"] =
          completion_logprobs(*config_.tokenizer, delta.logprobs, offsets_[idx]);
    }
    if (tells_steps()) event["choices"][0]["step"] = step_json(delta);
    return sse_event(event);
  }

  std::string end_answer(int idx, const AnswerRecord& record) override {
    return last_event(idx, "", record);
  }

 private:
  Json whole_choice(int idx, const Answer& answer) const override {
    Json choice;
    choice["index"] = idx;
    choice["text"] = echo_of(idx) + answer.text();
    choice["logprobs"] = Json();
    if (!answer.logprobs().empty()) {
      int64_t offset = 0;
      choice["logprobs"] = completion_logprobs(*config_.tokenizer, answer.logprobs(), offset);
    }
    return choice;
  }

  std::string echo_of(int idx) const { return echoed_.empty() ? std::string() : echoed_[idx / n_]; }

  std::vector<std::string> echoed_;
  int n_;
  std::vector<int64_t> offsets_;  // by answer; -1: nothing sent yet
};

class ChatFormat : public ChoicesFormat {
 public:
  explicit ChatFormat(FormatConfig config)
      : ChoicesFormat(std::move(config),
                      {"chatcmpl-", "chat.completion", "chat.completion.chunk", "delta"}) {}

  std::string step(int idx, const AnswerRecord&, const AnswerDelta& delta) override {
    std::string events = opening(idx);
    Json change = Json::object();
    if (!delta.parts.reasoning.empty()) change["reasoning_content"] = delta.parts.reasoning;
    if (!delta.parts.content.empty()) change["content"] = delta.parts.content;
    if (!delta.parts.tool_calls.empty()) change["tool_calls"] = calls(idx, delta.parts.tool_calls);
    if (change.empty() && delta.logprobs.empty() && !tells_steps()) return events;
    Json event = choice_event(idx, std::move(change), Json());
    if (!delta.logprobs.empty()) {
      event["choices"][0]["logprobs"] = chat_logprobs(*config_.tokenizer, delta.logprobs);
    }
    if (tells_steps()) event["choices"][0]["step"] = step_json(delta);
    return events + sse_event(event);
  }

  std::string end_answer(int idx, const AnswerRecord& record) override {
    return opening(idx) + last_event(idx, Json::object(), record);
  }

 private:
  struct Sent {
    bool opened = false;
    int num_calls = 0;
  };

  Json whole_choice(int idx, const Answer& answer) const override {
    const OutputParts& parts = answer.parts();
    Json message;
    message["role"] = "assistant";
    const bool only_calls = parts.content.empty() && !parts.tool_calls.empty();
    message["content"] = only_calls ? Json() : Json(parts.content);
    message["refusal"] = Json();
    if (!parts.reasoning.empty()) message["reasoning_content"] = parts.reasoning;
    if (!parts.tool_calls.empty()) {
      message["tool_calls"] = Json::array();
      for (const ToolCall& call : parts.tool_calls) {
        message["tool_calls"].push_back(call_json(call));
      }
    }
    Json choice;
    choice["index"] = idx;
    choice["message"] = std::move(message);
    choice["logprobs"] =
        answer.logprobs().empty() ? Json() : chat_logprobs(*config_.tokenizer, answer.logprobs());
    return choice;
  }

  // The first event of an answer names the role.
  std::string opening(int idx) {
    if (static_cast<int>(sent_.size()) <= idx) sent_.resize(idx + 1);
    if (sent_[idx].opened) return {};
    sent_[idx].opened = true;
    return sse_event(choice_event(idx, {{"role", "assistant"}, {"content", ""}}, Json()));
  }

  static Json call_json(const ToolCall& call) {
    Json entry;
    entry["id"] = call.id;
    entry["type"] = "function";
    entry["function"] = {{"name", call.name}, {"arguments", call.arguments}};
    return entry;
  }

  Json calls(int idx, const std::vector<ToolCall>& tool_calls) {
    Json list = Json::array();
    for (const ToolCall& call : tool_calls) {
      Json entry{{"index", sent_[idx].num_calls++}};
      entry.update(call_json(call));
      list.push_back(std::move(entry));
    }
    return list;
  }

  std::vector<Sent> sent_;
};

}  // namespace

std::unique_ptr<AnswerFormat> make_completion_format(FormatConfig config,
                                                     std::vector<std::string> echoed_prompts,
                                                     int n) {
  return std::make_unique<CompletionFormat>(std::move(config), std::move(echoed_prompts), n);
}

std::unique_ptr<AnswerFormat> make_chat_format(FormatConfig config) {
  return std::make_unique<ChatFormat>(std::move(config));
}

}  // namespace volley::server
