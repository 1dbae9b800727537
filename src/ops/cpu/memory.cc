#include "ops/cpu/memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace volley::cpu {
namespace {

constexpr int64_t kHugePage = 2 << 20;
// Past the end of every buffer, so that kernels may prefetch and load whole vectors there.
constexpr int64_t kSlack = 4096;

int64_t mapped_bytes(int64_t num_bytes) {
  const int64_t unit = num_bytes >= kHugePage ? kHugePage : 4096;
  return (num_bytes + kSlack + unit - 1) / unit * unit;
}

}  // namespace

Result<Buffer> Buffer::create(int64_t num_bytes) {
  const int64_t bytes = mapped_bytes(num_bytes);
  const bool huge = num_bytes >= kHugePage;
  // A huge page must start at a multiple of its size: map more, then trim.
  const int64_t extra = huge ? kHugePage : 0;
  void* map = ::mmap(nullptr, static_cast<size_t>(bytes + extra), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED)
    return make_error(ErrorKind::kIo, "no memory for {} bytes: {}", bytes, std::strerror(errno));
  char* start = static_cast<char*>(map);
  if (huge) {
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(start) + kHugePage - 1) /
                                            kHugePage * kHugePage);
    if (aligned != start) ::munmap(start, static_cast<size_t>(aligned - start));
    char* end = start + bytes + extra;
    if (end != aligned + bytes)
      ::munmap(aligned + bytes, static_cast<size_t>(end - (aligned + bytes)));
    start = aligned;
    ::madvise(start, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a wish; failing is fine
  }
  Buffer buffer;
  buffer.data_ = start;
  buffer.size_ = num_bytes;
  return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) unmap(data_, size_);
}

char* Buffer::release() {
  size_ = 0;
  return std::exchange(data_, nullptr);
}

void Buffer::unmap(void* data, int64_t num_bytes) {
  ::munmap(data, static_cast<size_t>(mapped_bytes(num_bytes)));
}

}  // namespace volley::cpu
