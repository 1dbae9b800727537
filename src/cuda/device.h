#pragma once

// Owning, move-only handles over the driver: a device's context, streams, events, graphs, buffers,
// modules. Destructors ignore errors: a device that fails them has failed a call before.

#include <string>
#include <utility>
#include <vector>

#include "cuda/driver.h"

namespace volley::cuda {

struct DeviceInfo {
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  int num_sms = 0;
  int64_t l2_bytes = 0;
  int64_t max_smem_bytes = 0;  // a CTA's largest dynamic shared memory
  int64_t total_bytes = 0;     // device memory
};

// The primary context of one device, current on the thread that opened it.
class Context {
 public:
  // `driver` outlives the context. kNotFound when there is no device of that ordinal.
  static Result<Context> open(const Driver& driver, int ordinal = 0);
  Context(Context&& other) noexcept;
  Context& operator=(Context&&) = delete;
  ~Context();

  const Driver& driver() const { return *driver_; }
  const DeviceInfo& info() const { return info_; }
  // Makes the context current on the calling thread, once for each thread that calls the driver.
  Status make_current() const;
  // Waits for everything on the device; reports errors of earlier kernels.
  Status synchronize() const;

 private:
  Context(const Driver& driver, CuDevice device) : driver_(&driver), device_(device) {}

  const Driver* driver_;
  CuDevice device_;
  CuContext context_ = nullptr;
  DeviceInfo info_;
};

// A handle type whose driver call `Destroy` frees it.
template <class Handle, CuResult (*Driver::*Destroy)(Handle)>
class Owned {
 public:
  Owned() = default;
  Owned(const Driver& driver, Handle handle) : driver_(&driver), handle_(handle) {}
  Owned(Owned&& other) noexcept
      : driver_(other.driver_), handle_(std::exchange(other.handle_, {})) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(driver_, other.driver_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != Handle{}) (driver_->*Destroy)(handle_);
  }

  Handle get() const { return handle_; }
  const Driver& driver() const { return *driver_; }
  bool empty() const { return handle_ == Handle{}; }

 private:
  const Driver* driver_ = nullptr;
  Handle handle_{};
};

class Stream : public Owned<CuStream, &Driver::stream_destroy> {
 public:
  using Owned::Owned;
  // Does not wait for the legacy default stream.
  static Result<Stream> create(const Context& context);
  Status synchronize() const;
};

class Event : public Owned<CuEvent, &Driver::event_destroy> {
 public:
  using Owned::Owned;
  static Result<Event> create(const Context& context);
  Status record(const Stream& stream) const;
  Status synchronize() const;
  // Milliseconds of device time from `start` to this event; both must have been reached.
  Result<float> ms_since(const Event& start) const;
};

// Work captured from a stream, to be launched again and again.
class Graph : public Owned<CuGraphExec, &Driver::graph_exec_destroy> {
 public:
  using Owned::Owned;
  // Captures what `record` (a callable returning Status) puts on `stream`.
  template <class Record>
  static Result<Graph> capture(const Stream& stream, Record&& record) {
    VOLLEY_TRY_STATUS(begin(stream));
    Status recorded = record();
    Result<Graph> graph = end(stream);
    if (!recorded) return tl::unexpected<Error>(recorded.error());
    return graph;
  }
  Status launch(const Stream& stream) const;

 private:
  static Status begin(const Stream& stream);
  static Result<Graph> end(const Stream& stream);
};

// Device memory.
class Buffer : public Owned<DevicePtr, &Driver::mem_free> {
 public:
  Buffer() = default;
  // Memory of at least `bytes` bytes, aligned to 256; of one byte where `bytes` is 0.
  static Result<Buffer> allocate(const Context& context, size_t bytes);

  size_t bytes() const { return bytes_; }
  // Synchronous copies; the ranges must lie inside the buffer.
  Status upload(const void* src, size_t bytes, size_t offset = 0) const;
  Status download(void* dst, size_t bytes, size_t offset = 0) const;
  // Sets every byte, in stream order.
  Status fill(unsigned char value, const Stream& stream) const;

 private:
  Buffer(const Driver& driver, DevicePtr pointer, size_t bytes)
      : Owned(driver, pointer), bytes_(bytes) {}

  size_t bytes_ = 0;
};

// A kernel of a loaded module, and how many bytes of dynamic shared memory it may be launched with.
struct Kernel {
  CuFunction function = nullptr;
  int num_regs = 0;
  int local_bytes = 0;  // per thread; above 0 when registers were spilled
};

class Module : public Owned<CuModule, &Driver::module_unload> {
 public:
  using Owned::Owned;
  // Loads a cubin into the current context. The driver copies it.
  static Result<Module> load(const Context& context, const std::string& cubin);
  // Looks `name` up and allows it `smem_bytes` of dynamic shared memory.
  Result<Kernel> kernel(const char* name, int smem_bytes) const;
};

struct LaunchDims {
  uint32_t num_ctas = 1;  // a multiple of cluster_size
  uint32_t num_threads = 1;
  uint32_t cluster_size = 1;
  uint32_t smem_bytes = 0;
  // Programmatic dependent launch: CTAs may start before the kernel in front of this one on its
  // stream has ended. The kernel itself must wait (griddepcontrol.wait) before it touches memory
  // which that kernel uses.
  bool overlaps = false;
};

// How many clusters of `dims` (whose num_ctas is one cluster's) the device runs at a time.
Result<int> max_active_clusters(const Driver& driver, CuFunction kernel, const LaunchDims& dims);

// Puts `kernel` on `stream`. `params[i]` points at the i-th argument; the driver copies the
// arguments before this returns. Asynchronous; allocates nothing.
Status launch(const Driver& driver, CuFunction kernel, const LaunchDims& dims, void** params,
              CuStream stream);

}  // namespace volley::cuda
