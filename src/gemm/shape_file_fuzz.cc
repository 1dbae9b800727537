// A list of shapes is a user's file: every text is parsed or refused, and what is accepted has a
// configuration and an explanation.

#include <cstdlib>

#include "gemm/shape_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley::gemm;
  const auto shapes = parse_shapes({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (!shapes) return 0;
  int num_tried = 0;
  for (const GemmShape& shape : *shapes) {
    if (!validate(shape)) std::abort();
    if (++num_tried > 4) break;
    const auto config = choose_config(shape, DeviceSpec{});
    if (config && (!config->valid() || config->segments != segments_of(shape))) std::abort();
    if (!explain(shape, DeviceSpec{}, 2)) std::abort();
  }
  return 0;
}
