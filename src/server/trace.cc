#include "server/trace.h"

#include <algorithm>
#include <cctype>

#include "base/result.h"

namespace volley::server {
namespace {

bool is_id(std::string_view text, size_t num_digits) {
  const auto is_hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  return text.size() == num_digits && std::all_of(text.begin(), text.end(), is_hex) &&
         text.find_first_not_of('0') != std::string_view::npos;
}

}  // namespace

IdMaker::IdMaker() {
  std::random_device device;
  std::seed_seq seed{device(), device(), device(), device()};
  random_.seed(seed);
}

std::string IdMaker::hex(int num_digits) {
  std::string text;
  while (static_cast<int>(text.size()) < num_digits) text += fmt::format("{:016x}", random_());
  return text.substr(0, num_digits);
}

// version "-" trace-id "-" parent-id "-" flags; later versions may append more.
TraceIds IdMaker::trace(std::string_view header) {
  TraceIds ids;
  ids.span_id = hex(16);
  const bool shaped = header.size() >= 55 && header[2] == '-' && header[35] == '-' &&
                      header[52] == '-' && header.substr(0, 2) != "ff" &&
                      (header.size() == 55 || header[55] == '-');
  if (shaped && is_id(header.substr(3, 32), 32) && is_id(header.substr(36, 16), 16)) {
    ids.trace_id = header.substr(3, 32);
    ids.parent_id = header.substr(36, 16);
    ids.sampled = header[54] == '1' || header[54] == '3';
  } else {
    ids.trace_id = hex(32);
  }
  return ids;
}

std::string TraceIds::traceparent() const {
  return fmt::format("00-{}-{}-{}", trace_id, span_id, sampled ? "01" : "00");
}

std::string_view clean_request_id(std::string_view given) {
  const auto is_fine = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.' ||
           c == ':';
  };
  const bool fine = given.size() <= 128 && std::all_of(given.begin(), given.end(), is_fine);
  return fine ? given : std::string_view();
}

}  // namespace volley::server
