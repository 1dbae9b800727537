#include "base/json.h"

namespace volley {

Result<Json> parse_json(std::string_view text, std::string_view what, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return invalid("{}: {} bytes of JSON, at most {} are accepted", what, text.size(),
                   limits.max_bytes);
  }
  // The depth is checked before nlohmann sees a byte: its parser recurses on nothing, but its
  // destructor does.
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > limits.max_depth) {
        return invalid("{}: JSON nested deeper than {} levels at byte {}", what, limits.max_depth,
                       i);
      }
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    return invalid("{}: not valid JSON: {}", what, e.what());
  }
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace volley
