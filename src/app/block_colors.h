#pragma once

// Tints text by the step it came in, so that a person sees the blocks land.

#include <string>
#include <string_view>

namespace volley {

// SGR sequences around `text`, each line on its own, so that no tint leaks over a line's end.
// Neighbouring steps differ: the tint is a function of step_idx alone.
std::string tint_step(std::string_view text, int step_idx);

// Emphasis for headings, and the opposite; `text` itself when `color` is off.
std::string bold(std::string_view text, bool color);
std::string dim(std::string_view text, bool color);

}  // namespace volley
