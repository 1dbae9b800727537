#pragma once

// What the benchmarks of this folder share: a GPU with a stream, random operands, and the one way
// in which kernels are timed side by side.
//
// cold: median over launches, the L2 cache flushed before each; includes the events' own cost. rot:
// launches back to back in a graph over operands that together exceed the L2 cache threefold, per
// launch; no event cost, the figure for small shapes; a fill of memory before the graph hides the
// host's part in starting it. All contenders are timed in turn, round after round: clocks and
// temperature change meanwhile, and the first one timed would pay for a GPU that has idled.

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "cuda/device.h"
#include "gemm/deepgemm_peer.h"
#include "jit/kernel_library.h"

namespace volley::gemm {

using BenchClock = std::chrono::steady_clock;

double us_since(BenchClock::time_point start);
double quantile(std::vector<double> values, double q);

// Whether `name` has one of the texts in `filter`, which have commas between.
bool matches_filter(const std::string& filter, const std::string& name);

// A time or a ratio in a table; none is "-".
std::string us_text(double us);
std::string ratio_text(double ratio);

// Writes `out` to `path`, unless that is empty.
Status write_bench_json(const std::string& path, const Json& out);

struct Times {
  double cold_us = 0, cold_p10 = 0, cold_p90 = 0, rot_us = 0;
};

// The smaller of each time; 0 is none.
Times faster(const Times& a, const Times& b);

// One of several ways to the same result.
struct Contender {
  std::function<Status(size_t)> launch;  // with operand set `set`, on the stream
  bool cold = true;                      // time it cold too
  // Instead of launch: a round that another process measures. Its failure is its own.
  std::function<Result<DeepGemmRound>(int)> round;
  size_t num_sets = 1;
  std::string error;
  Times times;
  // Of the measurement itself.
  cuda::Graph graph;
  size_t repeats = 0;
  std::vector<double> cold_us, rot_us;
};

// How often a graph launches each operand set: it takes 1.5 ms.
size_t graph_repeats(size_t num_sets, double guess_us);

// Operand sets that together exceed the L2 cache threefold, when each moves `bytes`.
size_t num_operand_sets(const cuda::Context& context, double bytes, double most);

// What random_buffer() fills with. Two are FP4 weights as pack_fp4() leaves them, all codes valid.
enum class RandomKind : int { kE4m3, kBf16, kScales, kMxFp4Tiles, kNvFp4Tiles };

// The first GPU, a stream, events, memory to flush the L2 cache with.
class BenchGpu {
 public:
  // kUnsupported where there is no GPU.
  static Result<std::unique_ptr<BenchGpu>> open();

  const cuda::Driver& driver() const { return *driver_; }
  const cuda::Context& context() const { return *context_; }
  cuda::Stream& stream() { return *stream_; }

  // Random operands: the time a tensor core takes depends on its data.
  Result<cuda::Buffer> random_buffer(size_t bytes, RandomKind kind, unsigned seed);
  // What a memset writes.
  Result<double> memset_gb_s();
  // Overwrites the L2 cache, without waiting.
  Status flush(int value);
  // Fills in the times. A graph launches each operand set `max_repeats` times at most.
  Status time_contenders(std::vector<Contender>& contenders, double guess_us,
                         size_t max_repeats = 1 << 20);

 private:
  BenchGpu() = default;
  Status load_fill();
  Result<double> elapsed_us(const std::function<Status()>& work);

  std::unique_ptr<cuda::Driver> driver_;
  std::optional<cuda::Context> context_;
  std::optional<cuda::Stream> stream_;
  cuda::Event start_, end_;
  cuda::Buffer flush_;
  cuda::Module fill_module_;
  cuda::Kernel fill_;
};

// A peer's times over ours, over shapes.
class Comparison {
 public:
  explicit Comparison(std::string peer) : peer_(std::move(peer)) {}
  void add(const std::string& shape, double cold, double rot, double overlapped);
  void print() const;  // nothing, without a shape
  Json json() const;   // null, without a shape

 private:
  double mean(double log_sum) const;

  std::string peer_;
  int count_ = 0;
  double cold_log_sum_ = 0, rot_log_sum_ = 0, overlapped_log_sum_ = 0;
  double worst_cold_ = 0, worst_rot_ = 0;
  std::string worst_cold_shape_, worst_rot_shape_;
};

}  // namespace volley::gemm
