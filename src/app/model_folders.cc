#include "app/model_folders.h"

#include <cctype>

#include "app/machine.h"
#include "app/progress.h"
#include "base/clock.h"
#include "base/file.h"

namespace volley {
namespace {

constexpr size_t kMaxTokenBytes = 4096;

std::string value_of(const Environment& environment, const char* name) {
  const char* value = environment(name);
  return value != nullptr ? value : "";
}

bool is_on(std::string value) {
  for (char& c : value) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return value == "1" || value == "TRUE" || value == "YES" || value == "ON";
}

std::string trimmed(std::string text) {
  const char* space = " \t\r\n";
  text.erase(0, std::min(text.find_first_not_of(space), text.size()));
  text.resize(text.find_last_not_of(space) + 1);
  return text;
}

}  // namespace

HubConfig hub_config(const Environment& environment, const std::string& hub_cache) {
  HubConfig config;
  config.cache = hub_cache.empty() ? hub_cache_folder(environment("HF_HUB_CACHE"),
                                                      environment("HF_HOME"), environment("HOME"))
                                   : std::filesystem::path(hub_cache);
  if (const std::string endpoint = value_of(environment, "HF_ENDPOINT"); !endpoint.empty()) {
    config.endpoint = endpoint;
    while (config.endpoint.ends_with('/')) config.endpoint.pop_back();
  }
  config.offline = is_on(value_of(environment, "HF_HUB_OFFLINE"));
  config.token = trimmed(value_of(environment, "HF_TOKEN"));
  if (config.token.empty()) {
    std::filesystem::path file = value_of(environment, "HF_TOKEN_PATH");
    if (file.empty()) {
      const std::string home = value_of(environment, "HF_HOME");
      file = home.empty() ? std::filesystem::path(value_of(environment, "HOME")) / ".cache" /
                                "huggingface" / "token"
                          : std::filesystem::path(home) / "token";
    }
    config.token = trimmed(read_file(file, kMaxTokenBytes).value_or(""));
  }
  return config;
}

std::string pack_cache_folder(const Environment& environment, const std::string& pack_cache) {
  if (pack_cache == "off") return "";
  if (!pack_cache.empty()) return pack_cache;
  const auto below = [&](const char* name, const char* path) -> std::string {
    const std::string folder = value_of(environment, name);
    // The XDG base directory specification: paths that are not absolute are ignored.
    return folder.starts_with('/') ? folder + path : "";
  };
  for (const auto& [name, path] :
       {std::pair{"VOLLEY_CACHE", "/packed"}, std::pair{"XDG_CACHE_HOME", "/volley/packed"},
        std::pair{"HOME", "/.cache/volley/packed"}}) {
    if (std::string folder = below(name, path); !folder.empty()) return folder;
  }
  return "";
}

Status find_model_folders(const Hub& hub, const HubReport& report, ModelOptions& model,
                          std::vector<std::string>& others) {
  const auto find = [&](std::string& name, const std::string& revision,
                        bool with_tokenizer) -> Status {
    if (name.empty()) return {};
    VOLLEY_TRY(const std::filesystem::path folder,
               hub.folder_of(name, revision, with_tokenizer, report));
    name = folder.string();
    return {};
  };
  VOLLEY_TRY_STATUS(find(model.target, model.revision, /*with_tokenizer=*/true));
  VOLLEY_TRY_STATUS(find(model.draft, model.draft_revision, /*with_tokenizer=*/false));
  for (std::string& folder : others) {
    VOLLEY_TRY_STATUS(find(folder, model.revision, /*with_tokenizer=*/false));
  }
  return {};
}

HubReport download_line(bool quiet, std::function<bool()> go_on) {
  struct Line {
    explicit Line(bool is_quiet)
        : progress(terminal_state().err_is_terminal, is_quiet, terminal_state().num_columns) {}
    Progress progress;
    double start_s = now_s();
    int64_t start_bytes = -1;
  };
  auto line = std::make_shared<Line>(quiet);
  return [line, go_on = std::move(go_on)](const HubProgress& now) {
    if (line->start_bytes < 0) line->start_bytes = now.done_bytes;
    const double elapsed_s = now_s() - line->start_s;
    const auto came = static_cast<double>(now.done_bytes - line->start_bytes);
    const double mb_per_s = elapsed_s > 0 ? 1e-6 * came / elapsed_s : 0;
    if (now.total_bytes > 0) {
      line->progress.show(fmt::format("downloading {}: {:.1f} of {:.1f} MB, {:.1f} MB/s", now.what,
                                      1e-6 * static_cast<double>(now.done_bytes),
                                      1e-6 * static_cast<double>(now.total_bytes), mb_per_s));
    }
    if (now.total_bytes > 0 && now.done_bytes == now.total_bytes) line->progress.clear();
    return !go_on || go_on();
  };
}

}  // namespace volley
