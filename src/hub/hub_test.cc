// The hub's cache and downloads, against a small hub on the loopback that can be told to misbehave.

#include "hub/hub.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "base/file.h"
#include "base/sha256.h"
#include "hub/http_get.h"
#include "hub/sha1.h"

namespace volley {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
namespace fs = std::filesystem;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

std::string sha256_of(std::string_view text) {
  return to_hex(sha256(text));
}

std::string sha1_of(std::string_view text) {
  Sha1 hash;
  hash.update(text);
  return hash.hex();
}

std::string git_hash_of(const std::string& text) {
  std::string blob = fmt::format("blob {}", text.size());
  blob.push_back('\0');
  return sha1_of(blob + text);
}

// One request a connection, each answered by `answer` with bytes as they are.
class FakeHub {
 public:
  struct Request {
    std::string path;
    std::string head;  // all of it
    int64_t from = 0;  // of a Range
  };

  FakeHub() : listener_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_, 16), 0);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
  }
  ~FakeHub() {
    stopping_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }

  std::string url() const { return fmt::format("http://127.0.0.1:{}", port_); }
  std::string id = "org/name";

  // What it has. `large` files are listed by SHA-256, as those in LFS are.
  void add(const std::string& name, const std::string& content, bool large = false) {
    const std::lock_guard lock(mutex_);
    files_[name] = {content, large};
  }
  // Changes what is sent for a file, not what is listed.
  void damage(const std::string& name, const std::string& content) {
    const std::lock_guard lock(mutex_);
    damaged_[name] = content;
  }
  void break_off_after(size_t num_bytes) { break_off_after_ = num_bytes; }
  void ignore_ranges() { ignores_ranges_ = true; }
  void require_token(const std::string& token) { token_ = token; }
  void redirect_large_to(const std::string& url) { redirect_ = url; }
  void answer_first(const std::string& bytes) {
    const std::lock_guard lock(mutex_);
    first_ = bytes;
  }
  void list_instead(const std::string& json) {
    const std::lock_guard lock(mutex_);
    listing_ = json;
  }

  std::vector<Request> requests() const {
    const std::lock_guard lock(mutex_);
    return requests_;
  }
  void forget_requests() {
    const std::lock_guard lock(mutex_);
    requests_.clear();
  }

 private:
  struct File {
    std::string content;
    bool large = false;
  };

  void run() {
    for (;;) {
      const int socket = ::accept(listener_, nullptr, nullptr);
      if (socket < 0 || stopping_) return;
      serve(socket);
      ::close(socket);
    }
  }

  void serve(int socket) {
    std::string head;
    char buffer[4096];
    while (head.find("\r\n\r\n") == std::string::npos) {
      const ssize_t n = ::recv(socket, buffer, sizeof(buffer), 0);
      if (n <= 0) return;
      head.append(buffer, static_cast<size_t>(n));
    }
    Request request{.head = head};
    request.path = head.substr(4, head.find(' ', 4) - 4);
    if (const size_t range = head.find("Range: bytes="); range != std::string::npos) {
      request.from = std::atoll(head.c_str() + range + 13);
    }
    const std::string answer = answer_to(request);
    size_t at = 0;
    while (at < answer.size()) {
      const ssize_t n = ::send(socket, answer.data() + at, answer.size() - at, MSG_NOSIGNAL);
      if (n <= 0) return;
      at += static_cast<size_t>(n);
    }
  }

  static std::string http(int status, const std::string& body, const std::string& headers = "",
                          size_t num_sent = std::string::npos) {
    return fmt::format("HTTP/1.1 {} Word\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
                       status, body.size(), headers) +
           body.substr(0, num_sent);
  }

  std::string answer_to(const Request& request) {
    const std::lock_guard lock(mutex_);
    requests_.push_back(request);
    if (!first_.empty()) return std::exchange(first_, {});
    if (!token_.empty() && request.head.find("Bearer " + token_ + "\r\n") == std::string::npos) {
      return http(401, "who are you?");
    }
    if (request.path == "/api/models/" + id + "/revision/main?blobs=true" ||
        request.path == "/api/models/" + id + "/revision/" + kCommit + "?blobs=true") {
      return http(200, listing_.empty() ? listing() : listing_);
    }
    const std::string start = "/" + id + "/resolve/" + kCommit + "/";
    const auto file =
        files_.find(request.path.starts_with(start) ? request.path.substr(start.size())
                                                    : request.path.substr(1));
    if (file == files_.end()) return http(404, "there is no such thing");
    if (!redirect_.empty() && file->second.large) {
      return http(302, "", "Location: " + redirect_ + "/" + file->first + "\r\n");
    }
    std::string content = file->second.content;
    if (const auto other = damaged_.find(file->first); other != damaged_.end()) {
      content = other->second;
    }
    const size_t cut =
        file->second.large ? break_off_after_.exchange(std::string::npos) : std::string::npos;
    if (request.from == 0 || ignores_ranges_) return http(200, content, "", cut);
    const auto from = static_cast<size_t>(request.from);
    if (from >= content.size()) return http(416, "");
    return http(
        206, content.substr(from),
        fmt::format("Content-Range: bytes {}-{}/{}\r\n", from, content.size() - 1, content.size()),
        cut);
  }

  std::string listing() const {
    Json files = Json::array();
    for (const auto& [name, file] : files_) {
      Json entry{{"rfilename", name}};
      entry["size"] = file.content.size();
      entry["blobId"] = git_hash_of(file.content);
      if (file.large) {
        entry["lfs"] = {{"size", file.content.size()},
                        {"sha256", sha256_of(file.content)},
                        {"pointerSize", 134}};
      }
      files.push_back(std::move(entry));
    }
    return dump_json({{"id", id}, {"sha", kCommit}, {"siblings", std::move(files)}});
  }

  int listener_;
  int port_ = 0;
  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_;
  std::map<std::string, File> files_;
  std::map<std::string, std::string> damaged_;
  std::string first_, listing_, token_, redirect_;
  std::atomic<size_t> break_off_after_ = std::string::npos;
  std::atomic<bool> ignores_ranges_ = false;
  std::vector<Request> requests_;
  std::thread thread_;
};

