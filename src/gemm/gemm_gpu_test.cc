// The kernels on a GPU, against the reference and against each other. Skipped, in plain words,
// where there is no Hopper GPU or nothing to compile with.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "base/thread_pool.h"
#include "gemm/gemm.h"
#include "gemm/kernel_text.h"
#include "gemm/reference.h"
#include "gemm/test_gpu.h"
#include "tensor/float_formats.h"

namespace volley::gemm {
namespace {

constexpr unsigned char kPoison = 0xFF;  // a NaN in bf16 and in float
constexpr int kGuardRows = 3;            // rows of D after the last, which nobody may touch
constexpr int kGuardCols = 8;

// The GPU and its kernels, made once for all tests.
class Gpu {
 public:
  static Gpu& get() {
    static Gpu gpu;
    return gpu;
  }
  const std::string& why_not() const { return why_not_; }
  const cuda::Context& context() const { return *gpu_.context; }
  const cuda::Stream& stream() const { return *gpu_.stream; }
  Gemm& gemm() const { return *gemm_; }
  jit::KernelLibrary& kernels() { return *gpu_.kernels; }
  ThreadPool& threads() { return threads_; }

 private:
  Gpu() : threads_(static_cast<int>(std::max(1U, std::thread::hardware_concurrency()))) {
    if (const Status status = open(); !status) why_not_ = status.error().message;
  }
  Status open() {
    VOLLEY_TRY_STATUS(gpu_.open(cuda::Driver::load(), jit::load_nvrtc()));
    VOLLEY_TRY(gemm_, Gemm::create(*gpu_.context, *gpu_.kernels));
    return {};
  }

  TestGpu gpu_;
  std::unique_ptr<Gemm> gemm_;
  ThreadPool threads_;
  std::string why_not_;
};

// A problem on the device. D has room for guard rows and columns.
class DeviceProblem {
 public:
  explicit DeviceProblem(const HostProblem& host) : host_(host) {
    const GemmShape& shape = host.shape;
    a_ = upload(host.a);
    b_ = upload(host.b);
    if (has_fp8_tokens(shape.mma)) {
      a_scale_ = upload(host.a_scale);
      b_scale_ = upload(host.b_scale);
    }
    if (!host.groups.empty()) groups_ = upload(host.groups);
    if (!host.c.empty()) c_ = upload(host.c);
    d_stride_ = shape.n + kGuardCols;
    d_ = allocate(static_cast<size_t>((host.num_rows() + kGuardRows) * d_stride_) * out_bytes());
  }

  size_t out_bytes() const { return host_.shape.out == OutKind::kBf16 ? 2 : 4; }
  int64_t d_stride() const { return d_stride_; }

  // `first_row` and `m` select rows of a dense problem.
  GemmArgs args(int first_row = 0, int m = -1) const {
    GemmArgs args;
    args.shape = host_.shape;
    if (m >= 0) args.shape.m = m;
    const int64_t a_bytes = has_fp8_tokens(host_.shape.mma) ? 1 : 2;
    args.a = a_.get() + static_cast<uint64_t>(first_row * int64_t{host_.shape.k} * a_bytes);
    args.b = b_.get();
    if (has_fp8_tokens(host_.shape.mma)) {
      args.a_scale = a_scale_.get() + 4 * static_cast<uint64_t>(first_row);
      args.b_scale = b_scale_.get();
    }
    args.a_scale_stride = host_.a_scale_stride;
    args.d = d_.get();
    args.d_stride = d_stride_;
    if (!c_.empty()) {
      args.c = c_.get() + static_cast<uint64_t>(first_row * int64_t{host_.shape.n}) * 4;
      args.c_stride = host_.shape.n;
    }
    if (!groups_.empty()) args.groups = groups_.get();
    return args;
  }

  void set_groups(const std::vector<int32_t>& groups) {
    ASSERT_TRUE(groups_.upload(groups.data(), groups.size() * 4));
  }
  void poison() { ASSERT_TRUE(d_.fill(kPoison, Gpu::get().stream())); }
  std::vector<uint8_t> download() {
    std::vector<uint8_t> bytes(d_.bytes());
    const Status finished = Gpu::get().context().synchronize();
    EXPECT_TRUE(finished) << finished.error().message;
    EXPECT_TRUE(d_.download(bytes.data(), bytes.size()));
    return bytes;
  }

