#include "weights/config_reader.h"

#include <cmath>
#include <utility>

namespace volley {
namespace {

const Json& empty_object() {
  static const Json kEmpty = Json::object();
  return kEmpty;
}

// What came, short enough for a message.
std::string shown(const Json& value) {
  std::string text = dump_json(value);
  if (text.size() > 60) text = text.substr(0, 60) + "...";
  return text;
}

}  // namespace

ConfigReader::ConfigReader(const Json& object, std::string path)
    : ConfigReader(object, std::move(path), std::make_shared<std::optional<Error>>()) {}

ConfigReader::ConfigReader(const Json& object, std::string path,
                           std::shared_ptr<std::optional<Error>> error)
    : object_(&object), path_(std::move(path)), error_(std::move(error)) {
  if (!object.is_object()) {
    fail(ErrorKind::kInvalidInput, "expected an object, got {}", shown(object));
    object_ = &empty_object();
  }
}

const Json* ConfigReader::find(std::string_view key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

void ConfigReader::record(ErrorKind kind, std::string message) const {
  if (!*error_) *error_ = Error{kind, path_ + ": " + message};
}

Status ConfigReader::status() const {
  if (*error_) return tl::unexpected<Error>(**error_);
  return {};
}

std::optional<int64_t> ConfigReader::checked_integer(const Json& value, std::string_view key,
                                                     int64_t min, int64_t max) const {
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) &&
                    value.get<int64_t>() >= min && value.get<int64_t>() <= max;
  if (!fits) {
    fail(ErrorKind::kInvalidInput, "{}: expected an integer from {} to {}, got {}", key, min, max,
         shown(value));
    return std::nullopt;
  }
  return value.get<int64_t>();
}

std::optional<int> ConfigReader::optional_integer(std::string_view key, int64_t min, int64_t max) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  const auto checked = checked_integer(*value, key, min, max);
  if (!checked) return std::nullopt;
  return static_cast<int>(*checked);
}

int ConfigReader::integer(std::string_view key, int fallback, int64_t min, int64_t max) {
  return optional_integer(key, min, max).value_or(fallback);
}

int ConfigReader::required_integer(std::string_view key, int64_t min, int64_t max) {
  if (!has(key)) fail(ErrorKind::kInvalidInput, "{} is missing", key);
  return integer(key, static_cast<int>(min), min, max);
}

std::optional<double> ConfigReader::optional_number(std::string_view key, double min, double max) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  // The comparison refuses NaN too, though JSON has none.
  if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
    fail(ErrorKind::kInvalidInput, "{}: expected a number from {} to {}, got {}", key, min, max,
         shown(*value));
    return std::nullopt;
  }
  return value->get<double>();
}

double ConfigReader::number(std::string_view key, double fallback, double min, double max) {
  return optional_number(key, min, max).value_or(fallback);
}

std::optional<bool> ConfigReader::optional_boolean(std::string_view key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    fail(ErrorKind::kInvalidInput, "{}: expected true or false, got {}", key, shown(*value));
    return std::nullopt;
  }
  return value->get<bool>();
}

bool ConfigReader::boolean(std::string_view key, bool fallback) {
  return optional_boolean(key).value_or(fallback);
}

std::string ConfigReader::string(std::string_view key, std::string_view fallback) {
  const Json* value = find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) {
    fail(ErrorKind::kInvalidInput, "{}: expected a string, got {}", key, shown(*value));
    return std::string(fallback);
  }
  return value->get<std::string>();
}

std::optional<std::vector<int>> ConfigReader::integers(std::string_view key, size_t max_count,
                                                       int64_t min, int64_t max) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array() || value->size() > max_count) {
    fail(ErrorKind::kInvalidInput, "{}: expected a list of at most {} integers, got {}", key,
         max_count, shown(*value));
    return std::nullopt;
  }
  std::vector<int> out;
  for (const Json& item : *value) {
    const auto checked = checked_integer(item, key, min, max);
    if (!checked) return std::nullopt;
    out.push_back(static_cast<int>(*checked));
  }
  return out;
}

std::optional<std::vector<std::string>> ConfigReader::strings(std::string_view key,
                                                              size_t max_count) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> out;
  bool fits = value->is_array() && value->size() <= max_count;
  if (fits) {
    for (const Json& item : *value) {
      fits = fits && item.is_string();
      if (fits) out.push_back(item.get<std::string>());
    }
  }
  if (!fits) {
    fail(ErrorKind::kInvalidInput, "{}: expected a list of at most {} strings, got {}", key,
         max_count, shown(*value));
    return std::nullopt;
  }
  return out;
}

std::vector<int> ConfigReader::integer_or_list(std::string_view key, size_t max_count, int64_t min,
                                               int64_t max) {
  const Json* value = find(key);
  if (value == nullptr) return {};
  if (value->is_array()) return integers(key, max_count, min, max).value_or(std::vector<int>{});
  const auto single = optional_integer(key, min, max);
  return single ? std::vector<int>{*single} : std::vector<int>{};
}

ConfigReader ConfigReader::object(std::string_view key) const {
  const Json* value = find(key);
  return ConfigReader(value == nullptr ? empty_object() : *value, fmt::format("{}: {}", path_, key),
                      error_);
}

}  // namespace volley
