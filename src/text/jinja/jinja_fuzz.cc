// Any bytes as a chat template, rendered with a fixed conversation under tight limits.

#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "text/jinja/template.h"

namespace {

constexpr std::string_view kContext = R"({
  "messages": [{"role": "system", "content": "Be kind. \u00e4\u65e5\ud83d\ude00"},
               {"role": "user", "content": [{"type": "text", "text": "a < b"}, {"type": "image"}]},
               {"role": "assistant", "content": "<think>x</think>\n y ",
                "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, null]}}}]}],
  "tools": [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "A": true}}}],
  "bos_token": "<s>", "n": 7, "x": [3, 1, 2], "s": "hello world", "d": {"k": "v", "1": {}}
})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley;
  static const Json context = *parse_json(kContext, "context");
  const jinja::JinjaLimits limits = {.max_template_bytes = 1 << 16,
                                     .max_steps = 20'000,
                                     .max_output_bytes = 1 << 16,
                                     .max_value_bytes = 1 << 16,
                                     .max_items = 10'000,
                                     .max_memory_bytes = 8 << 20};
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  const auto parsed = jinja::Template::parse(source, "t", limits);
  if (!parsed) {
    CHECK(!parsed.error().message.empty());
    return 0;
  }
  const auto clock = [] { return std::tm{}; };
  const auto first = parsed->render(context, clock);
  const auto second = parsed->render(context, clock);
  CHECK_EQ(first.has_value(), second.has_value());
  if (first) {
    CHECK(*first == *second);
    CHECK(first->size() <= limits.max_output_bytes);
  }
  return 0;
}
