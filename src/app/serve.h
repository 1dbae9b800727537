#pragma once

#include <string>
#include <vector>

#include "app/model_folders.h"

namespace volley {

// `volley serve`: runs until SIGTERM or SIGINT, then drains. `arguments` after "serve".
Result<int> run_serve(const std::vector<std::string>& arguments, const Environment& environment);

}  // namespace volley
