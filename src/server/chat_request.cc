// Chat messages, tools, and the Responses API, which becomes a chat.

#include <algorithm>
#include <cctype>

#include "server/api_request.h"
#include "server/fields.h"
#include "server/parse_params.h"

namespace volley::server {
namespace {

constexpr size_t kMaxNameBytes = 256;
constexpr size_t kMaxTextBytes = size_t{1} << 30;  // the body is bounded before
constexpr size_t kMaxToolName = 64;
constexpr size_t kMaxParts = 4096;

// A message's text: a string, or a list of text parts.
std::optional<std::string> read_content(Fields& message, std::string_view name) {
  const Json* content = message.find(name);
  if (content == nullptr) return std::nullopt;
  if (content->is_string()) return content->get<std::string>();
  const Json* parts = message.array(name, kMaxParts);
  if (parts == nullptr) return std::nullopt;
  std::string text;
  for (const Json& part : *parts) {
    if (part.is_string()) {
      text += part.get_ref<const std::string&>();
      continue;
    }
    const auto type = part.is_object() ? part.find("type") : part.end();
    if (!part.is_object() || type == part.end() || !type->is_string()) {
      message.fail(name, "expected parts with a type, got {}", excerpt(part));
      return std::nullopt;
    }
    const auto& kind = type->get_ref<const std::string&>();
    if (kind != "text" && kind != "input_text" && kind != "output_text" && kind != "refusal") {
      message.fail(name, "this model reads text; a part of type \"{}\" is not supported",
                   kind.substr(0, 64));
      return std::nullopt;
    }
    const auto value = part.find(kind == "refusal" ? "refusal" : "text");
    if (value == part.end() || !value->is_string()) {
      message.fail(name, "a text part without text");
      return std::nullopt;
    }
    text += value->get_ref<const std::string&>();
  }
  return text;
}

// Templates want arguments as an object; the API sends them as text.
Json arguments_object(const std::string& text, const ApiLimits& limits) {
  auto parsed = parse_json(text, "arguments", {.max_depth = limits.max_json_depth});
  return parsed && parsed->is_object() ? std::move(*parsed) : Json(text);
}

void read_tool_calls(Fields& message, const ApiLimits& limits, Json& out) {
  const Json* calls = message.array("tool_calls", limits.max_tools);
  if (calls == nullptr) return;
  Json list = Json::array();
  for (const Json& call : *calls) {
    if (!call.is_object()) return message.fail("tool_calls", "expected objects");
    Fields fields(call, "tool_calls.");
    const Json* function = fields.object("function");
    if (function == nullptr) return message.fail("tool_calls", "a call without a function");
    Fields inner(*function, "tool_calls.function.");
    const auto name = inner.string("name", kMaxToolName);
    if (!name) inner.fail("name", "is required");
    const Json* arguments = inner.find("arguments");
    Json value = Json::object();
    if (arguments != nullptr && arguments->is_string()) {
      value = arguments_object(arguments->get_ref<const std::string&>(), limits);
    } else if (arguments != nullptr && arguments->is_object()) {
      value = *arguments;
    }
    if (inner.error()) return message.fail(*inner.error());
    list.push_back({{"id", fields.string("id", kMaxNameBytes).value_or("")},
                    {"type", "function"},
                    {"function", {{"name", *name}, {"arguments", std::move(value)}}}});
    if (fields.error()) return message.fail(*fields.error());
  }
  if (!list.empty()) out["tool_calls"] = std::move(list);
}

void read_message(Fields& fields, size_t idx, const Json& message, const ApiLimits& limits,
                  Json& out) {
  const std::string where = fmt::format("messages[{}].", idx);
  if (!message.is_object())
    return fields.fail("messages", "expected objects, got {}", excerpt(message));
  Fields one(message, where);
  std::string role = one.string("role", 32).value_or("");
  if (role == "developer") role = "system";
  static constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
    one.fail("role", "expected system, developer, user, assistant or tool, got \"{}\"", role);
  }
  Json entry{{"role", role}};
  const auto content = read_content(one, "content");
  entry["content"] = content.value_or("");
  read_tool_calls(one, limits, entry);
  if (!content && !one.error() && !entry.contains("tool_calls")) one.fail("content", "is required");
  for (const char* name : {"name", "tool_call_id"}) {
    if (const auto text = one.string(name, kMaxNameBytes)) entry[name] = *text;
  }
  for (const char* name : {"reasoning_content", "reasoning"}) {
    if (const auto text = one.string(name, kMaxTextBytes)) entry["reasoning_content"] = *text;
  }
  if (one.error()) return fields.fail(*one.error());
  out.push_back(std::move(entry));
}

bool is_tool_name(const std::string& name) {
  return !name.empty() && name.size() <= kMaxToolName &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '_' || c == '-' || c == '.';
         });
}

