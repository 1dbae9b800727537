#pragma once

// Models by their hub id: from the cache where they are whole, else downloaded into it. The hub's
// listing of a revision names every file with its size and hash; what arrives must agree.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "hub/hub_cache.h"

namespace volley {

struct HubConfig {
  std::filesystem::path cache;
  std::string endpoint = "https://huggingface.co";
  std::string
      token;  // empty: anonymous. Goes to the endpoint alone, over TLS or within the machine
  bool offline = false;      // never ask the hub
  int max_attempts = 5;      // of a file, in a row without progress
  double retry_pause_s = 1;  // doubles from one to the next
};

// How far a download is; also told while it waits or checks.
struct HubProgress {
  std::string what;        // "model.safetensors", or what is waited for
  int64_t done_bytes = 0;  // of all files
  int64_t total_bytes = 0;
};
// False ends the download; what has arrived is kept for the next one.
using HubReport = std::function<bool(const HubProgress&)>;

// One file of a listing.
struct HubFile {
  std::string name;
  int64_t num_bytes = 0;
  std::string hash;        // lower-case hex
  bool is_sha256 = false;  // of the bytes; otherwise git's blob id
};

struct HubListing {
  std::string commit;
  std::vector<HubFile> files;
};

// The hub's answer to /api/models/ID/revision/REV?blobs=true. Errors: what it lacks; any file name
// that leaves its folder.
Result<HubListing> parse_hub_listing(std::string_view text);

// Whether Volley reads a file of that name: *.json, *.jinja, *.safetensors and the tokenizer's, at
// the top of a repository.
bool is_model_file(std::string_view name);

class Hub {
 public:
  explicit Hub(HubConfig config) : config_(std::move(config)) {}

  // The folder of `model`: a path as it is; a hub id from the cache if it is whole there, without
  // asking anyone; else downloaded. `with_tokenizer`: a target, whose tokenizer.json must be there.
  // Errors say what was looked for where, and what to do.
  Result<std::filesystem::path> folder_of(const std::string& model, const std::string& revision,
                                          bool with_tokenizer, const HubReport& report) const;

  // Asks the hub for the present commit of `revision` and downloads what the cache lacks of it.
  Result<std::filesystem::path> download(const std::string& id, const std::string& revision,
                                         const HubReport& report) const;

 private:
  HubConfig config_;
};

}  // namespace volley
