// A bundle is bytes from outside: whatever they are, parse() accepts them or says why not, and what
// it accepts can be read to the last byte.

#include <cstdlib>

#include "jit/bundle.h"
#include "jit/little_endian.h"

namespace volley::jit {
namespace {

void read_everything(std::string_view bytes) {
  const auto bundle = Bundle::parse(bytes, "fuzz");
  if (!bundle) return;
  size_t total = 0;
  for (size_t i = 0; i < bundle->size(); ++i) {
    total += bundle->name(i).size();
    KernelKey key;
    std::copy_n(bytes.data() + 56 + i * 96, key.size(), reinterpret_cast<char*>(key.data()));
    const auto cubin = bundle->find(key);
    if (cubin && !*cubin) std::abort();  // an entry that its own key does not find
    if (cubin) total += (*cubin)->size();
  }
  if (total > bundle->size() * bytes.size()) std::abort();
}

}  // namespace
}  // namespace volley::jit

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley::jit;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  read_everything(bytes);
  // The checksum and the size stop nearly every mutation; put right ones in to reach what is
  // behind.
  if (size < 56) return 0;
  std::string repaired(bytes);
  const uint64_t index_bytes = uint64_t{read_u32(bytes, 8)} * 96 + read_u32(bytes, 12);
  if (index_bytes <= size - 56) {
    const auto digest = volley::sha256(bytes.substr(56, index_bytes));
    std::copy(digest.begin(), digest.end(), repaired.begin() + 24);
  }
  std::string length;
  append_u64(length, size);
  repaired.replace(16, 8, length);
  repaired.replace(0, 8, "VLYBNDL1");
  read_everything(repaired);
  return 0;
}