// `flat`: the Responses API has name and parameters beside type.
void read_tools(Fields& fields, const ApiLimits& limits, bool flat, ChatRequest& request) {
  const Json* tools = fields.array("tools", limits.max_tools);
  if (tools == nullptr || tools->empty()) return;
  request.tools = Json::array();
  for (const Json& tool : *tools) {
    if (!tool.is_object()) return fields.fail("tools", "expected objects, got {}", excerpt(tool));
    Fields outer(tool, "tools.");
    const std::string type = outer.string("type", 64).value_or("");
    if (type != "function") {
      return fields.fail("tools", "type \"{}\": only function tools are supported", type);
    }
    const Json* function = flat ? &tool : outer.object("function");
    if (function == nullptr) return fields.fail("tools", "a tool without a function");
    Fields inner(*function, flat ? "tools." : "tools.function.");
    const std::string name = inner.string("name", kMaxToolName).value_or("");
    if (!is_tool_name(name)) {
      inner.fail("name", "expected 1 to {} letters, digits, '_', '-' and '.'", kMaxToolName);
    }
    Json entry{{"name", name}};
    if (const auto text = inner.string("description", kMaxTextBytes)) entry["description"] = *text;
    Json parameters{{"type", "object"}, {"properties", Json::object()}};
    if (const Json* given = inner.object("parameters")) {
      check_schema(inner, "parameters", *given, limits);
      parameters = *given;
    }
    entry["parameters"] = std::move(parameters);
    if (inner.error()) return fields.fail(*inner.error());
    request.tools.push_back({{"type", "function"}, {"function", std::move(entry)}});
  }
}

bool has_tool(const ChatRequest& request, const std::string& name) {
  return std::any_of(request.tools.begin(), request.tools.end(),
                     [&](const Json& tool) { return tool["function"]["name"] == name; });
}

void read_tool_choice(Fields& fields, ChatRequest& request) {
  using ToolChoice = ChatRequest::ToolChoice;
  if (request.tools.is_null()) request.tool_choice = ToolChoice::kNone;
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object()) {
    const Json* function = choice->contains("function") ? &(*choice)["function"] : choice;
    const auto name = function->is_object() ? Fields(*function).string("name", kMaxToolName)
                                            : std::optional<std::string>();
    if (!name || !has_tool(request, *name)) {
      return fields.fail("tool_choice", "expected the name of one of the tools");
    }
    request.tool_choice = ToolChoice::kNamed;
    request.tool_name = *name;
  } else if (*choice == "none") {
    request.tool_choice = ToolChoice::kNone;
  } else if (*choice == "auto") {
    if (!request.tools.is_null()) request.tool_choice = ToolChoice::kAuto;
  } else if (*choice == "required") {
    if (request.tools.is_null()) return fields.fail("tool_choice", "there are no tools");
    request.tool_choice = ToolChoice::kRequired;
  } else {
    return fields.fail("tool_choice", "expected none, auto, required or a function, got {}",
                       excerpt(*choice));
  }
  const bool forced =
      request.tool_choice == ToolChoice::kRequired || request.tool_choice == ToolChoice::kNamed;
  if (!forced) return;
  if (request.params.constraint.kind != Constraint::Kind::kNone) {
    return fields.fail("tool_choice", "cannot force a tool call and constrain the text as well");
  }
  request.params.constraint = {.kind = Constraint::Kind::kToolCall, .tool = request.tool_name};
}

