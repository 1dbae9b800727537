#pragma once

// Reads the fields of a JSON object that a client sent. Every number has bounds, every string and
// list a size; the first violation is kept and everything after it yields defaults.

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"

namespace volley::server {

class Fields {
 public:
  // `object` must outlive this and be a JSON object. `prefix` stands before the names in errors.
  explicit Fields(const Json& object, std::string prefix = {})
      : object_(object), prefix_(std::move(prefix)) {}

  // The field, or nullptr where it is missing or null.
  const Json* find(std::string_view name) const;
  bool has(std::string_view name) const { return find(name) != nullptr; }

  std::optional<double> number(std::string_view name, double low, double high);
  std::optional<int64_t> integer(std::string_view name, int64_t low, int64_t high);
  std::optional<bool> boolean(std::string_view name);
  std::optional<std::string> string(std::string_view name, size_t max_bytes);
  // A string or a list of at most `max_items` strings.
  std::optional<std::vector<std::string>> strings(std::string_view name, size_t max_items,
                                                  size_t max_bytes);
  std::optional<std::vector<int32_t>> token_ids(std::string_view name, size_t max_items);
  const Json* object(std::string_view name);
  const Json* array(std::string_view name, size_t max_items);

  template <class... Args>
  void fail(std::string_view name, fmt::format_string<Args...> format, Args&&... args) {
    if (error_) return;
    error_ = ApiError{.message = prefix_ + std::string(name) + ": " +
                                 fmt::format(format, std::forward<Args>(args)...),
                      .param = prefix_ + std::string(name)};
  }
  void fail(ApiError error) {
    if (!error_) error_ = std::move(error);
  }
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const Json& object_;
  std::string prefix_;
  std::optional<ApiError> error_;
};

// A short rendering of a value for an error message.
std::string excerpt(const Json& value);

}  // namespace volley::server
