#pragma once

// For tests: a folder of their own. Tests run beside each other, so a name must not be shared.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/file.h"

namespace volley {

// A folder under the system's temporary one, removed with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "volley-test-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  void write(std::string_view name, std::string_view text) const {
    CHECK(write_file_atomic(path_ / name, text).has_value());
  }

 private:
  std::filesystem::path path_;
};

}  // namespace volley
