#include "weights/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <unordered_set>
#include <utility>

namespace volley {
namespace {

namespace dom = simdjson::dom;

constexpr size_t kLengthBytes = 8;

// Names come from files: printable, and not a page long.
std::string shown_name(std::string_view name) {
  std::string out = "'";
  for (const char c : name.substr(0, 100)) {
    out += (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) ? '?' : c;
  }
  return out + (name.size() > 100 ? "...'" : "'");
}

// An array of at most `max_count` integers in [0, INT64_MAX], or nullopt.
std::optional<std::vector<int64_t>> integers(dom::element element, size_t max_count) {
  dom::array array;
  if (element.get_array().get(array) != simdjson::SUCCESS || array.size() > max_count) {
    return std::nullopt;
  }
  std::vector<int64_t> values;
  for (dom::element item : array) {
    int64_t value = 0;
    if (item.get_int64().get(value) != simdjson::SUCCESS || value < 0) return std::nullopt;
    values.push_back(value);
  }
  return values;
}

// The fields of one header entry, before they are believed.
struct Entry {
  std::optional<std::string_view> dtype;
  std::optional<dom::element> shape;
  std::optional<dom::element> offsets;
};

Result<Entry> read_fields(dom::element value, std::string_view what, std::string_view name) {
  dom::object object;
  if (value.get_object().get(object) != simdjson::SUCCESS) {
    return invalid("{}: tensor {}: expected an object", what, shown_name(name));
  }
  Entry entry;
  for (const auto [key, field] : object) {
    bool fresh = true;
    if (key == "dtype") {
      fresh = !entry.dtype;
      std::string_view text;
      if (field.get_string().get(text) != simdjson::SUCCESS) {
        return invalid("{}: tensor {}: dtype is no string", what, shown_name(name));
      }
      entry.dtype = text;
    } else if (key == "shape") {
      fresh = !entry.shape;
      entry.shape = field;
    } else if (key == "data_offsets") {
      fresh = !entry.offsets;
      entry.offsets = field;
    } else {
      return invalid("{}: tensor {}: unknown field {}", what, shown_name(name), shown_name(key));
    }
    if (!fresh) return invalid("{}: tensor {}: {} is given twice", what, shown_name(name), key);
  }
  if (!entry.dtype || !entry.shape || !entry.offsets) {
    return invalid("{}: tensor {}: expected dtype, shape and data_offsets", what, shown_name(name));
  }
  return entry;
}

// One tensor of the header, checked against the `data` that follows it.
Result<HostTensor> read_tensor(const Entry& entry, std::span<const std::byte> data,
                               std::string_view what, std::string_view name) {
  const std::optional<DType> dtype = dtype_from_safetensors(*entry.dtype);
  if (!dtype) {
    return make_error(ErrorKind::kUnsupported,
                      "{}: tensor {} has dtype {}; read are F32, F16, BF16, F8_E4M3, BOOL, U8, I8, "
                      "I32 and I64",
                      what, shown_name(name), shown_name(*entry.dtype));
  }
  const auto shape = integers(*entry.shape, HostTensor::kMaxRank);
  if (!shape) {
    return invalid("{}: tensor {}: expected a shape of at most {} sizes from 0 on", what,
                   shown_name(name), HostTensor::kMaxRank);
  }
  const auto offsets = integers(*entry.offsets, 2);
  if (!offsets || offsets->size() != 2) {
    return invalid("{}: tensor {}: expected two data_offsets from 0 on", what, shown_name(name));
  }
  const int64_t begin = (*offsets)[0];
  const int64_t end = (*offsets)[1];
  if (begin > end || static_cast<uint64_t>(end) > data.size()) {
    return invalid(
        "{}: tensor {}: bytes [{}, {}) lie outside the {} bytes of data (is the file "
        "truncated?)",
        what, shown_name(name), begin, end, data.size());
  }
  int64_t bytes = dtype_bytes(*dtype);
  for (const int64_t size : *shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) {
      return invalid("{}: tensor {}: the shape overflows 64 bits", what, shown_name(name));
    }
  }
  HostTensor tensor;
  tensor.data = data.data() + begin;
  tensor.dtype = *dtype;
  tensor.rank = static_cast<int>(shape->size());
  std::copy(shape->begin(), shape->end(), tensor.shape.begin());
  if (bytes != end - begin) {
    return invalid("{}: tensor {}: {} {} takes {} bytes, data_offsets give {}", what,
                   shown_name(name), dtype_name(*dtype), tensor.shape_string(), bytes, end - begin);
  }
  return tensor;
}

// Tensors must tile the data: sorted by offset, each begins where the one before ended.
Status check_tiling(const std::vector<NamedTensor>& tensors, std::span<const std::byte> data,
                    std::string_view what) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    // Empty tensors go before the one that starts at the same byte.
    return std::pair(tensors[a].tensor.data, tensors[a].tensor.num_bytes()) <
           std::pair(tensors[b].tensor.data, tensors[b].tensor.num_bytes());
  });
  int64_t expected = 0;
  for (const size_t i : order) {
    const int64_t begin = tensors[i].tensor.data - data.data();
    if (begin != expected) {
      return invalid("{}: tensor {} begins at byte {} of the data, expected {}: the file has {}",
                     what, shown_name(tensors[i].name), begin, expected,
                     begin < expected ? "overlapping tensors" : "a gap");
    }
    expected = begin + tensors[i].tensor.num_bytes();
  }
  if (static_cast<uint64_t>(expected) != data.size()) {
    return invalid("{}: {} bytes of data, the header accounts for {}", what, data.size(), expected);
  }
  return {};
}

