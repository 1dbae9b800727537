#include "app/hub_cache.h"

#include <algorithm>
#include <cctype>

#include "base/file.h"

namespace volley {
namespace {

namespace fs = std::filesystem;

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= 96 && text.front() != '.' && text.front() != '-' &&
         text.find("..") == std::string_view::npos && text.find("--") == std::string_view::npos &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

bool is_hub_id(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return is_name(text);
  return is_name(text.substr(0, slash)) && is_name(text.substr(slash + 1));
}

// A revision is part of a path.
bool is_revision(std::string_view text) {
  return !text.empty() && text.size() <= 256 && text.front() != '/' &&
         text.find("..") == std::string_view::npos &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/';
         });
}

}  // namespace

fs::path hub_cache_folder(const char* hf_hub_cache, const char* hf_home, const char* home) {
  if (hf_hub_cache != nullptr && *hf_hub_cache != '\0') return hf_hub_cache;
  if (hf_home != nullptr && *hf_home != '\0') return fs::path(hf_home) / "hub";
  return fs::path(home != nullptr ? home : "") / ".cache" / "huggingface" / "hub";
}

Result<fs::path> HubCache::find(const std::string& model) const {
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return fs::path(model);
  if (!is_hub_id(model)) {
    return make_error(ErrorKind::kNotFound,
                      "'{}': expected a model folder, or a hub id such as Qwen/Qwen3-4B", model);
  }
  if (!is_revision(revision)) return invalid("revision '{}': not the name of one", revision);
  std::string name = "models--" + model;
  if (const size_t slash = name.find('/'); slash != std::string::npos) name.replace(slash, 1, "--");
  const fs::path repository = folder / name;
  std::string commit = revision;
  if (const auto ref = read_file(repository / "refs" / revision, 4096)) {
    commit = *ref;
    while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back()))) {
      commit.pop_back();
    }
  }
  const fs::path snapshot = repository / "snapshots" / commit;
  if (is_revision(commit) && fs::is_directory(snapshot, ignored)) return snapshot;
  return make_error(
      ErrorKind::kNotFound,
      "'{}' is no folder here, and revision {} of it is not in the Hugging Face cache ({}). Where "
      "there is a network, `hf download {}` puts it there; or copy the model's folder and name "
      "that",
      model, revision, folder.string(), model);
}

}  // namespace volley
