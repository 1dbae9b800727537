#pragma once

// What the fake driver (fake_driver.cc) remembers. Tests load the library with Driver::load() and
// find the log through volley_fake_driver_log().

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

}  // namespace volley::cuda

extern "C" volley::cuda::FakeDriverLog* volley_fake_driver_log();
