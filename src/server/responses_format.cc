// /v1/responses: one answer as a list of output items, and the events that build it.

#include "server/answer_format.h"

namespace volley::server {
namespace {

// Joins events that are numbered as they are made: a braced list is evaluated in its order, the
// operands of + are not.
std::string in_order(std::initializer_list<std::string> events) {
  std::string joined;
  for (const std::string& event : events) joined += event;
  return joined;
}

class ResponsesFormat : public AnswerFormat {
 public:
  ResponsesFormat(FormatConfig config, Json request_echo)
      : AnswerFormat(std::move(config)), echo_(std::move(request_echo)) {}

  std::string begin() override {
    const Json response = response_json("in_progress", Json::array(), Json());
    return in_order({event("response.created", {{"response", response}}),
                     event("response.in_progress", {{"response", response}})});
  }

  std::string step(int, const AnswerRecord&, const AnswerDelta& delta) override {
    std::string events;
    if (!delta.parts.reasoning.empty()) {
      if (kind_ != Kind::kReasoning)
        events += in_order({close_item(), open_item(Kind::kReasoning)});
      text_ += delta.parts.reasoning;
      events += event("response.reasoning_text.delta", {{"item_id", item_id()},
                                                        {"output_index", output_.size()},
                                                        {"content_index", 0},
                                                        {"delta", delta.parts.reasoning}});
    }
    if (!delta.parts.content.empty()) {
      if (kind_ != Kind::kMessage) events += in_order({close_item(), open_item(Kind::kMessage)});
      text_ += delta.parts.content;
      Json change{{"item_id", item_id()},
                  {"output_index", output_.size()},
                  {"content_index", 0},
                  {"delta", delta.parts.content},
                  {"logprobs", Json::array()}};
      if (tells_steps()) change["step"] = step_json(delta);
      events += event("response.output_text.delta", std::move(change));
    }
    for (const ToolCall& call : delta.parts.tool_calls) {
      events += in_order({close_item(), tool_call_events(call)});
    }
    return events;
  }

  std::string end_answer(int, const AnswerRecord& record) override {
    std::string events;
    // An answer without any text is an empty message.
    if (kind_ == Kind::kNone && output_.empty()) events += open_item(Kind::kMessage);
    events += close_item();
    const bool complete = record.answer->finish() != FinishReason::kLength;
    events += event(complete ? "response.completed" : "response.incomplete",
                    {{"response", finished(record, output_)}});
    return events;
  }

  std::string end(std::span<const AnswerRecord>) override { return {}; }

  std::string error(const ApiError& error) override {
    return event("error", {{"code", error_type(error.status)},
                           {"message", error.message},
                           {"param", error.param.empty() ? Json() : Json(error.param)}});
  }

  Json whole(std::span<const AnswerRecord> records) override {
    const AnswerRecord& record = records[0];
    const OutputParts& parts = record.answer->parts();
    Json output = Json::array();
    const auto next_id = [&](const char* prefix) { return id_of(prefix, output.size()); };
    if (!parts.reasoning.empty()) {
      output.push_back(reasoning_item(next_id("rs_"), parts.reasoning));
    }
    if (!parts.content.empty() || parts.tool_calls.empty()) {
      output.push_back(message_item(next_id("msg_"), "completed", parts.content));
    }
    for (const ToolCall& call : parts.tool_calls) {
      output.push_back(call_item(next_id("fc_"), call));
    }
    return finished(record, output);
  }

 private:
  enum class Kind { kNone, kReasoning, kMessage };

  std::string id_of(const char* prefix, size_t idx) const {
    return fmt::format("{}{}_{}", prefix, config_.id, idx);
  }
  std::string item_id() const {
    return id_of(kind_ == Kind::kReasoning ? "rs_" : "msg_", output_.size());
  }

  std::string event(std::string_view type, Json fields) {
    Json data;
    data["type"] = type;
    data["sequence_number"] = sequence_number_++;
    data.update(fields);
    return sse_event(data, type);
  }

  static Json text_part(const std::string& text) {
    Json part;
    part["type"] = "output_text";
    part["text"] = text;
    part["annotations"] = Json::array();
    part["logprobs"] = Json::array();
    return part;
  }
  static Json reasoning_part(const std::string& text) {
    return Json{{"type", "reasoning_text"}, {"text", text}};
  }

