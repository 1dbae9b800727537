#pragma once

#include <chrono>

namespace volley {

// Monotonic seconds since an arbitrary start.
inline double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace volley
