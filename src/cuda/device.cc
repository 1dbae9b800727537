#include "cuda/device.h"

#include <array>

namespace volley::cuda {
namespace {

Status read_info(const Driver& driver, CuDevice device, DeviceInfo& info) {
  char name[256] = {};
  VOLLEY_TRY_STATUS(
      driver.check(driver.device_get_name(name, sizeof(name), device), "asking a device's name"));
  info.name = name;
  size_t total = 0;
  VOLLEY_TRY_STATUS(
      driver.check(driver.device_total_mem(&total, device), "asking a device's memory"));
  info.total_bytes = static_cast<int64_t>(total);
  int l2_bytes = 0, smem_bytes = 0;
  const std::pair<int, int*> attributes[] = {
      {kDeviceAttributeComputeMajor, &info.compute_major},
      {kDeviceAttributeComputeMinor, &info.compute_minor},
      {kDeviceAttributeNumSms, &info.num_sms},
      {kDeviceAttributeL2Bytes, &l2_bytes},
      {kDeviceAttributeMaxSmemOptin, &smem_bytes},
  };
  for (const auto& [attribute, value] : attributes) {
    VOLLEY_TRY_STATUS(driver.check(driver.device_get_attribute(value, attribute, device),
                                   "asking a device's attributes"));
  }
  info.l2_bytes = l2_bytes;
  info.max_smem_bytes = smem_bytes;
  return {};
}

}  // namespace

Result<Context> Context::open(const Driver& driver, int ordinal) {
  int count = 0;
  VOLLEY_TRY_STATUS(driver.check(driver.device_get_count(&count), "counting CUDA devices"));
  if (ordinal < 0 || ordinal >= count) {
    return make_error(ErrorKind::kNotFound, "no CUDA device {}: {} found", ordinal, count);
  }
  CuDevice device = 0;
  VOLLEY_TRY_STATUS(driver.check(driver.device_get(&device, ordinal), "opening a CUDA device"));
  Context context(driver, device);
  VOLLEY_TRY_STATUS(read_info(driver, device, context.info_));
  VOLLEY_TRY_STATUS(driver.check(driver.primary_context_retain(&context.context_, device),
                                 "making a CUDA context"));
  VOLLEY_TRY_STATUS(context.make_current());
  return context;
}

Context::Context(Context&& other) noexcept
    : driver_(other.driver_),
      device_(other.device_),
      context_(std::exchange(other.context_, nullptr)),
      info_(std::move(other.info_)) {}

Context::~Context() {
  if (context_ != nullptr) driver_->primary_context_release(device_);
}

Status Context::make_current() const {
  return driver_->check(driver_->context_set_current(context_), "making a CUDA context current");
}

Status Context::synchronize() const {
  return driver_->check(driver_->context_synchronize(), "waiting for the device");
}

Result<Stream> Stream::create(const Context& context) {
  CuStream stream = nullptr;
  const Driver& driver = context.driver();
  VOLLEY_TRY_STATUS(
      driver.check(driver.stream_create(&stream, kStreamNonBlocking), "making a CUDA stream"));
  return Stream(driver, stream);
}

Status Stream::synchronize() const {
  return driver().check(driver().stream_synchronize(get()), "waiting for a stream");
}

Result<Event> Event::create(const Context& context) {
  CuEvent event = nullptr;
  const Driver& driver = context.driver();
  VOLLEY_TRY_STATUS(driver.check(driver.event_create(&event, 0), "making a CUDA event"));
  return Event(driver, event);
}

Status Event::record(const Stream& stream) const {
  return driver().check(driver().event_record(get(), stream.get()), "recording an event");
}

Status Event::synchronize() const {
  return driver().check(driver().event_synchronize(get()), "waiting for an event");
}

Result<float> Event::ms_since(const Event& start) const {
  float ms = 0;
  VOLLEY_TRY_STATUS(driver().check(driver().event_elapsed_ms(&ms, start.get(), get()),
                                   "reading the time between events"));
  return ms;
}

Status Graph::begin(const Stream& stream) {
  const Driver& driver = stream.driver();
  return driver.check(driver.stream_begin_capture(stream.get(), kStreamCaptureThreadLocal),
                      "beginning a capture");
}

Result<Graph> Graph::end(const Stream& stream) {
  const Driver& driver = stream.driver();
  CuGraph raw = nullptr;
  VOLLEY_TRY_STATUS(
      driver.check(driver.stream_end_capture(stream.get(), &raw), "ending a capture"));
  const Owned<CuGraph, &Driver::graph_destroy> graph(driver, raw);
  CuGraphExec exec = nullptr;
  VOLLEY_TRY_STATUS(driver.check(driver.graph_instantiate(&exec, raw, 0), "instantiating a graph"));
  return Graph(driver, exec);
}

Status Graph::launch(const Stream& stream) const {
  return driver().check(driver().graph_launch(get(), stream.get()), "launching a graph");
}

Result<Buffer> Buffer::allocate(const Context& context, size_t bytes) {
  const Driver& driver = context.driver();
  DevicePtr pointer = 0;
  const CuResult result = driver.mem_alloc(&pointer, bytes == 0 ? 1 : bytes);
  VOLLEY_TRY_STATUS(
      driver.check(result, fmt::format("allocating {} bytes of device memory", bytes).c_str()));
  return Buffer(driver, pointer, bytes);
}

Status Buffer::upload(const void* src, size_t bytes, size_t offset) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    return invalid("upload of {} bytes at {} into a buffer of {}", bytes, offset, bytes_);
  }
  if (bytes == 0) return {};
  return driver().check(driver().memcpy_to_device(get() + offset, src, bytes),
                        "copying to the device");
}

