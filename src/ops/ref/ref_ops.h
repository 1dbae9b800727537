#pragma once

#include <memory>

#include "ops/ops.h"

namespace volley {

// The oracle: plain float loops over weights widened to f32, f32 keys and values. One loop order
// everywhere, no FMA, no threads. Row-invariant because each row is computed by itself. Unlike the
// other backends it may allocate inside an op.
std::unique_ptr<Ops> make_ref_ops();

}  // namespace volley