  // Poisons D, runs, returns D's bytes.
  std::vector<uint8_t> run(const GemmArgs& args) {
    poison();
    launch(args);
    return download();
  }

  // The same with C's rows from `first_row` on in D, where they are added.
  std::vector<uint8_t> run_in_place(GemmArgs args, int first_row = 0) {
    std::vector<uint8_t> d(d_.bytes(), kPoison);
    const auto n = static_cast<size_t>(host_.shape.n);
    for (size_t row = static_cast<size_t>(first_row); row < host_.c.size() / n; ++row) {
      std::memcpy(
          d.data() + (row - static_cast<size_t>(first_row)) * static_cast<size_t>(d_stride_) * 4,
          host_.c.data() + row * n, n * 4);
    }
    EXPECT_TRUE(d_.upload(d.data(), d.size()));
    // A copy from pageable memory may still be under way, and no stream waits for it.
    EXPECT_TRUE(Gpu::get().context().synchronize());
    args.c = args.d;
    args.c_stride = args.d_stride;
    launch(args);
    return download();
  }

  double value(const std::vector<uint8_t>& d, int64_t row, int64_t col) const {
    const auto at = static_cast<size_t>(row * d_stride_ + col) * out_bytes();
    if (host_.shape.out == OutKind::kF32) {
      float value = 0;
      std::memcpy(&value, d.data() + at, 4);
      return value;
    }
    uint16_t bits = 0;
    std::memcpy(&bits, d.data() + at, 2);
    return bf16_to_float(bits);
  }

 private:
  static void launch(const GemmArgs& args) {
    const auto call = Gpu::get().gemm().prepare(args);
    ASSERT_TRUE(call) << call.error().message;
    const Status launched = Gpu::get().gemm().launch(*call, Gpu::get().stream().get());
    EXPECT_TRUE(launched) << launched.error().message;
  }
  static cuda::Buffer allocate(size_t bytes) {
    auto buffer = cuda::Buffer::allocate(Gpu::get().context(), bytes);
    EXPECT_TRUE(buffer) << buffer.error().message;
    return std::move(*buffer);
  }
  template <class T>
  static cuda::Buffer upload(const std::vector<T>& values) {
    cuda::Buffer buffer = allocate(values.size() * sizeof(T));
    EXPECT_TRUE(buffer.upload(values.data(), buffer.bytes()));
    return buffer;
  }

  const HostProblem& host_;
  cuda::Buffer a_, a_scale_, b_, b_scale_, groups_, c_, d_;
  int64_t d_stride_ = 0;
};

class GemmGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!Gpu::get().why_not().empty()) GTEST_SKIP() << "not run: " << Gpu::get().why_not();
  }
};

