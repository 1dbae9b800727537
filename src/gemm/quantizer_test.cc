// The device's quantisers against those of the host, to the bit. Compiled twice: with a stand-in
// driver whose launches run on the emulated machine, and for a Hopper GPU.

#include "gemm/quantizer.h"
#include "gemm/test_gpu.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "gemm/fp4.h"
#include "gemm/quantize.h"
#include "tensor/float_formats.h"
#ifdef VOLLEY_FAKE_DRIVER
#include "gemm/emulated/quantize_kernels.h"
#include "gemm/fake_gpu.h"
#endif

namespace volley::gemm {
namespace {

using testing::HasSubstr;

constexpr uint8_t kPoison = 0xA5;

#ifdef VOLLEY_FAKE_DRIVER
constexpr const char* kDriver = VOLLEY_FAKE_DRIVER;
constexpr bool kEmulated = true;

Result<std::unique_ptr<jit::Compiler>> open_compiler() {
  return std::make_unique<NoCompiler>();
}

cuda::FakeDriverLog* fake_log() {
  return cuda::open_fake_driver_log(VOLLEY_FAKE_DRIVER);
}

void run_emulated(const cuda::LaunchConfig& config, void** params) {
  const Status status =
      emulated::run_quantizer(fake_log()->last_kernel, config.grid_x, params[0], 7);
  EXPECT_TRUE(status) << status.error().message;
}
#else
constexpr const char* kDriver = "";
constexpr bool kEmulated = false;

Result<std::unique_ptr<jit::Compiler>> open_compiler() {
  return jit::load_nvrtc();
}
#endif

class Device {
 public:
  static Device& get() {
    static Device device;
    return device;
  }
  const std::string& why_not() const { return why_not_; }
  const cuda::Context& context() const { return *gpu_.context; }
  cuda::CuStream stream() const { return gpu_.stream->get(); }
  const Quantizer& quantizer() const { return *quantizer_; }

 private:
  Device() {
    if (const Status status = open(); !status) why_not_ = status.error().message;
  }
  Status open() {
    VOLLEY_TRY_STATUS(
        gpu_.open(kEmulated ? cuda::Driver::load(kDriver) : cuda::Driver::load(), open_compiler()));
    VOLLEY_TRY(quantizer_, Quantizer::create(*gpu_.context, *gpu_.kernels));
#ifdef VOLLEY_FAKE_DRIVER
    fake_log()->on_launch = run_emulated;
#endif
    return {};
  }

  TestGpu gpu_;
  std::unique_ptr<Quantizer> quantizer_;
  std::string why_not_;
};

class QuantizerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Device::get().why_not().empty()) GTEST_SKIP() << "not run: " << Device::get().why_not();
  }
};

// Device memory of `count` values, poisoned, with a few bytes behind them.
class Output {
 public:
  explicit Output(size_t bytes) : bytes_(bytes) {
    auto buffer = cuda::Buffer::allocate(Device::get().context(), bytes + kGuard);
    EXPECT_TRUE(buffer) << buffer.error().message;
    buffer_ = std::move(*buffer);
    const std::vector<uint8_t> poison(bytes + kGuard, kPoison);
    EXPECT_TRUE(buffer_.upload(poison.data(), poison.size()));
    EXPECT_TRUE(Device::get().context().synchronize());
  }
  cuda::DevicePtr get() const { return buffer_.get(); }

  template <class T>
  std::vector<T> download() const {
    EXPECT_TRUE(Device::get().context().synchronize());
    std::vector<uint8_t> all(bytes_ + kGuard);
    EXPECT_TRUE(buffer_.download(all.data(), all.size()));
    for (size_t i = bytes_; i < all.size(); ++i) EXPECT_EQ(all[i], kPoison) << "written behind";
    std::vector<T> values(bytes_ / sizeof(T));
    std::memcpy(values.data(), all.data(), bytes_);
    return values;
  }

 private:
  static constexpr size_t kGuard = 64;
  cuda::Buffer buffer_;
  size_t bytes_;
};