void read_template_kwargs(Fields& fields, const ApiLimits& limits, ChatRequest& request) {
  const Json* kwargs = fields.object("chat_template_kwargs");
  if (kwargs == nullptr) return;
  if (kwargs->size() > static_cast<size_t>(limits.max_template_kwargs) ||
      dump_json(*kwargs).size() > limits.max_template_kwargs_bytes) {
    return fields.fail("chat_template_kwargs", "at most {} entries and {} bytes are accepted",
                       limits.max_template_kwargs, limits.max_template_kwargs_bytes);
  }
  // What the server itself says to a template is not a client's to change.
  for (const char* name :
       {"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"}) {
    if (kwargs->contains(name)) {
      return fields.fail("chat_template_kwargs", "\"{}\" cannot be set", name);
    }
  }
  request.template_kwargs = *kwargs;
}

void refuse_old_fields(Fields& fields) {
  for (const char* name : {"functions", "function_call"}) {
    if (fields.has(name)) fields.fail(name, "is deprecated: use tools and tool_choice");
  }
  if (const Json* modalities = fields.array("modalities", 8)) {
    for (const Json& kind : *modalities) {
      if (kind != "text") fields.fail("modalities", "only text is supported");
    }
  }
  if (fields.has("audio")) fields.fail("audio", "only text is supported");
}

// The items of a Responses input as chat messages.
void read_input_item(Fields& fields, const Json& item, const ApiLimits& limits, Json& messages) {
  if (!item.is_object()) return fields.fail("input", "expected items, got {}", excerpt(item));
  Fields one(item, "input.");
  const std::string type = one.string("type", 64).value_or("message");
  if (type == "message") {
    Json plain = item;
    plain.erase("type");
    return read_message(fields, messages.size(), plain, limits, messages);
  }
  if (type == "function_call") {
    const std::string name = one.string("name", kMaxToolName).value_or("");
    const std::string arguments = one.string("arguments", kMaxTextBytes).value_or("{}");
    Json call{{"id", one.string("call_id", kMaxNameBytes).value_or("")},
              {"type", "function"},
              {"function", {{"name", name}, {"arguments", arguments_object(arguments, limits)}}}};
    const bool follows_call = !messages.empty() && messages.back().contains("tool_calls");
    if (follows_call) {
      messages.back()["tool_calls"].push_back(std::move(call));
    } else {
      messages.push_back(
          {{"role", "assistant"}, {"content", ""}, {"tool_calls", Json::array({std::move(call)})}});
    }
  } else if (type == "function_call_output") {
    const auto output = read_content(one, "output");
    if (!output) one.fail("output", "is required");
    messages.push_back({{"role", "tool"},
                        {"content", output.value_or("")},
                        {"tool_call_id", one.string("call_id", kMaxNameBytes).value_or("")}});
  } else if (type != "reasoning") {  // earlier thoughts are not shown again, as templates have it
    one.fail("type", "\"{}\" items are not supported", type);
  }
  if (one.error()) fields.fail(*one.error());
}

void read_text_format(Fields& fields, const ApiLimits& limits, ChatRequest& chat) {
  const Json* text = fields.object("text");
  const Json* format = text != nullptr ? Fields(*text).find("format") : nullptr;
  if (format == nullptr) return;
  if (!format->is_object()) return fields.fail("text.format", "expected an object");
  Fields inner(*format, "text.format.");
  const std::string type = inner.string("type", 64).value_or("");
  if (type == "json_object") {
    chat.params.constraint.kind = Constraint::Kind::kJsonObject;
  } else if (type == "json_schema") {
    const Json* schema = inner.find("schema");
    if (schema == nullptr) {
      inner.fail("schema", "is required");
    } else {
      check_schema(inner, "schema", *schema, limits);
      chat.params.constraint = {.kind = Constraint::Kind::kJsonSchema, .schema = *schema};
    }
  } else if (type != "text") {
    inner.fail("type", "expected text, json_object or json_schema, got \"{}\"", type);
  }
  if (inner.error()) fields.fail(*inner.error());
}

}  // namespace

