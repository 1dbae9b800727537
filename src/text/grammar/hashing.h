#pragma once

#include <cstdint>
#include <vector>

namespace volley::grammar {

inline uint64_t mix_hash(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 29;
}

struct IntVectorHash {
  size_t operator()(const std::vector<int32_t>& values) const {
    uint64_t hash = values.size();
    for (const int32_t value : values) hash = mix_hash(hash, static_cast<uint32_t>(value));
    return hash;
  }
};

}  // namespace volley::grammar
