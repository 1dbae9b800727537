#include "server/api_keys.h"

#include <algorithm>
#include <cctype>

namespace volley::server {
namespace {

// Reads kMaxBytes of both, whatever their lengths are.
bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < ApiKeys::kMaxBytes; ++i) {
    const unsigned char x = i < a.size() ? static_cast<unsigned char>(a[i]) : 0;
    const unsigned char y = i < b.size() ? static_cast<unsigned char>(b[i]) : 0;
    difference |= x ^ y;
  }
  return difference == 0;
}

}  // namespace

Result<ApiKeys> ApiKeys::create(std::vector<std::string> keys) {
  if (keys.size() > kMaxKeys)
    return invalid("API keys: {} given, at most {}", keys.size(), kMaxKeys);
  for (const std::string& key : keys) {
    if (key.empty() || key.size() > kMaxBytes) {
      return invalid("API keys: expected 1 to {} bytes, got a key of {}", kMaxBytes, key.size());
    }
  }
  ApiKeys result;
  result.keys_ = std::move(keys);
  return result;
}

bool ApiKeys::accepts(std::string_view key) const {
  if (key.size() > kMaxBytes) return false;
  unsigned matches = 0;
  for (const std::string& known : keys_) {
    matches |= static_cast<unsigned>(equal_in_constant_time(known, key));
  }
  return matches != 0;
}

bool ApiKeys::accepts_authorization(std::string_view presented) const {
  constexpr std::string_view kScheme = "bearer ";
  if (presented.size() < kScheme.size()) return false;
  const bool bearer = std::equal(
      kScheme.begin(), kScheme.end(), presented.begin(),
      [](char want, char got) { return want == std::tolower(static_cast<unsigned char>(got)); });
  return bearer && accepts(presented.substr(kScheme.size()));
}

}  // namespace volley::server
