#pragma once

// For tests without a GPU: the stand-in driver (cuda/fake_driver.h), whose path is
// VOLLEY_FAKE_DRIVER, and a compiler whose machine code is all that driver asks for.

#include <memory>
#include <string>
#include <string_view>

#include "base/check.h"
#include "cuda/fake_driver.h"
#include "gemm/test_gpu.h"
#include "jit/compiler.h"

namespace volley::gemm {

class NoCompiler : public jit::Compiler {
 public:
  const std::string& id() const override { return id_; }
  Result<jit::Compiled> compile(const jit::KernelSource&, std::string_view) const override {
    return jit::Compiled{.cubin =
                             "\x7f"
                             "ELF"};
  }

 private:
  std::string id_ = "none";
};

struct FakeGpu : TestGpu {
  FakeGpu() {
    const Status status =
        open(cuda::Driver::load(VOLLEY_FAKE_DRIVER), std::make_unique<NoCompiler>());
    CHECK_EQ(status ? "" : status.error().message, "");
  }

  cuda::FakeDriverLog* log = cuda::open_fake_driver_log(VOLLEY_FAKE_DRIVER);
};

}  // namespace volley::gemm
