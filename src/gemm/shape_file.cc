#include "gemm/shape_file.h"

#include "base/json.h"

namespace volley::gemm {
namespace {

Status read_int(const Json& value, std::string_view key, int& out) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > INT32_MAX) {
    return invalid("{}: expected an integer from 0 to 2^31, got {}", key, dump_json(value));
  }
  out = value.get<int>();
  return {};
}

Result<std::string> read_name(const Json& value, std::string_view key) {
  if (!value.is_string()) return invalid("{}: expected a name, got {}", key, dump_json(value));
  return value.get<std::string>();
}

Result<GemmShape> parse_shape(const Json& object) {
  if (!object.is_object()) return invalid("expected an object, got {}", dump_json(object));
  GemmShape shape;
  for (const auto& [key, value] : object.items()) {
    if (key == "mma") {
      VOLLEY_TRY(const std::string name, read_name(value, key));
      VOLLEY_TRY(shape.mma, mma_from_name(name));
    } else if (key == "out") {
      VOLLEY_TRY(const std::string name, read_name(value, key));
      VOLLEY_TRY(shape.out, out_from_name(name));
    } else if (key == "grouping") {
      VOLLEY_TRY(const std::string name, read_name(value, key));
      VOLLEY_TRY(shape.grouping, grouping_from_name(name));
    } else {
      int* field = key == "n"             ? &shape.n
                   : key == "k"           ? &shape.k
                   : key == "max_m"       ? &shape.m
                   : key == "groups"      ? &shape.num_groups
                   : key == "group_align" ? &shape.group_align
                   : key == "segments"    ? &shape.segments
                                          : nullptr;
      if (field == nullptr) return invalid("unknown key \"{}\"", key);
      VOLLEY_TRY_STATUS(read_int(value, key, *field));
    }
  }
  if (shape.m < 1) return invalid("max_m is missing or 0");
  VOLLEY_TRY_STATUS(validate(shape));
  return shape;
}

}  // namespace

Result<MmaKind> mma_from_name(std::string_view name) {
  if (name == "fp8") return MmaKind::kFp8;
  if (name == "bf16") return MmaKind::kBf16;
  if (name == "mxfp4") return MmaKind::kMxFp4;
  if (name == "nvfp4") return MmaKind::kNvFp4;
  if (name == "fp8rows") return MmaKind::kFp8Rows;
  return invalid("mma: expected fp8, bf16, mxfp4, nvfp4 or fp8rows, got {}", name);
}

Result<OutKind> out_from_name(std::string_view name) {
  if (name == "bf16") return OutKind::kBf16;
  if (name == "f32") return OutKind::kF32;
  return invalid("out: expected bf16 or f32, got {}", name);
}

Result<Grouping> grouping_from_name(std::string_view name) {
  if (name == "dense") return Grouping::kDense;
  if (name == "row_index") return Grouping::kRowIndex;
  if (name == "prefix_sum") return Grouping::kPrefixSum;
  if (name == "masked") return Grouping::kMasked;
  if (name == "along_k") return Grouping::kAlongK;
  return invalid("grouping: expected dense, row_index, prefix_sum, masked or along_k, got {}",
                 name);
}

Result<std::vector<GemmShape>> parse_shapes(std::string_view text, std::string_view what) {
  VOLLEY_TRY(const Json list, parse_json(text, what, {.max_bytes = 4 << 20, .max_depth = 4}));
  if (!list.is_array()) return invalid("{}: expected an array of shapes", what);
  if (list.size() > kMaxShapes) {
    return make_error(ErrorKind::kExhausted, "{}: {} shapes, at most {} are accepted", what,
                      list.size(), kMaxShapes);
  }
  std::vector<GemmShape> shapes;
  for (size_t i = 0; i < list.size(); ++i) {
    auto shape = parse_shape(list[i]);
    if (!shape) return invalid("{}: shape {}: {}", what, i, shape.error().message);
    shapes.push_back(*shape);
  }
  return shapes;
}

}  // namespace volley::gemm
