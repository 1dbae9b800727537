// Any bytes as a tokenizer.json; when they load, encodes and decodes an awkward text.

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley;
  set_log_level(LogLevel::kOff);
  const auto tokenizer =
      Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "tokenizer.json");
  if (!tokenizer) {
    CHECK(!tokenizer.error().message.empty());
    return 0;
  }
  static constexpr std::string_view kText =
      "The the  'S 123\t\r\n aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa "
      "<|end|> x<left> e\xCC\x81 \xE4\xB8\xAD\xE2\x80\x8D\xF0\x9F\x98\x80 \xFF\xC3 \n";
  for (const bool special : {true, false}) {
    const std::vector<int32_t> ids =
        tokenizer->encode(kText, {.add_special_tokens = special, .parse_special = special});
    for (const int32_t id : ids) CHECK(id >= 0 && id < tokenizer->vocab_size());
    IncrementalDetokenizer detokenizer(*tokenizer, special);
    std::string text = detokenizer.push(ids);
    text += detokenizer.flush();
    CHECK(text == tokenizer->decode(ids, special));
  }
  return 0;
}