class HubTest : public testing::Test {
 protected:
  HubTest()
      : cache_(fs::temp_directory_path() / fmt::format("volley_hub_test_{}", ::getpid())),
        repository_(cache_, "org/name") {
    fs::remove_all(cache_);
    fs::create_directories(cache_);
    for (uint32_t i = 0; i < 300'000; ++i) weights_ += static_cast<char>(i * i >> 3);
    hub_.add("config.json", "{}");
    hub_.add("tokenizer.json", R"({"a": 1})");
    hub_.add("chat_template.jinja", "{{ x }}");
    hub_.add("README.md", "not needed");
    hub_.add("onnx/model.json", "not needed either");
    hub_.add("model.safetensors", weights_, /*large=*/true);
  }
  ~HubTest() override { fs::remove_all(cache_); }

  HubConfig config() const {
    return {.cache = cache_, .endpoint = hub_.url(), .retry_pause_s = 0.01};
  }
  Result<fs::path> folder_of(const HubConfig& config, const std::string& model = "org/name",
                             const std::string& revision = "main") {
    return Hub(config).folder_of(model, revision, /*with_tokenizer=*/true,
                                 [this](const HubProgress& now) {
                                   progress_.push_back(now);
                                   return !stop_;
                                 });
  }
  std::string refusal(const HubConfig& config, const std::string& model = "org/name",
                      const std::string& revision = "main") {
    const auto folder = folder_of(config, model, revision);
    EXPECT_FALSE(folder) << *folder;
    return folder ? "" : folder.error().message;
  }
  std::string read(const fs::path& path) { return read_file(path).value_or("(none)"); }
  std::vector<std::string> names_in(const fs::path& folder) {
    std::vector<std::string> names;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  FakeHub hub_;
  fs::path cache_;
  HubRepository repository_;
  std::string weights_;
  std::vector<HubProgress> progress_;
  bool stop_ = false;
};

TEST(Sha1, KnownValues) {
  EXPECT_EQ(sha1_of(""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
  EXPECT_EQ(sha1_of("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
  EXPECT_EQ(sha1_of(std::string(1'000'000, 'a')), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
  EXPECT_EQ(git_hash_of("hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
}

TEST(HubNames, WhatMayBecomeAPath) {
  for (const char* id : {"org/name", "gpt2", "Qwen/Qwen3-4B", "a.b/c_d"})
    EXPECT_TRUE(is_hub_id(id));
  for (const char* id :
       {"../x", "org/../name", "a/b/c", "", "/nowhere", "org/", ".x/y", "a--b/c"}) {
    EXPECT_FALSE(is_hub_id(id)) << id;
  }
  for (const char* name : {"a", "a/b.json", "..a", "a..b"}) EXPECT_TRUE(is_safe_file_name(name));
  for (const char* name : {"", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\\b", "a\nb"}) {
    EXPECT_FALSE(is_safe_file_name(name)) << name;
  }
  EXPECT_TRUE(is_hub_revision("refs/pr/1"));
  for (const char* name : {"../../x", "/etc", "a b", ""}) EXPECT_FALSE(is_hub_revision(name));
  EXPECT_EQ(url_segment("a b/c%"), "a%20b%2Fc%25");
  EXPECT_EQ(hub_cache_folder("/c", "/h", "/u"), "/c");
  EXPECT_EQ(hub_cache_folder(nullptr, "/h", "/u"), "/h/hub");
  EXPECT_EQ(hub_cache_folder(nullptr, "", "/u"), "/u/.cache/huggingface/hub");
}

TEST_F(HubTest, DownloadsWhatVolleyReadsIntoTheSharedLayout) {
  const fs::path folder = *folder_of(config());
  EXPECT_EQ(folder, cache_ / "models--org--name" / "snapshots" / kCommit);
  EXPECT_THAT(names_in(folder), ElementsAre("chat_template.jinja", "config.json",
                                            "model.safetensors", "tokenizer.json"));
  EXPECT_EQ(read(folder / "model.safetensors"), weights_);
  EXPECT_EQ(read(folder / "config.json"), "{}");
  EXPECT_EQ(fs::read_symlink(folder / "model.safetensors"), "../../blobs/" + sha256_of(weights_));
  EXPECT_EQ(fs::read_symlink(folder / "config.json"), "../../blobs/" + git_hash_of("{}"));
  EXPECT_EQ(read(repository_.ref("main")), kCommit);
  EXPECT_EQ(progress_.back().done_bytes, progress_.back().total_bytes);

  // From now on nobody is asked, whatever the network does.
  hub_.forget_requests();
  EXPECT_EQ(*folder_of(config()), folder);
  EXPECT_EQ(*folder_of({.cache = cache_, .offline = true}), folder);
  EXPECT_EQ(*folder_of({.cache = cache_, .offline = true}, "org/name", kCommit), folder);
  EXPECT_EQ(*folder_of(config(), folder.string()), folder);
  EXPECT_THAT(hub_.requests(), IsEmpty());
}

TEST_F(HubTest, OfShardsOnlyThoseOfTheIndex) {
  FakeHub hub;
  hub.add("config.json", "{}");
  hub.add("tokenizer.json", "{}");
  hub.add("model.safetensors.index.json", R"({"weight_map": {"a": "m-1.safetensors",
      "b": "m-2.safetensors", "c": "m-1.safetensors"}})");
  hub.add("m-1.safetensors", "one", true);
  hub.add("m-2.safetensors", "two", true);
  hub.add("consolidated.safetensors", "the same once more", true);
  HubConfig other = config();
  other.endpoint = hub.url();
  const fs::path folder = *folder_of(other);
  EXPECT_EQ(read(folder / "m-2.safetensors"), "two");
  EXPECT_FALSE(fs::exists(folder / "consolidated.safetensors"));
  EXPECT_THAT(missing_files(folder, true), IsEmpty());
  // A blob that was cleaned away is missing, and comes again.
  fs::remove(repository_.blob(sha256_of("two")));
  EXPECT_THAT(missing_files(folder, true), ElementsAre("m-2.safetensors"));
  EXPECT_THAT(refusal({.cache = cache_, .offline = true}), HasSubstr("lacks m-2.safetensors"));
  EXPECT_EQ(read(*folder_of(other) / "m-2.safetensors"), "two");
}

TEST_F(HubTest, AnInterruptedDownloadGoesOnWhereItWas) {
  hub_.break_off_after(100'000);
  ASSERT_TRUE(folder_of(config()));
  const auto requests = hub_.requests();
  EXPECT_EQ(requests.back().from, 100'000);
  EXPECT_EQ(read(repository_.snapshot(kCommit) / "model.safetensors"), weights_);
}

TEST_F(HubTest, AStoppedDownloadIsGoneOnWithByTheNextProcess) {
  hub_.break_off_after(200'000);
  HubConfig once = config();
  once.max_attempts = 1;
  EXPECT_THAT(refusal(once), HasSubstr("200000 of 300000 bytes"));
  const fs::path part = repository_.blob(sha256_of(weights_)).string() + ".incomplete";
  EXPECT_EQ(fs::file_size(part), 200'000u);
  EXPECT_FALSE(fs::exists(repository_.ref("main")));
  hub_.forget_requests();
  ASSERT_TRUE(folder_of(config()));
  EXPECT_EQ(hub_.requests().back().from, 200'000);
  EXPECT_FALSE(fs::exists(part));
}

TEST_F(HubTest, AServerWithoutRangesStartsAgain) {
  hub_.ignore_ranges();
  hub_.break_off_after(50'000);
  ASSERT_TRUE(folder_of(config()));
  EXPECT_EQ(read(repository_.snapshot(kCommit) / "model.safetensors"), weights_);
}

TEST_F(HubTest, ADamagedPartIsNoHindrance) {
  fs::create_directories(repository_.folder / "blobs");
  const std::string blob = repository_.blob(sha256_of(weights_));
  std::ofstream(blob + ".incomplete") << std::string(1000, '?');
  ASSERT_TRUE(folder_of(config()));
  EXPECT_EQ(read(blob), weights_);
  fs::remove(blob);
  std::ofstream(blob + ".incomplete") << std::string(400'000, '?');
  ASSERT_TRUE(folder_of(config()));
  EXPECT_EQ(read(blob), weights_);
}

TEST_F(HubTest, WhatDoesNotHaveItsHashNeverBecomesABlob) {
  std::string other = weights_;
  other[12345] ^= 1;
  hub_.damage("model.safetensors", other);
  EXPECT_THAT(refusal(config()), HasSubstr("damaged"));
  EXPECT_FALSE(fs::exists(repository_.ref("main")));
  EXPECT_THAT(names_in(repository_.folder / "blobs"), Not(testing::Contains(sha256_of(weights_))));
  EXPECT_THAT(names_in(repository_.snapshot(kCommit)), Not(testing::Contains("model.safetensors")));
  hub_.damage("model.safetensors", weights_ + "and more");
  EXPECT_THAT(refusal(config()), HasSubstr("more than the 300000 bytes"));
  hub_.damage("model.safetensors", weights_.substr(0, 1000));
  EXPECT_THAT(refusal(config()), HasSubstr("of 300000 bytes came"));
  hub_.damage("model.safetensors", weights_);
  hub_.damage("tokenizer.json", R"({"a": 2})");
  fs::remove_all(repository_.folder);
  EXPECT_THAT(refusal(config()), HasSubstr("git hash"));
}

TEST_F(HubTest, NamesThatLeaveTheFolderAreRefused) {
  for (const char* name : {"../../../../.bashrc.json", "/etc/x.json", "a/../../x.json", ""}) {
    hub_.list_instead(dump_json(
        {{"sha", kCommit},
         {"siblings", {{{"rfilename", name}, {"size", 1}, {"blobId", std::string(40, 'a')}}}}}));
    EXPECT_THAT(refusal(config()), HasSubstr("a file name that is none")) << name;
  }
  hub_.list_instead(R"({"sha": "../../x", "siblings": []})");
  EXPECT_THAT(refusal(config()), HasSubstr("expected a commit"));
  hub_.list_instead("<html>");
  EXPECT_THAT(refusal(config()), HasSubstr("list of files"));
  hub_.list_instead(dump_json({{"sha", kCommit}, {"siblings", {{{"rfilename", "a.json"}}}}}));
  EXPECT_THAT(refusal(config()), HasSubstr("no size and hash"));
  hub_.list_instead("");
  hub_.add("model.safetensors.index.json", "{}");
  EXPECT_TRUE(folder_of(config()));  // the one file is enough
}

TEST_F(HubTest, MissingModelsAndTokensAreNamed) {
  EXPECT_THAT(refusal(config(), "org/other"), HasSubstr("'org/other' is no folder here"));
  EXPECT_THAT(refusal(config(), "org/name", "v2"), HasSubstr("at revision v2"));
  EXPECT_THAT(refusal(config(), "/nowhere"), HasSubstr("expected a model folder, or a hub id"));
  EXPECT_THAT(refusal(config(), "org/name", "../x"), HasSubstr("revision '../x'"));
  hub_.require_token("secret");
  EXPECT_THAT(refusal(config()), HasSubstr("HF_TOKEN is not set"));
  HubConfig with_token = config();
  with_token.token = "secret";
  EXPECT_TRUE(folder_of(with_token));
}

TEST_F(HubTest, TheTokenDoesNotGoToAnotherHost) {
  FakeHub store;  // where the hub keeps large files
  store.add("model.safetensors", weights_, true);
  store.break_off_after(70'000);
  hub_.redirect_large_to(store.url());
  hub_.require_token("secret");
  HubConfig with_token = config();
  with_token.token = "secret";
  ASSERT_TRUE(folder_of(with_token));
  ASSERT_EQ(store.requests().size(), 2u);
  EXPECT_EQ(store.requests()[1].from, 70'000);
  for (const FakeHub::Request& request : store.requests()) {
    EXPECT_THAT(request.head, Not(HasSubstr("secret")));
  }
}

TEST_F(HubTest, AHubThatIsBusyIsAskedAgain) {
  hub_.answer_first("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
  EXPECT_TRUE(folder_of(config()));
  EXPECT_EQ(hub_.requests()[0].path, hub_.requests()[1].path);
}

TEST_F(HubTest, WithoutANetworkTheMessageSaysWhatToDo) {
  HubConfig nobody = config();
  nobody.endpoint = "http://127.0.0.1:9";  // discard; nobody listens
  EXPECT_THAT(refusal(nobody),
              testing::AllOf(HasSubstr("'org/name' is no folder here"),
                             HasSubstr("cannot be reached"), HasSubstr("copy the model's folder")));
  EXPECT_THAT(refusal({.cache = cache_, .offline = true}),
              testing::AllOf(HasSubstr("HF_HUB_OFFLINE"), HasSubstr("volley download org/name")));
  nobody.endpoint = "ftp://x";
  EXPECT_THAT(refusal(nobody), HasSubstr("HF_ENDPOINT"));
  // A link in refs that leaves the cache is no commit.
  fs::create_directories(repository_.folder / "refs");
  std::ofstream(repository_.ref("main")) << "../../../etc";
  EXPECT_FALSE(folder_of({.cache = cache_, .offline = true}));
}

TEST_F(HubTest, OneProcessDownloadsAtATime) {
  fs::create_directories(repository_.locks);
  const fs::path path = repository_.locks / (sha256_of(weights_) + ".lock");
  const int lock = ::open(path.c_str(), O_RDWR | O_CREAT, 0644);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  std::atomic<int> waits = 0;
  std::thread other([&] {
    while (waits == 0) std::this_thread::yield();
    // It finishes while we wait.
    std::ofstream(repository_.blob(sha256_of(weights_))) << weights_;
    ::flock(lock, LOCK_UN);
  });
  const auto folder =
      Hub(config()).folder_of("org/name", "main", true, [&](const HubProgress& now) {
        waits += now.what.find("another process") != std::string::npos;
        return true;
      });
  other.join();
  ::close(lock);
  ASSERT_TRUE(folder);
  for (const FakeHub::Request& request : hub_.requests()) {
    EXPECT_THAT(request.path, Not(HasSubstr("model.safetensors")));
  }
}

TEST_F(HubTest, ADownloadCanBeStopped) {
  stop_ = true;
  EXPECT_THAT(refusal(config()), HasSubstr("stopped"));
  stop_ = false;
  EXPECT_TRUE(folder_of(config()));
}

}  // namespace
}  // namespace volley
