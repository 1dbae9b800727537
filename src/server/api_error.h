#pragma once

// Errors in the shape that OpenAI's clients know: {"error": {"message", "type", "param", "code"}}.

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>

#include "base/json.h"
#include "base/result.h"
#include "server/http.h"

namespace volley::server {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;  // the request's field; empty: none in particular
  std::string code;   // machine-readable, empty: none
};

template <class T>
using ApiResult = tl::expected<T, ApiError>;

// return bad_request("n", "expected ...");
template <class... Args>
tl::unexpected<ApiError> bad_request(std::string param, fmt::format_string<Args...> format,
                                     Args&&... args) {
  return tl::unexpected<ApiError>(
      ApiError{.status = 400,
               .message = fmt::format(format, std::forward<Args>(args)...),
               .param = std::move(param)});
}

inline std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    case 500:
      return "server_error";
    case 503:
      return "overloaded_error";
  }
  return "invalid_request_error";
}

inline Json error_json(const ApiError& error) {
  Json body;
  body["message"] = error.message;
  body["type"] = error_type(error.status);
  body["param"] = error.param.empty() ? Json() : Json(error.param);
  body["code"] = error.code.empty() ? Json() : Json(error.code);
  return Json{{"error", std::move(body)}};
}

// 429 and 503 say when to come again.
inline HttpResponse error_response(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = dump_json(error_json(error))};
  if (error.status == 429 || error.status == 503) response.headers.emplace_back("Retry-After", "1");
  return response;
}

// What the engine's or a reader's error means to a client.
inline ApiError api_error(const Error& error, std::string param = {}) {
  const int status = error.kind == ErrorKind::kExhausted ? 429
                     : error.kind == ErrorKind::kIo      ? 500
                                                         : 400;
  return {.status = status, .message = error.message, .param = std::move(param)};
}

}  // namespace volley::server
