// A shared library that stands in for libcuda.so.1 in tests: it knows one device of Hopper's shape,
// keeps device memory in host memory, runs no kernel and counts what is alive. Kernels launched and
// maps encoded are logged for the test to read (fake_driver.h).

#include "cuda/fake_driver.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

#include "cuda/driver.h"

namespace {

volley::cuda::FakeDriverLog fake_log;

using namespace volley::cuda;  // NOLINT: the driver's own types

constexpr CuResult kInvalidValue = 1;
constexpr CuResult kOutOfMemory = 2;
constexpr CuResult kNotFound = 500;

template <class T>
T handle() {
  ++fake_log.num_alive;
  return reinterpret_cast<T>(std::malloc(1));
}
CuResult release(void* handle) {
  if (handle == nullptr) return kInvalidValue;
  --fake_log.num_alive;
  std::free(handle);
  return kCudaSuccess;
}

}  // namespace

extern "C" {

FakeDriverLog* volley_fake_driver_log() {
  return &fake_log;
}

CuResult cuInit(unsigned) {
  return kCudaSuccess;
}
CuResult cuDriverGetVersion(int* version) {
  *version = 13000;
  return kCudaSuccess;
}
CuResult cuGetErrorName(CuResult result, const char** text) {
  *text = result == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
  return kCudaSuccess;
}
CuResult cuGetErrorString(CuResult, const char** text) {
  *text = "the fake driver refuses";
  return kCudaSuccess;
}
CuResult cuDeviceGetCount(int* count) {
  *count = 1;
  return kCudaSuccess;
}
CuResult cuDeviceGet(CuDevice* device, int) {
  *device = 0;
  return kCudaSuccess;
}
CuResult cuDeviceGetName(char* name, int length, CuDevice) {
  std::strncpy(name, "Fake Hopper", static_cast<size_t>(length));
  return kCudaSuccess;
}
CuResult cuDeviceGetAttribute(int* value, int attribute, CuDevice) {
  switch (attribute) {
    case kDeviceAttributeNumSms:
      *value = 132;
      return kCudaSuccess;
    case kDeviceAttributeL2Bytes:
      *value = 50 << 20;
      return kCudaSuccess;
    case kDeviceAttributeComputeMajor:
      *value = 9;
      return kCudaSuccess;
    case kDeviceAttributeComputeMinor:
      *value = 0;
      return kCudaSuccess;
    case kDeviceAttributeMaxSmemOptin:
      *value = 232448;
      return kCudaSuccess;
    default:
      return kInvalidValue;
  }
}
CuResult cuDeviceTotalMem_v2(size_t* bytes, CuDevice) {
  *bytes = size_t{80} << 30;
  return kCudaSuccess;
}
CuResult cuDevicePrimaryCtxRetain(CuContext* context, CuDevice) {
  static int token = 0;
  ++fake_log.num_alive;
  *context = reinterpret_cast<CuContext>(&token);
  return kCudaSuccess;
}
CuResult cuDevicePrimaryCtxRelease_v2(CuDevice) {
  --fake_log.num_alive;
  return kCudaSuccess;
}
CuResult cuCtxSetCurrent(CuContext) {
  return kCudaSuccess;
}
CuResult cuCtxSynchronize() {
  return kCudaSuccess;
}
CuResult cuModuleLoadData(CuModule* module, const void* image) {
  if (std::memcmp(image,
                  "\x7f"
                  "ELF",
                  4) != 0)
    return kInvalidValue;
  *module = handle<CuModule>();
  return kCudaSuccess;
}
CuResult cuModuleUnload(CuModule module) {
  return release(module);
}
CuResult cuModuleGetFunction(CuFunction* function, CuModule, const char* name) {
  if (std::strcmp(name, "no_such_kernel") == 0) return kNotFound;
  // A function is its name.
  static std::mutex mutex;
  static std::set<std::string> names;
  const std::lock_guard lock(mutex);
  *function = reinterpret_cast<CuFunction>(const_cast<char*>(names.insert(name).first->c_str()));
  return kCudaSuccess;
}
CuResult cuFuncGetAttribute(int* value, int attribute, CuFunction) {
  *value = attribute == kFunctionAttributeNumRegs ? 168 : 0;
  return kCudaSuccess;
}
CuResult cuFuncSetAttribute(CuFunction, int, int value) {
  return value > 232448 ? kInvalidValue : kCudaSuccess;
}
CuResult cuLaunchKernelEx(const LaunchConfig* config, CuFunction function, void** params, void**) {
  ++fake_log.num_launches;
  fake_log.last_kernel = reinterpret_cast<const char*>(function);
  fake_log.last_launch = *config;
  fake_log.last_cluster = 1;
  fake_log.last_overlaps = false;
  for (unsigned i = 0; i < config->num_attributes; ++i) {
    const LaunchAttribute& attribute = config->attributes[i];
    if (attribute.id == kLaunchAttributeCluster) fake_log.last_cluster = attribute.cluster_dim[0];
    if (attribute.id == kLaunchAttributeOverlap) {
      fake_log.last_overlaps = attribute.allow_overlap != 0;
    }
  }
  fake_log.last_params = params;
  if (fake_log.on_launch != nullptr) fake_log.on_launch(*config, params);
  return config->grid_x == 0 ? kInvalidValue : kCudaSuccess;
}
CuResult cuOccupancyMaxActiveClusters(int* clusters, CuFunction, const LaunchConfig* config) {
  *clusters = 132 / static_cast<int>(config->attributes[0].cluster_dim[0]);
  return kCudaSuccess;
}
CuResult cuMemAlloc_v2(DevicePtr* pointer, size_t bytes) {
  if (bytes > size_t{1} << 32) return kOutOfMemory;
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes) != 0) return kOutOfMemory;
  ++fake_log.num_alive;
  *pointer = reinterpret_cast<DevicePtr>(memory);
  return kCudaSuccess;
}
CuResult cuMemFree_v2(DevicePtr pointer) {
  return release(reinterpret_cast<void*>(pointer));
}
CuResult cuMemcpyHtoD_v2(DevicePtr dst, const void* src, size_t bytes) {
  std::memcpy(reinterpret_cast<void*>(dst), src, bytes);
  return kCudaSuccess;
}
CuResult cuMemcpyDtoH_v2(void* dst, DevicePtr src, size_t bytes) {
  std::memcpy(dst, reinterpret_cast<const void*>(src), bytes);
  return kCudaSuccess;
}
CuResult cuMemsetD8Async(DevicePtr dst, unsigned char value, size_t count, CuStream) {
  std::memset(reinterpret_cast<void*>(dst), value, count);
  return kCudaSuccess;
}
CuResult cuStreamCreate(CuStream* stream, unsigned) {
  *stream = handle<CuStream>();
  return kCudaSuccess;
}
CuResult cuStreamDestroy_v2(CuStream stream) {
  return release(stream);
}
CuResult cuStreamSynchronize(CuStream) {
  return kCudaSuccess;
}
CuResult cuStreamBeginCapture_v2(CuStream, int) {
  return kCudaSuccess;
}
CuResult cuStreamEndCapture(CuStream, CuGraph* graph) {
  *graph = handle<CuGraph>();
  return kCudaSuccess;
}
CuResult cuGraphInstantiateWithFlags(CuGraphExec* exec, CuGraph, unsigned long long) {
  *exec = handle<CuGraphExec>();
  return kCudaSuccess;
}
CuResult cuGraphLaunch(CuGraphExec, CuStream) {
  return kCudaSuccess;
}
CuResult cuGraphExecDestroy(CuGraphExec exec) {
  return release(exec);
}
CuResult cuGraphDestroy(CuGraph graph) {
  return release(graph);
}
CuResult cuEventCreate(CuEvent* event, unsigned) {
  *event = handle<CuEvent>();
  return kCudaSuccess;
}
CuResult cuEventDestroy_v2(CuEvent event) {
  return release(event);
}
CuResult cuEventRecord(CuEvent, CuStream) {
  return kCudaSuccess;
}
CuResult cuEventSynchronize(CuEvent) {
  return kCudaSuccess;
}
CuResult cuEventElapsedTime(float* ms, CuEvent, CuEvent) {
  *ms = 1.0F;
  return kCudaSuccess;
}
CuResult cuTensorMapEncodeTiled(TensorMap* map, int dtype, uint32_t rank, void* address,
                                const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                                const uint32_t*, int, int swizzle, int, int) {
  ++fake_log.num_maps;
  if (rank != 3) return kInvalidValue;
  // Enough for a test to read back what was asked for.
  map->opaque[0] = reinterpret_cast<uint64_t>(address);
  map->opaque[1] = static_cast<uint64_t>(dtype);
  for (size_t i = 0; i < 3; ++i) map->opaque[2 + i] = dims[i];
  for (size_t i = 0; i < 2; ++i) map->opaque[5 + i] = strides[i];
  for (size_t i = 0; i < 3; ++i) map->opaque[7 + i] = box[i];
  map->opaque[10] = static_cast<uint64_t>(swizzle);
  return kCudaSuccess;
}
}
