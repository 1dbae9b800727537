#pragma once

// Reads bounded values out of a JSON object from outside. A reader remembers the first thing that
// was wrong and answers with harmless values after it, so that parsing reads as a list of fields;
// the caller asks `status()` once at the end, before it believes any of them.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace volley {

class ConfigReader {
 public:
  // `object` outlives the reader. `path` names it in errors: "config.json".
  ConfigReader(const Json& object, std::string path);

  // A JSON null counts as absent everywhere.
  bool has(std::string_view key) const { return find(key) != nullptr; }

  int required_integer(std::string_view key, int64_t min, int64_t max);
  int integer(std::string_view key, int fallback, int64_t min, int64_t max);
  std::optional<int> optional_integer(std::string_view key, int64_t min, int64_t max);
  double number(std::string_view key, double fallback, double min, double max);
  std::optional<double> optional_number(std::string_view key, double min, double max);
  bool boolean(std::string_view key, bool fallback);
  std::optional<bool> optional_boolean(std::string_view key);
  std::string string(std::string_view key, std::string_view fallback = "");
  // Arrays of at most `max_count`; nullopt when absent.
  std::optional<std::vector<int>> integers(std::string_view key, size_t max_count, int64_t min,
                                           int64_t max);
  std::optional<std::vector<std::string>> strings(std::string_view key, size_t max_count);
  // An integer or a list of integers; empty when absent.
  std::vector<int> integer_or_list(std::string_view key, size_t max_count, int64_t min,
                                   int64_t max);
  // The object at `key`, empty when absent; shares this reader's status.
  ConfigReader object(std::string_view key) const;

  // Records an error unless there is one already.
  template <class... Args>
  void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) const {
    record(kind, fmt::format(format, std::forward<Args>(args)...));
  }
  Status status() const;
  const std::string& path() const { return path_; }

 private:
  ConfigReader(const Json& object, std::string path, std::shared_ptr<std::optional<Error>> error);

  const Json* find(std::string_view key) const;
  std::optional<int64_t> checked_integer(const Json& value, std::string_view key, int64_t min,
                                         int64_t max) const;
  void record(ErrorKind kind, std::string message) const;

  const Json* object_;
  std::string path_;
  std::shared_ptr<std::optional<Error>> error_;  // of the root, shared with its children
};

}  // namespace volley
