#include "app/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "base/clock.h"

namespace volley {
namespace {

constexpr double kRedrawS = 0.1;
constexpr double kLogEveryS = 10;

}  // namespace

Progress::Progress(bool err_is_terminal, bool quiet, int num_columns)
    : in_place_(err_is_terminal),
      quiet_(quiet),
      num_columns_(static_cast<size_t>(std::max(20, num_columns))),
      last_shown_s_(err_is_terminal ? 0 : now_s()) {}

void Progress::show(std::string_view line) {
  const double now = now_s();
  if (quiet_ || now - last_shown_s_ < (in_place_ ? kRedrawS : kLogEveryS)) return;
  last_shown_s_ = now;
  if (in_place_) {
    fmt::print(stderr, "\r\x1b[K{}", line.substr(0, num_columns_ - 1));
    visible_ = true;
  } else {
    fmt::print(stderr, "{}\n", line);
  }
  std::fflush(stderr);
}

void Progress::clear() {
  if (!visible_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  visible_ = false;
}

}  // namespace volley