// Every element of the rows that count against the reference (of every `step`-th row and column),
// and the guards around D. Prints the worst coordinate.
void check_against_reference(const HostProblem& host, DeviceProblem& device,
                             const std::vector<uint8_t>& d, int row_step, int col_step) {
  ASSERT_FALSE(d.empty());
  const auto weights = row_weights(host.shape, host.groups);
  struct Worst {
    double ratio = -1, got = 0, want = 0;
    int64_t row = 0, col = 0;
  };
  ThreadPool& threads = Gpu::get().threads();
  std::vector<Worst> worst(static_cast<size_t>(threads.num_threads()));
  const int64_t num_sampled = (host.num_rows() + row_step - 1) / row_step;
  threads.split(num_sampled, 1, [&](ItemRange rows, int thread) {
    Worst& mine = worst[static_cast<size_t>(thread)];
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int64_t row = i * row_step;
      if (weights[static_cast<size_t>(row)] < 0) continue;
      for (int64_t col = row % col_step; col < host.shape.n; col += col_step) {
        const ReferenceValue want = reference_value(host, weights, row, col);
        const double got = device.value(d, row, col);
        const double error = std::fabs(got - want.value);
        // Not finite is infinitely wrong.
        const double ratio = std::isfinite(got) ? error / error_bound(host.shape, want) : 1e30;
        if (ratio > mine.ratio) mine = {ratio, got, want.value, row, col};
      }
    }
  });
  const Worst& w = *std::max_element(
      worst.begin(), worst.end(), [](const Worst& a, const Worst& b) { return a.ratio < b.ratio; });
  EXPECT_LE(w.ratio, 1.0) << "worst at row " << w.row << ", column " << w.col << ": got " << w.got
                          << ", reference " << w.want;
  testing::Test::RecordProperty("worst_error_over_bound", std::to_string(w.ratio));
  const auto row_bytes = static_cast<size_t>(device.d_stride()) * device.out_bytes();
  const auto used_bytes = static_cast<size_t>(host.shape.n) * device.out_bytes();
  int64_t num_touched = 0;
  for (int64_t row = 0; row < host.num_rows() + kGuardRows; ++row) {
    const size_t from = row < host.num_rows() ? used_bytes : 0;
    for (size_t i = from; i < row_bytes; ++i) {
      num_touched += d[static_cast<size_t>(row) * row_bytes + i] != kPoison;
    }
  }
  EXPECT_EQ(num_touched, 0) << "bytes written outside of D";
}

// Rows that count must agree to the bit; others may hold anything.
int64_t num_differing_rows(const HostProblem& host, const DeviceProblem& device,
                           const std::vector<uint8_t>& x, const std::vector<uint8_t>& y) {
  const auto weights = row_weights(host.shape, host.groups);
  const auto row_bytes = static_cast<size_t>(device.d_stride()) * device.out_bytes();
  int64_t differing = 0;
  for (int64_t row = 0; row < host.num_rows(); ++row) {
    if (weights[static_cast<size_t>(row)] < 0) continue;
    const size_t at = static_cast<size_t>(row) * row_bytes;
    differing += !std::equal(x.begin() + static_cast<int64_t>(at),
                             x.begin() + static_cast<int64_t>(at + row_bytes),
                             y.begin() + static_cast<int64_t>(at));
  }
  return differing;
}

// Runs every `step`-th candidate configuration of the problem: the first against the reference, the
// others to the bit against the first.
void check_candidates(const HostProblem& host, size_t step) {
  Gpu& gpu = Gpu::get();
  // VOLLEY_GEMM_SAMPLE=4 tries every fourth candidate only.
  if (const char* sample = std::getenv("VOLLEY_GEMM_SAMPLE")) {
    step *= static_cast<size_t>(std::max(1, std::atoi(sample)));
  }
  std::vector<GemmConfig> configs;
  const auto ranked = rank_configs(host.shape, gpu.gemm().device());
  for (size_t i = 0; i < ranked.size(); i += step) configs.push_back(ranked[i].config);
  std::vector<jit::KernelSource> sources;
  for (const GemmConfig& config : configs) sources.push_back(kernel_source(config));
  const Status warmed = gpu.kernels().warm_up(sources, gpu.threads().num_threads(), nullptr);
  ASSERT_TRUE(warmed) << warmed.error().message;
  DeviceProblem device(host);
  std::vector<uint8_t> first;
  for (const GemmConfig& config : configs) {
    SCOPED_TRACE(config_name(config));
    fmt::print("{}\n", config_name(config));  // a kernel that hangs is the last one named
    std::fflush(stdout);
    GemmArgs args = device.args();
    args.config = config;
    const auto d = device.run(args);
    ASSERT_FALSE(testing::Test::HasFatalFailure());
    if (d.empty()) return;
    if (!host.c.empty()) {
      EXPECT_EQ(num_differing_rows(host, device, d, device.run_in_place(args)), 0)
          << "rows differ where C is D";
    }
    if (first.empty()) {
      first = d;
      check_against_reference(host, device, d, 1, 1);
      continue;
    }
    const int64_t differing = num_differing_rows(host, device, first, d);
    EXPECT_EQ(differing, 0) << "rows differ from " << config_name(configs[0]);
    if (differing > 0) check_against_reference(host, device, d, 1, 1);
  }
  testing::Test::RecordProperty("num_configs", static_cast<int>(configs.size()));
}

