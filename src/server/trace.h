#pragma once

// Ids that follow a request through logs: W3C trace context, and the request id.

#include <cstdint>
#include <random>
#include <string>
#include <string_view>

namespace volley::server {

struct TraceIds {
  std::string trace_id;   // 32 hex digits: the caller's, or a new one
  std::string parent_id;  // 16 hex digits; empty: nobody called
  std::string span_id;    // 16 hex digits, ours
  bool sampled = true;

  std::string traceparent() const;  // to tell the caller, or whom we call
};

// Random ids; not for secrets.
class IdMaker {
 public:
  IdMaker();
  std::string hex(int num_digits);
  // Continues the trace that a valid `traceparent` header names, else starts one.
  TraceIds trace(std::string_view traceparent);

  uint64_t number() { return random_(); }

 private:
  std::mt19937_64 random_;
};

// A client's X-Request-Id as far as it may stand in headers and logs: at most 128 letters, digits
// and "-_.:"; otherwise empty.
std::string_view clean_request_id(std::string_view given);

}  // namespace volley::server