// A random matrix with everything that quantisers meet: zeros, subnormals, huge values, a NaN, an
// infinity.
struct Input {
  Input(int num_slabs, int rows, int cols, int stride)
      : matrix{.num_slabs = num_slabs, .rows = rows, .cols = cols, .stride = stride} {
    std::mt19937 random(static_cast<unsigned>(rows * 7 + cols));
    std::normal_distribution<float> normal;
    const int width = stride == 0 ? cols : stride;
    std::vector<uint16_t> bits(static_cast<size_t>(num_slabs * rows * width), 0x7FC1);
    for (int row = 0; row < num_slabs * rows; ++row) {
      for (int col = 0; col < cols; ++col) {
        const int group = row * 31 + col / 16;
        float value = normal(random) * (row % 5 == 1 ? 40.0F : 1.0F);
        if (group % 11 == 3) value = 0;
        if (group % 11 == 4) value *= 1e-39F;
        if (group % 11 == 5) value *= 7e-6F;
        if (group % 37 == 6) value *= 8e37F;
        if (group % 101 == 7 && col % 16 == 2) value = -std::numeric_limits<float>::infinity();
        if (group % 101 == 9 && col % 16 == 3) value = std::numeric_limits<float>::quiet_NaN();
        if (group % 101 == 9 && col % 16 == 5) value = -std::numeric_limits<float>::quiet_NaN();
        if (col % 29 == 3) value = -0.0F;
        const uint16_t half = float_to_bf16(value);
        bits[static_cast<size_t>(row * width + col)] = half;
        floats.push_back(bf16_to_float(half));
      }
    }
    auto memory = cuda::Buffer::allocate(Device::get().context(), bits.size() * 2);
    EXPECT_TRUE(memory) << memory.error().message;
    buffer = std::move(*memory);
    EXPECT_TRUE(buffer.upload(bits.data(), bits.size() * 2));
    EXPECT_TRUE(Device::get().context().synchronize());
    matrix.data = buffer.get();
  }
  std::span<const float> slab(int index) const {
    const auto size = static_cast<size_t>(matrix.rows) * static_cast<size_t>(matrix.cols);
    return std::span(floats).subspan(static_cast<size_t>(index) * size, size);
  }

  Bf16Matrix matrix;
  cuda::Buffer buffer;
  std::vector<float> floats;  // [num_slabs, rows, cols]
};

struct Size {
  int num_slabs, rows, cols, stride;
};
std::vector<Size> sizes() {
  std::vector<Size> some = {{1, 1, 128, 0},   {1, 5, 256, 0},    {2, 37, 640, 648},
                            {1, 130, 384, 0}, {3, 16, 128, 136}, {1, 257, 1152, 0}};
  if (!kEmulated) some.push_back({2, 1000, 4096, 0});
  return some;
}

std::string name_of(const Size& s) {
  return fmt::format("[{}, {}, {}] rows {} apart", s.num_slabs, s.rows, s.cols, s.stride);
}

// m-major scales of one slab against the host's; the padding is as it was.
void expect_scales(std::span<const float> got, int64_t stride, const QuantizedRows& want,
                   int64_t rows, const std::string& what) {
  float poison = 0;
  std::memset(&poison, kPoison, sizeof(poison));
  const auto blocks = static_cast<int64_t>(want.scales.size()) / want.scale_stride;
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t r = 0; r < stride; ++r) {
      const float expected =
          r < rows ? want.scales[static_cast<size_t>(b * want.scale_stride + r)] : poison;
      ASSERT_EQ(got[static_cast<size_t>(b * stride + r)], expected)
          << what << ": scale of row " << r << ", group " << b;
    }
  }
}

// The first byte that differs.
void expect_bytes(std::span<const uint8_t> got, std::span<const uint8_t> want,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  const auto at = std::mismatch(got.begin(), got.end(), want.begin());
  if (at.first == got.end()) return;
  ADD_FAILURE() << what << ": value " << at.first - got.begin() << " is "
                << static_cast<int>(*at.first) << ", the host's " << static_cast<int>(*at.second);
}

