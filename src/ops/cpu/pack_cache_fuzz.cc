// Any bytes as the start of a file of packed weights: an error, or sizes that fit the file. What is
// accepted is what its fields spell.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "ops/cpu/pack_cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  (void)cpu::parse_pack_header(bytes, size);
  if (size < 24) return 0;
  // With the checksum made to fit, so that what lies behind it is reached.
  cpu::PackHeader header;
  uint64_t words[3];
  std::memcpy(words, data, sizeof(words));
  header.format = static_cast<WeightFormat>(data[0] % 8);
  header.layout = static_cast<cpu::Bf16Layout>(data[1] % 4);
  header.num_panels = static_cast<int64_t>(words[1]);
  header.panel_bytes = static_cast<int64_t>(words[2]);
  const size_t file_bytes = static_cast<size_t>(words[0]);
  const std::string text = cpu::pack_header_text(header);
  const auto parsed =
      cpu::parse_pack_header(std::as_bytes(std::span(text.data(), text.size())), file_bytes);
  if (!parsed) return 0;
  CHECK(*parsed == header);
  CHECK(parsed->num_panels >= 0 && parsed->panel_bytes > 0);
  CHECK_EQ(static_cast<size_t>(parsed->num_panels) * static_cast<size_t>(parsed->panel_bytes),
           file_bytes - cpu::PackHeader::kPanelsOffset);
  return 0;
}