Status check_metadata(dom::element metadata, std::string_view what) {
  dom::object object;
  if (metadata.get_object().get(object) != simdjson::SUCCESS) {
    return invalid("{}: __metadata__ is no object", what);
  }
  for (const auto [key, value] : object) {
    if (!value.is_string()) {
      return invalid("{}: __metadata__: {} is no string", what, shown_name(key));
    }
  }
  return {};
}

// A shard's name is a plain file name: an index must not reach outside its folder.
bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

// The index and a shard must name the same tensors.
Status check_shard(const std::set<std::string>& listed, const std::vector<NamedTensor>& present,
                   std::string_view what) {
  std::set<std::string_view> names;
  for (const NamedTensor& named : present) {
    names.insert(named.name);
    if (!listed.contains(named.name)) {
      return invalid("{}: holds tensor {}, which the index does not place there", what,
                     shown_name(named.name));
    }
  }
  for (const std::string& name : listed) {
    if (!names.contains(name)) {
      return invalid("{}: the index places tensor {} there, but the file lacks it", what,
                     shown_name(name));
    }
  }
  return {};
}

bool is_present(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

}  // namespace

Result<std::vector<NamedTensor>> parse_safetensors(std::span<const std::byte> file,
                                                   std::string_view what,
                                                   const SafetensorsLimits& limits) {
  if (file.size() < kLengthBytes) {
    return invalid("{}: {} bytes, too short for a safetensors file", what, file.size());
  }
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= std::to_integer<uint64_t>(file[i]) << (8 * i);
  }
  if (header_bytes > limits.max_header_bytes) {
    return invalid("{}: a header of {} bytes, at most {} are accepted (is it a safetensors file?)",
                   what, header_bytes, limits.max_header_bytes);
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return invalid("{}: a header of {} bytes in a file of {} bytes (is the file truncated?)", what,
                   header_bytes, file.size());
  }
  const auto* header = reinterpret_cast<const char*>(file.data() + kLengthBytes);
  const std::span<const std::byte> data = file.subspan(kLengthBytes + header_bytes);

  dom::parser parser;
  dom::object entries;
  const auto error = parser.parse(header, header_bytes).get_object().get(entries);
  if (error != simdjson::SUCCESS) {
    return invalid("{}: the header is no JSON object: {}", what, simdjson::error_message(error));
  }
  std::vector<NamedTensor> tensors;
  std::unordered_set<std::string_view> seen;
  for (const auto [name, value] : entries) {
    if (name.size() > limits.max_name_bytes) {
      return invalid("{}: a tensor name of {} bytes, at most {} are accepted", what, name.size(),
                     limits.max_name_bytes);
    }
    if (!seen.insert(name).second) return invalid("{}: {} is given twice", what, shown_name(name));
    if (name == "__metadata__") {
      VOLLEY_TRY_STATUS(check_metadata(value, what));
      continue;
    }
    VOLLEY_TRY(const Entry entry, read_fields(value, what, name));
    VOLLEY_TRY(const HostTensor tensor, read_tensor(entry, data, what, name));
    tensors.push_back({std::string(name), tensor});
  }
  VOLLEY_TRY_STATUS(check_tiling(tensors, data, what));
  return tensors;
}