std::vector<int32_t> some_groups(const GemmShape& shape) {
  std::vector<int32_t> groups;
  switch (shape.grouping) {
    case Grouping::kDense:
      break;
    case Grouping::kRowIndex: {
      groups.assign(static_cast<size_t>(shape.m), -1);
      // Group g takes all but g of the rows of aligned run g; one run is all padding.
      const int runs = shape.m / shape.group_align;
      for (int run = 0; run < runs; ++run) {
        if (run == 1) continue;
        const int group = (run * 2 + 1) % shape.num_groups;
        std::fill_n(groups.begin() + run * shape.group_align, shape.group_align - run, group);
      }
      break;
    }
    case Grouping::kPrefixSum: {
      int end = 0;
      for (int g = 0; g < shape.num_groups; ++g) {
        end = std::min(shape.m, round_up(end, shape.group_align) + (g == 1 ? 0 : 37 + 40 * g));
        groups.push_back(end);
      }
      break;
    }
    case Grouping::kMasked:
      for (int g = 0; g < shape.num_groups; ++g) {
        groups.push_back(g == 1 ? 0 : std::min(shape.m, 1 + 61 * g));
      }
      break;
    case Grouping::kAlongK: {
      int end = 0;
      for (int g = 0; g < shape.num_groups; ++g) {
        end = std::min(shape.k, end + (g == 1 ? 0 : 128 * (g + 1)));
        groups.push_back(end);
      }
      break;
    }
  }
  return groups;
}

struct CandidateCase {
  GemmShape shape;
  size_t step;
  bool with_c = false;
};

std::string name_of(const CandidateCase& c) {
  const GemmShape& s = c.shape;
  const std::string config = config_name({.mma = s.mma, .out = s.out, .grouping = s.grouping});
  std::string name = config.substr(0, config.find("-t128"));
  std::replace(name.begin(), name.end(), '-', '_');
  name += fmt::format("_m{}_n{}_k{}_s{}", s.m, s.n, s.k, s.segments);
  if (s.grouping == Grouping::kRowIndex || s.grouping == Grouping::kPrefixSum) {
    name += fmt::format("_aligned{}", s.group_align);
  }
  return name + (c.with_c ? "_plus_c" : "");
}
void PrintTo(const CandidateCase& c, std::ostream* out) {
  *out << name_of(c);
}

class GemmCandidates : public GemmGpu, public testing::WithParamInterface<CandidateCase> {};

TEST_P(GemmCandidates, AgreeWithTheReferenceAndWithEachOtherToTheBit) {
  const GemmShape& shape = GetParam().shape;
  check_candidates(random_problem(shape, some_groups(shape), 7, GetParam().with_c),
                   GetParam().step);
}

constexpr std::array kAllKinds = {MmaKind::kFp8, MmaKind::kBf16, MmaKind::kMxFp4, MmaKind::kNvFp4};