TEST_F(QuantizerTest, RowsAreTheHostsToTheBit) {
  for (const Size& s : sizes()) {
    for (const ScaleKind kind : {ScaleKind::kAny, ScaleKind::kPowerOfTwo}) {
      SCOPED_TRACE(name_of(s));
      const Input x(s.num_slabs, s.rows, s.cols, s.stride);
      const int64_t stride = round_up(s.rows, 4) + 8, blocks = s.cols / 128;
      const Output values(x.floats.size()),
          scales(static_cast<size_t>(s.num_slabs * blocks * stride * 4));
      const Status status = Device::get().quantizer().quantize_rows(
          x.matrix, kind, values.get(), scales.get(), stride, Device::get().stream());
      ASSERT_TRUE(status) << status.error().message;
      const auto got_values = values.download<uint8_t>();
      const auto got_scales = scales.download<float>();
      for (int slab = 0; slab < s.num_slabs; ++slab) {
        const auto want =
            quantize_rows(x.slab(slab), s.rows, s.cols, kind == ScaleKind::kPowerOfTwo);
        ASSERT_TRUE(want);
        const size_t size = want->values.size();
        expect_bytes(std::span(got_values).subspan(static_cast<size_t>(slab) * size, size),
                     want->values, "rows");
        expect_scales(std::span(got_scales).subspan(static_cast<size_t>(slab * blocks * stride)),
                      stride, *want, s.rows, "rows");
      }
    }
  }
}

TEST_F(QuantizerTest, ColumnsAreTheHostsToTheBit) {
  std::vector<Size> some = {{1, 1, 8, 0}, {1, 128, 64, 0}, {2, 130, 72, 80}, {1, 300, 136, 0}};
  if (!kEmulated) some.push_back({2, 1000, 2112, 0});
  for (const Size& s : some) {
    SCOPED_TRACE(name_of(s));
    const Input x(s.num_slabs, s.rows, s.cols, s.stride);
    const int64_t stride = round_up(s.cols, 4) + 4, k = round_up(s.rows, 128);
    const auto slab_bytes = static_cast<size_t>(k * s.cols);
    const Output values(static_cast<size_t>(s.num_slabs) * slab_bytes),
        scales(static_cast<size_t>(s.num_slabs * k / 128 * stride * 4));
    const Status status = Device::get().quantizer().quantize_columns(
        x.matrix, ScaleKind::kAny, values.get(), scales.get(), stride, Device::get().stream());
    ASSERT_TRUE(status) << status.error().message;
    const auto got_values = values.download<uint8_t>();
    const auto got_scales = scales.download<float>();
    for (int slab = 0; slab < s.num_slabs; ++slab) {
      const auto want = quantize_columns(x.slab(slab), s.rows, s.cols);
      ASSERT_TRUE(want);
      expect_bytes(
          std::span(got_values).subspan(static_cast<size_t>(slab) * slab_bytes, slab_bytes),
          want->values, "columns");
      expect_scales(std::span(got_scales).subspan(static_cast<size_t>(slab * k / 128 * stride)),
                    stride, *want, s.cols, "columns");
    }
  }
}

TEST_F(QuantizerTest, BlocksAreTheHostsToTheBit) {
  for (const Size& s : sizes()) {
    for (const ScaleKind kind : {ScaleKind::kAny, ScaleKind::kPowerOfTwo}) {
      SCOPED_TRACE(name_of(s));
      const Input x(s.num_slabs, s.rows, s.cols, s.stride);
      const auto want =
          quantize_weight(x.floats, s.num_slabs, s.rows, s.cols, kind == ScaleKind::kPowerOfTwo);
      ASSERT_TRUE(want);
      const Output values(want->values.size()), scales(want->scales.size() * 4);
      const Status status = Device::get().quantizer().quantize_blocks(
          x.matrix, kind, values.get(), scales.get(), Device::get().stream());
      ASSERT_TRUE(status) << status.error().message;
      expect_bytes(values.download<uint8_t>(), want->values, "blocks");
      EXPECT_EQ(scales.download<float>(), want->scales);
    }
  }
}