Result<ShardMap> parse_safetensors_index(std::string_view text, std::string_view what,
                                         const SafetensorsLimits& limits) {
  dom::parser parser;
  dom::object weight_map;
  const auto error = parser.parse(text.data(), text.size())
                         .get_object()["weight_map"]
                         .get_object()
                         .get(weight_map);
  if (error != simdjson::SUCCESS) {
    return invalid("{}: expected a JSON object with weight_map: {}", what,
                   simdjson::error_message(error));
  }
  ShardMap shards;
  std::unordered_set<std::string_view> seen;
  for (const auto [name, value] : weight_map) {
    std::string_view file;
    if (value.get_string().get(file) != simdjson::SUCCESS || !is_plain_file_name(file)) {
      return invalid("{}: tensor {}: expected the name of a file in the same folder", what,
                     shown_name(name));
    }
    if (!seen.insert(name).second) {
      return invalid("{}: tensor {} is listed twice", what, shown_name(name));
    }
    shards[std::string(file)].insert(std::string(name));
    if (shards.size() > limits.max_shards) {
      return invalid("{}: more than {} shards", what, limits.max_shards);
    }
  }
  if (shards.empty()) return invalid("{}: weight_map is empty", what);
  return shards;
}

Result<Checkpoint> Checkpoint::open(const std::filesystem::path& folder,
                                    const SafetensorsLimits& limits) {
  const std::filesystem::path single = folder / "model.safetensors";
  const std::filesystem::path index = folder / "model.safetensors.index.json";
  ShardMap shards;
  // As in Transformers, the single file comes first.
  const bool has_index = !is_present(single) && is_present(index);
  if (has_index) {
    VOLLEY_TRY(const std::string text, read_file(index, limits.max_index_bytes));
    VOLLEY_TRY(shards, parse_safetensors_index(text, index.string(), limits));
  } else if (is_present(single)) {
    shards[single.filename().string()];
  } else {
    return make_error(ErrorKind::kNotFound,
                      "{}: expected model.safetensors or model.safetensors.index.json{}",
                      folder.string(),
                      is_present(folder / "pytorch_model.bin") ||
                              is_present(folder / "pytorch_model.bin.index.json")
                          ? "; pytorch_model.bin is not read, convert it to safetensors"
                          : "");
  }

  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  for (const auto& [file_name, listed] : shards) {
    const std::filesystem::path path = folder / file_name;
    VOLLEY_TRY(MappedFile file, MappedFile::open(path));
    VOLLEY_TRY(const auto tensors, parse_safetensors(file.bytes(), path.string(), limits));
    if (has_index) VOLLEY_TRY_STATUS(check_shard(listed, tensors, path.string()));
    for (const NamedTensor& named : tensors) checkpoint.tensors_[named.name] = named.tensor;
    checkpoint.files_.push_back(std::move(file));
  }
  return checkpoint;
}

const HostTensor* Checkpoint::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::vector<std::string_view> Checkpoint::names() const {
  std::vector<std::string_view> names;
  names.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

int64_t Checkpoint::num_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += tensor.num_bytes();
  return bytes;
}

}  // namespace volley
