// nvcc behind the Compiler interface: source and headers go to a scratch folder, the driver runs,
// the cubin is read back.

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/file.h"
#include "jit/compiler.h"

extern char** environ;  // nvcc runs with the process's own

namespace volley::jit {
namespace {

namespace fs = std::filesystem;

class ScratchDir {
 public:
  static Result<ScratchDir> make(const fs::path& parent) {
    std::string pattern = (parent / "volley-nvcc-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) {
      return make_error(ErrorKind::kIo, "{}: cannot make a folder there: {}", parent.string(),
                        std::strerror(errno));
    }
    return ScratchDir(pattern);
  }
  explicit ScratchDir(fs::path path) : path_(std::move(path)) {}
  ScratchDir(ScratchDir&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  ScratchDir& operator=(ScratchDir&&) = delete;
  ~ScratchDir() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Runs `words` with its output in the file `log`; returns the exit status.
Result<int> run_program(const std::vector<std::string>& words, const fs::path& log) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int code = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (code != 0) {
    return make_error(ErrorKind::kUnsupported, "{}: cannot run it: {}", words[0],
                      std::strerror(code));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) {
      return make_error(ErrorKind::kIo, "{}: lost: {}", words[0], std::strerror(errno));
    }
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

class NvccCompiler : public Compiler {
 public:
  NvccCompiler(std::string nvcc, fs::path scratch_dir, std::string id)
      : nvcc_(std::move(nvcc)), scratch_dir_(std::move(scratch_dir)), id_(std::move(id)) {}

  const std::string& id() const override { return id_; }

  Result<Compiled> compile(const KernelSource& source, std::string_view arch) const override {
    VOLLEY_TRY(const std::vector<Header> headers, include_closure(source));
    VOLLEY_TRY(const ScratchDir scratch, ScratchDir::make(scratch_dir_));
    const fs::path input = scratch.path() / "kernel.cu", output = scratch.path() / "kernel.cubin",
                   log = scratch.path() / "log";
    VOLLEY_TRY_STATUS(write_file_atomic(input, source.text));
    for (const Header& header : headers) {
      const fs::path path = (scratch.path() / header.name).lexically_normal();
      if (header.name.find("..") != std::string::npos || header.name.starts_with('/')) {
        return invalid("kernel {}: header \"{}\" leaves its folder", source.name, header.name);
      }
      std::error_code error;
      fs::create_directories(path.parent_path(), error);
      VOLLEY_TRY_STATUS(write_file_atomic(path, header.text));
    }
    // "sm_90a" as -gencode: the -arch shorthand also runs a plain sm_90 pass, which rejects wgmma.
    const std::string_view number = arch.substr(arch.find('_') + 1);
    std::vector<std::string> command = {
        nvcc_,        "-cubin",
        "-std=c++20", fmt::format("-gencode=arch=compute_{},code={}", number, arch),
        "-I",         scratch.path().string(),
        "-o",         output.string()};
    command.insert(command.end(), source.flags.begin(), source.flags.end());
    command.push_back(input.string());
    VOLLEY_TRY(const int status, run_program(command, log));
    Compiled compiled;
    VOLLEY_TRY(compiled.log, read_file(log, size_t{16} << 20));
    if (status != 0) {
      return invalid("kernel {} does not compile: exit status {}\ncommand: {}\n{}", source.name,
                     status, fmt::join(command, " "), compiled.log);
    }
    VOLLEY_TRY(compiled.cubin, read_file(output));
    return compiled;
  }

 private:
  std::string nvcc_;
  fs::path scratch_dir_;
  std::string id_;
};

}  // namespace

Result<std::unique_ptr<Compiler>> find_nvcc(const std::string& nvcc, const fs::path& scratch_dir) {
  VOLLEY_TRY(const ScratchDir scratch, ScratchDir::make(scratch_dir));
  const fs::path log = scratch.path() / "version";
  VOLLEY_TRY(const int status, run_program({nvcc, "--version"}, log));
  VOLLEY_TRY(const std::string text, read_file(log, 1 << 20));
  const size_t build = text.find("Build ");
  if (status != 0 || build == std::string::npos) {
    return make_error(ErrorKind::kUnsupported, "{}: expected nvcc, got exit status {}: {}", nvcc,
                      status, text);
  }
  std::string id = "nvcc " + text.substr(build + 6, text.find('\n', build) - build - 6);
  return std::make_unique<NvccCompiler>(nvcc, scratch_dir, std::move(id));
}

}  // namespace volley::jit
