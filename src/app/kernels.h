#pragma once

#include <string>
#include <vector>

#include "base/result.h"

namespace volley {

// `volley kernels`: compile matrix kernels into a bundle, look into one, explain a choice. Needs no
// GPU. `arguments` after "kernels".
Result<int> run_kernels(const std::vector<std::string>& arguments);

}  // namespace volley
