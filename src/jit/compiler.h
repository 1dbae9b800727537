#pragma once

// Compilers of CUDA source to machine code. Neither needs a GPU.

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "jit/kernel_source.h"

namespace volley::jit {

struct Compiled {
  std::string cubin;
  std::string log;  // warnings, and what ptxas said when asked with -Xptxas -v
};

class Compiler {
 public:
  virtual ~Compiler() = default;
  // Names the compiler and its version; part of the disk cache's key.
  virtual const std::string& id() const = 0;
  // Compiles for `arch` ("sm_90a"). A source that does not compile is kInvalidInput, its message
  // holding the command and the compiler's log. May be called from many threads at once.
  virtual Result<Compiled> compile(const KernelSource& source, std::string_view arch) const = 0;
};

// NVRTC, CUDA's compiler in a library, loaded from `library`, or, when that is empty, from the
// places where CUDA 12 and 13 put it. kUnsupported where there is none.
Result<std::unique_ptr<Compiler>> load_nvrtc(const std::string& library = "");

// The compiler driver `nvcc` (a path, or a name found on the path), for those who want its exact
// code. Works in a fresh folder under `scratch_dir`, which it removes.
Result<std::unique_ptr<Compiler>> find_nvcc(const std::string& nvcc,
                                            const std::filesystem::path& scratch_dir);

}  // namespace volley::jit
