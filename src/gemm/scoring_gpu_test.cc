// The scoring kernels on a GPU, against the reference and, bit for bit, against each other.
// Skipped, in plain words, where there is no Hopper GPU or nothing to compile with.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <thread>

#include "gemm/scoring_reference.h"
#include "gemm/test_gpu.h"

namespace volley::gemm {
namespace {

constexpr int kGuardRows = 2;
constexpr int kGuardCols = 5;
using enum KeyKind;

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
  Scoring& scoring() const { return *scoring_; }
  jit::KernelLibrary& kernels() { return *gpu_.kernels; }

 private:
  Gpu() {
    if (const Status status = open(); !status) why_not_ = status.error().message;
  }
  Status open() {
    VOLLEY_TRY_STATUS(gpu_.open(cuda::Driver::load(), jit::load_nvrtc()));
    VOLLEY_TRY(scoring_, Scoring::create(*gpu_.context, *gpu_.kernels));
    return {};
  }

  TestGpu gpu_;
  std::unique_ptr<Scoring> scoring_;
  std::string why_not_;
};

class ScoringGpu : public testing::Test {
 protected:
  void SetUp() override {
    if (!Gpu::get().why_not().empty()) GTEST_SKIP() << "not run: " << Gpu::get().why_not();
  }
};

// A problem on the device; the logits have room for guard rows and columns.
class DeviceScoring {
 public:
  explicit DeviceScoring(const HostScoring& host) : host_(host) {
    args_ = scoring_args(host, [&](const void* data, size_t bytes) -> cuda::DevicePtr {
      auto buffer = cuda::Buffer::allocate(Gpu::get().context(), bytes);
      EXPECT_TRUE(buffer) << buffer.error().message;
      EXPECT_TRUE(buffer->upload(data, bytes));
      buffers_.push_back(std::move(*buffer));
      return buffers_.back().get();
    });
    args_.logits_stride = host.shape.num_keys + kGuardCols;
    auto logits = cuda::Buffer::allocate(
        Gpu::get().context(),
        static_cast<size_t>((host.shape.num_rows + kGuardRows) * args_.logits_stride) * 4);
    EXPECT_TRUE(logits) << logits.error().message;
    logits_ = std::move(*logits);
    args_.logits = logits_.get();
  }

  int64_t stride() const { return args_.logits_stride; }
  const ScoringArgs& args() const { return args_; }
  void poison() { ASSERT_TRUE(logits_.fill(0xFF, Gpu::get().stream())); }
  std::vector<float> download() {
    std::vector<float> logits(logits_.bytes() / 4);
    const Status finished = Gpu::get().context().synchronize();
    EXPECT_TRUE(finished) << finished.error().message;
    EXPECT_TRUE(logits_.download(logits.data(), logits.size() * 4));
    return logits;
  }
  // Poisons the logits, runs, returns them.
  std::vector<float> run(const ScoringArgs& args) {
    poison();
    Scoring& scoring = Gpu::get().scoring();
    const auto call = scoring.prepare(args);
    EXPECT_TRUE(call) << call.error().message;
    if (!call) return {};
    const Status launched = scoring.launch(*call, Gpu::get().stream().get());
    EXPECT_TRUE(launched) << launched.error().message;
    return download();
  }