std::vector<CandidateCase> candidate_cases() {
  std::vector<CandidateCase> cases;
  for (const MmaKind mma : kAllKinds) {
    for (const int segments : {1, 4}) {
      cases.push_back({{.mma = mma, .m = 200, .n = 328, .k = 1152, .segments = segments}, 1});
    }
    cases.push_back({{.mma = mma, .m = 77, .n = 136, .k = 1024, .segments = 2}, 5});
    cases.push_back(
        {{.mma = mma, .out = OutKind::kF32, .m = 150, .n = 200, .k = 640, .segments = 2}, 4});
    for (const Grouping grouping : {Grouping::kRowIndex, Grouping::kPrefixSum, Grouping::kMasked}) {
      GemmShape shape = {
          .mma = mma, .grouping = grouping, .m = 640, .n = 264, .k = 512, .num_groups = 4};
      if (grouping == Grouping::kMasked) shape.m = 190;
      shape.segments = 1;
      cases.push_back({shape, 5});
      shape.group_align = 32;
      shape.segments = 2;
      cases.push_back({shape, 5});
    }
    cases.push_back({{.mma = mma, .out = OutKind::kF32, .m = 99, .n = 264, .k = 512}, 4, true});
    // Room for the widest tiles.
    cases.push_back({{.mma = mma,
                      .grouping = Grouping::kRowIndex,
                      .m = 1024,
                      .n = 264,
                      .k = 512,
                      .num_groups = 3,
                      .group_align = 256,
                      .segments = 1},
                     5});
  }
  const auto gradient = [&](MmaKind mma, Grouping grouping, int m, bool with_c) {
    GemmShape shape = {
        .mma = mma, .out = OutKind::kF32, .grouping = grouping, .m = m, .n = 328, .k = 1152};
    if (grouping == Grouping::kAlongK) shape.num_groups = 5;
    cases.push_back({shape, 1, with_c});
  };
  for (const bool with_c : {false, true}) {
    for (const int m : {77, 300}) gradient(MmaKind::kFp8Rows, Grouping::kDense, m, with_c);
    for (const MmaKind mma : {MmaKind::kFp8Rows, MmaKind::kBf16}) {
      gradient(mma, Grouping::kAlongK, 300, with_c);
    }
  }
  cases.push_back({{.mma = MmaKind::kFp8Rows, .m = 150, .n = 200, .k = 640}, 2});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, GemmCandidates, testing::ValuesIn(candidate_cases()),
                         [](const auto& info) { return name_of(info.param); });

TEST_F(GemmGpu, TailsAndExtremeShapes) {
  for (const GemmShape& shape : std::vector<GemmShape>{
           {.m = 1, .n = 8, .k = 128},
           {.m = 1, .n = 4096, .k = 4096},
           {.m = 129, .n = 8, .k = 256},
           {.m = 3, .n = 24, .k = 16384},
           {.m = 65, .n = 2112, .k = 7168},
           {.m = 257, .n = 520, .k = 384},
           {.mma = MmaKind::kBf16, .m = 1, .n = 8, .k = 128},
           {.mma = MmaKind::kBf16, .m = 65, .n = 2112, .k = 1024},
           {.mma = MmaKind::kBf16, .m = 300, .n = 1032, .k = 384},
           {.mma = MmaKind::kMxFp4, .m = 1, .n = 8, .k = 128},
           {.mma = MmaKind::kMxFp4, .m = 65, .n = 2112, .k = 1024},
           {.mma = MmaKind::kMxFp4, .m = 3, .n = 24, .k = 16384},
           {.mma = MmaKind::kMxFp4, .m = 300, .n = 4104, .k = 384},
           {.mma = MmaKind::kNvFp4, .m = 1, .n = 8, .k = 128},
           {.mma = MmaKind::kNvFp4, .m = 65, .n = 2112, .k = 1024},
           {.mma = MmaKind::kNvFp4, .m = 300, .n = 4104, .k = 384},
           {.mma = MmaKind::kFp8Rows, .out = OutKind::kF32, .m = 1, .n = 8, .k = 128},
           {.mma = MmaKind::kFp8Rows, .out = OutKind::kF32, .m = 257, .n = 2112, .k = 1024},
       }) {
    SCOPED_TRACE(fmt::format("{}x{}x{}", shape.m, shape.n, shape.k));
    const HostProblem host = random_problem(shape, {}, 3);
    DeviceProblem device(host);
    check_against_reference(host, device, device.run(device.args()), 1, shape.n > 1000 ? 17 : 1);
  }
}

