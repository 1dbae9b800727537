#pragma once

// SHA-256 and SHA-1 (FIPS 180-4), by which the hub names files: SHA-256 of a large file's bytes,
// git's blob id (SHA-1) of a small one. SHA-1 only detects damage here; it resists no attacker.

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace volley {

// What both have in common: 64-byte chunks and the length at the end.
template <int kWords>
class ShaStream {
 public:
  void update(std::span<const std::byte> bytes);

 protected:
  using State = std::array<uint32_t, kWords>;
  using Compress = void (*)(State&, const std::byte* chunk);
  ShaStream(const State& start, Compress compress) : state_(start), compress_(compress) {}

  std::string finish();  // lower-case hex

 private:
  State state_;
  Compress compress_;
  std::array<std::byte, 64> held_{};
  size_t num_held_ = 0;
  uint64_t num_bytes_ = 0;
};

class Sha256 : public ShaStream<8> {
 public:
  Sha256();
  std::string hex() { return finish(); }  // 64 digits; once, at the end
};

class Sha1 : public ShaStream<5> {
 public:
  Sha1();
  std::string hex() { return finish(); }  // 40 digits; once, at the end
};

}  // namespace volley
