#pragma once

// SHA-1 (FIPS 180-4), by which git, and so the hub, names small files. It only detects damage here;
// it resists no attacker.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace volley {

class Sha1 {
 public:
  void update(std::string_view bytes);
  std::string hex();  // 40 lower-case digits; once, at the end

 private:
  void compress(const uint8_t* chunk);

  std::array<uint32_t, 5> state_ = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
  std::array<uint8_t, 64> pending_ = {};
  uint64_t num_bytes_ = 0;
};

}  // namespace volley
