#include "app/block_colors.h"

#include <array>

namespace volley {
namespace {

// From the 256-colour cube, readable on dark and on light ground, neighbours far apart in hue.
constexpr std::array<std::string_view, 4> kTints = {"\x1b[38;5;32m", "\x1b[38;5;172m",
                                                    "\x1b[38;5;71m", "\x1b[38;5;133m"};
constexpr std::string_view kReset = "\x1b[0m";

std::string wrapped(std::string_view text, std::string_view begin) {
  std::string out;
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const std::string_view line = text.substr(0, newline);
    if (!line.empty()) {
      out += begin;
      out += line;
      out += kReset;
    }
    if (newline == std::string_view::npos) break;
    out += '\n';
    text.remove_prefix(newline + 1);
  }
  return out;
}

}  // namespace

std::string tint_step(std::string_view text, int step_idx) {
  return wrapped(text, kTints[static_cast<size_t>(step_idx) % kTints.size()]);
}

std::string bold(std::string_view text, bool color) {
  return color ? wrapped(text, "\x1b[1m") : std::string(text);
}

std::string dim(std::string_view text, bool color) {
  return color ? wrapped(text, "\x1b[2m") : std::string(text);
}

}  // namespace volley
