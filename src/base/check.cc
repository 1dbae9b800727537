#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace volley {

void check_failed(std::string_view file, int line, std::string_view what) {
  fmt::print(stderr, "volley: internal error at {}:{}: {}\n", file, line, what);
  std::fflush(stderr);
  std::abort();
}

}  // namespace volley