 private:
  const HostScoring& host_;
  ScoringArgs args_;
  std::vector<cuda::Buffer> buffers_;
  cuda::Buffer logits_;
};

void check(const HostScoring& host, int step = 1) {
  DeviceScoring device(host);
  for (const OutsideRange outside : {OutsideRange::kNegativeInfinity, OutsideRange::kUntouched}) {
    ScoringArgs args = device.args();
    args.outside = outside;
    const auto logits = device.run(args);
    EXPECT_EQ(check_logits(host, logits, device.stride(), outside, step), "");
  }
}

std::string name_of(const ScoringShape& s) {
  return fmt::format("{} {}h{} d{} {} rows {} keys next {}", s.keys == kFp8 ? "fp8" : "mxfp4",
                     s.paged ? "paged " : "", s.heads, s.head_dim, s.num_rows, s.num_keys,
                     s.next_n);
}

// Ranges of every kind: none, one key, both ends of a tile, all, beyond what exists.
HostScoring ragged(const ScoringShape& shape, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> starts, ends;
  for (int row = 0; row < shape.num_rows; ++row) {
    const auto draw = [&] {
      return static_cast<int32_t>(random() % static_cast<uint64_t>(shape.num_keys + 1));
    };
    int32_t start = row % 3 == 0 ? 0 : draw(), end = row % 5 == 0 ? shape.num_keys + 7 : draw();
    if (row % 7 == 1) end = start + 1;
    if (row % 11 == 2) start = start / 64 * 64, end = start + 64;
    starts.push_back(start);
    ends.push_back(end);
  }
  return random_scoring(shape, starts, ends, seed);
}

void warm_up(const std::vector<ScoringShape>& shapes) {
  const Status warmed = Gpu::get().scoring().warm_up(
      shapes, static_cast<int>(std::max(1U, std::thread::hardware_concurrency())), nullptr);
  ASSERT_TRUE(warmed) << warmed.error().message;
}

TEST_F(ScoringGpu, ManyShapesAgreeWithTheReference) {
  std::vector<ScoringShape> all;
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const auto& [heads, head_dim] :
         {std::pair{64, 128}, {32, 128}, {64, 64}, {16, 64}, {48, 128}, {128, 128}}) {
      all.push_back({.keys = keys, .heads = heads, .head_dim = head_dim, .num_rows = 8});
    }
  }
  warm_up(all);
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const auto& [heads, head_dim] :
         {std::pair{64, 128}, {32, 128}, {64, 64}, {16, 64}, {48, 128}, {128, 128}}) {
      for (const auto& [rows, num_keys] :
           {std::pair{1, 1}, {1, 64}, {2, 65}, {3, 1000}, {37, 333}, {130, 129}}) {
        const ScoringShape shape = {.keys = keys,
                                    .heads = heads,
                                    .head_dim = head_dim,
                                    .num_rows = rows,
                                    .num_keys = num_keys};
        SCOPED_TRACE(name_of(shape));
        check(ragged(shape, 3), rows * num_keys > 5000 ? 7 : 1);
        check(random_scoring(shape, {}, {}, 5), 29);
      }
    }
  }
}

TEST_F(ScoringGpu, PagedShapesAgreeWithTheReference) {
  std::vector<ScoringShape> all;
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const auto& [heads, head_dim] : {std::pair{64, 128}, {32, 128}, {32, 64}}) {
      all.push_back(
          {.keys = keys, .paged = true, .heads = heads, .head_dim = head_dim, .next_n = 9});
    }
  }
  warm_up(all);
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const auto& [heads, head_dim] : {std::pair{64, 128}, {32, 128}, {32, 64}}) {
      for (const int next_n : {1, 2, 3, 4, 5, 7, 9}) {
        const ScoringShape shape = {.keys = keys,
                                    .paged = true,
                                    .heads = heads,
                                    .head_dim = head_dim,
                                    .num_rows = 6 * next_n,
                                    .num_keys = 500,
                                    .num_sequences = 6,
                                    .next_n = next_n};
        SCOPED_TRACE(name_of(shape));
        check(random_scoring(shape, {500, 0, 1, 64, 129, 800}, {}, 3), 11);
      }
      ScoringShape shape = {.keys = keys,
                            .paged = true,
                            .heads = heads,
                            .head_dim = head_dim,
                            .num_rows = 40,
                            .num_keys = 333,
                            .num_sequences = 7,
                            .next_n = 2};
      SCOPED_TRACE(name_of(shape));
      check(random_scoring(shape, {333, 17, 2, 64, 0, 130, 300}, {0, 1, 14, 14, 17, 18, 20, 38}, 4),
            7);
    }
  }
}

TEST_F(ScoringGpu, ManySequencesAndRows) {
  // More runs than a CTA has threads, most of them empty.
  ScoringShape shape = {.paged = true, .num_rows = 1500, .num_keys = 128, .num_sequences = 1500};
  std::vector<int32_t> lens(1500);
  for (size_t i = 0; i < lens.size(); ++i) lens[i] = i % 9 == 0 ? static_cast<int32_t>(i % 129) : 0;
  check(random_scoring(shape, lens, {}, 6), 5);
  check(ragged({.heads = 32, .num_rows = 3001, .num_keys = 200}, 8), 31);
}

