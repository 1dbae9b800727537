#include "ops/cpu/pack_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/file.h"

namespace volley::cpu {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kMagic = "VLYPACK1";
// Counts up with every change of a layout in kernels.h or of a quantiser: files of before are
// misses.
constexpr uint64_t kVersion = 3;
constexpr std::string_view kExtension = ".panels";

void append(std::string& out, uint64_t value) {
  for (int i = 0; i < 8; ++i) out += static_cast<char>(value >> (8 * i));
}
uint64_t read(std::span<const std::byte> bytes, size_t offset) {
  uint64_t value = 0;
  for (size_t i = 0; i < 8; ++i) value |= std::to_integer<uint64_t>(bytes[offset + i]) << (8 * i);
  return value;
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
std::span<const std::byte> bytes_of(const PackedPanels& packed) {
  return {reinterpret_cast<const std::byte*>(packed.panels()),
          static_cast<size_t>(packed.num_bytes())};
}

constexpr size_t kHashOffset = PackHeader::kBytes - 16;

}  // namespace

std::string pack_header_text(const PackHeader& header) {
  std::string text(kMagic);
  for (const uint64_t field :
       {kVersion, header.key.source.low, header.key.source.high,
        static_cast<uint64_t>(header.format), static_cast<uint64_t>(header.layout),
        static_cast<uint64_t>(header.num_panels), static_cast<uint64_t>(header.panel_bytes),
        header.panels.low, header.panels.high})
    append(text, field);
  text.resize(kHashOffset, '\0');
  const ContentHash hash = content_hash(bytes_of(text));
  append(text, hash.low);
  append(text, hash.high);
  return text;
}

Result<PackHeader> parse_pack_header(std::span<const std::byte> start, size_t file_bytes) {
  if (start.size() < PackHeader::kBytes || file_bytes < PackHeader::kPanelsOffset)
    return invalid("{} bytes: too short for packed weights", file_bytes);
  start = start.first(PackHeader::kBytes);
  if (std::memcmp(start.data(), kMagic.data(), kMagic.size()) != 0)
    return invalid("not packed weights: it begins otherwise");
  if (read(start, 8) != kVersion)
    return invalid("packed weights of version {}, expected {}", read(start, 8), kVersion);
  if (content_hash(start.first(kHashOffset)) !=
      ContentHash{read(start, kHashOffset), read(start, kHashOffset + 8)})
    return invalid("the header's checksum does not fit");
  const uint64_t format = read(start, 32), layout = read(start, 40);
  const uint64_t num_panels = read(start, 48), panel_bytes = read(start, 56);
  if (format == 0 || format > static_cast<uint64_t>(WeightFormat::kInt4) || layout > 1)
    return invalid("weight format {} in layout {}: not one that was packed", format, layout);
  const size_t rest = file_bytes - PackHeader::kPanelsOffset;
  if (panel_bytes == 0 || panel_bytes > rest || num_panels != rest / panel_bytes ||
      rest % panel_bytes != 0)
    return invalid("{} panels of {} bytes in a file of {}", num_panels, panel_bytes, file_bytes);
  return PackHeader{.key = {{read(start, 16), read(start, 24)}},
                    .format = static_cast<WeightFormat>(format),
                    .layout = static_cast<Bf16Layout>(layout),
                    .num_panels = static_cast<int64_t>(num_panels),
                    .panel_bytes = static_cast<int64_t>(panel_bytes),
                    .panels = {read(start, 64), read(start, 72)}};
}

PackKey pack_key(std::span<const HostMatrix> parts, std::string_view kind, WeightFormat format,
                 Bf16Layout layout, ThreadPool& pool) {
  std::string text(kind);
  text += '\0';
  append(text, kVersion);
  append(text, static_cast<uint64_t>(format));
  append(text, static_cast<uint64_t>(layout));
  const auto add = [&](const HostTensor& tensor) {
    append(text, static_cast<uint64_t>(tensor.dtype));
    append(text, static_cast<uint64_t>(tensor.rank));
    for (const int64_t size : tensor.shape) append(text, static_cast<uint64_t>(size));
    const ContentHash hash =
        content_hash({tensor.data, static_cast<size_t>(tensor.num_bytes())}, pool);
    append(text, hash.low);
    append(text, hash.high);
  };
  for (const HostMatrix& part : parts) {
    add(part.weight);
    append(text, part.is_quantized() ? 1 : 0);
    if (part.is_quantized()) add(part.scale_inv);
  }
  return {content_hash(bytes_of(text))};
}

PackCache::PackCache(Options options)
    : options_(std::move(options)), opened_(fs::file_time_type::clock::now()) {}

Result<PackCache> PackCache::open(const Options& options) {
  std::error_code error;
  fs::create_directories(options.dir, error);
  if (error) {
    return make_error(ErrorKind::kIo, "{}: cannot make the cache of packed weights: {}",
                      options.dir.string(), error.message());
  }
  return PackCache(options);
}

fs::path PackCache::path_of(const PackKey& key) const {
  return options_.dir /
         fmt::format("{:016x}{:016x}{}", key.source.high, key.source.low, kExtension);
}

std::optional<PackedPanels> PackCache::find(const PackKey& key, const PackedPanels& wanted,
                                            Bf16Layout layout, ThreadPool& pool) {
  const fs::path path = path_of(key);
  const auto load = [&]() -> Result<PackedPanels> {
    VOLLEY_TRY(const MappedFile file, MappedFile::open(path));
    VOLLEY_TRY(const PackHeader header, parse_pack_header(file.bytes(), file.bytes().size()));
    if (!(header.key == key) || header.format != wanted.format || header.layout != layout ||
        header.num_panels != wanted.num_panels || header.panel_bytes != wanted.panel_bytes)
      return invalid("the panels of another matrix");
    PackedPanels packed;
    packed.format = wanted.format;
    packed.num_panels = wanted.num_panels;
    packed.panel_bytes = wanted.panel_bytes;
    VOLLEY_TRY(packed.data, Buffer::create(packed.num_bytes()));
    const ContentHash found = copy_and_hash(file.bytes().subspan(PackHeader::kPanelsOffset),
                                            reinterpret_cast<std::byte*>(packed.data.data()), pool);
    if (found != header.panels) return invalid("the panels are not those that were stored");
    return packed;
  };
  auto packed = load();
  if (!packed) {
    ++counts_.misses;
    if (packed.error().kind != ErrorKind::kNotFound) ++counts_.corrupt;
    return std::nullopt;
  }
  ++counts_.hits;
  std::error_code error;
  fs::last_write_time(path, fs::file_time_type::clock::now(), error);  // was used
  return std::move(*packed);
}

void PackCache::store(const PackKey& key, const PackedPanels& packed, Bf16Layout layout,
                      ThreadPool& pool) {
  if (const Status written = write(key, packed, layout, pool); written)
    ++counts_.stored;
  else if (counts_.store_error.empty())
    counts_.store_error = written.error().message;
}

Status PackCache::write(const PackKey& key, const PackedPanels& packed, Bf16Layout layout,
                        ThreadPool& pool) {
  const int64_t needed = packed.num_bytes() + static_cast<int64_t>(PackHeader::kPanelsOffset);
  std::error_code error;
  const fs::space_info space = fs::space(options_.dir, error);
  // What else writes there wants room as well.
  if (!error && space.available < 2 * static_cast<uint64_t>(needed) + (uint64_t{1} << 30))
    return make_error(ErrorKind::kExhausted, "{}: {} bytes are free", options_.dir.string(),
                      space.available);
  // Files used before this cache was opened may go.
  if (!remove_oldest_files(options_.dir, kExtension, needed, options_.max_bytes, opened_))
    return make_error(ErrorKind::kExhausted, "{}: this model needs more than the {} bytes allowed",
                      options_.dir.string(), options_.max_bytes);
  std::string start = pack_header_text({.key = key,
                                        .format = packed.format,
                                        .layout = layout,
                                        .num_panels = packed.num_panels,
                                        .panel_bytes = packed.panel_bytes,
                                        .panels = content_hash(bytes_of(packed), pool)});
  start.resize(PackHeader::kPanelsOffset, '\0');
  const std::string_view parts[] = {start,
                                    {packed.panels(), static_cast<size_t>(packed.num_bytes())}};
  return write_file_atomic(path_of(key), parts);
}

}  // namespace volley::cpu
