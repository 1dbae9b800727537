#pragma once

// One HTTP(S) GET after another, over libcurl: redirects, certificates, proxies (its environment
// variables), time limits on servers that stop talking.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace volley {

struct GetRequest {
  std::string url;
  std::string token;   // sent as bearer to the first host alone; empty: none
  int64_t offset = 0;  // > 0: the body from this byte on, as a Range
};

// Status and range of the response, redirects followed.
struct GetHead {
  int status = 0;
  int64_t offset = 0;  // where the body begins; 0 unless the server answers 206
  double retry_after_s = 0;
};

enum class GetEnd {
  kComplete,     // a response came, whatever its status, and its whole body
  kUnreachable,  // no connection: no network, no such host, a refused port
  kBroken,       // it ended early, stalled, or spoke nonsense; worth another try
  kRefused,      // a certificate, a redirect or a URL that must not be followed
  kStopped,      // by a callback
};

struct GetResult {
  GetEnd end = GetEnd::kBroken;
  GetHead head;
  std::string why;  // libcurl's words, unless kComplete
};

class HttpGetter {
 public:
  HttpGetter();
  ~HttpGetter();
  HttpGetter(const HttpGetter&) = delete;
  HttpGetter& operator=(const HttpGetter&) = delete;

  // Gives the pieces of the body of a 200 or 206 to `data`; bodies of other responses are dropped.
  // Either callback stops the transfer with false; `go_on` is asked about once a second.
  GetResult get(const GetRequest& request,
                const std::function<bool(const GetHead&, std::span<const std::byte>)>& data,
                const std::function<bool()>& go_on);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// `text` as one segment of a URL's path.
std::string url_segment(std::string_view text);

}  // namespace volley
