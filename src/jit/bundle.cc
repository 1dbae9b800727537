#include "jit/bundle.h"

#include <algorithm>
#include <cstring>

#include "jit/little_endian.h"

namespace volley::jit {
namespace {

constexpr std::string_view kMagic = "VLYBNDL1";
constexpr size_t kHeaderBytes = 56;
constexpr size_t kEntryBytes = 96;
constexpr uint32_t kMaxEntries = 100'000;
constexpr uint32_t kMaxInfoBytes = 16U << 20;
constexpr size_t kMaxNameBytes = 1024;

Sha256Digest digest_at(std::string_view bytes, size_t offset) {
  Sha256Digest digest;
  std::memcpy(digest.data(), bytes.data() + offset, digest.size());
  return digest;
}

std::string_view chars(const Sha256Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

}  // namespace

Result<std::string> make_bundle(std::vector<BundleEntry> entries, const BundleInfo& info) {
  if (entries.size() > kMaxEntries) {
    return make_error(ErrorKind::kExhausted, "{} kernels, a bundle holds {}", entries.size(),
                      kMaxEntries);
  }
  std::sort(entries.begin(), entries.end(),
            [](const BundleEntry& a, const BundleEntry& b) { return a.key < b.key; });
  std::string names;
  for (const std::string* text : {&info.arch, &info.compiler}) {
    if (text->find('\n') != std::string::npos) return invalid("bundle info with a line break");
  }
  names += "arch=" + info.arch + "\ncompiler=" + info.compiler + "\n";
  std::vector<size_t> name_offsets;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i > 0 && entries[i].key == entries[i - 1].key) {
      return invalid("two kernels of one key: {} and {}", entries[i - 1].name, entries[i].name);
    }
    if (entries[i].name.size() > kMaxNameBytes) {
      return invalid("a kernel's name of {} bytes, at most {}", entries[i].name.size(),
                     kMaxNameBytes);
    }
    name_offsets.push_back(names.size());
    names += entries[i].name;
  }
  if (names.size() > kMaxInfoBytes) {
    return make_error(ErrorKind::kExhausted, "{} bytes of names, a bundle holds {}", names.size(),
                      kMaxInfoBytes);
  }
  std::string index;
  uint64_t offset = kHeaderBytes + entries.size() * kEntryBytes + names.size();
  for (size_t i = 0; i < entries.size(); ++i) {
    index += chars(entries[i].key);
    index += chars(sha256(entries[i].cubin));
    append_u64(index, offset);
    append_u64(index, entries[i].cubin.size());
    append_u32(index, static_cast<uint32_t>(name_offsets[i]));
    append_u32(index, static_cast<uint32_t>(entries[i].name.size()));
    append_u64(index, 0);
    offset += entries[i].cubin.size();
  }
  index += names;
  std::string bundle(kMagic);
  append_u32(bundle, static_cast<uint32_t>(entries.size()));
  append_u32(bundle, static_cast<uint32_t>(names.size()));
  append_u64(bundle, offset);
  bundle += chars(sha256(index));
  bundle += index;
  for (const BundleEntry& entry : entries) bundle += entry.cubin;
  return bundle;
}

Result<Bundle> Bundle::open(const std::filesystem::path& path) {
  VOLLEY_TRY(MappedFile file, MappedFile::open(path));
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()),
                               file.bytes().size());
  VOLLEY_TRY(Bundle bundle, parse(bytes, path.string()));
  bundle.file_ = std::move(file);
  return bundle;
}

Result<Bundle> Bundle::parse(std::string_view bytes, std::string_view what) {
  if (bytes.size() < kHeaderBytes || !bytes.starts_with(kMagic)) {
    return invalid("{}: expected a kernel bundle", what);
  }
  const uint32_t num_entries = read_u32(bytes, 8);
  const uint32_t info_bytes = read_u32(bytes, 12);
  if (read_u64(bytes, 16) != bytes.size()) {
    return invalid("{}: expected {} bytes, got {}: a bundle cut short?", what, read_u64(bytes, 16),
                   bytes.size());
  }
  if (num_entries > kMaxEntries || info_bytes > kMaxInfoBytes) {
    return invalid("{}: {} kernels and {} bytes of names are more than a bundle holds", what,
                   num_entries, info_bytes);
  }
  const size_t names_offset = kHeaderBytes + num_entries * kEntryBytes;
  const size_t index_bytes = num_entries * kEntryBytes + info_bytes;
  if (index_bytes > bytes.size() - kHeaderBytes) {
    return invalid("{}: the index of {} bytes leaves the file", what, index_bytes);
  }
  if (sha256(bytes.substr(kHeaderBytes, index_bytes)) != digest_at(bytes, 24)) {
    return invalid("{}: the index is damaged: its checksum differs", what);
  }
  Bundle bundle;
  bundle.what_ = what;
  bundle.bytes_ = bytes;
  bundle.num_entries_ = num_entries;
  bundle.names_offset_ = names_offset;
  bundle.names_bytes_ = info_bytes;
  for (size_t i = 0; i < num_entries; ++i) {
    const size_t entry = kHeaderBytes + i * kEntryBytes;
    const uint64_t offset = read_u64(bytes, entry + 64), size = read_u64(bytes, entry + 72);
    if (offset < kHeaderBytes + index_bytes || offset > bytes.size() ||
        size > bytes.size() - offset) {
      return invalid("{}: kernel {} of {} bytes at {} leaves the file", what, i, size, offset);
    }
    const uint64_t name_offset = read_u32(bytes, entry + 80);
    const uint64_t name_bytes = read_u32(bytes, entry + 84);
    if (name_bytes > kMaxNameBytes || name_offset + name_bytes > info_bytes) {
      return invalid("{}: the name of kernel {} leaves the file", what, i);
    }
    if (i > 0 && !(bundle.key_at(i - 1) < bundle.key_at(i))) {
      return invalid("{}: the keys are not in order at kernel {}", what, i);
    }
  }
  std::string_view info = bytes.substr(names_offset, info_bytes);
  for (std::string* field : {&bundle.info_.arch, &bundle.info_.compiler}) {
    const std::string_view line = info.substr(0, info.find('\n'));
    if (line.size() == info.size()) return invalid("{}: no arch and compiler in its info", what);
    *field = line.substr(std::min(line.find('=') + 1, line.size()));
    info.remove_prefix(line.size() + 1);
  }
  return bundle;
}

KernelKey Bundle::key_at(size_t index) const {
  return digest_at(bytes_, kHeaderBytes + index * kEntryBytes);
}

std::string_view Bundle::name(size_t index) const {
  const size_t entry = kHeaderBytes + index * kEntryBytes;
  return bytes_.substr(names_offset_ + read_u32(bytes_, entry + 80), read_u32(bytes_, entry + 84));
}

Result<std::optional<std::string>> Bundle::find(const KernelKey& key) const {
  size_t low = 0, high = num_entries_;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (key_at(middle) < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == num_entries_ || key_at(low) != key) return std::nullopt;
  const size_t entry = kHeaderBytes + low * kEntryBytes;
  const std::string_view cubin =
      bytes_.substr(read_u64(bytes_, entry + 64), read_u64(bytes_, entry + 72));
  if (sha256(cubin) != digest_at(bytes_, entry + 32)) {
    return invalid("{}: kernel {} is damaged: its checksum differs", what_, name(low));
  }
  return std::string(cubin);
}

}  // namespace volley::jit
