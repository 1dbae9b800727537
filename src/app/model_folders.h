#pragma once

// From what a model is called on the command line to the folder it lies in: a path, or a hub id.

#include <functional>

#include "app/options.h"
#include "hub/hub.h"

namespace volley {

// The value of an environment variable; nullptr when it is not set.
using Environment = std::function<const char*(const char*)>;

// HF_ENDPOINT, HF_TOKEN (else the file HF_TOKEN_PATH, else HF_HOME/token), HF_HUB_OFFLINE, and the
// cache's folder unless `hub_cache` names one.
HubConfig hub_config(const Environment& environment, const std::string& hub_cache);

// Where packed weights are kept: `pack_cache` if it names a folder; else VOLLEY_CACHE/packed,
// XDG_CACHE_HOME/volley/packed or HOME/.cache/volley/packed. Empty where it is "off" or none is
// set.
std::string pack_cache_folder(const Environment& environment, const std::string& pack_cache);

// Puts folders in the place of hub ids, of target and drafter, and of `others`.
Status find_model_folders(const Hub& hub, const HubReport& report, ModelOptions& model,
                          std::vector<std::string>& others);

// Shows a download as one line on stderr. Goes on while `go_on` says so.
HubReport download_line(bool quiet, std::function<bool()> go_on);

}  // namespace volley