Status Buffer::download(void* dst, size_t bytes, size_t offset) const {
  if (offset > bytes_ || bytes > bytes_ - offset) {
    return invalid("download of {} bytes at {} from a buffer of {}", bytes, offset, bytes_);
  }
  if (bytes == 0) return {};
  return driver().check(driver().memcpy_to_host(dst, get() + offset, bytes),
                        "copying from the device");
}

Status Buffer::fill(unsigned char value, const Stream& stream) const {
  return driver().check(driver().memset_d8_async(get(), value, bytes_, stream.get()),
                        "filling device memory");
}

Result<Module> Module::load(const Context& context, const std::string& cubin) {
  const Driver& driver = context.driver();
  CuModule module = nullptr;
  VOLLEY_TRY_STATUS(
      driver.check(driver.module_load_data(&module, cubin.data()), "loading a kernel module"));
  return Module(driver, module);
}

Result<Kernel> Module::kernel(const char* name, int smem_bytes) const {
  Kernel kernel;
  const Driver& cu = driver();
  VOLLEY_TRY_STATUS(cu.check(cu.module_get_function(&kernel.function, get(), name), name));
  VOLLEY_TRY_STATUS(
      cu.check(cu.func_set_attribute(kernel.function, kFunctionAttributeMaxDynamicSmem, smem_bytes),
               "raising a kernel's shared memory"));
  VOLLEY_TRY_STATUS(
      cu.check(cu.func_get_attribute(&kernel.num_regs, kFunctionAttributeNumRegs, kernel.function),
               "asking a kernel's registers"));
  VOLLEY_TRY_STATUS(cu.check(
      cu.func_get_attribute(&kernel.local_bytes, kFunctionAttributeLocalBytes, kernel.function),
      "asking a kernel's local memory"));
  return kernel;
}

namespace {

// `attributes` must live as long as the configuration that points at them.
LaunchConfig launch_config(const LaunchDims& dims, std::array<LaunchAttribute, 2>& attributes) {
  LaunchConfig config;
  config.grid_x = dims.num_ctas;
  config.cta_x = dims.num_threads;
  config.smem_bytes = dims.smem_bytes;
  config.attributes = attributes.data();
  // A cluster of one is a cluster too, but need not be said.
  if (dims.cluster_size > 1) {
    LaunchAttribute& cluster = attributes[config.num_attributes++];
    cluster.id = kLaunchAttributeCluster;
    cluster.cluster_dim[0] = dims.cluster_size;
    cluster.cluster_dim[1] = 1;
    cluster.cluster_dim[2] = 1;
  }
  if (dims.overlaps) {
    LaunchAttribute& overlap = attributes[config.num_attributes++];
    overlap.id = kLaunchAttributeOverlap;
    overlap.allow_overlap = 1;
  }
  return config;
}

}  // namespace

Result<int> max_active_clusters(const Driver& driver, CuFunction kernel, const LaunchDims& dims) {
  std::array<LaunchAttribute, 2> attributes;
  LaunchConfig config = launch_config(dims, attributes);
  // The question is about clusters, so a cluster of one must be said.
  if (config.num_attributes == 0) {
    attributes[0].id = kLaunchAttributeCluster;
    for (uint32_t& size : attributes[0].cluster_dim) size = 1;
    config.num_attributes = 1;
  }
  int clusters = 0;
  VOLLEY_TRY_STATUS(driver.check(driver.max_active_clusters(&clusters, kernel, &config),
                                 "asking how many clusters run at a time"));
  return clusters;
}

Status launch(const Driver& driver, CuFunction kernel, const LaunchDims& dims, void** params,
              CuStream stream) {
  std::array<LaunchAttribute, 2> attributes;
  LaunchConfig config = launch_config(dims, attributes);
  config.stream = stream;
  return driver.check(driver.launch_kernel_ex(&config, kernel, params, nullptr),
                      "launching a kernel");
}

}  // namespace volley::cuda
