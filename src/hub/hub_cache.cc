#include "hub/hub_cache.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "base/file.h"
#include "base/json.h"

namespace volley {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxPartBytes = 255;
constexpr size_t kMaxIndexBytes = size_t{256} << 20;

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 96 && text.front() != '.' && text.front() != '-' &&
         text.find("..") == std::string_view::npos && text.find("--") == std::string_view::npos &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

std::string folder_name(std::string_view id) {
  std::string name = "models--" + std::string(id);
  if (const size_t slash = name.find('/'); slash != std::string::npos) name.replace(slash, 1, "--");
  return name;
}

}  // namespace

fs::path hub_cache_folder(const char* hf_hub_cache, const char* hf_home, const char* home) {
  if (hf_hub_cache != nullptr && *hf_hub_cache != '\0') return hf_hub_cache;
  if (hf_home != nullptr && *hf_home != '\0') return fs::path(hf_home) / "hub";
  return fs::path(home != nullptr ? home : "") / ".cache" / "huggingface" / "hub";
}

bool is_hub_id(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return is_name(text);
  return is_name(text.substr(0, slash)) && is_name(text.substr(slash + 1));
}

bool is_hub_revision(std::string_view text) {
  return text.size() <= kMaxPartBytes && is_safe_file_name(text) &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
         });
}

bool is_commit(std::string_view text) {
  return text.size() == 40 && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

bool is_safe_file_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes) return false;
  const auto is_odd = [](unsigned char c) { return c < 0x20 || c == 0x7f || c == '\\'; };
  if (std::any_of(name.begin(), name.end(), is_odd)) return false;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    const std::string_view part = name.substr(at, end - at);
    if (part.empty() || part == "." || part == ".." || part.size() > kMaxPartBytes) return false;
    at = end + 1;
  }
  return true;
}

HubRepository::HubRepository(const fs::path& cache, std::string_view id)
    : folder(cache / folder_name(id)), locks(cache / ".locks" / folder_name(id)) {}

std::string HubRepository::cached_commit(const std::string& revision) const {
  std::string commit = revision;
  if (const auto text = read_file(ref(revision), 4096)) {
    commit = *text;
    while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back()))) {
      commit.pop_back();
    }
  }
  std::error_code ignored;
  const bool known = is_safe_file_name(commit) && fs::is_directory(snapshot(commit), ignored);
  return known ? commit : std::string();
}

std::vector<std::string> missing_files(const fs::path& folder, bool with_tokenizer) {
  std::error_code ignored;
  std::vector<std::string> missing;
  const auto need = [&](const std::string& name) {
    // Through the link: an interrupted clean-up leaves links without blobs.
    if (!fs::is_regular_file(folder / name, ignored)) missing.push_back(name);
  };
  need("config.json");
  if (with_tokenizer) need("tokenizer.json");
  const fs::path index = folder / "model.safetensors.index.json";
  if (fs::exists(folder / "model.safetensors", ignored) || !fs::exists(index, ignored)) {
    need("model.safetensors");
  } else if (const auto shards = shard_names(index)) {
    for (const std::string& name : *shards) need(name);
  } else {
    missing.push_back("model.safetensors.index.json");
  }
  return missing;
}

Result<std::vector<std::string>> shard_names(const fs::path& index_file) {
  VOLLEY_TRY(const std::string text, read_file(index_file, kMaxIndexBytes));
  VOLLEY_TRY(const Json index,
             parse_json(text, index_file.string(), {.max_bytes = kMaxIndexBytes}));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return invalid("{}: expected an object with weight_map", index_file.string());
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string() || !is_safe_file_name(file.get_ref<const std::string&>())) {
      return invalid("{}: weight_map of {}: expected a file of this folder, got {}",
                     index_file.string(), tensor.substr(0, 200), dump_json(file).substr(0, 200));
    }
    names.insert(file.get<std::string>());
  }
  return std::vector<std::string>(names.begin(), names.end());
}

}  // namespace volley
