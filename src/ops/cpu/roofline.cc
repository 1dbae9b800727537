#include "ops/cpu/roofline.h"

#include <atomic>
#include <cstring>

#include "base/clock.h"
#include "ops/cpu/kernels.h"

namespace volley::cpu {

Roofline::Roofline(const KernelTable& kernels, int num_threads, Buffer buffer)
    : kernels_(&kernels),
      pool_(std::make_unique<ThreadPool>(num_threads)),
      buffer_(std::move(buffer)) {}

Result<Roofline> Roofline::create(const CpuOpsConfig& config, int64_t buffer_bytes) {
  VOLLEY_TRY(const Unit unit, choose_unit(config.isa));
  const int64_t per_page = int64_t{2} << 20;
  VOLLEY_TRY(Buffer buffer, Buffer::create((buffer_bytes + per_page - 1) / per_page * per_page));
  Roofline roofline(*unit.kernels, config.num_threads, std::move(buffer));
  roofline.pool_->split(roofline.buffer_.size() / per_page, 1, [&](ItemRange range, int) {
    std::memset(roofline.buffer_.data() + range.begin * per_page, 1,
                static_cast<size_t>((range.end - range.begin) * per_page));
  });
  return roofline;
}

double Roofline::read_bandwidth() {
  constexpr int64_t kPart = 4096;
  std::atomic<uint64_t> mixed = 0;
  const double start = now_s();
  pool_->split(buffer_.size() / kPart, 1, [&](ItemRange range, int) {
    mixed ^= kernels_->read_lines(buffer_.data() + range.begin * kPart,
                                  (range.end - range.begin) * kPart);
  });
  const double seconds = now_s() - start;
  sink_ += mixed;
  return static_cast<double>(buffer_.size()) / seconds;
}

double Roofline::multiply_rate() {
  std::atomic<int64_t> flops = 0;
  const double start = now_s();
  pool_->run([&](int) { flops += kernels_->multiply_registers(500'000); });
  return static_cast<double>(flops) / (now_s() - start);
}

}  // namespace volley::cpu
