// Any bytes as config.json of a target and of a drafter, and, after a zero byte, as
// generation_config.json: an error, or a config whose fields keep their bounds.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "weights/config.h"
#include "weights/drafter_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t split = text.find('\0');
  const std::string_view config_json = text.substr(0, split);
  const std::string_view generation_json =
      split == std::string_view::npos ? std::string_view() : text.substr(split + 1);
  const auto target = volley::parse_target_config(config_json, generation_json);
  if (target) {
    CHECK(target->validate().has_value());
    CHECK_EQ(target->layer_window.size(), static_cast<size_t>(target->num_layers));
  }
  const auto drafter = volley::parse_drafter_config(config_json);
  if (drafter) {
    CHECK(drafter->validate().has_value());
    CHECK_EQ(drafter->attention.size(), static_cast<size_t>(drafter->num_layers));
    CHECK_GE(drafter->block_size, 2);
  }
  if (target && drafter) (void)volley::drafter_fit(*target, *drafter);
  return 0;
}
