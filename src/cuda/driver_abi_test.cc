// Our declarations of the driver's interface against the toolkit's own. Built where cuda.h is
// found.

#include <cuda.h>
#include <gtest/gtest.h>

#include "cuda/driver.h"

namespace volley::cuda {
namespace {

TEST(DriverAbi, StructsAndConstantsAreTheToolkits) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  static_assert(alignof(TensorMap) >= alignof(CUtensorMap));
  static_assert(sizeof(DevicePtr) == sizeof(CUdeviceptr));
  static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute));
  static_assert(offsetof(LaunchAttribute, cluster_dim) == offsetof(CUlaunchAttribute, value));
  static_assert(sizeof(LaunchConfig) == sizeof(CUlaunchConfig));
  static_assert(offsetof(LaunchConfig, cta_x) == offsetof(CUlaunchConfig, blockDimX));
  static_assert(offsetof(LaunchConfig, smem_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
  static_assert(offsetof(LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
  static_assert(offsetof(LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
  static_assert(offsetof(LaunchConfig, num_attributes) == offsetof(CUlaunchConfig, numAttrs));
  EXPECT_EQ(kCudaSuccess, CUDA_SUCCESS);
  EXPECT_EQ(kDeviceAttributeNumSms, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  EXPECT_EQ(kDeviceAttributeL2Bytes, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  EXPECT_EQ(kDeviceAttributeComputeMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  EXPECT_EQ(kDeviceAttributeComputeMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  EXPECT_EQ(kDeviceAttributeMaxSmemOptin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
  EXPECT_EQ(kFunctionAttributeLocalBytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES);
  EXPECT_EQ(kFunctionAttributeNumRegs, CU_FUNC_ATTRIBUTE_NUM_REGS);
  EXPECT_EQ(kFunctionAttributeMaxDynamicSmem, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
  EXPECT_EQ(kLaunchAttributeCluster, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
  EXPECT_EQ(kStreamNonBlocking, CU_STREAM_NON_BLOCKING);
  EXPECT_EQ(kEventDisableTiming, CU_EVENT_DISABLE_TIMING);
  EXPECT_EQ(kStreamCaptureThreadLocal, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
}

TEST(DriverAbi, TensorMapCodesAreTheToolkits) {
  // The values tensor_map.cc passes.
  EXPECT_EQ(CU_TENSOR_MAP_DATA_TYPE_UINT8, 0);
  EXPECT_EQ(CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 7);
  EXPECT_EQ(CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 9);
  EXPECT_EQ(CU_TENSOR_MAP_INTERLEAVE_NONE, 0);
  EXPECT_EQ(CU_TENSOR_MAP_SWIZZLE_NONE, 0);
  EXPECT_EQ(CU_TENSOR_MAP_SWIZZLE_128B, 3);
  EXPECT_EQ(CU_TENSOR_MAP_L2_PROMOTION_L2_256B, 3);
  EXPECT_EQ(CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE, 0);
}

}  // namespace
}  // namespace volley::cuda