TEST_F(GemmGpu, ARowHasTheSameBitsAtEveryMAndInEveryPlace) {
  for (const MmaKind mma : kAllKinds) {
    for (const auto& [n, k] : {std::pair{2112, 2048}, {6144, 512}}) {
      const GemmShape shape = {.mma = mma, .m = 512, .n = n, .k = k};
      SCOPED_TRACE(fmt::format("n {}, k {}, {} segments", n, k, segments_of(shape)));
      const HostProblem host = random_problem(shape, {}, 11);
      DeviceProblem device(host);
      const auto whole = device.run(device.args());
      check_against_reference(host, device, whole, 7, 5);
      const auto row_bytes = static_cast<size_t>(device.d_stride()) * device.out_bytes();
      std::set<std::string> used;
      for (const int m :
           {1, 2, 7, 8, 9, 16, 17, 24, 33, 48, 64, 65, 100, 128, 129, 200, 256, 400}) {
        for (const int first : {0, 4, 112}) {
          if (first + m > shape.m) continue;
          const GemmArgs args = device.args(first, m);
          used.insert(config_name(*choose_config(args.shape, Gpu::get().gemm().device())));
          const auto part = device.run(args);
          ASSERT_FALSE(part.empty());
          int64_t differing = 0;
          for (int r = 0; r < m; ++r) {
            const auto a =
                whole.begin() + static_cast<int64_t>(static_cast<size_t>(first + r) * row_bytes);
            const auto b = part.begin() + static_cast<int64_t>(static_cast<size_t>(r) * row_bytes);
            differing += !std::equal(a, a + n * static_cast<int64_t>(device.out_bytes()), b);
          }
          EXPECT_EQ(differing, 0) << "rows of m " << m << " from row " << first;
        }
      }
      EXPECT_GE(used.size(), 4U) << "the test must meet several kernels";
    }
  }
}

// The gradients' kernels: C apart, C in place, any m.
TEST_F(GemmGpu, AGradientsRowHasTheSameBitsAtEveryM) {
  for (const MmaKind mma : {MmaKind::kFp8Rows, MmaKind::kBf16}) {
    const GemmShape shape = {.mma = mma, .out = OutKind::kF32, .m = 512, .n = 2112, .k = 1024};
    HostProblem host = random_problem(shape, {}, 11, true);
    // Subnormals of C meet sums of 0.
    const size_t a_row = host.a.size() / 512;
    std::fill_n(host.a.begin() + static_cast<int64_t>(3 * a_row), a_row, uint8_t{0});
    for (size_t i = 3 * 2112; i < 4 * 2112; ++i) host.c[i] = i % 2 == 0 ? 1e-40F : -1e-41F;
    DeviceProblem device(host);
    const auto whole = device.run(device.args());
    check_against_reference(host, device, whole, 7, 5);
    const auto row_bytes = static_cast<int64_t>(device.d_stride()) * 4;
    for (const int m : {1, 7, 64, 65, 129, 200, 400}) {
      for (const int first : {0, 4, 112}) {
        const auto apart = device.run(device.args(first, m));
        const auto in_place = device.run_in_place(device.args(first, m), first);
        ASSERT_FALSE(apart.empty() || in_place.empty());
        int differing = 0;
        for (int r = 0; r < m; ++r) {
          const auto want = whole.begin() + (first + r) * row_bytes;
          differing += !std::equal(want, want + 2112 * 4, apart.begin() + r * row_bytes);
          differing += !std::equal(want, want + 2112 * 4, in_place.begin() + r * row_bytes);
        }
        EXPECT_EQ(differing, 0) << "rows of m " << m << " from row " << first;
      }
    }
  }
}