// Law 1 on the device: a row has the same bits alone or among others, in every tile, in whatever
// number of next rows, paged or not.
TEST_F(ScoringGpu, ARowHasTheSameBitsPagedOrNotAloneOrAmongOthers) {
  std::vector<ScoringShape> every;
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const int heads : {64, 32}) {
      every.push_back({.keys = keys, .heads = heads, .num_rows = 12});
      every.push_back({.keys = keys, .paged = true, .heads = heads, .next_n = 12});
    }
  }
  warm_up(every);
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const int heads : {64, 32}) {
      const ScoringShape shape = {.keys = keys,
                                  .paged = true,
                                  .heads = heads,
                                  .num_rows = 36,
                                  .num_keys = 700,
                                  .num_sequences = 3,
                                  .next_n = 12};
      SCOPED_TRACE(name_of(shape));
      const std::vector<int32_t> lens = {700, 65, 333};
      const HostScoring paged = random_scoring(shape, lens, {}, 9);
      DeviceScoring device(paged);
      const auto all = device.run(device.args());
      ASSERT_EQ(check_logits(paged, all, device.stride(), OutsideRange::kUntouched, 37), "");
      int64_t differing = 0, compared = 0;
      for (int sequence = 0; sequence < 3; ++sequence) {
        const HostScoring alone = sequence_alone(paged, sequence);
        DeviceScoring device_alone(alone);
        for (int first = 0; first < 12; first += 5) {
          for (int rows = 1; first + rows <= 12; ++rows) {
            ScoringArgs args = device_alone.args();
            args.shape.num_rows = rows;
            args.q += static_cast<uint64_t>(first * heads * 128);
            args.weights += static_cast<uint64_t>(first * heads * 4);
            args.ends += static_cast<uint64_t>(first * 4);
            const auto part = device_alone.run(args);
            ASSERT_FALSE(part.empty());
            for (int row = 0; row < rows; ++row) {
              const int end = alone.ends[static_cast<size_t>(first + row)];
              compared += end;
              for (int key = 0; key < end; ++key) {
                const auto a =
                    all[static_cast<size_t>((sequence * 12 + first + row) * device.stride() + key)];
                const auto b = part[static_cast<size_t>(row * device_alone.stride() + key)];
                differing += std::bit_cast<uint32_t>(a) != std::bit_cast<uint32_t>(b);
              }
            }
          }
        }
      }
      // The same rows as next_n 1, 2, 3, 4, 6: sequences of fewer rows over the same pages.
      for (const int next_n : {1, 2, 3, 4, 6}) {
        const int parts = 12 / next_n;
        HostScoring split = paged;
        split.shape.next_n = next_n;
        split.shape.num_sequences = 3 * parts;
        split.block_table.clear();
        split.context_lens.clear();
        const auto stride = static_cast<int64_t>(ceil_div(700, kKeyTile));
        for (int s = 0; s < 3; ++s) {
          for (int p = 0; p < parts; ++p) {
            split.block_table.insert(split.block_table.end(),
                                     paged.block_table.begin() + s * stride,
                                     paged.block_table.begin() + (s + 1) * stride);
            split.context_lens.push_back(lens[static_cast<size_t>(s)] - 12 + (p + 1) * next_n);
          }
        }
        DeviceScoring device_split(split);
        const auto again = device_split.run(device_split.args());
        ASSERT_EQ(again.size(), all.size());
        differing += std::memcmp(again.data(), all.data(), all.size() * 4) != 0;
        compared += static_cast<int64_t>(all.size());
      }
      EXPECT_EQ(differing, 0) << "of " << compared;
      EXPECT_GT(compared, 10000);
    }
  }
}

TEST_F(ScoringGpu, EveryNumberOfQueriesAndStagesComputesTheSame) {
  const auto config_of = [](KeyKind keys, int queries) {
    ScoringConfig config =
        scoring_config(keys, false, 64, 128, queries, Gpu::get().scoring().device());
    config.num_stages = 4;
    return config;
  };
  std::vector<jit::KernelSource> sources;
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    for (const int queries : {1, 2, 3, 4}) {
      sources.push_back(kernel_source(config_of(keys, queries)));
    }
  }
  ASSERT_TRUE(Gpu::get().kernels().warm_up(sources, 8, nullptr));
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    const HostScoring host = ragged({.keys = keys, .num_rows = 101, .num_keys = 2000}, 11);
    DeviceScoring device(host);
    const auto first = device.run(device.args());
    ASSERT_EQ(check_logits(host, first, device.stride(), OutsideRange::kUntouched, 211), "");
    for (const int queries : {1, 2, 3, 4}) {
      ScoringArgs args = device.args();
      args.config = config_of(keys, queries);
      const auto again = device.run(args);
      ASSERT_EQ(again.size(), first.size());
      EXPECT_EQ(std::memcmp(again.data(), first.data(), first.size() * 4), 0)
          << config_name(*args.config);
    }
  }
}

// FP4 scales that decoding treats apart (0, NaN, far below the key's largest) with every value.
TEST_F(ScoringGpu, EveryFp4CodeAndScaleDecodes) {
  HostScoring host = random_scoring({.keys = kMxFp4, .num_rows = 3, .num_keys = 256}, {}, {}, 1);
  for (size_t key = 0; key < 256; ++key) {
    for (size_t i = 0; i < 64; ++i) {
      host.keys[key * 64 + i] =
          static_cast<uint8_t>((i * 2 + key) % 16 | (i * 2 + key + 1) % 16 << 4);
    }
    for (size_t g = 0; g < 4; ++g) {
      const size_t spread = key % 4 == g ? key / 4 : 0;
      host.key_scales[key * 4 + g] = static_cast<uint8_t>(key == 255             ? 0
                                                          : key == 254 && g == 1 ? 255
                                                                                 : 90 + spread);
    }
  }
  check(host);
}