  static Json message_item(const std::string& id, std::string_view status,
                           const std::string& text) {
    Json item;
    item["id"] = id;
    item["type"] = "message";
    item["status"] = status;
    item["role"] = "assistant";
    item["content"] = status == "completed" ? Json::array({text_part(text)}) : Json::array();
    return item;
  }
  static Json reasoning_item(const std::string& id, const std::string& text) {
    Json item;
    item["id"] = id;
    item["type"] = "reasoning";
    item["summary"] = Json::array();
    item["content"] = Json::array({reasoning_part(text)});
    return item;
  }
  static Json call_item(const std::string& id, const ToolCall& call) {
    Json item;
    item["id"] = id;
    item["type"] = "function_call";
    item["status"] = "completed";
    item["call_id"] = call.id;
    item["name"] = call.name;
    item["arguments"] = call.arguments;
    return item;
  }

  std::string open_item(Kind kind) {
    kind_ = kind;
    text_.clear();
    const Json item = kind == Kind::kMessage ? message_item(item_id(), "in_progress", "")
                                             : Json{{"id", item_id()},
                                                    {"type", "reasoning"},
                                                    {"summary", Json::array()},
                                                    {"content", Json::array()}};
    return in_order(
        {event("response.output_item.added", {{"output_index", output_.size()}, {"item", item}}),
         event("response.content_part.added",
               {{"item_id", item_id()},
                {"output_index", output_.size()},
                {"content_index", 0},
                {"part", kind == Kind::kMessage ? text_part("") : reasoning_part("")}})});
  }

  std::string close_item() {
    if (kind_ == Kind::kNone) return {};
    const bool message = kind_ == Kind::kMessage;
    const Json item =
        message ? message_item(item_id(), "completed", text_) : reasoning_item(item_id(), text_);
    Json done{{"item_id", item_id()},
              {"output_index", output_.size()},
              {"content_index", 0},
              {"text", text_}};
    if (message) done["logprobs"] = Json::array();
    std::string events = in_order(
        {event(message ? "response.output_text.done" : "response.reasoning_text.done",
               std::move(done)),
         event("response.content_part.done",
               {{"item_id", item_id()},
                {"output_index", output_.size()},
                {"content_index", 0},
                {"part", message ? text_part(text_) : reasoning_part(text_)}}),
         event("response.output_item.done", {{"output_index", output_.size()}, {"item", item}})});
    output_.push_back(item);
    kind_ = Kind::kNone;
    return events;
  }

  std::string tool_call_events(const ToolCall& call) {
    const Json item = call_item(id_of("fc_", output_.size()), call);
    Json opened = item;
    opened["status"] = "in_progress";
    opened["arguments"] = "";
    const Json place{{"item_id", item["id"]}, {"output_index", output_.size()}};
    Json delta = place;
    delta["delta"] = call.arguments;
    Json done = place;
    done["name"] = call.name;
    done["arguments"] = call.arguments;
    std::string events = in_order(
        {event("response.output_item.added",
               {{"output_index", output_.size()}, {"item", std::move(opened)}}),
         event("response.function_call_arguments.delta", std::move(delta)),
         event("response.function_call_arguments.done", std::move(done)),
         event("response.output_item.done", {{"output_index", output_.size()}, {"item", item}})});
    output_.push_back(item);
    return events;
  }

  Json response_json(std::string_view status, Json output, Json usage) const {
    Json response;
    response["id"] = "resp_" + config_.id;
    response["object"] = "response";
    response["created_at"] = config_.created_s;
    response["status"] = status;
    response["error"] = Json();
    response["incomplete_details"] = Json();
    response["model"] = config_.model;
    response["output"] = std::move(output);
    response["store"] = false;
    response["previous_response_id"] = Json();
    response.update(echo_);
    response["usage"] = std::move(usage);
    return response;
  }

  Json finished(const AnswerRecord& record, const Json& output) const {
    const Json tokens = token_usage(std::span(&record, 1));
    Json usage;
    usage["input_tokens"] = tokens["prompt_tokens"];
    usage["input_tokens_details"] = tokens["prompt_tokens_details"];
    usage["output_tokens"] = tokens["completion_tokens"];
    usage["output_tokens_details"] = {{"reasoning_tokens", record.answer->num_reasoning_tokens()}};
    usage["total_tokens"] = tokens["total_tokens"];
    const bool complete = record.answer->finish() != FinishReason::kLength;
    Json response = response_json(complete ? "completed" : "incomplete", output, std::move(usage));
    if (!complete) response["incomplete_details"] = {{"reason", "max_output_tokens"}};
    if (config_.spec_metrics != SpecMetrics::kNone) {
      response["metrics"] = metrics_json(record, config_.spec_metrics);
    }
    return response;
  }

  Json echo_;
  int64_t sequence_number_ = 0;
  Kind kind_ = Kind::kNone;  // of the open item
  std::string text_;         // of the open item
  Json output_ = Json::array();
};

}  // namespace

std::unique_ptr<AnswerFormat> make_responses_format(FormatConfig config, Json request_echo) {
  return std::make_unique<ResponsesFormat>(std::move(config), std::move(request_echo));
}

}  // namespace volley::server
