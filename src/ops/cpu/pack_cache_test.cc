#include "ops/cpu/pack_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>

#include "base/file.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ops_test_util.h"

namespace volley {
namespace {

namespace fs = std::filesystem;
using namespace ops_test;
using cpu::PackCache;
using cpu::PackHeader;

class PackCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!isa_available(Isa::kAuto)) GTEST_SKIP() << "not run: no CPU unit can run here";
    dir_ = fs::path(testing::TempDir()) / fmt::format("pack_cache_{}", ::getpid());
    fs::remove_all(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  PackCache cache(int64_t max_bytes = int64_t{1} << 30) {
    return *PackCache::open({.dir = dir_, .max_bytes = max_bytes, .least_bytes = 1});
  }
  // A product with the packed matrix.
  Floats product(PackCache* cache, const HostMatrix& matrix,
                 WeightFormat format = WeightFormat::kInt4, Isa isa = Isa::kAuto) {
    auto ops =
        *make_cpu_ops({.num_threads = 2, .isa = isa, .weight_format = format, .pack_cache = cache});
    const auto packed = *ops->pack_matrix({&matrix, 1});
    Floats a = random_floats(3 * matrix.cols(), 7);
    Floats out(static_cast<size_t>(3 * matrix.rows()));
    ops->matmul(view(a, 3, matrix.cols()), *packed, nullptr, view(out, 3, matrix.rows()));
    return out;
  }
  std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(dir_)) found.push_back(entry.path());
    return found;
  }
  static std::string contents(const fs::path& path) { return *read_file(path); }
  static void put(const fs::path& path, std::string_view bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  }

  fs::path dir_;
  Weights weights_{70, 300, DType::kBF16, 1};
};

PackHeader a_header() {
  return {.key = {{1, 2}},
          .format = WeightFormat::kInt8,
          .layout = cpu::Bf16Layout::kPairs,
          .num_panels = 3,
          .panel_bytes = 500,
          .panels = {4, 5}};
}
Result<PackHeader> parse(std::string_view text, size_t file_bytes) {
  return cpu::parse_pack_header(std::as_bytes(std::span(text.data(), text.size())), file_bytes);
}

TEST(PackHeaderTest, GoesThereAndBack) {
  const auto parsed = parse(cpu::pack_header_text(a_header()), PackHeader::kPanelsOffset + 3 * 500);
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_TRUE(*parsed == a_header());
}

TEST(PackHeaderTest, EveryBitIsGuarded) {
  std::string text = cpu::pack_header_text(a_header());
  ASSERT_EQ(text.size(), PackHeader::kBytes);
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(parse(text, PackHeader::kPanelsOffset + 3 * 500)) << "bit " << bit;
    text[bit / 8] = static_cast<char>(text[bit / 8] ^ (1 << bit % 8));
  }
}

// Fields that no writer makes, with a checksum that fits.
TEST(PackHeaderTest, SizesMustBeThoseOfTheFile) {
  const size_t file_bytes = PackHeader::kPanelsOffset + 3 * 500;
  const auto rejects = [&](auto change) {
    PackHeader header = a_header();
    change(header);
    return !parse(cpu::pack_header_text(header), file_bytes);
  };
  EXPECT_TRUE(rejects([](PackHeader& h) { h.num_panels = 4; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.num_panels = -1; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.panel_bytes = 0; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.panel_bytes = -500; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.panel_bytes = 499; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.num_panels = int64_t{1} << 62, h.panel_bytes = 4; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.format = WeightFormat::kAuto; }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.format = static_cast<WeightFormat>(9); }));
  EXPECT_TRUE(rejects([](PackHeader& h) { h.layout = static_cast<cpu::Bf16Layout>(2); }));
  for (size_t size : {size_t{0}, size_t{127}, PackHeader::kPanelsOffset - 1, file_bytes - 1,
                      file_bytes + 1, file_bytes + 500})
    EXPECT_FALSE(parse(cpu::pack_header_text(a_header()), size)) << size;
  EXPECT_FALSE(parse("", 0));
}

TEST_F(PackCacheTest, TheSecondTimeComesFromDiskWithTheSameBits) {
  for (const WeightFormat format : {WeightFormat::kFp8, WeightFormat::kInt8, WeightFormat::kInt4}) {
    const Floats plain = product(nullptr, weights_.matrix, format);
    PackCache first = cache();
    EXPECT_EQ(product(&first, weights_.matrix, format), plain);
    EXPECT_EQ(first.counts().misses, 1);
    EXPECT_EQ(first.counts().stored, 1) << first.counts().store_error;
    PackCache second = cache();
    EXPECT_EQ(product(&second, weights_.matrix, format), plain);
    EXPECT_EQ(second.counts().hits, 1);
    EXPECT_EQ(second.counts().misses, 0);
  }
  EXPECT_EQ(files().size(), 3u);
}

TEST_F(PackCacheTest, WhatNeedsNoQuantiserIsPackedEveryTime) {
  PackCache unused = cache();
  product(&unused, weights_.matrix, WeightFormat::kBf16);
  const Weights stored(70, 300, DType::kF8E4M3, 3);
  product(&unused, stored.matrix, WeightFormat::kFp8);
  EXPECT_EQ(unused.counts().misses, 0);
  EXPECT_TRUE(files().empty());
}

