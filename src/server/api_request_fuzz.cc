// Bodies of requests, as bytes: every parser takes them or says why not. Then the same bytes as an
// answer's text through the splitter, whose parts must not depend on how it was cut.

#include <cstdlib>

#include "server/api_request.h"
#include "server/output_splitter.h"

namespace volley::server {
namespace {

OutputParts split(std::string_view text, size_t size) {
  OutputSplitter splitter({.split_reasoning = true, .parse_tool_calls = true});
  OutputParts all;
  const auto add = [&](const OutputParts& parts) {
    all.reasoning += parts.reasoning;
    all.content += parts.content;
    all.tool_calls.insert(all.tool_calls.end(), parts.tool_calls.begin(), parts.tool_calls.end());
  };
  for (size_t i = 0; i < text.size(); i += size) add(splitter.push(text.substr(i, size)));
  add(splitter.finish());
  return all;
}

void check(std::string_view text) {
  const ApiLimits limits;
  if (const auto body = parse_body(text, limits)) {
    const auto completion = parse_completion(*body, limits, {});
    if (completion && completion->params.n > limits.max_n) std::abort();
    const auto chat = parse_chat(*body, limits, {});
    if (chat && chat->messages.empty()) std::abort();
    (void)parse_responses(*body, limits, {});
    (void)parse_native(*body, limits, {});
    (void)parse_tokenize(*body, limits);
    (void)parse_detokenize(*body, limits);
  }
  const OutputParts whole = split(text, text.size() + 1);
  const OutputParts bytes = split(text, 1);
  if (whole.reasoning != bytes.reasoning || whole.content != bytes.content ||
      whole.tool_calls.size() != bytes.tool_calls.size()) {
    std::abort();
  }
}

}  // namespace
}  // namespace volley::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  volley::server::check({reinterpret_cast<const char*>(data), size});
  return 0;
}
