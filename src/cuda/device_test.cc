#include "cuda/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "cuda/fake_driver.h"
#include "cuda/tensor_map.h"

namespace volley::cuda {
namespace {

using testing::HasSubstr;

// VOLLEY_FAKE_DRIVER: path of the stand-in for libcuda.so.1.
class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    auto driver = Driver::load(VOLLEY_FAKE_DRIVER);
    ASSERT_TRUE(driver) << driver.error().message;
    driver_ = std::move(*driver);
    log_ = open_fake_driver_log(VOLLEY_FAKE_DRIVER);
    alive_before_ = log_->num_alive;
  }
  void TearDown() override {
    EXPECT_EQ(log_->num_alive, alive_before_) << "a handle was not given back";
  }

  std::unique_ptr<Driver> driver_;
  FakeDriverLog* log_ = nullptr;
  int64_t alive_before_ = 0;
};

TEST(Driver, AMissingLibraryIsAnErrorThatNamesIt) {
  const auto driver = Driver::load("libno-such-cuda.so.1");
  ASSERT_FALSE(driver);
  EXPECT_EQ(driver.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(driver.error().message, HasSubstr("libno-such-cuda.so.1"));
}

TEST(Driver, ALibraryWithoutTheCallsIsAnErrorThatNamesOne) {
  const auto driver = Driver::load("libc.so.6");
  ASSERT_FALSE(driver);
  EXPECT_THAT(driver.error().message, HasSubstr("libc.so.6 has no cu"));
}

TEST_F(DeviceTest, ADeviceTellsWhatItIs) {
  const auto context = Context::open(*driver_);
  ASSERT_TRUE(context);
  EXPECT_EQ(context->info().name, "Fake Hopper");
  EXPECT_EQ(context->info().compute_major, 9);
  EXPECT_EQ(context->info().num_sms, 132);
  EXPECT_EQ(context->info().max_smem_bytes, 232448);
  EXPECT_EQ(driver_->version(), 13000);
  EXPECT_TRUE(context->synchronize());
}

TEST_F(DeviceTest, NoSuchDeviceSaysHowManyThereAre) {
  const auto context = Context::open(*driver_, 7);
  ASSERT_FALSE(context);
  EXPECT_EQ(context.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(context.error().message, HasSubstr("device 7: 1 found"));
}

TEST_F(DeviceTest, BuffersCopyInBothDirectionsAndRefuseWhatDoesNotFit) {
  const auto context = Context::open(*driver_);
  ASSERT_TRUE(context);
  const auto stream = Stream::create(*context);
  ASSERT_TRUE(stream);
  const auto buffer = Buffer::allocate(*context, 64);
  ASSERT_TRUE(buffer);
  ASSERT_TRUE(buffer->fill(7, *stream));
  const std::vector<unsigned char> some = {1, 2, 3, 4};
  ASSERT_TRUE(buffer->upload(some.data(), some.size(), 60));
  std::vector<unsigned char> all(64);
  ASSERT_TRUE(buffer->download(all.data(), all.size()));
  EXPECT_EQ(all[59], 7);
  EXPECT_EQ(all[60], 1);
  EXPECT_EQ(all[63], 4);
  EXPECT_FALSE(buffer->upload(some.data(), 4, 61));
  EXPECT_FALSE(buffer->download(all.data(), 65));
  EXPECT_FALSE(buffer->upload(some.data(), 1, SIZE_MAX));
}

TEST_F(DeviceTest, OutOfMemoryIsExhaustionAndNamesTheSize) {
  const auto context = Context::open(*driver_);
  ASSERT_TRUE(context);
  const auto buffer = Buffer::allocate(*context, size_t{1} << 40);
  ASSERT_FALSE(buffer);
  EXPECT_EQ(buffer.error().kind, ErrorKind::kExhausted);
  EXPECT_THAT(buffer.error().message, HasSubstr("1099511627776"));
  EXPECT_THAT(buffer.error().message, HasSubstr("CUDA_ERROR_OUT_OF_MEMORY"));
}

TEST_F(DeviceTest, HandlesMoveAndAreFreedOnce) {
  const auto context = Context::open(*driver_);
  ASSERT_TRUE(context);
  auto first = Buffer::allocate(*context, 16);
  auto second = Buffer::allocate(*context, 16);
  ASSERT_TRUE(first && second);
  const DevicePtr address = first->get();
  *second = std::move(*first);
  EXPECT_EQ(second->get(), address);
  EXPECT_EQ(second->bytes(), 16U);
  const Buffer third = std::move(*second);
  EXPECT_TRUE(second->empty());
  EXPECT_EQ(third.get(), address);
}

TEST_F(DeviceTest, EventsGraphsModulesAndLaunches) {
  const auto context = Context::open(*driver_);
  const auto stream = Stream::create(*context);
  const auto start = Event::create(*context);
  const auto end = Event::create(*context);
  ASSERT_TRUE(start->record(*stream));
  const auto module = Module::load(*context, std::string("\x7f"
                                                         "ELF rest"));
  ASSERT_TRUE(module);
  EXPECT_FALSE(Module::load(*context, "no elf file"));
  const auto kernel = module->kernel("some_kernel", 100 << 10);
  ASSERT_TRUE(kernel);
  EXPECT_FALSE(module->kernel("no_such_kernel", 0));
  EXPECT_FALSE(module->kernel("some_kernel", 300 << 10));
  int argument = 5;
  void* params[] = {&argument};
  const int64_t launches = log_->num_launches;
  const auto graph = Graph::capture(*stream, [&] {
    return launch(*driver_, kernel->function,
                  {.num_ctas = 132, .num_threads = 384, .cluster_size = 2, .smem_bytes = 1024},
                  params, stream->get());
  });
  ASSERT_TRUE(graph);
  EXPECT_EQ(log_->num_launches, launches + 1);
  EXPECT_EQ(log_->last_launch.grid_x, 132U);
  EXPECT_EQ(log_->last_launch.cta_x, 384U);
  EXPECT_EQ(log_->last_cluster, 2U);
  ASSERT_TRUE(graph->launch(*stream));
  ASSERT_TRUE(end->record(*stream));
  ASSERT_TRUE(end->synchronize());
  EXPECT_EQ(*end->ms_since(*start), 1.0F);
  const auto failed = Graph::capture(*stream, [&]() -> Status { return invalid("no"); });
  EXPECT_FALSE(failed);
}

TensorMapSpec good_spec() {
  return {.address = 4096,
          .dtype = MapDType::kU8,
          .dims = {7168, 64, 1},
          .strides = {7168, 7168 * 64},
          .box = {128, 64, 1},
          .swizzle = MapSwizzle::k128B};
}

TEST_F(DeviceTest, TensorMapsAreEncodedAsAsked) {
  const auto map = encode(*driver_, good_spec());
  ASSERT_TRUE(map);
  EXPECT_EQ(map->opaque[0], 4096U);
  EXPECT_EQ(map->opaque[2], 7168U);
  EXPECT_EQ(map->opaque[5], 7168U);
  EXPECT_EQ(map->opaque[7], 128U);
  EXPECT_EQ(map->opaque[10], 3U);
}

TEST(TensorMap, WhatTheDriverWouldRefuseIsNamed) {
  EXPECT_TRUE(validate(good_spec()));
  const auto objection = [](auto change) {
    TensorMapSpec spec = good_spec();
    change(spec);
    const Status status = validate(spec);
    return status ? std::string() : status.error().message;
  };
  EXPECT_THAT(objection([](auto& s) { s.address = 4100; }), HasSubstr("aligned to 16"));
  EXPECT_THAT(objection([](auto& s) { s.address = 0; }), HasSubstr("aligned to 16"));
  EXPECT_THAT(objection([](auto& s) { s.dims[1] = 0; }), HasSubstr("dimension 1 is 0"));
  EXPECT_THAT(objection([](auto& s) { s.box[1] = 257; }), HasSubstr("box 1 is 257"));
  EXPECT_THAT(objection([](auto& s) { s.strides[0] = 7160; }), HasSubstr("stride 0 is 7160"));
  EXPECT_THAT(objection([](auto& s) { s.box[0] = 8; }), HasSubstr("row of 8 bytes"));
  EXPECT_THAT(objection([](auto& s) { s.box[0] = 256; }), HasSubstr("at most 128"));
  EXPECT_THAT(objection([](auto& s) { s.dtype = MapDType::kF32; }), HasSubstr("row of 512 bytes"));
}

// The machine's own driver and GPU, where it has them.
TEST(Device, TheMachinesOwnGpu) {
  const auto driver = Driver::load();
  if (!driver) GTEST_SKIP() << "not run: " << driver.error().message;
  const auto context = Context::open(**driver);
  if (!context) GTEST_SKIP() << "not run: " << context.error().message;
  EXPECT_FALSE(context->info().name.empty());
  const auto buffer = Buffer::allocate(*context, 1 << 20);
  ASSERT_TRUE(buffer);
  std::vector<int> sent(1 << 18), got(1 << 18);
  std::iota(sent.begin(), sent.end(), 1);
  ASSERT_TRUE(buffer->upload(sent.data(), buffer->bytes()));
  ASSERT_TRUE(buffer->download(got.data(), buffer->bytes()));
  EXPECT_EQ(sent, got);
}

}  // namespace
}  // namespace volley::cuda
