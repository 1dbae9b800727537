#include "server/fields.h"

#include <cmath>

namespace volley::server {

std::string excerpt(const Json& value) {
  if (value.is_structured()) return value.is_object() ? "an object" : "a list";
  std::string text = dump_json(value);
  if (text.size() > 40) text = text.substr(0, 40) + "...";
  return text;
}

const Json* Fields::find(std::string_view name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<double> Fields::number(std::string_view name, double low, double high) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number >= low && number <= high) return number;
  }
  fail(name, "expected a number from {} to {}, got {}", low, high, excerpt(*value));
  return std::nullopt;
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t low, int64_t high) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  // 1.0 counts: some clients have no integers.
  if (value->is_number_unsigned()) {
    const auto number = value->get<uint64_t>();
    if (number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) &&
        static_cast<int64_t>(number) >= low && static_cast<int64_t>(number) <= high) {
      return static_cast<int64_t>(number);
    }
  } else if (value->is_number_integer()) {
    const auto number = value->get<int64_t>();
    if (number >= low && number <= high) return number;
  } else if (value->is_number_float()) {
    const double number = value->get<double>();
    if (std::abs(number) < 9e15 && number == std::floor(number)) {
      const auto whole = static_cast<int64_t>(number);
      if (whole >= low && whole <= high) return whole;
    }
  }
  fail(name, "expected a whole number from {} to {}, got {}", low, high, excerpt(*value));
  return std::nullopt;
}

std::optional<bool> Fields::boolean(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_boolean()) return value->get<bool>();
  fail(name, "expected true or false, got {}", excerpt(*value));
  return std::nullopt;
}

std::optional<std::string> Fields::string(std::string_view name, size_t max_bytes) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail(name, "expected a string, got {}", excerpt(*value));
    return std::nullopt;
  }
  const auto& text = value->get_ref<const std::string&>();
  if (text.size() > max_bytes) {
    fail(name, "{} bytes, at most {} are accepted", text.size(), max_bytes);
    return std::nullopt;
  }
  return text;
}

std::optional<std::vector<std::string>> Fields::strings(std::string_view name, size_t max_items,
                                                        size_t max_bytes) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) {
    const std::optional<std::string> one = string(name, max_bytes);
    if (!one) return std::nullopt;
    return std::vector<std::string>{*one};
  }
  if (!value->is_array()) {
    fail(name, "expected a string or a list of strings, got {}", excerpt(*value));
    return std::nullopt;
  }
  if (value->size() > max_items) {
    fail(name, "{} strings, at most {} are accepted", value->size(), max_items);
    return std::nullopt;
  }
  std::vector<std::string> items;
  for (const Json& item : *value) {
    if (!item.is_string()) {
      fail(name, "expected strings, got {}", excerpt(item));
      return std::nullopt;
    }
    items.push_back(item.get<std::string>());
    if (items.back().size() > max_bytes) {
      fail(name, "a string of {} bytes, at most {} are accepted", items.back().size(), max_bytes);
      return std::nullopt;
    }
  }
  return items;
}

std::optional<std::vector<int32_t>> Fields::token_ids(std::string_view name, size_t max_items) {
  const Json* list = array(name, max_items);
  if (list == nullptr) return std::nullopt;
  std::vector<int32_t> ids;
  ids.reserve(list->size());
  for (const Json& item : *list) {
    const bool fits =
        item.is_number_integer() && item >= 0 && item <= std::numeric_limits<int32_t>::max();
    if (!fits) {
      fail(name, "expected token ids, got {}", excerpt(item));
      return std::nullopt;
    }
    ids.push_back(item.get<int32_t>());
  }
  return ids;
}

const Json* Fields::object(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr || value->is_object()) return value;
  fail(name, "expected an object, got {}", excerpt(*value));
  return nullptr;
}

const Json* Fields::array(std::string_view name, size_t max_items) {
  const Json* value = find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) {
    fail(name, "expected a list, got {}", excerpt(*value));
    return nullptr;
  }
  if (value->size() > max_items) {
    fail(name, "{} items, at most {} are accepted", value->size(), max_items);
    return nullptr;
  }
  return value;
}

}  // namespace volley::server
