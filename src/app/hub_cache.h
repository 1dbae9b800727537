#pragma once

// Models by their hub id, in the cache that Hugging Face's tools share:
// CACHE/models--org--name/{refs/REVISION, snapshots/COMMIT/...}.

#include <filesystem>
#include <string>

#include "base/result.h"

namespace volley {

struct HubCache {
  std::filesystem::path folder;
  std::string revision = "main";  // a branch, a tag or a commit

  // The folder of `model`: a path, or an id such as "org/name" (or "name") in the cache. kNotFound
  // says where it was looked for and how to get it.
  Result<std::filesystem::path> find(const std::string& model) const;
};

// HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub; null: not set.
std::filesystem::path hub_cache_folder(const char* hf_hub_cache, const char* hf_home,
                                       const char* home);

}  // namespace volley
