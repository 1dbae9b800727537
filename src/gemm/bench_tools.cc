#include "gemm/bench_tools.h"

#include <algorithm>
#include <cmath>

#include "base/file.h"

namespace volley::gemm {
namespace {

// `kind` is a RandomKind.
constexpr char kFillKernel[] = R"(
extern "C" __global__ void fill(unsigned* out, unsigned long long words, int kind, unsigned seed) {
  for (unsigned long long i = blockIdx.x * 256ull + threadIdx.x; i < words; i += gridDim.x * 256ull) {
    float v[4];
    for (int j = 0; j < 4; ++j) {
      unsigned long long x = (i * 4 + j + 1) * 0x9E3779B97F4A7C15ull + seed;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
      x ^= x >> 31;
      float sum = 0.0f;
      for (int q = 0; q < 4; ++q) sum += (float)((x >> (16 * q)) & 0xFFFF);
      v[j] = (sum / 65536.0f - 2.0f) * 1.7f;
    }
    unsigned word;
    if (kind == 0) {  // four e4m3, as a quantiser leaves them: the largest near 448
      unsigned short low, high;
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(v[1] * 130.0f), "f"(v[0] * 130.0f));
      asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(v[3] * 130.0f), "f"(v[2] * 130.0f));
      word = low | (unsigned)high << 16;
    } else if (kind == 1) {  // two bf16
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(v[1]), "f"(v[0]));
    } else if (kind == 3 || kind == 4) {  // packed FP4 tiles: values, then codes that all decode
      const unsigned in_tile = i % (kind == 3 ? 1088 : 1152);
      unsigned long long x = (i + 1) * 0x9E3779B97F4A7C15ull + seed;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
      const unsigned spread = kind == 3 ? 0x18181818 : 0x1F1F1F1F;  // MX: whole powers of two
      word = in_tile < 1024 ? (unsigned)(x >> 32) : 0x28282828 + ((unsigned)(x >> 32) & spread);
    } else {  // a scale
      word = __float_as_uint(0.002f + 0.001f * fabsf(v[0]));
    }
    out[i] = word;
  }
}
)";

constexpr int kRounds = 11;

void time_other_process(Contender& c, int round) {
  if (!c.error.empty()) return;
  auto measured = c.round(round);
  if (!measured) {
    c.error = measured.error().message;
  } else if (round > 0) {
    c.rot_us.push_back(measured->rot_us);
    c.cold_us.insert(c.cold_us.end(), measured->cold_us.begin(), measured->cold_us.end());
  }
}

}  // namespace

