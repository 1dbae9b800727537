#pragma once

// For tests on a GPU, or on the stand-in driver: what every kernel needs to run.

#include <memory>
#include <optional>

#include "cuda/device.h"
#include "jit/kernel_library.h"

namespace volley::gemm {

struct TestGpu {
  std::unique_ptr<cuda::Driver> driver;
  std::optional<cuda::Context> context;
  std::optional<cuda::Stream> stream;
  std::optional<jit::KernelLibrary> kernels;

  // Errors: no driver, no Hopper GPU.
  Status open(Result<std::unique_ptr<cuda::Driver>> loaded,
              Result<std::unique_ptr<jit::Compiler>> compiler) {
    VOLLEY_TRY(driver, std::move(loaded));
    VOLLEY_TRY(cuda::Context opened, cuda::Context::open(*driver));
    context.emplace(std::move(opened));
    if (context->info().compute_major != 9) {
      return make_error(ErrorKind::kUnsupported, "{} is no Hopper GPU", context->info().name);
    }
    VOLLEY_TRY(cuda::Stream created, cuda::Stream::create(*context));
    stream.emplace(std::move(created));
    VOLLEY_TRY(auto used, std::move(compiler));
    kernels.emplace(jit::KernelLibraryOptions{}, std::nullopt, std::nullopt, std::move(used));
    return {};
  }
};

}  // namespace volley::gemm
