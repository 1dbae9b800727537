// volley download: a hub's models into the cache.

#include "app/commands.h"
#include "app/model_folders.h"

namespace volley {

Result<int> run_download(const Options& options, const Hub& hub) {
  for (const std::string& id : options.folders) {
    VOLLEY_TRY(
        const std::filesystem::path folder,
        hub.download(id, options.model.revision, download_line(options.output.quiet, nullptr)));
    fmt::print("{}\n", folder.string());
  }
  return kExitOk;
}

}  // namespace volley
