#include "hub/sha1.h"

#include <fmt/format.h>

#include <bit>

namespace volley {

void Sha1::compress(const uint8_t* chunk) {
  uint32_t w[80];
  for (int t = 0; t < 16; ++t) {
    w[t] = uint32_t{chunk[4 * t]} << 24 | uint32_t{chunk[4 * t + 1]} << 16 |
           uint32_t{chunk[4 * t + 2]} << 8 | uint32_t{chunk[4 * t + 3]};
  }
  for (int t = 16; t < 80; ++t) w[t] = std::rotl(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
  auto [a, b, c, d, e] = state_;
  for (int t = 0; t < 80; ++t) {
    const uint32_t mixed = t < 20   ? ((b & c) ^ (~b & d)) + 0x5a827999
                           : t < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                           : t < 60 ? ((b & c) ^ (b & d) ^ (c & d)) + 0x8f1bbcdc
                                    : (b ^ c ^ d) + 0xca62c1d6;
    const uint32_t next = std::rotl(a, 5) + mixed + e + w[t];
    e = d;
    d = c;
    c = std::rotl(b, 30);
    b = a;
    a = next;
  }
  const std::array<uint32_t, 5> added = {a, b, c, d, e};
  for (size_t i = 0; i < added.size(); ++i) state_[i] += added[i];
}

void Sha1::update(std::string_view bytes) {
  for (const char byte : bytes) {  // small files only
    pending_[num_bytes_++ % 64] = static_cast<uint8_t>(byte);
    if (num_bytes_ % 64 == 0) compress(pending_.data());
  }
}

std::string Sha1::hex() {
  const uint64_t num_bits = 8 * num_bytes_;
  update({"\x80", 1});
  while (num_bytes_ % 64 != 56) update({"\0", 1});
  for (int shift = 56; shift >= 0; shift -= 8) {
    const char byte = static_cast<char>(num_bits >> shift);
    update({&byte, 1});
  }
  std::string text;
  for (const uint32_t word : state_) text += fmt::format("{:08x}", word);
  return text;
}

}  // namespace volley
