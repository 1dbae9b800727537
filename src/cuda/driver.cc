#include "cuda/driver.h"

#include <dlfcn.h>

namespace volley::cuda {

Result<std::unique_ptr<Driver>> Driver::load(const std::string& library) {
  std::unique_ptr<Driver> driver(new Driver);
  driver->library_ = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (driver->library_ == nullptr) {
    return make_error(ErrorKind::kUnsupported, "no CUDA driver: {}", ::dlerror());
  }
  const char* missing = nullptr;
#define VOLLEY_LOAD_DRIVER_CALL(member, symbol, parameters)                     \
  if (void* address = ::dlsym(driver->library_, #symbol); address == nullptr) { \
    missing = #symbol;                                                          \
  } else {                                                                      \
    driver->member = reinterpret_cast<CuResult(*) parameters>(address);         \
  }
  VOLLEY_CUDA_DRIVER_CALLS(VOLLEY_LOAD_DRIVER_CALL)
#undef VOLLEY_LOAD_DRIVER_CALL
  if (missing != nullptr) {
    return make_error(ErrorKind::kUnsupported,
                      "{} has no {}: expected a driver for CUDA 12 or newer", library, missing);
  }
  VOLLEY_TRY_STATUS(driver->check(driver->init(0), "initialising the CUDA driver"));
  VOLLEY_TRY_STATUS(
      driver->check(driver->driver_get_version(&driver->version_), "asking the driver's version"));
  return driver;
}

Driver::~Driver() {
  if (library_ != nullptr) ::dlclose(library_);
}

Status Driver::check(CuResult result, const char* attempted) const {
  if (result == kCudaSuccess) [[likely]]
    return {};
  const char* name = nullptr;
  const char* text = nullptr;
  if (get_error_name(result, &name) != kCudaSuccess) name = nullptr;
  if (get_error_string(result, &text) != kCudaSuccess) text = nullptr;
  constexpr CuResult kNoDevice = 100, kOutOfMemory = 2;
  const ErrorKind kind = result == kNoDevice      ? ErrorKind::kUnsupported
                         : result == kOutOfMemory ? ErrorKind::kExhausted
                                                  : ErrorKind::kIo;
  return make_error(kind, "{}: CUDA error {} {}: {}", attempted, result, name ? name : "(unnamed)",
                    text ? text : "(the driver says no more)");
}

}  // namespace volley::cuda