TEST_F(ScoringGpu, ExtremeValuesPassThrough) {
  HostScoring host = random_scoring({.num_rows = 2, .num_keys = 130}, {}, {}, 2);
  const auto set_scale = [&](size_t key, float scale) {
    std::memcpy(host.key_scales.data() + key * 4, &scale, 4);
  };
  host.keys[5 * 128 + 7] = 0x7F;  // NaN
  set_scale(9, 0.0F);
  set_scale(11, std::numeric_limits<float>::quiet_NaN());
  for (size_t i = 0; i < 128; ++i) host.keys[20 * 128 + i] = 0x7E;  // 448
  DeviceScoring device(host);
  const auto logits = device.run(device.args());
  EXPECT_EQ(check_logits(host, logits, device.stride(), OutsideRange::kUntouched, 1), "");
  set_scale(13, std::numeric_limits<float>::infinity());
  DeviceScoring infinite(host);
  EXPECT_FALSE(std::isfinite(infinite.run(infinite.args())[13]));
}

TEST_F(ScoringGpu, ACapturedGraphFollowsTheLengths) {
  const ScoringShape shape = {
      .paged = true, .num_rows = 8, .num_keys = 640, .num_sequences = 4, .next_n = 2};
  HostScoring host = random_scoring(shape, {640, 640, 640, 640}, {}, 12);
  auto lens = cuda::Buffer::allocate(Gpu::get().context(), 16);
  ASSERT_TRUE(lens);
  DeviceScoring device(host);
  ScoringArgs args = device.args();
  args.context_lens = lens->get();
  args.outside = OutsideRange::kNegativeInfinity;
  const auto call = Gpu::get().scoring().prepare(args);
  ASSERT_TRUE(call) << call.error().message;
  const auto graph = cuda::Graph::capture(Gpu::get().stream(), [&] {
    return Gpu::get().scoring().launch(*call, Gpu::get().stream().get());
  });
  ASSERT_TRUE(graph) << graph.error().message;
  for (const std::vector<int32_t>& now :
       {std::vector<int32_t>{1, 2, 640, 65}, {0, 0, 0, 0}, {640, 640, 640, 640}, {64, 63, 66, 1}}) {
    host.context_lens = now;
    ASSERT_TRUE(lens->upload(now.data(), 16));
    device.poison();
    ASSERT_TRUE(graph->launch(Gpu::get().stream()));
    EXPECT_EQ(check_logits(host, device.download(), device.stride(), args.outside, 3), "");
  }
}

TEST_F(ScoringGpu, RunsAgainAndAgainTheSame) {
  for (const KeyKind keys : {kFp8, kMxFp4}) {
    const HostScoring host = ragged({.keys = keys, .num_rows = 512, .num_keys = 4096}, 13);
    DeviceScoring device(host);
    const auto first = device.run(device.args());
    EXPECT_EQ(check_logits(host, first, device.stride(), OutsideRange::kUntouched, 509), "");
    for (int i = 0; i < 30; ++i) {
      const auto again = device.run(device.args());
      ASSERT_EQ(std::memcmp(again.data(), first.data(), first.size() * 4), 0) << "run " << i;
    }
    // Paged, launches that overlap their neighbours.
    const ScoringShape shape = {.keys = keys,
                                .paged = true,
                                .num_rows = 64,
                                .num_keys = 4096,
                                .num_sequences = 32,
                                .next_n = 2};
    std::vector<int32_t> lens;
    for (int i = 0; i < 32; ++i) lens.push_back(4096 - 119 * i);
    const HostScoring paged = random_scoring(shape, lens, {}, 14);
    DeviceScoring on_device(paged);
    const auto shared = on_device.run(on_device.args());
    EXPECT_EQ(check_logits(paged, shared, on_device.stride(), OutsideRange::kUntouched, 997), "");
    const auto call = Gpu::get().scoring().prepare(on_device.args());
    ASSERT_TRUE(call) << call.error().message;
    for (int i = 0; i < 10; ++i) {
      on_device.poison();
      for (int j = 0; j < 10; ++j) {
        ASSERT_TRUE(Gpu::get().scoring().launch(*call, Gpu::get().stream().get()));
      }
      const auto again = on_device.download();
      ASSERT_EQ(std::memcmp(again.data(), shared.data(), shared.size() * 4), 0) << "run " << i;
    }
  }
}

}  // namespace
}  // namespace volley::gemm