TEST_F(QuantizerTest, Fp4IsTheHostsToTheBit) {
  for (const Size& s : sizes()) {
    for (const MmaKind format : {MmaKind::kMxFp4, MmaKind::kNvFp4}) {
      SCOPED_TRACE(name_of(s));
      const Input x(s.num_slabs, s.rows, s.cols, s.stride);
      const auto want = quantize_fp4(x.floats, format, s.num_slabs, s.rows, s.cols);
      ASSERT_TRUE(want);
      const bool nv = format == MmaKind::kNvFp4;
      const Output values(want->values.size()), scales(want->scales.size()),
          tensor_scales(static_cast<size_t>(s.num_slabs) * 4);
      const Status status =
          Device::get().quantizer().quantize_fp4(x.matrix, format, values.get(), scales.get(),
                                                 tensor_scales.get(), Device::get().stream());
      ASSERT_TRUE(status) << status.error().message;
      expect_bytes(values.download<uint8_t>(), want->values, nv ? "NV" : "MX");
      expect_bytes(scales.download<uint8_t>(), want->scales, nv ? "NV scales" : "MX scales");
      if (nv) {
        EXPECT_EQ(tensor_scales.download<float>(), want->tensor_scales);
      }
      // What the packer refuses must not come from here.
      EXPECT_TRUE(pack_fp4(want->view(format, s.num_slabs, s.rows, s.cols)));
    }
  }
}

// Weights whose rows' scales span what the tiles hold, and more.
TEST_F(QuantizerTest, PackedFp4IsTheHostsToTheBit) {
  std::vector<Size> some = {{1, 8, 128, 0}, {2, 72, 384, 0}, {1, 130, 256, 0}};
  if (!kEmulated) some.push_back({2, 1032, 2048, 0});
  for (const Size& s : some) {
    for (const MmaKind format : {MmaKind::kMxFp4, MmaKind::kNvFp4}) {
      for (const bool wide : {false, true}) {
        SCOPED_TRACE(fmt::format("{}{}{}", name_of(s), format == MmaKind::kNvFp4 ? ", NV" : ", MX",
                                 wide ? ", wide" : ""));
        const bool nv = format == MmaKind::kNvFp4;
        std::mt19937 random(11);
        const auto draw = [&](int from, int to) {
          return static_cast<uint8_t>(std::uniform_int_distribution<int>(from, to)(random));
        };
        const auto size = static_cast<size_t>(s.num_slabs) * static_cast<size_t>(s.rows) *
                          static_cast<size_t>(s.cols);
        Fp4Weight w;
        w.values.resize(size / 2);
        w.scales.resize(size / (nv ? 16 : 32));
        for (size_t i = 0; i < w.values.size(); ++i) {
          // Some groups of zeros, of either sign.
          w.values[i] = i / 16 % 7 == 3 ? draw(0, 1) * 0x88 : draw(0, 255);
        }
        for (uint8_t& scale : w.scales) {
          scale = nv ? draw(wide ? 0 : 40, wide ? 126 : 120) : draw(wide ? 80 : 120, 127);
        }
        if (nv) w.tensor_scales.assign(static_cast<size_t>(s.num_slabs), 0.037F);
        const auto want = gemm::pack_fp4(w.view(format, s.num_slabs, s.rows, s.cols));
        ASSERT_TRUE(want) << want.error().message;
        EXPECT_EQ(want->num_rounded > 0, wide);
        const auto upload = [](const auto& values) {
          const size_t bytes = values.size() * sizeof(values[0]);
          auto buffer = cuda::Buffer::allocate(Device::get().context(), bytes);
          EXPECT_TRUE(buffer && buffer->upload(values.data(), bytes));
          EXPECT_TRUE(Device::get().context().synchronize());
          return std::move(*buffer);
        };
        const cuda::Buffer values = upload(w.values), scales = upload(w.scales),
                           tensor_scales = upload(w.tensor_scales);
        const Output tiles(want->tiles.size()), row_scales(want->row_scales.size() * 4),
            num_rounded(8);
        const Status status = Device::get().quantizer().pack_fp4(
            format, s.num_slabs, s.rows, s.cols, values.get(), scales.get(), tensor_scales.get(),
            tiles.get(), row_scales.get(), num_rounded.get(), Device::get().stream());
        ASSERT_TRUE(status) << status.error().message;
        expect_bytes(tiles.download<uint8_t>(), want->tiles, "tiles");
        EXPECT_EQ(row_scales.download<float>(), want->row_scales);
        EXPECT_EQ(num_rounded.download<int64_t>()[0], want->num_rounded);
      }
    }
  }
}

