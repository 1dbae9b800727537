#include "app/prompt_text.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/file.h"

namespace volley {
namespace {

constexpr size_t kMaxPromptBytes = size_t{64} << 20;

}  // namespace

Result<std::string> read_descriptor(int descriptor, size_t max_bytes) {
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t count = read(descriptor, buffer, sizeof(buffer));
    if (count == 0) return text;
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return make_error(ErrorKind::kIo, "standard input: {}", std::strerror(errno));
    }
    text.append(buffer, static_cast<size_t>(count));
    if (text.size() > max_bytes) {
      return invalid("standard input: a prompt may have {} bytes, more came", max_bytes);
    }
  }
}

Result<std::string> read_prompt_text(const PromptOptions& options, bool stdin_is_terminal) {
  std::string text;
  if (options.text) {
    text = *options.text;
  } else if (options.file) {
    VOLLEY_TRY(text, read_file(*options.file, kMaxPromptBytes));
  } else if (stdin_is_terminal) {
    return invalid("no prompt: give --prompt TEXT, --prompt-file FILE, or text on standard input");
  } else {
    VOLLEY_TRY(text, read_descriptor(STDIN_FILENO, kMaxPromptBytes));
  }
  // Editors and echo end a file with a newline that nobody meant to say.
  if (!options.text && text.ends_with('\n')) text.pop_back();
  if (text.empty()) return invalid("the prompt is empty");
  return text;
}

Status check_writable(const std::string& path) {
  if (path.empty()) return {};
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const std::string folder = parent.empty() ? "." : parent.string();
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    return make_error(ErrorKind::kNotFound, "{}: there is no folder {}", path, folder);
  }
  if (std::filesystem::is_directory(path, error)) {
    return invalid("{}: expected a file to write, it is a folder", path);
  }
  if (access(folder.c_str(), W_OK) != 0) {
    return make_error(ErrorKind::kInvalidInput, "{}: {} cannot be written: {}", path, folder,
                      std::strerror(errno));
  }
  return {};
}

}  // namespace volley