TEST_F(GemmGpu, AGroupAlongKIsTheProductOfItsColumns) {
  for (const MmaKind mma : {MmaKind::kFp8Rows, MmaKind::kBf16}) {
    const GemmShape shape = {.mma = mma,
                             .out = OutKind::kF32,
                             .grouping = Grouping::kAlongK,
                             .m = 200,
                             .n = 1032,
                             .k = 2048,
                             .num_groups = 4};
    const std::vector<int32_t> ends = {512, 512, 640, 2048};
    const HostProblem host = random_problem(shape, ends, 5);
    DeviceProblem device(host);
    const auto d = device.run(device.args());
    const auto row_bytes = static_cast<int64_t>(device.d_stride()) * 4;
    for (int g = 0; g < 4; ++g) {
      const int begin = g == 0 ? 0 : ends[static_cast<size_t>(g) - 1];
      const int k = ends[static_cast<size_t>(g)] - begin;
      if (k == 0) continue;
      GemmArgs alone = device.args();
      const auto bytes = static_cast<uint64_t>(begin) * (mma == MmaKind::kBf16 ? 2 : 1);
      alone.shape.grouping = Grouping::kDense;
      alone.shape.num_groups = 1;
      alone.shape.k = k;
      alone.shape.segments = 1;
      alone.a_stride = 2048;
      alone.a += bytes;
      alone.b += bytes;
      alone.a_scale += static_cast<uint64_t>(begin / 128 * host.a_scale_stride * 4);
      alone.b_scale += static_cast<uint64_t>(begin / 128 * shape.n * 4);
      // B is packed: its columns alone.
      HostProblem part = host;
      const size_t k_bytes = static_cast<size_t>(k) * (mma == MmaKind::kBf16 ? 2 : 1);
      part.b.clear();
      for (size_t row = 0; row < static_cast<size_t>(shape.n); ++row) {
        const auto from = host.b.begin() + static_cast<int64_t>(row * host.b.size() / 1032 + bytes);
        part.b.insert(part.b.end(), from, from + static_cast<int64_t>(k_bytes));
      }
      DeviceProblem columns(part);
      alone.b = columns.args().b;
      const auto e = device.run(alone);
      int differing = 0;
      for (int r = 0; r < 200; ++r) {
        const auto x = d.begin() + (g * 200 + r) * row_bytes;
        differing += !std::equal(x, x + 1032 * 4, e.begin() + r * row_bytes);
      }
      EXPECT_EQ(differing, 0) << "rows of group " << g;
    }
  }
}

TEST_F(GemmGpu, ACapturedGraphFollowsTheGroupsAlongK) {
  const GemmShape shape = {.mma = MmaKind::kFp8Rows,
                           .out = OutKind::kF32,
                           .grouping = Grouping::kAlongK,
                           .m = 128,
                           .n = 256,
                           .k = 1024,
                           .num_groups = 3};
  HostProblem host = random_problem(shape, {128, 256, 1024}, 9);
  DeviceProblem device(host);
  Gpu& gpu = Gpu::get();
  const auto call = gpu.gemm().prepare(device.args());
  ASSERT_TRUE(call);
  const auto graph = cuda::Graph::capture(
      gpu.stream(), [&] { return gpu.gemm().launch(*call, gpu.stream().get()); });
  ASSERT_TRUE(graph) << graph.error().message;
  for (const std::vector<int32_t>& ends :
       {std::vector<int32_t>{128, 256, 1024}, {0, 1024, 1024}, {0, 0, 0}, {130, 600, 9999}}) {
    host.groups = ends;
    device.set_groups(ends);
    device.poison();
    ASSERT_TRUE(graph->launch(gpu.stream()));
    check_against_reference(host, device, device.download(), 1, 3);
  }
}

TEST_F(GemmGpu, ARowOfAGroupHasTheBitsItHasAlone) {
  const GemmShape grouped = {
      .grouping = Grouping::kMasked, .m = 64, .n = 512, .k = 1024, .num_groups = 3, .segments = 1};
  const HostProblem host = random_problem(grouped, {64, 10, 33}, 5);
  DeviceProblem device(host);
  const auto d = device.run(device.args());
  const auto row_bytes = static_cast<size_t>(device.d_stride()) * 2;
  for (int g = 0; g < 3; ++g) {
    HostProblem alone;
    alone.shape = {.m = 64, .n = 512, .k = 1024, .segments = 1};
    alone.a.assign(host.a.begin() + g * 64 * 1024, host.a.begin() + (g + 1) * 64 * 1024);
    alone.a_scale.assign(host.a_scale.begin() + g * 64 * 8,
                         host.a_scale.begin() + (g + 1) * 64 * 8);
    alone.a_scale_stride = 64;
    alone.b.assign(host.b.begin() + g * 512 * 1024, host.b.begin() + (g + 1) * 512 * 1024);
    alone.b_scale.assign(host.b_scale.begin() + g * 4 * 8, host.b_scale.begin() + (g + 1) * 4 * 8);
    DeviceProblem device_alone(alone);
    const auto e = device_alone.run(device_alone.args());
    for (int r = 0; r < host.groups[static_cast<size_t>(g)]; ++r) {
      const auto x = d.begin() + static_cast<int64_t>(static_cast<size_t>(g * 64 + r) * row_bytes);
      const auto y = e.begin() + static_cast<int64_t>(static_cast<size_t>(r) * row_bytes);
      EXPECT_TRUE(std::equal(x, x + 1024, y)) << "group " << g << " row " << r;
    }
  }
}