double us_since(BenchClock::time_point start) {
  return std::chrono::duration<double, std::micro>(BenchClock::now() - start).count();
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

bool matches_filter(const std::string& filter, const std::string& name) {
  size_t from = 0;
  for (;;) {
    const size_t comma = filter.find(',', from);
    if (name.find(filter.substr(from, comma - from)) != std::string::npos) return true;
    if (comma == std::string::npos) return false;
    from = comma + 1;
  }
}

std::string us_text(double us) {
  return us > 0 ? fmt::format("{:.1f}", us) : "-";
}

std::string ratio_text(double ratio) {
  return ratio > 0 ? fmt::format("{:.2f}", ratio) : "-";
}

Status write_bench_json(const std::string& path, const Json& out) {
  return path.empty() ? Status() : write_file_atomic(path, dump_json(out, 1));
}

Times faster(const Times& a, const Times& b) {
  if (a.rot_us <= 0) return b;
  if (b.rot_us <= 0) return a;
  return {.cold_us = std::min(a.cold_us, b.cold_us), .rot_us = std::min(a.rot_us, b.rot_us)};
}

size_t graph_repeats(size_t num_sets, double guess_us) {
  return static_cast<size_t>(
      std::max(1.0, std::ceil(1500.0 / guess_us / static_cast<double>(num_sets))));
}

size_t num_operand_sets(const cuda::Context& context, double bytes, double most) {
  return static_cast<size_t>(std::clamp(
      std::ceil(3.0 * static_cast<double>(context.info().l2_bytes) / bytes) + 1, 2.0, most));
}

Result<std::unique_ptr<BenchGpu>> BenchGpu::open() {
  std::unique_ptr<BenchGpu> gpu(new BenchGpu);
  VOLLEY_TRY(gpu->driver_, cuda::Driver::load());
  VOLLEY_TRY(cuda::Context context, cuda::Context::open(*gpu->driver_));
  gpu->context_.emplace(std::move(context));
  VOLLEY_TRY(cuda::Stream stream, cuda::Stream::create(*gpu->context_));
  gpu->stream_.emplace(std::move(stream));
  VOLLEY_TRY(gpu->start_, cuda::Event::create(*gpu->context_));
  VOLLEY_TRY(gpu->end_, cuda::Event::create(*gpu->context_));
  return gpu;
}

Status BenchGpu::load_fill() {
  auto compiler = jit::load_nvrtc();
  if (!compiler) return tl::unexpected<Error>(compiler.error());
  VOLLEY_TRY(
      const jit::Compiled compiled,
      (*compiler)->compile({.name = "fill", .entry = "fill", .text = kFillKernel}, "sm_90a"));
  VOLLEY_TRY(fill_module_, cuda::Module::load(*context_, compiled.cubin));
  VOLLEY_TRY(fill_, fill_module_.kernel("fill", 0));
  return {};
}

Result<cuda::Buffer> BenchGpu::random_buffer(size_t bytes, RandomKind kind, unsigned seed) {
  if (fill_.function == nullptr) VOLLEY_TRY_STATUS(load_fill());
  VOLLEY_TRY(cuda::Buffer buffer, cuda::Buffer::allocate(*context_, (bytes + 15) / 16 * 16));
  cuda::DevicePtr pointer = buffer.get();
  unsigned long long words = buffer.bytes() / 4;
  int kind_number = static_cast<int>(kind);
  void* params[] = {&pointer, &words, &kind_number, &seed};
  VOLLEY_TRY_STATUS(cuda::launch(*driver_, fill_.function, {.num_ctas = 1056, .num_threads = 256},
                                 params, stream_->get()));
  return buffer;
}

Result<double> BenchGpu::memset_gb_s() {
  VOLLEY_TRY_STATUS(flush(0));
  std::vector<double> us;
  for (int i = 0; i < 12; ++i) {
    VOLLEY_TRY(const double elapsed, elapsed_us([&] { return flush(i); }));
    us.push_back(elapsed);
  }
  return static_cast<double>(flush_.bytes()) / quantile(us, 0.5) / 1e3;
}

Status BenchGpu::flush(int value) {
  if (flush_.bytes() == 0) {
    VOLLEY_TRY(flush_, cuda::Buffer::allocate(*context_, size_t{256} << 20));
  }
  return flush_.fill(static_cast<unsigned char>(value), *stream_);
}

Result<double> BenchGpu::elapsed_us(const std::function<Status()>& work) {
  VOLLEY_TRY_STATUS(start_.record(*stream_));
  VOLLEY_TRY_STATUS(work());
  VOLLEY_TRY_STATUS(end_.record(*stream_));
  VOLLEY_TRY_STATUS(end_.synchronize());
  VOLLEY_TRY(const float ms, end_.ms_since(start_));
  return ms * 1e3;
}

Status BenchGpu::time_contenders(std::vector<Contender>& contenders, double guess_us,
                                 size_t max_repeats) {
  for (Contender& c : contenders) {
    if (c.round) continue;
    c.repeats = std::min(graph_repeats(c.num_sets, guess_us), max_repeats);
    VOLLEY_TRY(c.graph, cuda::Graph::capture(*stream_, [&]() -> Status {
                 for (size_t r = 0; r < c.repeats; ++r) {
                   for (size_t set = 0; set < c.num_sets; ++set) VOLLEY_TRY_STATUS(c.launch(set));
                 }
                 return {};
               }));
  }
  for (int i = 0; i < kRounds; ++i) {
    for (Contender& c : contenders) {
      if (c.round) {
        time_other_process(c, i);
        continue;
      }
      VOLLEY_TRY_STATUS(flush(i));
      VOLLEY_TRY(const double graph_us, elapsed_us([&] { return c.graph.launch(*stream_); }));
      if (i > 0) c.rot_us.push_back(graph_us / static_cast<double>(c.repeats * c.num_sets));
      if (!c.cold) continue;
      for (size_t j = 0; j < 2; ++j) {
        VOLLEY_TRY_STATUS(flush(i));
        const size_t set = (2 * static_cast<size_t>(i) + j) % c.num_sets;
        VOLLEY_TRY(const double us, elapsed_us([&] { return c.launch(set); }));
        if (i > 0) c.cold_us.push_back(us);
      }
    }
  }
  for (Contender& c : contenders) {
    if (!c.error.empty()) continue;
    c.times.rot_us = quantile(c.rot_us, 0.5);
    if (!c.cold) continue;
    c.times.cold_us = quantile(c.cold_us, 0.5);
    c.times.cold_p10 = quantile(c.cold_us, 0.1);
    c.times.cold_p90 = quantile(c.cold_us, 0.9);
  }
  return {};
}

void Comparison::add(const std::string& shape, double cold, double rot, double overlapped) {
  cold_log_sum_ += std::log(cold);
  rot_log_sum_ += std::log(rot);
  overlapped_log_sum_ += std::log(overlapped);
  ++count_;
  if (count_ == 1 || cold < worst_cold_) worst_cold_ = cold, worst_cold_shape_ = shape;
  if (count_ == 1 || rot < worst_rot_) worst_rot_ = rot, worst_rot_shape_ = shape;
}

void Comparison::print() const {
  if (count_ == 0) return;
  fmt::print(
      "geometric mean of {} / ours: cold {:.3f}, rot {:.3f}, overlapped {:.3f} over {} shapes; "
      "worst cold {:.2f} ({}), rot {:.2f} ({})\n",
      peer_, mean(cold_log_sum_), mean(rot_log_sum_), mean(overlapped_log_sum_), count_,
      worst_cold_, worst_cold_shape_, worst_rot_, worst_rot_shape_);
}

Json Comparison::json() const {
  if (count_ == 0) return nullptr;
  return Json{{"shapes", count_},          {"cold", mean(cold_log_sum_)},
              {"rot", mean(rot_log_sum_)}, {"overlapped", mean(overlapped_log_sum_)},
              {"worst_cold", worst_cold_}, {"worst_cold_shape", worst_cold_shape_},
              {"worst_rot", worst_rot_},   {"worst_rot_shape", worst_rot_shape_}};
}

double Comparison::mean(double log_sum) const {
  return std::exp(log_sum / count_);
}

}  // namespace volley::gemm