// What decides the packed form decides the name.
TEST_F(PackCacheTest, AnotherSourceFormatOrLayoutIsAMiss) {
  PackCache all = cache();
  product(&all, weights_.matrix);
  product(&all, weights_.matrix, WeightFormat::kInt8);
  if (isa_available(Isa::kAmxBf16)) {
    product(&all, weights_.matrix, WeightFormat::kFp8, Isa::kAmxBf16);
    product(&all, weights_.matrix, WeightFormat::kFp8, Isa::kAvx2);
  }
  Weights changed(70, 300, DType::kBF16, 1);
  changed.bytes[12345] ^= std::byte{1};
  const Floats plain = product(nullptr, changed.matrix);
  EXPECT_EQ(product(&all, changed.matrix), plain);
  // The same bytes as a matrix of another shape, and as gate and up.
  HostMatrix turned = weights_.matrix;
  turned.weight.shape = {300, 70};
  product(&all, turned);
  auto ops =
      *make_cpu_ops({.num_threads = 1, .weight_format = WeightFormat::kInt4, .pack_cache = &all});
  ASSERT_TRUE(ops->pack_gate_up(weights_.matrix, weights_.matrix));
  const HostMatrix both[] = {weights_.matrix, weights_.matrix};
  ASSERT_TRUE(ops->pack_matrix(both));
  EXPECT_EQ(all.counts().hits, 0);
  EXPECT_EQ(static_cast<size_t>(all.counts().misses), files().size());
  EXPECT_EQ(all.counts().corrupt, 0);
}

TEST_F(PackCacheTest, WhatIsCorruptIsPackedAgainAndReplaced) {
  const Floats plain = product(nullptr, weights_.matrix);
  PackCache writer = cache();
  product(&writer, weights_.matrix);
  const fs::path path = files().at(0);
  const std::string good = contents(path);
  std::vector<std::string> bad = {"",
                                  good.substr(0, 1),
                                  good.substr(0, PackHeader::kBytes),
                                  good.substr(0, PackHeader::kPanelsOffset),
                                  good.substr(0, good.size() - 1),
                                  good + "x",
                                  std::string(good.size(), '\0')};
  // Each field of the header, the panels at both ends and between.
  for (size_t at = 0; at < PackHeader::kBytes; at += 8) {
    bad.push_back(good);
    bad.back()[at] = static_cast<char>(bad.back()[at] ^ 1);
  }
  for (size_t at = PackHeader::kPanelsOffset; at < good.size(); at += 1013) {
    bad.push_back(good);
    bad.back()[at] = static_cast<char>(bad.back()[at] ^ 0x40);
  }
  bad.push_back(good);
  bad.back().back() = static_cast<char>(bad.back().back() ^ 1);
  // A sound file under another's name.
  Weights other(70, 300, DType::kBF16, 2);
  product(&writer, other.matrix);
  for (const fs::path& file : files()) {
    if (file != path) bad.push_back(contents(file));
  }
  for (size_t i = 0; i < bad.size(); ++i) {
    put(path, bad[i]);
    PackCache reader = cache();
    EXPECT_EQ(product(&reader, weights_.matrix), plain) << "case " << i;
    EXPECT_EQ(reader.counts().corrupt, 1) << "case " << i;
    EXPECT_EQ(reader.counts().stored, 1) << reader.counts().store_error;
    EXPECT_EQ(contents(path), good) << "case " << i;
  }
}

TEST_F(PackCacheTest, TheLongestUnusedGoWhenRoomIsShort) {
  PackCache writer = cache();
  product(&writer, weights_.matrix);
  const fs::path first = files().at(0);
  const auto size = static_cast<int64_t>(fs::file_size(first));
  put(first.string() + ".left1", "of a writer that was killed");
  for (const fs::path& file : files())
    fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::hours(1));
  PackCache small = cache(size + size / 2);
  Weights other(70, 300, DType::kBF16, 2);
  product(&small, other.matrix);
  EXPECT_EQ(small.counts().stored, 1);
  EXPECT_EQ(files().size(), 1u);
  EXPECT_FALSE(fs::exists(first));
  // What this model stored itself stays: the rest is packed every time.
  product(&small, weights_.matrix);
  EXPECT_EQ(small.counts().stored, 1);
  EXPECT_THAT(small.counts().store_error, testing::HasSubstr("more than the"));
  EXPECT_EQ(files().size(), 1u);
}

TEST_F(PackCacheTest, AFolderThatCannotBeWrittenFailsNoLoad) {
  PackCache gone = cache();
  fs::remove_all(dir_);
  EXPECT_EQ(product(&gone, weights_.matrix), product(nullptr, weights_.matrix));
  EXPECT_EQ(gone.counts().stored, 0);
  EXPECT_FALSE(gone.counts().store_error.empty());
  put(dir_, "a file");
  EXPECT_FALSE(PackCache::open({.dir = dir_ / "below"}));
}

TEST_F(PackCacheTest, SaysWhatWasPacked) {
  int64_t bytes = 0;
  auto ops = *make_cpu_ops({.num_threads = 1, .on_packed = [&](int64_t b) { bytes += b; }});
  ASSERT_TRUE(ops->pack_matrix({&weights_.matrix, 1}));
  ASSERT_TRUE(ops->pack_gate_up(weights_.matrix, weights_.matrix));
  EXPECT_EQ(bytes, 3 * 70 * 300 * 2);
}

}  // namespace
}  // namespace volley