TEST_F(GemmGpu, ACapturedGraphFollowsTheGroups) {
  const GemmShape shape = {.grouping = Grouping::kMasked,
                           .m = 128,
                           .n = 256,
                           .k = 512,
                           .num_groups = 4,
                           .expected_m = 32};
  HostProblem host = random_problem(shape, {1, 2, 3, 4}, 9);
  DeviceProblem device(host);
  Gpu& gpu = Gpu::get();
  const auto call = gpu.gemm().prepare(device.args());
  ASSERT_TRUE(call);
  const auto graph = cuda::Graph::capture(
      gpu.stream(), [&] { return gpu.gemm().launch(*call, gpu.stream().get()); });
  ASSERT_TRUE(graph) << graph.error().message;
  for (const std::vector<int32_t>& counts :
       {std::vector<int32_t>{1, 2, 3, 4}, {128, 0, 77, 128}, {0, 0, 0, 0}, {5, 128, 1, 0}}) {
    host.groups = counts;
    device.set_groups(counts);
    device.poison();
    ASSERT_TRUE(graph->launch(gpu.stream()));
    check_against_reference(host, device, device.download(), 1, 3);
  }
}

TEST_F(GemmGpu, RunsAgainAndAgainTheSame) {
  const GemmShape shape = {.m = 64, .n = 2112, .k = 4096};
  const HostProblem host = random_problem(shape, {}, 13);
  DeviceProblem device(host);
  const auto first = device.run(device.args());
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(num_differing_rows(host, device, first, device.run(device.args())), 0) << "run " << i;
  }
}

// A kernel's first CTAs beside the last ones of the kernel in front: clusters that end, clusters
// that begin, weights read early.
TEST_F(GemmGpu, LaunchesThatOverlapComputeTheSame) {
  Gpu& gpu = Gpu::get();
  for (const int segments : {1, 4}) {
    const GemmShape shape = {.m = 72, .n = 2112, .k = 4096, .segments = segments};
    const HostProblem host = random_problem(shape, {}, 17);
    DeviceProblem device(host);
    const auto first = device.run(device.args());
    check_against_reference(host, device, first, 5, 11);
    const auto ranked = rank_configs(shape, gpu.gemm().device());
    for (size_t i = 0; i < ranked.size(); i += 5) {
      SCOPED_TRACE(config_name(ranked[i].config));
      fmt::print("{}\n", config_name(ranked[i].config));
      std::fflush(stdout);
      for (const Overlap overlap : {Overlap::kNone, Overlap::kLaunch, Overlap::kWeights}) {
        GemmArgs args = device.args();
        args.config = ranked[i].config;
        args.overlap = overlap;
        const auto call = gpu.gemm().prepare(args);
        ASSERT_TRUE(call) << call.error().message;
        device.poison();
        const auto graph = cuda::Graph::capture(gpu.stream(), [&]() -> Status {
          for (int launch = 0; launch < 60; ++launch) {
            VOLLEY_TRY_STATUS(gpu.gemm().launch(*call, gpu.stream().get()));
          }
          return {};
        });
        ASSERT_TRUE(graph) << graph.error().message;
        ASSERT_TRUE(graph->launch(gpu.stream()));
        EXPECT_EQ(num_differing_rows(host, device, first, device.download()), 0);
        ASSERT_FALSE(testing::Test::HasFailure());
      }
    }
  }
}

TEST_F(GemmGpu, NoRowsNothingToLaunch) {
  const auto call = Gpu::get().gemm().prepare({.shape = {.m = 0, .n = 8, .k = 128}, .b = 256});
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_EQ(call->kernel, nullptr);
  EXPECT_TRUE(Gpu::get().gemm().launch(*call, Gpu::get().stream().get()));
}

}  // namespace
}  // namespace volley::gemm
