#pragma once

// Lists of shapes as JSON, for warm-ups and bundles:
//   [{"mma": "fp8", "n": 6144, "k": 4096, "max_m": 8192},
//    {"mma": "bf16", "out": "f32", "n": 4096, "k": 4096, "max_m": 64},
//    {"grouping": "masked", "groups": 16, "n": 4096, "k": 7168, "max_m": 1024}]
// Keys: mma fp8 (default), bf16, mxfp4, nvfp4 or fp8rows; out bf16 (default) or f32; grouping dense
// (default), row_index, prefix_sum, masked or along_k; n, k, max_m; groups (1), group_align (128),
// segments (0: the weight's own plan).

#include <string_view>
#include <vector>

#include "gemm/shape.h"

namespace volley::gemm {

inline constexpr size_t kMaxShapes = 10'000;

// `what` names the text in errors. Every shape is valid.
Result<std::vector<GemmShape>> parse_shapes(std::string_view text, std::string_view what);

// Names as they stand in a file. kInvalidInput for a name that is none.
Result<MmaKind> mma_from_name(std::string_view name);
Result<OutKind> out_from_name(std::string_view name);
Result<Grouping> grouping_from_name(std::string_view name);

}  // namespace volley::gemm
