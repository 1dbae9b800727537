#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley::server {

// The keys that open the server. Comparing takes the same time whatever is presented and whichever
// key it is, so that timing tells nothing (CVE-2025-59425).
class ApiKeys {
 public:
  static constexpr size_t kMaxBytes = 256;
  static constexpr size_t kMaxKeys = 1024;

  ApiKeys() = default;  // no keys: everybody may come in
  // Errors: too many keys, an empty or too long one.
  static Result<ApiKeys> create(std::vector<std::string> keys);

  bool required() const { return !keys_.empty(); }
  // `presented`: the Authorization header.
  bool accepts_authorization(std::string_view presented) const;
  bool accepts(std::string_view key) const;

 private:
  std::vector<std::string> keys_;
};

}  // namespace volley::server
