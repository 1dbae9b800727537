#include "hub/http_get.h"

#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <mutex>
#include <string_view>

#include "base/check.h"

namespace volley {
namespace {

constexpr long kConnectTimeoutS = 15;
constexpr long kStallBytesPerS = 512;  // slower than this for so long is a stall
constexpr long kStallS = 30;
constexpr long kMaxRedirects = 5;
constexpr double kMaxRetryAfterS = 60;

bool starts_with_no_case(std::string_view text, std::string_view lower_prefix) {
  return text.size() >= lower_prefix.size() &&
         std::equal(lower_prefix.begin(), lower_prefix.end(), text.begin(),
                    [](char want, char got) {
                      return want == std::tolower(static_cast<unsigned char>(got));
                    });
}

// A token may travel where nobody reads along: over TLS, or within this machine.
bool is_private(const std::string& url) {
  for (const char* start : {"https://", "http://127.0.0.1", "http://localhost", "http://[::1]"}) {
    const size_t n = std::string_view(start).size();
    const bool whole_host = n < url.size() && (url[n] == ':' || url[n] == '/');
    if (url.starts_with(start) && (whole_host || std::string_view(start) == "https://"))
      return true;
  }
  return false;
}

struct Transfer {
  CURL* handle = nullptr;
  GetHead head;
  const std::function<bool(const GetHead&, std::span<const std::byte>)>* data = nullptr;
  const std::function<bool()>* go_on = nullptr;
  bool stopped = false;
};

// libcurl calls these from C: nothing may be thrown through it.
size_t on_header(char* text, size_t size, size_t count, void* user) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const std::string_view line(text, size * count);
  if (line.starts_with("HTTP/")) transfer.head = {};  // of the next response: a redirect's is over
  const size_t colon = line.find(':');
  if (colon != std::string_view::npos) {
    const std::string value(line.substr(colon + 1));
    if (starts_with_no_case(line, "content-range:")) {
      const size_t digits = value.find_first_of("0123456789");
      if (digits != std::string::npos) {
        transfer.head.offset = std::strtoll(value.c_str() + digits, nullptr, 10);
      }
    } else if (starts_with_no_case(line, "retry-after:")) {
      transfer.head.retry_after_s =
          std::clamp(std::strtod(value.c_str(), nullptr), 0.0, kMaxRetryAfterS);
    }
  }
  return size * count;
}

int status_of(CURL* handle) {
  long status = 0;
  curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
  return static_cast<int>(status);
}

size_t on_data(char* bytes, size_t size, size_t count, void* user) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  const size_t num_bytes = size * count;
  transfer.head.status = status_of(transfer.handle);
  if (transfer.head.status != 200 && transfer.head.status != 206) return num_bytes;
  const std::span piece(reinterpret_cast<const std::byte*>(bytes), num_bytes);
  if ((*transfer.data)(transfer.head, piece)) return num_bytes;
  transfer.stopped = true;
  return num_bytes + 1;  // libcurl's sign for an error
}

int on_progress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) noexcept {
  auto& transfer = *static_cast<Transfer*>(user);
  if ((*transfer.go_on)()) return 0;
  transfer.stopped = true;
  return 1;
}

GetEnd end_of(CURLcode code) {
  switch (code) {
    case CURLE_OK:
      return GetEnd::kComplete;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
      return GetEnd::kUnreachable;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_TOO_MANY_REDIRECTS:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
      return GetEnd::kRefused;
    default:
      return GetEnd::kBroken;
  }
}

}  // namespace

struct HttpGetter::Impl {
  CURL* handle = nullptr;
  char message[CURL_ERROR_SIZE] = {};
};

HttpGetter::HttpGetter() : impl_(std::make_unique<Impl>()) {
  static std::once_flag once;
  std::call_once(once, [] { CHECK_EQ(curl_global_init(CURL_GLOBAL_DEFAULT), CURLE_OK); });
  impl_->handle = curl_easy_init();
  CHECK(impl_->handle != nullptr);
}

HttpGetter::~HttpGetter() {
  curl_easy_cleanup(impl_->handle);
}

GetResult HttpGetter::get(
    const GetRequest& request,
    const std::function<bool(const GetHead&, std::span<const std::byte>)>& data,
    const std::function<bool()>& go_on) {
  CURL* handle = impl_->handle;
  curl_easy_reset(handle);  // connections stay open
  Transfer transfer{.handle = handle, .data = &data, .go_on = &go_on};
  const bool secure = request.url.starts_with("https://");
  curl_easy_setopt(handle, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(handle, CURLOPT_PROTOCOLS_STR, "http,https");
  // Never from TLS down to plain text.
  curl_easy_setopt(handle, CURLOPT_REDIR_PROTOCOLS_STR, secure ? "https" : "http,https");
  curl_easy_setopt(handle, CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(handle, CURLOPT_MAXREDIRS, kMaxRedirects);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT, kConnectTimeoutS);
  curl_easy_setopt(handle, CURLOPT_LOW_SPEED_LIMIT, kStallBytesPerS);
  curl_easy_setopt(handle, CURLOPT_LOW_SPEED_TIME, kStallS);
  curl_easy_setopt(handle, CURLOPT_USERAGENT, "volley/0.1.0");
  curl_easy_setopt(handle, CURLOPT_ERRORBUFFER, impl_->message);
  curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(handle, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, on_data);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(handle, CURLOPT_XFERINFOFUNCTION, on_progress);
  curl_easy_setopt(handle, CURLOPT_XFERINFODATA, &transfer);
  if (!request.token.empty() && is_private(request.url)) {
    // libcurl does not send it on when a redirect names another host.
    curl_easy_setopt(handle, CURLOPT_HTTPAUTH, CURLAUTH_BEARER);
    curl_easy_setopt(handle, CURLOPT_XOAUTH2_BEARER, request.token.c_str());
  }
  const std::string range = fmt::format("{}-", request.offset);
  if (request.offset > 0) curl_easy_setopt(handle, CURLOPT_RANGE, range.c_str());

  impl_->message[0] = '\0';
  const CURLcode code = curl_easy_perform(handle);
  GetResult result{.end = transfer.stopped ? GetEnd::kStopped : end_of(code),
                   .head = transfer.head};
  result.head.status = status_of(handle);
  if (code != CURLE_OK) {
    result.why = impl_->message[0] != '\0' ? impl_->message : curl_easy_strerror(code);
  }
  return result;
}

std::string url_segment(std::string_view text) {
  std::string encoded;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || c == '-' || c == '_' || c == '.' || c == '~') {
      encoded += c;
    } else {
      encoded += fmt::format("%{:02X}", byte);
    }
  }
  return encoded;
}

}  // namespace volley
