// Any bytes as a safetensors file and as an index of shards: an error or views that stay inside the
// bytes, never a crash.

#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> file(reinterpret_cast<const std::byte*>(data), size);
  (void)volley::parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz");
  const auto tensors = volley::parse_safetensors(file, "fuzz");
  if (!tensors) return 0;
  int64_t total = 0;
  for (const volley::NamedTensor& named : *tensors) {
    const volley::HostTensor& tensor = named.tensor;
    CHECK(tensor.data >= file.data() && tensor.data + tensor.num_bytes() <= file.data() + size);
    total += tensor.num_bytes();
    if (tensor.num_elements() == 0) continue;
    // Touch both ends; the sanitizer watches.
    for (const int64_t i : {int64_t{0}, tensor.num_elements() - 1}) {
      if (volley::is_float(tensor.dtype)) {
        (void)tensor.float_at(i);
      } else {
        (void)tensor.int_at(i);
      }
    }
  }
  CHECK_LE(total, static_cast<int64_t>(size));
  return 0;
}