TEST_F(QuantizerTest, ScalesMoveToTheMMajorLayout) {
  for (const auto& [num_slabs, rows, blocks] :
       {std::tuple{1, 1, 1}, {1, 33, 56}, {3, 70, 5}, {1, 64, 32}}) {
    SCOPED_TRACE(fmt::format("[{}, {}, {}]", num_slabs, rows, blocks));
    std::mt19937 random(5);
    std::vector<float> scales(static_cast<size_t>(num_slabs * rows * blocks));
    for (float& scale : scales) scale = std::uniform_real_distribution<float>(0, 1)(random);
    const Output in(scales.size() * 4);
    auto buffer = cuda::Buffer::allocate(Device::get().context(), scales.size() * 4);
    ASSERT_TRUE(buffer);
    ASSERT_TRUE(buffer->upload(scales.data(), scales.size() * 4));
    ASSERT_TRUE(Device::get().context().synchronize());
    const int64_t stride = round_up(rows, 4) + 4;
    const Output out(static_cast<size_t>(num_slabs * blocks * stride * 4));
    const Status status = Device::get().quantizer().scales_to_m_major(
        buffer->get(), num_slabs, rows, blocks, out.get(), stride, Device::get().stream());
    ASSERT_TRUE(status) << status.error().message;
    const auto got = out.download<float>();
    for (int slab = 0; slab < num_slabs; ++slab) {
      const auto size = static_cast<size_t>(rows * blocks);
      const auto want = scales_to_m_major(
          std::span(scales).subspan(static_cast<size_t>(slab) * size, size), rows, blocks, stride);
      ASSERT_TRUE(want);
      const QuantizedRows expected = {.scales = *want, .scale_stride = stride};
      expect_scales(std::span(got).subspan(static_cast<size_t>(slab * blocks * stride)), stride,
                    expected, rows, "scales");
    }
  }
}

TEST_F(QuantizerTest, WrongArgumentsAreNamed) {
  const Quantizer& q = Device::get().quantizer();
  const cuda::CuStream stream = Device::get().stream();
  const Bf16Matrix good = {.data = 0x1000, .rows = 4, .cols = 128};
  const auto rows = [&](const Bf16Matrix& x, cuda::DevicePtr scales, int64_t scale_stride) {
    const Status status = q.quantize_rows(x, ScaleKind::kAny, 0x2000, scales, scale_stride, stream);
    return status ? std::string() : status.error().message;
  };
  EXPECT_THAT(rows({.data = 0x1000, .rows = 4, .cols = 100}, 0x3000, 4),
              HasSubstr("multiple of 128"));
  EXPECT_THAT(rows({.data = 0x1000, .rows = 4, .cols = 128, .stride = 132}, 0x3000, 4),
              HasSubstr("stride is 132"));
  EXPECT_THAT(rows({.data = 0x1004, .rows = 4, .cols = 128}, 0x3000, 4), HasSubstr("x is 0x1004"));
  EXPECT_THAT(rows(good, 0, 4), HasSubstr("scales is 0x0"));
  EXPECT_THAT(rows(good, 0x3000, 3), HasSubstr("scale_stride is 3"));
  EXPECT_THAT(rows(good, 0x3000, 2), HasSubstr("from 4"));
  EXPECT_EQ(rows({.rows = 0, .cols = 128}, 0, 0), "") << "nothing to do";
  EXPECT_FALSE(q.quantize_fp4(good, MmaKind::kFp8, 0x2000, 0x3000, 0, stream));
  EXPECT_FALSE(q.quantize_fp4(good, MmaKind::kNvFp4, 0x2000, 0x3000, 0, stream));
  EXPECT_FALSE(q.scales_to_m_major(0x1000, 1, 4, 1, 0x2000, 2, stream));
  EXPECT_FALSE(
      q.pack_fp4(MmaKind::kMxFp4, 1, 8, 100, 0x1000, 0x2000, 0, 0x3000, 0x4000, 0, stream));
  EXPECT_FALSE(
      q.pack_fp4(MmaKind::kNvFp4, 1, 8, 128, 0x1000, 0x2000, 0, 0x3000, 0x4000, 0, stream));
}

}  // namespace
}  // namespace volley::gemm
