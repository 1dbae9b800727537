#include "text/chat_template.h"

#include "base/file.h"

namespace volley {
namespace {

constexpr size_t kMaxConfigBytes = size_t{64} << 20;

// The variables that transformers passes for special tokens.
constexpr std::string_view kSpecialTokenNames[] = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

// Sources by name. Nothing when the config has no template.
Result<std::map<std::string, std::string>> sources_of(const Json& config, std::string_view what) {
  std::map<std::string, std::string> sources;
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return sources;
  if (found->is_string()) {
    sources["default"] = found->get<std::string>();
    return sources;
  }
  if (!found->is_array()) {
    return invalid("{}: chat_template must be a string or a list of named templates", what);
  }
  for (const Json& entry : *found) {
    const bool well_formed = entry.is_object() && entry.contains("name") &&
                             entry["name"].is_string() && entry.contains("template") &&
                             entry["template"].is_string();
    if (!well_formed) {
      return invalid("{}: every entry of chat_template needs a name and a template", what);
    }
    sources[entry["name"].get<std::string>()] = entry["template"].get<std::string>();
  }
  return sources;
}

// A token is written as a string or as an object with `content`.
Json special_tokens_of(const Json& config) {
  Json tokens = Json::object();
  for (const std::string_view name : kSpecialTokenNames) {
    const auto found = config.find(name);
    if (found == config.end()) continue;
    if (found->is_string()) {
      tokens[std::string(name)] = *found;
    } else if (found->is_object() && found->contains("content") &&
               (*found)["content"].is_string()) {
      tokens[std::string(name)] = (*found)["content"];
    }
  }
  return tokens;
}

Result<Json> read_config(const std::filesystem::path& path) {
  auto text = read_file(path, kMaxConfigBytes);
  if (!text) {
    if (text.error().kind == ErrorKind::kNotFound) return Json(Json::object());
    return tl::unexpected<Error>(std::move(text.error()));
  }
  VOLLEY_TRY(Json config, parse_json(*text, path.string()));
  if (!config.is_object()) return invalid("{}: expected a JSON object", path.string());
  return config;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::load(const std::filesystem::path& model_folder,
                                        const jinja::JinjaLimits& limits) {
  const auto config_path = model_folder / "tokenizer_config.json";
  VOLLEY_TRY(const Json config, read_config(config_path));
  ChatTemplate result;
  result.special_tokens_ = special_tokens_of(config);
  const auto template_path = model_folder / "chat_template.jinja";
  std::map<std::string, std::string> sources;
  std::string origin = template_path.string();
  auto text = read_file(template_path, limits.max_template_bytes);
  if (text) {
    sources["default"] = std::move(*text);
  } else if (text.error().kind != ErrorKind::kNotFound) {
    return tl::unexpected<Error>(std::move(text.error()));
  } else {
    origin = config_path.string();
    VOLLEY_TRY(sources, sources_of(config, origin));
  }
  if (sources.empty()) {
    return make_error(ErrorKind::kNotFound,
                      "{}: no chat template: expected chat_template.jinja, or chat_template in "
                      "tokenizer_config.json",
                      model_folder.string());
  }
  for (const auto& [name, source] : sources) {
    const std::string label = sources.size() == 1 ? origin : fmt::format("{} ({})", origin, name);
    VOLLEY_TRY(jinja::Template parsed, jinja::Template::parse(source, label, limits));
    result.templates_.emplace(name, std::move(parsed));
  }
  return result;
}

Result<ChatTemplate> ChatTemplate::from_source(std::string_view source, const Json& special_tokens,
                                               std::string_view name,
                                               const jinja::JinjaLimits& limits) {
  ChatTemplate result;
  result.special_tokens_ = special_tokens.is_object() ? special_tokens : Json(Json::object());
  VOLLEY_TRY(jinja::Template parsed, jinja::Template::parse(source, name, limits));
  result.templates_.emplace("default", std::move(parsed));
  return result;
}

Result<const jinja::Template*> ChatTemplate::pick(bool has_tools) const {
  auto found = templates_.find(has_tools ? "tool_use" : "default");
  if (found == templates_.end()) found = templates_.find("default");
  if (found == templates_.end() && templates_.size() == 1) found = templates_.begin();
  if (found != templates_.end()) return &found->second;
  std::string names;
  for (const auto& [name, parsed] : templates_) names += (names.empty() ? "" : ", ") + name;
  return make_error(ErrorKind::kNotFound,
                    "the model has chat templates named {}, but none named `default`", names);
}

Result<std::string> ChatTemplate::render(const Json& messages,
                                         const ChatTemplateOptions& options) const {
  if (!messages.is_array()) return invalid("messages must be a list");
  for (const Json& message : messages) {
    if (!message.is_object()) return invalid("every message must be an object");
  }
  if (!options.extra.is_null() && !options.extra.is_object()) {
    return invalid("extra variables of the chat template must be an object");
  }
  Json context = special_tokens_;
  if (options.extra.is_object()) {
    for (const auto& [name, value] : options.extra.items()) context[name] = value;
  }
  context["messages"] = messages;
  context["tools"] = options.tools;
  context["documents"] = options.documents;
  context["add_generation_prompt"] = options.add_generation_prompt;
  VOLLEY_TRY(const jinja::Template* chosen, pick(options.tools.is_array()));
  return chosen->render(context, clock_);
}

}  // namespace volley
