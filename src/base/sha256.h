#pragma once

// SHA-256 (FIPS 180-4): names for content, where two things under one name would be a wrong answer.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace volley {

using Sha256Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void update(std::string_view bytes);
  // A field whose length is hashed before it, so that ("ab", "c") and ("a", "bc") differ.
  void update_field(std::string_view bytes);
  // The digest of what came so far. The object is spent.
  Sha256Digest finish();

 private:
  void compress(const uint8_t* chunk);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> pending_ = {};
  uint64_t num_bytes_ = 0;
};

Sha256Digest sha256(std::string_view bytes);
std::string to_hex(const Sha256Digest& digest);

}  // namespace volley
