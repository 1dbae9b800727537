// NVRTC behind the Compiler interface. Its few calls are declared here (nvrtc.h is part of a
// toolkit that the build does not need) and have been stable since CUDA 7; nvrtcGetCUBIN came
// with 11.1.

#include <dlfcn.h>

#include <filesystem>

#include "jit/compiler.h"

namespace volley::jit {
namespace {

using NvrtcProgram = struct NvrtcProgramOpaque*;
using NvrtcResult = int;

#define VOLLEY_NVRTC_CALLS(V)                                                              \
  V(version, nvrtcVersion, NvrtcResult, (int* major, int* minor))                          \
  V(error_string, nvrtcGetErrorString, const char*, (NvrtcResult result))                  \
  V(create, nvrtcCreateProgram, NvrtcResult,                                               \
    (NvrtcProgram * program, const char* text, const char* name, int num_headers,          \
     const char* const* header_texts, const char* const* header_names))                    \
  V(destroy, nvrtcDestroyProgram, NvrtcResult, (NvrtcProgram * program))                   \
  V(compile, nvrtcCompileProgram, NvrtcResult,                                             \
    (NvrtcProgram program, int num_options, const char* const* options))                   \
  V(log_size, nvrtcGetProgramLogSize, NvrtcResult, (NvrtcProgram program, size_t * bytes)) \
  V(log, nvrtcGetProgramLog, NvrtcResult, (NvrtcProgram program, char* text))              \
  V(cubin_size, nvrtcGetCUBINSize, NvrtcResult, (NvrtcProgram program, size_t * bytes))    \
  V(cubin, nvrtcGetCUBIN, NvrtcResult, (NvrtcProgram program, char* bytes))

struct Nvrtc {
#define VOLLEY_DECLARE_NVRTC_CALL(member, symbol, result, parameters) \
  result(*member) parameters = nullptr;
  VOLLEY_NVRTC_CALLS(VOLLEY_DECLARE_NVRTC_CALL)
#undef VOLLEY_DECLARE_NVRTC_CALL
};

class Program {
 public:
  explicit Program(const Nvrtc& nvrtc) : nvrtc_(nvrtc) {}
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (program != nullptr) nvrtc_.destroy(&program);
  }

  NvrtcProgram program = nullptr;

 private:
  const Nvrtc& nvrtc_;
};

class NvrtcCompiler : public Compiler {
 public:
  // The library stays loaded for good: it keeps memory of its own, which unloading would lose.
  NvrtcCompiler(const Nvrtc& nvrtc, std::string id) : nvrtc_(nvrtc), id_(std::move(id)) {}

  const std::string& id() const override { return id_; }
  Result<Compiled> compile(const KernelSource& source, std::string_view arch) const override;

 private:
  Status check(NvrtcResult result, const char* attempted, const KernelSource& source) const {
    if (result == 0) return {};
    return make_error(ErrorKind::kIo, "kernel {}: {} {}: {}", source.name, id_, attempted,
                      nvrtc_.error_string(result));
  }

  Nvrtc nvrtc_;
  std::string id_;
};

Result<Compiled> NvrtcCompiler::compile(const KernelSource& source, std::string_view arch) const {
  VOLLEY_TRY(const std::vector<Header> headers, include_closure(source));
  std::vector<const char*> names, texts;
  for (const Header& header : headers) {
    names.push_back(header.name.c_str());
    texts.push_back(header.text.c_str());
  }
  std::vector<std::string> flags = {fmt::format("--gpu-architecture={}", arch), "--std=c++20",
                                    "--no-source-include"};
  flags.insert(flags.end(), source.flags.begin(), source.flags.end());
  std::vector<const char*> options;
  for (const std::string& flag : flags) options.push_back(flag.c_str());

  Program program(nvrtc_);
  VOLLEY_TRY_STATUS(
      check(nvrtc_.create(&program.program, source.text.c_str(), source.name.c_str(),
                          static_cast<int>(headers.size()), texts.data(), names.data()),
            "creating a program", source));
  const NvrtcResult result =
      nvrtc_.compile(program.program, static_cast<int>(options.size()), options.data());
  Compiled compiled;
  size_t log_bytes = 0;
  if (nvrtc_.log_size(program.program, &log_bytes) == 0 && log_bytes > 1) {
    compiled.log.resize(log_bytes);
    if (nvrtc_.log(program.program, compiled.log.data()) != 0) compiled.log.clear();
    while (!compiled.log.empty() && compiled.log.back() == '\0') compiled.log.pop_back();
  }
  if (result != 0) {
    return invalid("kernel {} does not compile: {}\ncommand: {} {}\n{}", source.name,
                   nvrtc_.error_string(result), id_, fmt::join(flags, " "), compiled.log);
  }
  size_t cubin_bytes = 0;
  VOLLEY_TRY_STATUS(
      check(nvrtc_.cubin_size(program.program, &cubin_bytes), "sizing a cubin", source));
  compiled.cubin.resize(cubin_bytes);
  VOLLEY_TRY_STATUS(
      check(nvrtc_.cubin(program.program, compiled.cubin.data()), "reading a cubin", source));
  return compiled;
}

// Where the library that holds `symbol` lies, and its size: NVRTC tells no patch level.
std::string file_of(void* symbol) {
  Dl_info info{};
  if (::dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) return "unknown file";
  std::error_code error;
  const auto bytes = std::filesystem::file_size(info.dli_fname, error);
  return error ? "unknown file" : fmt::format("{} bytes", bytes);
}

}  // namespace

Result<std::unique_ptr<Compiler>> load_nvrtc(const std::string& library) {
  std::vector<std::string> candidates = {library};
  if (library.empty()) {
    candidates = {"libnvrtc.so.13", "libnvrtc.so.12", "/usr/local/cuda/lib64/libnvrtc.so",
                  "libnvrtc.so"};
  }
  void* handle = nullptr;
  for (const std::string& candidate : candidates) {
    handle = ::dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) break;
  }
  if (handle == nullptr) {
    return make_error(ErrorKind::kUnsupported, "no NVRTC: tried {}", fmt::join(candidates, ", "));
  }
  Nvrtc nvrtc;
  const char* missing = nullptr;
#define VOLLEY_LOAD_NVRTC_CALL(member, symbol, result, parameters)                 \
  nvrtc.member = reinterpret_cast<result(*) parameters>(::dlsym(handle, #symbol)); \
  if (nvrtc.member == nullptr) missing = #symbol;
  VOLLEY_NVRTC_CALLS(VOLLEY_LOAD_NVRTC_CALL)
#undef VOLLEY_LOAD_NVRTC_CALL
  int major = 0, minor = 0;
  if (missing != nullptr || nvrtc.version(&major, &minor) != 0) {
    ::dlclose(handle);
    return make_error(ErrorKind::kUnsupported, "NVRTC: expected version 12 or newer, no {}",
                      missing ? missing : "version");
  }
  std::string id = fmt::format("nvrtc {}.{} ({})", major, minor,
                               file_of(reinterpret_cast<void*>(nvrtc.version)));
  return std::make_unique<NvrtcCompiler>(nvrtc, std::move(id));
}

}  // namespace volley::jit
