#pragma once

// The CUDA driver, loaded when asked for. The part of its interface that Volley calls is declared
// here, so that building needs no CUDA toolkit and a binary starts where no driver is installed.
// driver_abi_test.cc holds these declarations against cuda.h where the toolkit is there.
//
// Thread-safety: a Driver is immutable after load(). The driver's own calls may come from any
// thread whose current context is set (Context::make_current).

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

namespace volley::cuda {

using CuResult = int;
using CuDevice = int;
using CuContext = struct CuContextOpaque*;
using CuModule = struct CuModuleOpaque*;
using CuFunction = struct CuFunctionOpaque*;
using CuStream = struct CuStreamOpaque*;
using CuEvent = struct CuEventOpaque*;
using CuGraph = struct CuGraphOpaque*;
using CuGraphExec = struct CuGraphExecOpaque*;
using DevicePtr = uint64_t;  // an address in device memory

inline constexpr CuResult kCudaSuccess = 0;

// CUdevice_attribute
inline constexpr int kDeviceAttributeNumSms = 16;
inline constexpr int kDeviceAttributeL2Bytes = 38;
inline constexpr int kDeviceAttributeComputeMajor = 75;
inline constexpr int kDeviceAttributeComputeMinor = 76;
inline constexpr int kDeviceAttributeMaxSmemOptin = 97;
// CUfunction_attribute
inline constexpr int kFunctionAttributeLocalBytes = 3;
inline constexpr int kFunctionAttributeNumRegs = 4;
inline constexpr int kFunctionAttributeMaxDynamicSmem = 8;
// CUlaunchAttributeID
inline constexpr int kLaunchAttributeCluster = 4;
inline constexpr int kLaunchAttributeOverlap = 6;  // programmatic stream serialization
// Flags
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventDisableTiming = 2;
inline constexpr int kStreamCaptureThreadLocal = 1;

// CUlaunchAttribute: an id, padding to 8 bytes, a 64-byte union whose cluster member is three
// words and whose overlap member is an int.
struct LaunchAttribute {
  int id = 0;
  int pad = 0;
  union {
    uint32_t cluster_dim[3];
    int allow_overlap;
    unsigned char bytes[64];
  };
};

// CUlaunchConfig
struct LaunchConfig {
  unsigned grid_x = 1, grid_y = 1, grid_z = 1;
  unsigned cta_x = 1, cta_y = 1, cta_z = 1;
  unsigned smem_bytes = 0;
  CuStream stream = nullptr;
  LaunchAttribute* attributes = nullptr;
  unsigned num_attributes = 0;
};

// CUtensorMap: 128 opaque bytes that the TMA unit reads. Passed by value to kernels.
struct alignas(128) TensorMap {
  uint64_t opaque[16] = {};
};

// V(member, symbol, parameter types). The symbol is the entry that the current ABI version names.
#define VOLLEY_CUDA_DRIVER_CALLS(V)                                                           \
  V(init, cuInit, (unsigned flags))                                                           \
  V(driver_get_version, cuDriverGetVersion, (int* version))                                   \
  V(get_error_name, cuGetErrorName, (CuResult result, const char** text))                     \
  V(get_error_string, cuGetErrorString, (CuResult result, const char** text))                 \
  V(device_get_count, cuDeviceGetCount, (int* count))                                         \
  V(device_get, cuDeviceGet, (CuDevice * device, int ordinal))                                \
  V(device_get_name, cuDeviceGetName, (char* name, int length, CuDevice device))              \
  V(device_get_attribute, cuDeviceGetAttribute, (int* value, int attribute, CuDevice device)) \
  V(device_total_mem, cuDeviceTotalMem_v2, (size_t * bytes, CuDevice device))                 \
  V(primary_context_retain, cuDevicePrimaryCtxRetain, (CuContext * context, CuDevice device)) \
  V(primary_context_release, cuDevicePrimaryCtxRelease_v2, (CuDevice device))                 \
  V(context_set_current, cuCtxSetCurrent, (CuContext context))                                \
  V(context_synchronize, cuCtxSynchronize, (void))                                            \
  V(module_load_data, cuModuleLoadData, (CuModule * module, const void* image))               \
  V(module_unload, cuModuleUnload, (CuModule module))                                         \
  V(module_get_function, cuModuleGetFunction,                                                 \
    (CuFunction * function, CuModule module, const char* name))                               \
  V(func_get_attribute, cuFuncGetAttribute, (int* value, int attribute, CuFunction function)) \
  V(func_set_attribute, cuFuncSetAttribute, (CuFunction function, int attribute, int value))  \
  V(launch_kernel_ex, cuLaunchKernelEx,                                                       \
    (const LaunchConfig* config, CuFunction function, void** params, void** extra))           \
  V(max_active_clusters, cuOccupancyMaxActiveClusters,                                        \
    (int* clusters, CuFunction function, const LaunchConfig* config))                         \
  V(mem_alloc, cuMemAlloc_v2, (DevicePtr * pointer, size_t bytes))                            \
  V(mem_free, cuMemFree_v2, (DevicePtr pointer))                                              \
  V(memcpy_to_device, cuMemcpyHtoD_v2, (DevicePtr dst, const void* src, size_t bytes))        \
  V(memcpy_to_host, cuMemcpyDtoH_v2, (void* dst, DevicePtr src, size_t bytes))                \
  V(memset_d8_async, cuMemsetD8Async,                                                         \
    (DevicePtr dst, unsigned char value, size_t count, CuStream stream))                      \
  V(stream_create, cuStreamCreate, (CuStream * stream, unsigned flags))                       \
  V(stream_destroy, cuStreamDestroy_v2, (CuStream stream))                                    \
  V(stream_synchronize, cuStreamSynchronize, (CuStream stream))                               \
  V(stream_begin_capture, cuStreamBeginCapture_v2, (CuStream stream, int mode))               \
  V(stream_end_capture, cuStreamEndCapture, (CuStream stream, CuGraph * graph))               \
  V(graph_instantiate, cuGraphInstantiateWithFlags,                                           \
    (CuGraphExec * exec, CuGraph graph, unsigned long long flags))                            \
  V(graph_launch, cuGraphLaunch, (CuGraphExec exec, CuStream stream))                         \
  V(graph_exec_destroy, cuGraphExecDestroy, (CuGraphExec exec))                               \
  V(graph_destroy, cuGraphDestroy, (CuGraph graph))                                           \
  V(event_create, cuEventCreate, (CuEvent * event, unsigned flags))                           \
  V(event_destroy, cuEventDestroy_v2, (CuEvent event))                                        \
  V(event_record, cuEventRecord, (CuEvent event, CuStream stream))                            \
  V(event_synchronize, cuEventSynchronize, (CuEvent event))                                   \
  V(event_elapsed_ms, cuEventElapsedTime, (float* ms, CuEvent start, CuEvent end))            \
  V(tensor_map_encode_tiled, cuTensorMapEncodeTiled,                                          \
    (TensorMap * map, int dtype, uint32_t rank, void* address, const uint64_t* dims,          \
     const uint64_t* strides, const uint32_t* box, const uint32_t* element_strides,           \
     int interleave, int swizzle, int l2_promotion, int oob_fill))

class Driver {
 public:
  // Loads `library` (by default the driver's soname) and initialises it. kUnsupported where there
  // is none, it is too old, or it finds no device. The Driver outlives whatever is made with it.
  static Result<std::unique_ptr<Driver>> load(const std::string& library = "libcuda.so.1");
  ~Driver();
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

#define VOLLEY_DECLARE_DRIVER_CALL(member, symbol, parameters) \
  CuResult(*member) parameters = nullptr;
  VOLLEY_CUDA_DRIVER_CALLS(VOLLEY_DECLARE_DRIVER_CALL)
#undef VOLLEY_DECLARE_DRIVER_CALL

  int version() const {
    return version_;
  }  // 13000 is 13.0

  // Ok, or an error that says what was attempted and what the driver called the failure.
  Status check(CuResult result, const char* attempted) const;

 private:
  Driver() = default;

  void* library_ = nullptr;
  int version_ = 0;
};

}  // namespace volley::cuda
