#include "hub/hub.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/sha256.h"
#include "hub/http_get.h"
#include "hub/sha1.h"

namespace volley {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxListingBytes = size_t{32} << 20;
constexpr size_t kMaxFiles = 10'000;
constexpr int64_t kMaxFileBytes = int64_t{1} << 44;
constexpr int64_t kMaxTextBytes = int64_t{256} << 20;  // what is no safetensors file is read whole
constexpr int64_t kProgressBytes = 1 << 20;  // an attempt that brought so much counts as none
constexpr double kMaxPauseS = 60;

bool is_hex(std::string_view text, size_t num_digits) {
  return text.size() == num_digits && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// Owns a descriptor.
class File {
 public:
  explicit File(int fd) : fd_(fd) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int operator*() const { return fd_; }

 private:
  int fd_;
};

tl::unexpected<Error> io_error(const fs::path& path, const char* what) {
  return make_error(ErrorKind::kIo, "{}: {}: {}", path.string(), what, std::strerror(errno));
}

tl::unexpected<Error> stopped() {
  return make_error(
      ErrorKind::kIo,
      "the download was stopped; what has arrived is kept, the next one goes on there");
}

// The hash of a file that arrives piece by piece.
class FileHash {
 public:
  FileHash(bool is_sha256, int64_t num_bytes) : is_sha256_(is_sha256), num_bytes_(num_bytes) {
    reset();
  }
  void reset() {
    sha256_ = {};
    sha1_ = {};
    if (is_sha256_) return;
    const std::string head = fmt::format("blob {}", num_bytes_);  // and its terminating zero
    sha1_.update({head.c_str(), head.size() + 1});
  }
  void update(std::span<const std::byte> bytes) {
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    is_sha256_ ? sha256_.update(text) : sha1_.update(text);
  }
  std::string hex() { return is_sha256_ ? to_hex(sha256_.finish()) : sha1_.hex(); }

 private:
  bool is_sha256_;
  int64_t num_bytes_;
  Sha256 sha256_;
  Sha1 sha1_;
};

// Held while a blob is written; the same file and the same lock as Hugging Face's tools.
Result<std::unique_ptr<File>> lock_blob(const HubRepository& repository, const HubFile& file,
                                        const std::function<bool(std::string)>& waiting) {
  std::error_code failed;
  fs::create_directories(repository.locks, failed);
  const fs::path path = repository.locks / (file.hash + ".lock");
  auto lock = std::make_unique<File>(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (**lock < 0) return io_error(path, "cannot create");
  while (::flock(**lock, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return io_error(path, "cannot lock");
    if (!waiting(fmt::format("{}, which another process downloads", file.name))) return stopped();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return lock;
}

// One download: what its steps share.
class Download {
 public:
  Download(const HubConfig& config, const std::string& id, const std::string& revision,
           const HubReport& report)
      : config_(config),
        id_(id),
        revision_(revision),
        repository_(config.cache, id),
        report_(report) {}

  Result<fs::path> run();

 private:
  Result<HubListing> list();
  Result<std::vector<HubFile>> weights_of(const HubListing& listing, const fs::path& snapshot);
  Status check_space(const std::vector<HubFile>& files);
  Status take(const HubFile& file, const fs::path& snapshot);
  Status fetch_blob(const HubFile& file);
  Result<int64_t> hash_what_is_there(int fd, const HubFile& file, FileHash& hash);
  Status fetch_rest(int fd, int64_t have, const HubFile& file, FileHash& hash, int64_t done_before);
  Status link(const HubFile& file, const fs::path& snapshot);

  bool tell(const std::string& what) const {
    return !report_ || report_({what, done_bytes_, total_bytes_});
  }
  Status pause(double seconds, const std::string& what) const;
  std::string model_url() const;
  tl::unexpected<Error> http_error(int status, const std::string& what) const;

  const HubConfig& config_;
  const std::string& id_;
  const std::string& revision_;
  const HubRepository repository_;
  const HubReport& report_;
  HttpGetter getter_;
  std::string commit_;
  int64_t done_bytes_ = 0;
  int64_t total_bytes_ = 0;
};

std::string Download::model_url() const {
  const size_t slash = id_.find('/');
  if (slash == std::string::npos) return url_segment(id_);
  return url_segment(id_.substr(0, slash)) + "/" + url_segment(id_.substr(slash + 1));
}

Status Download::pause(double seconds, const std::string& what) const {
  for (double left_s = std::min(seconds, kMaxPauseS); left_s > 0; left_s -= 0.1) {
    if (!tell(what)) return stopped();
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(left_s, 0.1)));
  }
  return {};
}

tl::unexpected<Error> Download::http_error(int status, const std::string& what) const {
  if (status == 401 || status == 403) {
    return make_error(
        ErrorKind::kNotFound,
        "'{}' is no folder here, and {} answers {} to {} of it: there is no such model, "
        "or it asks for {}. Private and gated models need HF_TOKEN, and their licence "
        "accepted at {}/{}",
        id_, config_.endpoint, status, what,
        config_.token.empty() ? "a token, and HF_TOKEN is not set" : "more than HF_TOKEN may have",
        config_.endpoint, model_url());
  }
  if (status == 404) {
    return make_error(ErrorKind::kNotFound,
                      "'{}' is no folder here, and {} has no {} of it at revision {}", id_,
                      config_.endpoint, what, revision_);
  }
  return make_error(ErrorKind::kIo, "{} answers {} to {} of {}", config_.endpoint, status, what,
                    id_);
}

bool is_worth_another_try(int status) {
  return status == 408 || status == 429 || status >= 500;
}

Result<HubListing> Download::list() {
  const std::string url = fmt::format("{}/api/models/{}/revision/{}?blobs=true", config_.endpoint,
                                      model_url(), url_segment(revision_));
  double pause_s = config_.retry_pause_s;
  for (int attempt = 1;; ++attempt, pause_s *= 2) {
    std::string text;
    bool too_long = false;
    const GetResult got = getter_.get(
        {.url = url, .token = config_.token},
        [&](const GetHead&, std::span<const std::byte> piece) {
          too_long = text.size() + piece.size() > kMaxListingBytes;
          if (!too_long) text.append(reinterpret_cast<const char*>(piece.data()), piece.size());
          return !too_long;
        },
        [&] { return tell("the list of files"); });
    if (too_long) {
      return invalid("{}: the list of files has more than {} bytes", url, kMaxListingBytes);
    }
    if (got.end == GetEnd::kStopped) return stopped();
    if (got.end == GetEnd::kComplete && got.head.status == 200) return parse_hub_listing(text);
    const bool answered = got.end == GetEnd::kComplete;
    const bool again =
        answered ? is_worth_another_try(got.head.status) : got.end == GetEnd::kBroken;
    if (!again || attempt >= config_.max_attempts) {
      if (answered) return http_error(got.head.status, "the list of files");
      return make_error(
          ErrorKind::kIo,
          "'{}' is no folder here and not whole in the Hugging Face cache ({}), and {} "
          "cannot be reached: {}. Without a network, copy the model's folder to this "
          "machine and name that; HF_ENDPOINT names another hub",
          id_, config_.cache.string(), config_.endpoint, got.why);
    }
    VOLLEY_TRY_STATUS(pause(std::max(pause_s, got.head.retry_after_s), "the list of files"));
  }
}

// Reads what an earlier download left in `fd`. Returns how much of it counts.
Result<int64_t> Download::hash_what_is_there(int fd, const HubFile& file, FileHash& hash) {
  hash.reset();
  struct stat status {};
  if (::fstat(fd, &status) != 0) return io_error(file.name, "cannot read");
  if (status.st_size > file.num_bytes) {
    if (::ftruncate(fd, 0) != 0) return io_error(file.name, "cannot write");
    return 0;
  }
  std::vector<std::byte> buffer(1 << 20);
  int64_t at = 0;
  while (at < status.st_size) {
    const ssize_t n = ::pread(fd, buffer.data(), buffer.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return io_error(file.name, "cannot read");
    if (n == 0) break;
    hash.update(std::span(buffer).first(static_cast<size_t>(n)));
    at += n;
    if (!tell(file.name)) return stopped();
  }
  return at;
}

Status write_at(int fd, std::span<const std::byte> bytes, int64_t at) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return make_error(ErrorKind::kIo, "cannot write: {}", std::strerror(errno));
    bytes = bytes.subspan(static_cast<size_t>(n));
    at += n;
  }
  return {};
}

// Brings `fd`, of which `have` bytes are there and hashed, to the file's full length.
// `done_before`: bytes of the files before it.
Status Download::fetch_rest(int fd, int64_t have, const HubFile& file, FileHash& hash,
                            int64_t done_before) {
  const std::string url = fmt::format("{}/{}/resolve/{}/{}", config_.endpoint, model_url(), commit_,
                                      url_segment(file.name));
  double pause_s = config_.retry_pause_s;
  int attempt = 1;
  while (have < file.num_bytes) {
    const int64_t had = have;
    Status failed;
    bool started = false;
    const auto data = [&](const GetHead& head, std::span<const std::byte> piece) {
      if (!std::exchange(started, true) && head.offset != have) {
        // A server that knows no ranges sends the file from its beginning.
        if (head.offset != 0 || ::ftruncate(fd, 0) != 0) {
          failed = make_error(ErrorKind::kIo, "{}: asked for byte {}, got a body from byte {}", url,
                              have, head.offset);
          return false;
        }
        hash.reset();
        have = 0;
      }
      if (have + static_cast<int64_t>(piece.size()) > file.num_bytes) {
        failed = invalid("{}: more than the {} bytes that the hub lists", url, file.num_bytes);
        return false;
      }
      failed = write_at(fd, piece, have);
      if (!failed) return false;
      hash.update(piece);
      have += static_cast<int64_t>(piece.size());
      done_bytes_ = done_before + have;
      return tell(file.name);
    };
    const GetResult got = getter_.get({.url = url, .token = config_.token, .offset = have}, data,
                                      [&] { return tell(file.name); });
    VOLLEY_TRY_STATUS(failed);
    if (got.end == GetEnd::kStopped) return stopped();
    if (have == file.num_bytes) break;
    const int status = got.head.status;
    const bool ok = status == 200 || status == 206;
    if (got.end == GetEnd::kComplete && status == 416) {  // what is there is not the start of it
      if (::ftruncate(fd, 0) != 0) return io_error(file.name, "cannot write");
      hash.reset();
      have = 0;
    } else if (got.end == GetEnd::kComplete && !ok && !is_worth_another_try(status)) {
      return http_error(status, file.name);
    } else if (got.end == GetEnd::kRefused) {
      return make_error(ErrorKind::kIo, "{}: {}", url, got.why);
    }
    if (have - had >= kProgressBytes) {
      attempt = 0;
      pause_s = config_.retry_pause_s;
    }
    if (++attempt > config_.max_attempts) {
      return make_error(ErrorKind::kIo,
                        "{}: {} of {} bytes came, then: {}. The next download goes on there", url,
                        have, file.num_bytes,
                        got.end == GetEnd::kComplete ? fmt::format("status {}", status) : got.why);
    }
    VOLLEY_TRY_STATUS(pause(std::max(pause_s, got.head.retry_after_s),
                            fmt::format("{}, after a pause", file.name)));
    pause_s *= 2;
  }
  return {};
}

// HASH.incomplete grows, is checked, and becomes the blob.
Status Download::fetch_blob(const HubFile& file) {
  const fs::path blob = repository_.blob(file.hash);
  const fs::path incomplete = blob.string() + ".incomplete";
  const File fd(::open(incomplete.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (*fd < 0) return io_error(incomplete, "cannot create");
  FileHash hash(file.is_sha256, file.num_bytes);
  const int64_t done_before = done_bytes_;
  for (;;) {
    VOLLEY_TRY(const int64_t have, hash_what_is_there(*fd, file, hash));
    done_bytes_ = done_before + have;
    VOLLEY_TRY_STATUS(fetch_rest(*fd, have, file, hash, done_before));
    if (hash.hex() == file.hash) break;
    if (::ftruncate(*fd, 0) != 0) return io_error(incomplete, "cannot write");
    // What an earlier download left may be at fault: once more from the beginning.
    if (have > 0) continue;
    ::unlink(incomplete.c_str());
    return invalid("{} of {}: its {} is not the {} that the hub lists: the download is damaged",
                   file.name, id_, file.is_sha256 ? "SHA-256" : "git hash", file.hash);
  }
  if (::fsync(*fd) != 0) return io_error(incomplete, "cannot write");
  if (::rename(incomplete.c_str(), blob.c_str()) != 0) return io_error(blob, "cannot create");
  return {};
}

// snapshots/COMMIT/NAME -> ../../blobs/HASH. Other processes see the old link or the new one.
Status Download::link(const HubFile& file, const fs::path& snapshot) {
  const fs::path path = snapshot / file.name;
  const fs::path made = snapshot / fmt::format("{}.{}.link", file.name, ::getpid());
  ::unlink(made.c_str());
  if (::symlink(("../../blobs/" + file.hash).c_str(), made.c_str()) != 0) {
    return io_error(made, "cannot link");
  }
  if (::rename(made.c_str(), path.c_str()) != 0) return io_error(path, "cannot link");
  return {};
}

Status Download::take(const HubFile& file, const fs::path& snapshot) {
  std::error_code ignored;
  const fs::path blob = repository_.blob(file.hash);
  const auto is_there = [&] {
    return fs::file_size(blob, ignored) == static_cast<uintmax_t>(file.num_bytes);
  };
  if (!is_there()) {
    VOLLEY_TRY(const std::unique_ptr<File> lock,
               lock_blob(repository_, file, [&](std::string what) { return tell(what); }));
    if (!is_there()) {
      VOLLEY_TRY_STATUS(fetch_blob(file));
    } else {
      done_bytes_ += file.num_bytes;
    }
  }
  return link(file, snapshot);
}

// Of the safetensors files those that will be read: one, or the shards that the index names.
Result<std::vector<HubFile>> Download::weights_of(const HubListing& listing,
                                                  const fs::path& snapshot) {
  const auto find = [&](const std::string& name) {
    return std::find_if(listing.files.begin(), listing.files.end(),
                        [&](const HubFile& file) { return file.name == name; });
  };
  if (const auto single = find("model.safetensors"); single != listing.files.end()) {
    return std::vector<HubFile>{*single};
  }
  if (find("model.safetensors.index.json") == listing.files.end()) {
    return make_error(
        ErrorKind::kUnsupported,
        "'{}' at {} has neither model.safetensors nor its index: Volley reads weights "
        "in safetensors",
        id_, config_.endpoint);
  }
  VOLLEY_TRY(const std::vector<std::string> names,
             shard_names(snapshot / "model.safetensors.index.json"));
  std::vector<HubFile> shards;
  for (const std::string& name : names) {
    const auto shard = find(name);
    if (shard == listing.files.end() || !is_model_file(name)) {
      return invalid("'{}': its index names {}, which the hub does not list", id_, name);
    }
    shards.push_back(*shard);
  }
  return shards;
}

// Counts what is still to come, and whether the disk has room for it.
Status Download::check_space(const std::vector<HubFile>& files) {
  int64_t needed = 0;
  std::error_code ignored;
  for (const HubFile& file : files) {
    const auto size = fs::file_size(repository_.blob(file.hash), ignored);
    if (size == static_cast<uintmax_t>(file.num_bytes)) continue;
    total_bytes_ += file.num_bytes;
    needed += file.num_bytes;
    const auto part = fs::file_size(repository_.blob(file.hash).string() + ".incomplete", ignored);
    if (part != static_cast<uintmax_t>(-1)) needed -= static_cast<int64_t>(part);
  }
  const fs::space_info space = fs::space(repository_.folder, ignored);
  if (!ignored && needed > 0 && static_cast<uintmax_t>(needed) > space.available) {
    return make_error(ErrorKind::kExhausted, "'{}' needs {} MB more in {}, which has {} MB free",
                      id_, needed / 1'000'000, config_.cache.string(), space.available / 1'000'000);
  }
  return {};
}

Result<fs::path> Download::run() {
  VOLLEY_TRY(const HubListing listing, list());
  commit_ = listing.commit;
  const fs::path snapshot = repository_.snapshot(commit_);
  std::error_code failed;
  fs::create_directories(repository_.folder / "blobs", failed);
  if (!failed) fs::create_directories(snapshot, failed);
  if (failed) {
    return make_error(ErrorKind::kIo, "{}: cannot create: {}", snapshot.string(), failed.message());
  }
  const auto has_config = [](const HubFile& file) { return file.name == "config.json"; };
  if (std::none_of(listing.files.begin(), listing.files.end(), has_config)) {
    return make_error(ErrorKind::kUnsupported,
                      "'{}' at {} has no config.json: it is no model folder", id_,
                      config_.endpoint);
  }
  std::vector<HubFile> texts;
  for (const HubFile& file : listing.files) {
    if (!is_model_file(file.name) || file.name.ends_with(".safetensors")) continue;
    if (file.num_bytes > kMaxTextBytes) {
      return invalid("'{}': {} has {} bytes, at most {} are accepted", id_, file.name,
                     file.num_bytes, kMaxTextBytes);
    }
    texts.push_back(file);
  }
  // The index, which says what weights there are, is one of the texts.
  VOLLEY_TRY_STATUS(check_space(texts));
  for (const HubFile& file : texts) VOLLEY_TRY_STATUS(take(file, snapshot));
  VOLLEY_TRY(const std::vector<HubFile> weights, weights_of(listing, snapshot));
  VOLLEY_TRY_STATUS(check_space(weights));
  for (const HubFile& file : weights) VOLLEY_TRY_STATUS(take(file, snapshot));
  if (revision_ != commit_) {
    const fs::path ref = repository_.ref(revision_);
    fs::create_directories(ref.parent_path(), failed);
    VOLLEY_TRY_STATUS(write_file_atomic(ref, commit_));
  }
  log_info("{} at {}: {}", id_, commit_.substr(0, 12), snapshot.string());
  return snapshot;
}

}  // namespace

bool is_model_file(std::string_view name) {
  if (name.find('/') != std::string_view::npos || name.starts_with('.')) return false;
  for (const char* end : {".json", ".jinja", ".safetensors"}) {
    if (name.ends_with(end)) return true;
  }
  return name == "merges.txt" || name == "vocab.txt" || name == "tokenizer.model";
}

Result<HubListing> parse_hub_listing(std::string_view text) {
  const char* what = "the hub's list of files";
  VOLLEY_TRY(const Json json, parse_json(text, what, {.max_bytes = kMaxListingBytes}));
  const auto field = [](const Json& object, const char* name) {
    const auto found = object.is_object() ? object.find(name) : object.end();
    return object.is_object() && found != object.end() ? *found : Json();
  };
  HubListing listing;
  const Json commit = field(json, "sha");
  const Json files = field(json, "siblings");
  if (!commit.is_string() || !is_commit(commit.get_ref<const std::string&>()) ||
      !files.is_array() || files.size() > kMaxFiles) {
    return invalid("{}: expected a commit (\"sha\") and at most {} files (\"siblings\")", what,
                   kMaxFiles);
  }
  listing.commit = commit.get<std::string>();
  for (const Json& entry : files) {
    const Json name = field(entry, "rfilename");
    if (!name.is_string() || !is_safe_file_name(name.get_ref<const std::string&>())) {
      return invalid("{}: a file name that is none: {}", what, dump_json(name).substr(0, 200));
    }
    HubFile file{.name = name.get<std::string>()};
    if (!is_model_file(file.name)) continue;
    const Json large = field(entry, "lfs");
    file.is_sha256 = large.is_object();
    const Json hash = file.is_sha256 ? field(large, "sha256") : field(entry, "blobId");
    Json size = field(file.is_sha256 ? large : entry, "size");
    if (!hash.is_string() ||
        !is_hex(hash.get_ref<const std::string&>(), file.is_sha256 ? 64 : 40) ||
        !size.is_number_unsigned() || size.get<uint64_t>() > static_cast<uint64_t>(kMaxFileBytes)) {
      return invalid("{}: {} has no size and hash to check it by", what, file.name);
    }
    file.hash = hash.get<std::string>();
    file.num_bytes = size.get<int64_t>();
    listing.files.push_back(std::move(file));
  }
  return listing;
}

Result<fs::path> Hub::folder_of(const std::string& model, const std::string& revision,
                                bool with_tokenizer, const HubReport& report) const {
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return fs::path(model);
  if (!is_hub_id(model)) {
    return make_error(ErrorKind::kNotFound,
                      "'{}': expected a model folder, or a hub id such as Qwen/Qwen3-4B", model);
  }
  if (!is_hub_revision(revision)) return invalid("revision '{}': not the name of one", revision);
  const HubRepository repository(config_.cache, model);
  const std::string commit = repository.cached_commit(revision);
  std::string lacks = "not in the Hugging Face cache";
  if (!commit.empty()) {
    const std::vector<std::string> missing =
        missing_files(repository.snapshot(commit), with_tokenizer);
    if (missing.empty()) return repository.snapshot(commit);
    lacks = fmt::format("not whole in the Hugging Face cache (it lacks {}{})", missing[0],
                        missing.size() > 1 ? fmt::format(" and {} more", missing.size() - 1) : "");
  }
  if (config_.offline) {
    return make_error(ErrorKind::kNotFound,
                      "'{}' is no folder here, and revision {} of it is {} ({}); HF_HUB_OFFLINE "
                      "forbids to ask the hub. Where there is a network, `volley download {}` puts "
                      "it there; or copy the model's folder and name that",
                      model, revision, lacks, config_.cache.string(), model);
  }
  return download(model, revision, report);
}

Result<fs::path> Hub::download(const std::string& id, const std::string& revision,
                               const HubReport& report) const {
  if (!is_hub_id(id)) {
    return make_error(ErrorKind::kNotFound, "'{}': expected a hub id such as Qwen/Qwen3-4B", id);
  }
  if (!is_hub_revision(revision)) return invalid("revision '{}': not the name of one", revision);
  if (config_.offline) {
    return make_error(ErrorKind::kNotFound, "'{}': HF_HUB_OFFLINE forbids to ask the hub", id);
  }
  const bool web =
      config_.endpoint.starts_with("https://") || config_.endpoint.starts_with("http://");
  if (!web) return invalid("HF_ENDPOINT: expected https://HOST, got '{}'", config_.endpoint);
  return Download(config_, id, revision, report).run();
}

}  // namespace volley
