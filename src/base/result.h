#pragma once

// Errors of the world (files, requests, shapes a caller passes) travel as Result<T>. A bug of ours
// is a CHECK (base/check.h). No exception crosses a library edge.

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

namespace volley {

enum class ErrorKind {
  kInvalidInput,  // the caller's bytes, flags or request are wrong
  kNotFound,      // a file or a name that should exist does not
  kUnsupported,   // well-formed, but nothing here can do it
  kExhausted,     // a configured limit is reached
  kIo,            // the system refused a read, a write or memory
};

// What was expected, what came, what to do: one message a person can act on.
struct Error {
  ErrorKind kind = ErrorKind::kInvalidInput;
  std::string message;
};

template <class T>
using Result = tl::expected<T, Error>;
using Status = Result<void>;

// return make_error(ErrorKind::kInvalidInput, "{}: expected {} bytes, got {}", path, want, got);
template <class... Args>
tl::unexpected<Error> make_error(ErrorKind kind, fmt::format_string<Args...> format,
                                 Args&&... args) {
  return tl::unexpected<Error>(Error{kind, fmt::format(format, std::forward<Args>(args)...)});
}

// return invalid("...") for the most frequent kind.
template <class... Args>
tl::unexpected<Error> invalid(fmt::format_string<Args...> format, Args&&... args) {
  return make_error(ErrorKind::kInvalidInput, format, std::forward<Args>(args)...);
}

}  // namespace volley

// VOLLEY_TRY(auto x, f()): x = value of f(), or return its error from the enclosing function.
#define VOLLEY_TRY_CONCAT_(a, b) a##b
#define VOLLEY_TRY_NAME_(line) VOLLEY_TRY_CONCAT_(volley_try_result_, line)
#define VOLLEY_TRY(declaration, expression)                                                  \
  auto VOLLEY_TRY_NAME_(__LINE__) = (expression);                                            \
  if (!VOLLEY_TRY_NAME_(__LINE__))                                                           \
    return ::tl::unexpected<::volley::Error>(std::move(VOLLEY_TRY_NAME_(__LINE__).error())); \
  declaration = std::move(*VOLLEY_TRY_NAME_(__LINE__))

// VOLLEY_TRY_STATUS(f()): return the error of f(), if it has one.
#define VOLLEY_TRY_STATUS(expression)                            \
  if (auto volley_try_status = (expression); !volley_try_status) \
  return ::tl::unexpected<::volley::Error>(std::move(volley_try_status.error()))
