#pragma once

// A sandboxed Jinja2 template, as jinja2 3.1 and Hugging Face's chat templates define the language.
// A template has no way to a file, a process, the environment, or an object it was not given, and
// every resource it can use is bounded by JinjaLimits.

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/limits.h"

namespace volley::jinja {

class Template {
 public:
  // Errors begin with "line N:". `name` is only used in them.
  static Result<Template> parse(std::string_view source, std::string_view name = "template",
                                const JinjaLimits& limits = {});

  // `context` is an object: its members are the template's variables. `clock` serves strftime_now.
  // Safe to call from several threads at once.
  Result<std::string> render(const Json& context, const Clock& clock) const;
  Result<std::string> render(const Json& context) const;  // with the local time

 private:
  Template(std::string name, JinjaLimits limits, std::unique_ptr<Program> program)
      : name_(std::move(name)), limits_(limits), program_(std::move(program)) {}

  std::string name_;
  JinjaLimits limits_;
  std::unique_ptr<const Program> program_;
};

std::tm local_time();

}  // namespace volley::jinja
