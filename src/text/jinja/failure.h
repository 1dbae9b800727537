#pragma once

// Errors inside the engine travel as an exception, because an expression can fail at any depth and
// lazily. It never leaves the engine: Template::parse and Template::render turn it into a Result.

#include <fmt/format.h>

#include <string>

#include "base/result.h"

namespace volley::jinja {

struct Failure {
  const char* type;  // the name Python gives it: "TypeError", "UndefinedError", ...
  std::string message;
  int line = 0;  // template line, 0 while unknown
  ErrorKind kind = ErrorKind::kInvalidInput;
};

template <class... Args>
[[noreturn]] void fail(const char* type, fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{type, fmt::format(format, std::forward<Args>(args)...)};
}

template <class... Args>
[[noreturn]] void fail_type(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{"TypeError", fmt::format(format, std::forward<Args>(args)...)};
}

// A limit of JinjaLimits is reached.
template <class... Args>
[[noreturn]] void fail_limit(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{"LimitError", fmt::format(format, std::forward<Args>(args)...), 0,
                ErrorKind::kExhausted};
}

// Valid Jinja that this engine does not offer.
template <class... Args>
[[noreturn]] void fail_unsupported(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{"NotSupported", fmt::format(format, std::forward<Args>(args)...), 0,
                ErrorKind::kUnsupported};
}

}  // namespace volley::jinja
