#pragma once

// HTTP as the rest of the server sees it: requests, responses, and the two interfaces between a
// connection and what answers it. Nothing here knows sockets.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace volley::server {

// What a client may cost. Everything it sends or leaves unread is bounded by these.
struct HttpLimits {
  int max_connections = 4096;        // more are told 503 and closed
  int max_header_bytes = 16 << 10;   // request line and headers, else 431
  int64_t max_body_bytes = 4 << 20;  // else 413
  int socket_buffer_bytes =
      64 << 10;  // the system's, a connection, beyond which bytes count as unsent
  int max_outbound_bytes = 256 << 10;  // unsent bytes of a stream before its client is dropped
  double idle_timeout_s = 75;          // between two requests of a connection
  double read_timeout_s = 30;          // from a request's first byte to its last, else 408
  double write_timeout_s = 30;         // for a client to take what was sent

  Status validate() const;
};

struct HttpRequest {
  std::string method;
  std::string path;                                          // without the query
  std::string query;                                         // after '?'
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string peer;  // address of the client

  // The first header of that (lower case) name; empty when there is none.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

std::string_view status_text(int status);

// %2F and the like as bytes; what is no such code stays as it is.
std::string percent_decoded(std::string_view text);

// How one request is answered: send() once, or start_stream(), any number of write(), finish().
// Called on the server's thread. After the client went away every call does nothing.
class Responder {
 public:
  virtual ~Responder() = default;

  virtual void send(HttpResponse response) = 0;

  // A body of unknown length; `head.body` is ignored.
  virtual void start_stream(HttpResponse head) = 0;
  virtual void write(std::string_view data) = 0;
  virtual void finish() = 0;

  // Called once when the client goes away, or is dropped, before the answer is complete.
  virtual void on_gone(std::function<void()> callback) = 0;
};

// What the server does with requests; called on its thread.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // Sees the head before the body is read. A response ends the request without reading the body.
  virtual std::optional<HttpResponse> refuse(const HttpRequest& head) = 0;
  virtual void handle(HttpRequest request, std::shared_ptr<Responder> responder) = 0;
  // The response to bytes that are no acceptable request.
  virtual HttpResponse malformed(int status, std::string_view why) = 0;
};

}  // namespace volley::server
