#pragma once

// JSON from outside, bounded. For documents of many megabytes (tokenizer.json, safetensors headers)
// use simdjson where they are read.

#include <nlohmann/json.hpp>
#include <string_view>

#include "base/result.h"

namespace volley {

using Json = nlohmann::ordered_json;

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 64;  // nlohmann recurses: two million '[' would overflow the stack
};

// Parses `text` (UTF-8). Errors name `what` (a file name or a flag) and the byte where it went
// wrong.
Result<Json> parse_json(std::string_view text, std::string_view what,
                        const JsonLimits& limits = {});

// Serialises `value`; bytes that are no UTF-8 become U+FFFD, never an exception.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace volley
