#pragma once

// Large zeroed buffers.

#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace volley::cpu {

// Zeroed pages from the system, 2 MiB pages where it gives them: a matrix of hundreds of MiB then
// costs few TLB misses. Move-only.
class Buffer {
 public:
  static Result<Buffer> create(int64_t num_bytes);
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  char* data() const { return data_; }
  int64_t size() const { return size_; }
  // The caller passes it to unmap() with the size it was created with.
  char* release();

  static void unmap(void* data, int64_t num_bytes);

 private:
  char* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace volley::cpu
