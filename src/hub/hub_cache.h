#pragma once

// The cache that Hugging Face's tools share (https://huggingface.co/docs/hub/local-cache):
//
//   CACHE/models--org--name/blobs/HASH             the bytes, named by their hash
//                           snapshots/COMMIT/FILE  a link to a blob
//                           refs/main              the commit that the branch was at
//   CACHE/.locks/models--org--name/HASH.lock       held while a blob is written

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley {

// HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub; null: not set.
std::filesystem::path hub_cache_folder(const char* hf_hub_cache, const char* hf_home,
                                       const char* home);

// "org/name" or "name", as the hub allows them.
bool is_hub_id(std::string_view text);
// A branch, a tag, a commit; it becomes part of a path, which it cannot leave.
bool is_hub_revision(std::string_view text);
// 40 lower-case hex digits.
bool is_commit(std::string_view text);
// A path below its folder, '/' between its parts, none of them empty, "." or "..".
bool is_safe_file_name(std::string_view name);

// One model's part of the cache. Paths only; nothing need exist.
struct HubRepository {
  std::filesystem::path folder;
  std::filesystem::path locks;

  HubRepository(const std::filesystem::path& cache, std::string_view id);
  std::filesystem::path blob(std::string_view hash) const { return folder / "blobs" / hash; }
  std::filesystem::path snapshot(std::string_view commit) const {
    return folder / "snapshots" / commit;
  }
  std::filesystem::path ref(std::string_view revision) const { return folder / "refs" / revision; }

  // The commit that `revision` was at when it was last asked for, or the commit it is; empty when
  // the cache knows none.
  std::string cached_commit(const std::string& revision) const;
};

// What a model folder lacks of config.json, its weights and, where asked for, tokenizer.json.
std::vector<std::string> missing_files(const std::filesystem::path& folder, bool with_tokenizer);

// The files that the index of a sharded checkpoint names, each once. Errors: no such index, or a
// name that leaves the folder.
Result<std::vector<std::string>> shard_names(const std::filesystem::path& index_file);

}  // namespace volley
