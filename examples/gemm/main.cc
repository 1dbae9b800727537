// One FP8 product on the GPU beside its reference, or, without a Hopper GPU, what would be
// computed.

#include <bit>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "gemm/gemm.h"
#include "gemm/reference.h"

namespace {

using namespace volley;

Result<double> worst_error_over_bound(const gemm::HostProblem& host) {
  VOLLEY_TRY(const std::unique_ptr<cuda::Driver> driver, cuda::Driver::load());
  VOLLEY_TRY(const cuda::Context context, cuda::Context::open(*driver));
  VOLLEY_TRY(const cuda::Stream stream, cuda::Stream::create(context));
  VOLLEY_TRY(auto compiler, jit::load_nvrtc());
  jit::KernelLibrary kernels({}, std::nullopt, std::nullopt, std::move(compiler));
  VOLLEY_TRY(const std::unique_ptr<gemm::Gemm> library, gemm::Gemm::create(context, kernels));

  const auto upload = [&](const auto& values) -> Result<cuda::Buffer> {
    const size_t bytes = values.size() * sizeof(values[0]);
    VOLLEY_TRY(cuda::Buffer buffer, cuda::Buffer::allocate(context, bytes));
    VOLLEY_TRY_STATUS(buffer.upload(values.data(), bytes));
    return buffer;
  };
  VOLLEY_TRY(const cuda::Buffer a, upload(host.a));
  VOLLEY_TRY(const cuda::Buffer b, upload(host.b));
  VOLLEY_TRY(const cuda::Buffer a_scale, upload(host.a_scale));
  VOLLEY_TRY(const cuda::Buffer b_scale, upload(host.b_scale));
  std::vector<uint16_t> out(static_cast<size_t>(host.shape.m) * static_cast<size_t>(host.shape.n));
  VOLLEY_TRY(const cuda::Buffer d, upload(out));

  gemm::GemmArgs args;
  args.shape = host.shape;
  args.a = a.get();
  args.a_scale = a_scale.get();
  args.a_scale_stride = host.a_scale_stride;
  args.b = b.get();
  args.b_scale = b_scale.get();
  args.d = d.get();
  VOLLEY_TRY(const gemm::GemmCall call, library->prepare(args));  // once
  VOLLEY_TRY_STATUS(library->launch(call, stream.get()));         // as often as you like
  VOLLEY_TRY_STATUS(context.synchronize());
  VOLLEY_TRY_STATUS(d.download(out.data(), out.size() * 2));

  const auto weights = gemm::row_weights(host.shape, {});
  double worst = 0;
  for (int row = 0; row < host.shape.m; ++row) {
    for (int col = 0; col < host.shape.n; ++col) {
      const gemm::ReferenceValue want = gemm::reference_value(host, weights, row, col);
      const auto bits =
          static_cast<uint32_t>(out[static_cast<size_t>(row) * static_cast<size_t>(host.shape.n) +
                                    static_cast<size_t>(col)]);
      const double error = std::fabs(std::bit_cast<float>(bits << 16) - want.value);
      worst = std::fmax(worst, error / gemm::error_bound(host.shape, want));
    }
  }
  return worst;
}

}  // namespace

int main() {
  const gemm::GemmShape shape = {.m = 64, .n = 512, .k = 1024};
  const auto plan = gemm::explain(shape, {}, 3);
  if (!plan) {
    std::fprintf(stderr, "gemm_example: %s\n", plan.error().message.c_str());
    return 1;
  }
  std::printf("%s\n", plan->c_str());
  const auto worst = worst_error_over_bound(gemm::random_problem(shape, {}, 1));
  if (!worst) {
    std::printf("not run: %s\n", worst.error().message.c_str());
    return worst.error().kind == ErrorKind::kUnsupported ? 0 : 1;
  }
  std::printf("largest error: %.2f of the bound\n", *worst);
  return *worst <= 1 ? 0 : 1;
}
