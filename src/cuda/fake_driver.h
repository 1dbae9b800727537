#pragma once

// What the fake driver (fake_driver.cc) remembers. Tests load the library with Driver::load() and
// find its log with open_fake_driver_log().

#include <dlfcn.h>

#include <cstdint>

#include "cuda/driver.h"

namespace volley::cuda {

struct FakeDriverLog {
  int64_t num_alive = 0;  // contexts, modules, streams, events, graphs, buffers
  int64_t num_launches = 0;
  int64_t num_maps = 0;
  LaunchConfig last_launch;
  uint32_t last_cluster = 1;
  bool last_overlaps = false;
  const char* last_kernel = "";  // its name
  void** last_params = nullptr;  // as passed: valid only while the caller's arguments live
  void (*on_launch)(const LaunchConfig& config,
                    void** params) = nullptr;  // sees each launch's arguments
};

// Of the library at `path`, which stays loaded. Null: there is no such library.
inline FakeDriverLog* open_fake_driver_log(const char* path) {
  void* library = ::dlopen(path, RTLD_NOW);
  if (library == nullptr) return nullptr;
  return reinterpret_cast<FakeDriverLog* (*)()>(::dlsym(library, "volley_fake_driver_log"))();
}

}  // namespace volley::cuda

extern "C" volley::cuda::FakeDriverLog* volley_fake_driver_log();
