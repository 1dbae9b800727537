#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace volley {
namespace {

// Owns a descriptor; -1 is none.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int operator*() const { return fd_; }

 private:
  int fd_;
};

// Opens a regular file and returns its size through `size`.
Result<int> open_regular(const std::filesystem::path& path, size_t& size) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const ErrorKind kind = errno == ENOENT ? ErrorKind::kNotFound : ErrorKind::kIo;
    return make_error(kind, "{}: cannot open: {}", path.string(), std::strerror(errno));
  }
  struct stat status {};
  if (::fstat(fd, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd);
    return invalid("{}: expected a regular file", path.string());
  }
  size = static_cast<size_t>(status.st_size);
  return fd;
}

}  // namespace

Result<std::string> read_file(const std::filesystem::path& path, size_t max_bytes) {
  size_t size = 0;
  VOLLEY_TRY(const int raw_fd, open_regular(path, size));
  const Descriptor fd(raw_fd);
  if (size > max_bytes) {
    return invalid("{}: {} bytes, at most {} are accepted", path.string(), size, max_bytes);
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(*fd, text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      return make_error(ErrorKind::kIo, "{}: cannot read: {}", path.string(), std::strerror(errno));
    }
    if (n == 0) break;  // the file shrank under us
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

Status write_file_atomic(const std::filesystem::path& path, std::string_view bytes) {
  return write_file_atomic(path, std::span(&bytes, 1));
}

Status write_file_atomic(const std::filesystem::path& path,
                         std::span<const std::string_view> parts) {
  std::string temporary = path.string() + ".XXXXXX";
  const Descriptor fd(::mkstemp(temporary.data()));
  if (*fd < 0) {
    return make_error(ErrorKind::kIo, "{}: cannot create a file there: {}", path.string(),
                      std::strerror(errno));
  }
  for (const std::string_view bytes : parts) {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = ::write(*fd, bytes.data() + done, bytes.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        const int code = errno;
        ::unlink(temporary.c_str());
        return make_error(ErrorKind::kIo, "{}: cannot write: {}", path.string(),
                          std::strerror(code));
      }
      done += static_cast<size_t>(n);
    }
  }
  ::fchmod(*fd, 0644);
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int code = errno;
    ::unlink(temporary.c_str());
    return make_error(ErrorKind::kIo, "{}: cannot rename into place: {}", path.string(),
                      std::strerror(code));
  }
  return {};
}

Result<MappedFile> MappedFile::open(const std::filesystem::path& path) {
  size_t size = 0;
  VOLLEY_TRY(const int raw_fd, open_regular(path, size));
  const Descriptor fd(raw_fd);
  MappedFile file;
  if (size == 0) return file;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, *fd, 0);
  if (data == MAP_FAILED) {
    return make_error(ErrorKind::kIo, "{}: cannot map {} bytes: {}", path.string(), size,
                      std::strerror(errno));
  }
  file.data_ = static_cast<const std::byte*>(data);
  file.size_ = size;
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

bool remove_oldest_files(const std::filesystem::path& dir, std::string_view extension,
                         int64_t incoming_bytes, int64_t max_bytes,
                         std::filesystem::file_time_type keep_from) {
  namespace fs = std::filesystem;
  struct File {
    fs::file_time_type written;
    int64_t bytes;
    fs::path path;
  };
  std::vector<File> files;
  int64_t total = incoming_bytes;
  std::error_code error;
  // What cannot be read is no longer ours to count.
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().find(extension) == std::string::npos) continue;
    std::error_code gone;
    const auto bytes = static_cast<int64_t>(it->file_size(gone));
    if (gone) continue;
    const auto written = it->last_write_time(gone);
    if (gone) continue;
    files.push_back({written, bytes, it->path()});
    total += bytes;
  }
  std::sort(files.begin(), files.end(),
            [](const File& a, const File& b) { return a.written < b.written; });
  for (const File& file : files) {
    if (total <= max_bytes || file.written >= keep_from) break;
    fs::remove(file.path, error);
    total -= file.bytes;
  }
  return total <= max_bytes;
}

}  // namespace volley
