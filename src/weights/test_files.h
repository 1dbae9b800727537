#pragma once

// For tests: model folders written on the spot.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/temporary_folder.h"
#include "tensor/dtype.h"

namespace volley {

// The bytes of a safetensors file: `header` as given, then `data`.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(uint64_t{header.size()} >> (8 * i));
  return file.append(header).append(data);
}

// Collects tensors and writes them as one well-formed file.
class SafetensorsBuilder {
 public:
  // Zeros, unless `bytes` are given.
  SafetensorsBuilder& add(const std::string& name, DType dtype, std::vector<int64_t> shape,
                          std::string bytes = "") {
    int64_t size = dtype_bytes(dtype);
    for (const int64_t n : shape) size *= n;
    if (bytes.empty()) bytes.assign(static_cast<size_t>(size), '\0');
    CHECK_EQ(static_cast<int64_t>(bytes.size()), size);
    const size_t begin = data_.size();
    data_ += bytes;
    header_[name] = {{"dtype", std::string(dtype_info(dtype).safetensors_name)},
                     {"shape", shape},
                     {"data_offsets", {begin, data_.size()}}};
    return *this;
  }
  std::string bytes() const { return safetensors_bytes(dump_json(header_), data_); }

 private:
  Json header_ = Json::object();
  std::string data_;
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace volley