ApiResult<ChatRequest> parse_chat(const Json& body, const ApiLimits& limits,
                                  const SamplingDefaults& defaults) {
  Fields fields(body);
  ChatRequest request;
  request.model = fields.string("model", kMaxNameBytes).value_or("");
  refuse_old_fields(fields);
  const Json* messages = fields.array("messages", limits.max_messages);
  if (messages == nullptr || messages->empty()) {
    fields.fail("messages", "expected at least one message");
  } else {
    for (size_t i = 0; i < messages->size() && !fields.error(); ++i) {
      read_message(fields, i, (*messages)[i], limits, request.messages);
    }
  }
  request.params = read_generation_params(fields, limits, defaults);
  if (const auto tokens = fields.integer("max_completion_tokens", 1, limits.max_tokens)) {
    request.params.max_tokens = static_cast<int>(*tokens);
  }
  const bool logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", 0, limits.max_logprobs);
  if (top && *top > 0 && !logprobs) fields.fail("top_logprobs", "needs logprobs: true");
  if (logprobs) request.params.num_logprobs = static_cast<int>(top.value_or(0));
  if (!fields.error()) read_tools(fields, limits, /*flat=*/false, request);
  if (!fields.error()) read_tool_choice(fields, request);
  request.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
  read_template_kwargs(fields, limits, request);
  request.split_reasoning = fields.boolean("separate_reasoning").value_or(true);
  if (fields.error()) return tl::unexpected(*fields.error());
  return request;
}

ApiResult<ResponsesRequest> parse_responses(const Json& body, const ApiLimits& limits,
                                            const SamplingDefaults& defaults) {
  Fields fields(body);
  ResponsesRequest request;
  ChatRequest& chat = request.chat;
  chat.model = fields.string("model", kMaxNameBytes).value_or("");
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    if (fields.has(name)) fields.fail(name, "nothing is stored here: send the whole input");
  }
  if (fields.boolean("background").value_or(false)) fields.fail("background", "is not supported");
  const auto instructions = fields.string("instructions", kMaxTextBytes);
  if (instructions) chat.messages.push_back({{"role", "system"}, {"content", *instructions}});
  const Json* input = fields.find("input");
  if (input != nullptr && input->is_string()) {
    chat.messages.push_back({{"role", "user"}, {"content", *input}});
  } else if (const Json* items = fields.array("input", limits.max_messages);
             items != nullptr && !items->empty()) {
    for (const Json& item : *items) {
      if (!fields.error()) read_input_item(fields, item, limits, chat.messages);
    }
  } else {
    fields.fail("input", "expected a string or at least one item");
  }
  chat.params = read_generation_params(fields, limits, defaults);
  chat.params.n = 1;
  if (const auto tokens = fields.integer("max_output_tokens", 1, limits.max_tokens)) {
    chat.params.max_tokens = static_cast<int>(*tokens);
  }
  const auto top = fields.integer("top_logprobs", 0, limits.max_logprobs);
  if (const Json* include = fields.array("include", 16)) {
    for (const Json& what : *include) {
      if (what == "message.output_text.logprobs") {
        chat.params.num_logprobs = static_cast<int>(top.value_or(0));
      }
    }
  }
  if (!fields.error()) read_text_format(fields, limits, chat);
  if (!fields.error()) read_tools(fields, limits, /*flat=*/true, chat);
  if (!fields.error()) read_tool_choice(fields, chat);
  chat.parallel_tool_calls = fields.boolean("parallel_tool_calls").value_or(true);
  read_template_kwargs(fields, limits, chat);
  if (fields.error()) return tl::unexpected(*fields.error());

  request.echo["instructions"] = instructions ? Json(*instructions) : Json();
  request.echo["max_output_tokens"] =
      chat.params.max_tokens ? Json(*chat.params.max_tokens) : Json();
  request.echo["temperature"] = chat.params.sampling.temperature;
  request.echo["top_p"] = chat.params.sampling.top_p;
  request.echo["parallel_tool_calls"] = chat.parallel_tool_calls;
  request.echo["tools"] =
      body.contains("tools") && body["tools"].is_array() ? body["tools"] : Json::array();
  request.echo["tool_choice"] = body.contains("tool_choice") ? body["tool_choice"] : Json("auto");
  request.echo["text"] = body.contains("text") && body["text"].is_object()
                             ? body["text"]
                             : Json{{"format", {{"type", "text"}}}};
  request.echo["metadata"] =
      body.contains("metadata") && body["metadata"].is_object() ? body["metadata"] : Json::object();
  return request;
}

}  // namespace volley::server
