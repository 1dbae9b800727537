#pragma once

#include <string_view>

#include "text/jinja/ast.h"
#include "text/jinja/limits.h"

namespace volley::jinja {

// Throws Failure, with the line, on anything that is not a template of the supported language.
std::unique_ptr<Program> parse(std::string_view source, const JinjaLimits& limits);

}  // namespace volley::jinja
