#pragma once

// The chat template of a model folder: messages to the text that the model was trained on.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/jinja/template.h"

namespace volley {

struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  Json tools;      // null, or a list of JSON schemas of functions
  Json documents;  // null, or a list of documents
  Json extra;      // null, or an object: further variables such as enable_thinking
};

class ChatTemplate {
 public:
  // Reads chat_template.jinja, else `chat_template` of tokenizer_config.json (one template, or a
  // list of named ones), and the special tokens of tokenizer_config.json. kNotFound if the folder
  // has no template.
  static Result<ChatTemplate> load(const std::filesystem::path& model_folder,
                                   const jinja::JinjaLimits& limits = {});

  // One template; `special_tokens` is an object such as {"bos_token": "<s>"}.
  static Result<ChatTemplate> from_source(std::string_view source, const Json& special_tokens,
                                          std::string_view name = "chat template",
                                          const jinja::JinjaLimits& limits = {});

  // `messages` is a list of objects with `role` and `content` (text, or a list of parts). Names
  // in options.extra replace special tokens of the same name, and may not be `messages`. Errors
  // carry the template's line. Const and safe to call from several threads at once. Time goes with
  // the length of the messages, bounded by JinjaLimits.
  Result<std::string> render(const Json& messages, const ChatTemplateOptions& options = {}) const;

  // In place of the local time, for strftime_now.
  void set_clock(jinja::Clock clock) { clock_ = std::move(clock); }

 private:
  ChatTemplate() = default;
  Result<const jinja::Template*> pick(bool has_tools) const;

  std::map<std::string, jinja::Template> templates_;  // by name; a lone one is "default"
  Json special_tokens_;
  jinja::Clock clock_ = jinja::local_time;
};

}  // namespace volley
