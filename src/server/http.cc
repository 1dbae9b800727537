#include "server/http.h"

#include <charconv>

namespace volley::server {

Status HttpLimits::validate() const {
  const auto check = [](const char* name, double value, double low, double high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid("{}: expected a number in [{}, {}], got {}", name, low, high, value);
  };
  VOLLEY_TRY_STATUS(check("max_connections", max_connections, 1, 1 << 20));
  VOLLEY_TRY_STATUS(check("max_header_bytes", max_header_bytes, 1 << 10, 1 << 20));
  VOLLEY_TRY_STATUS(check("max_body_bytes", static_cast<double>(max_body_bytes), 1 << 10, 1 << 30));
  VOLLEY_TRY_STATUS(check("socket_buffer_bytes", socket_buffer_bytes, 1 << 12, 1 << 30));
  VOLLEY_TRY_STATUS(check("max_outbound_bytes", max_outbound_bytes, 1 << 12, 1 << 30));
  VOLLEY_TRY_STATUS(check("idle_timeout_s", idle_timeout_s, 0.1, 86400));
  VOLLEY_TRY_STATUS(check("read_timeout_s", read_timeout_s, 0.1, 86400));
  VOLLEY_TRY_STATUS(check("write_timeout_s", write_timeout_s, 0.1, 86400));
  return {};
}

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    int byte = -1;
    if (text[i] == '%' && i + 2 < text.size()) {
      const char* digits = text.data() + i + 1;
      const auto [end, error] = std::from_chars(digits, digits + 2, byte, 16);
      if (error != std::errc() || end != digits + 2) byte = -1;
    }
    decoded += byte >= 0 ? static_cast<char>(byte) : text[i];
    if (byte >= 0) i += 2;
  }
  return decoded;
}

std::string_view status_text(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
  }
  return "Status";
}

}  // namespace volley::server
