#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "base/temporary_folder.h"
#include "jit/kernel_library.h"

namespace volley::jit {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A compiler whose machine code is a function of the text, slow enough for races to happen.
class FakeCompiler : public Compiler {
 public:
  explicit FakeCompiler(std::string id = "fake 1") : id_(std::move(id)) {}
  const std::string& id() const override { return id_; }
  Result<Compiled> compile(const KernelSource& source, std::string_view arch) const override {
    ++num_compiles;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    if (source.text.find("error") != std::string::npos)
      return invalid("fake log of {}", source.name);
    std::string cubin = fmt::format("code of {} for {} by {};", source.text, arch, id_);
    while (cubin.size() < 20000) cubin += cubin;
    return Compiled{cubin, {}};
  }
  mutable std::atomic<int> num_compiles{0};

 private:
  std::string id_;
};

KernelSource simple_source(const std::string& text) {
  return {.name = "simple", .entry = "k", .text = text};
}

KernelLibrary library_over(const fs::path& dir, std::unique_ptr<Compiler> compiler) {
  return {{}, std::nullopt, *DiskCache::open({.dir = dir}), std::move(compiler)};
}

std::vector<std::string> names_of(const std::vector<Header>& headers) {
  std::vector<std::string> names;
  for (const Header& header : headers) names.push_back(header.name);
  return names;
}

TEST(IncludeClosure, FollowsIncludesOfIncludesAndNothingElse) {
  KernelSource source = simple_source("#include \"a.h\"\n  #  include \"b.h\" // c\nint x;");
  source.headers = {{"unused.h", "#include <nowhere>"},
                    {"b.h", "#include \"c.h\"\n"},
                    {"a.h", "#include \"c.h\""},
                    {"c.h", "#include \"a.h\"\n// #include \"none.h\""}};
  const auto closure = include_closure(source);
  ASSERT_TRUE(closure) << closure.error().message;
  EXPECT_THAT(names_of(*closure), ElementsAre("a.h", "b.h", "c.h"));
}

TEST(IncludeClosure, UnknownAndBracketedIncludesAreErrorsThatNameThem) {
  EXPECT_THAT(include_closure(simple_source("#include \"gone.h\"")).error().message,
              HasSubstr("gone.h"));
  EXPECT_THAT(include_closure(simple_source("#include <cuda_fp8.h>")).error().message,
              HasSubstr("<cuda_fp8.h>"));
  EXPECT_FALSE(include_closure(simple_source("#include MACRO")));
  EXPECT_FALSE(include_closure(simple_source("#include \"")));
}

TEST(SourceKey, ChangesWithEverythingThatTheCompilerSees) {
  KernelSource source = simple_source("#include \"a.h\"");
  source.headers = {{"a.h", "int a;"}, {"unused.h", "int b;"}};
  const auto key = source_key(source, "sm_90a");
  ASSERT_TRUE(key);
  const auto changed = [&](auto change, std::string_view arch = "sm_90a") {
    KernelSource other = source;
    change(other);
    return *source_key(other, arch) != *key;
  };
  EXPECT_TRUE(changed([](KernelSource& s) { s.text += ' '; }));
  EXPECT_TRUE(changed([](KernelSource& s) { s.headers[0].text += ' '; }));
  EXPECT_TRUE(changed([](KernelSource& s) { s.flags.push_back("-G"); }));
  EXPECT_TRUE(changed([](KernelSource& s) { s.entry = "other"; }));
  EXPECT_TRUE(changed([](KernelSource&) {}, "sm_100a"));
  EXPECT_FALSE(changed([](KernelSource& s) { s.headers[1].text += ' '; })) << "nothing includes it";
  EXPECT_FALSE(changed([](KernelSource& s) { s.name = "another name"; })) << "a name is for people";
  EXPECT_NE(compiled_key(*key, "nvrtc 12.9"), compiled_key(*key, "nvrtc 13.0"));
}

TEST(DiskCache, GivesBackWhatWasStored) {
  const TemporaryFolder dir;
  const auto cache = DiskCache::open({.dir = dir.path() / "made" / "when missing"});
  ASSERT_TRUE(cache);
  const KernelKey key = sha256("some key");
  EXPECT_FALSE(cache->find(key).cubin);
  EXPECT_FALSE(cache->find(key).was_corrupt);
  const std::string cubin("\0machine\xff code", 14);
  ASSERT_TRUE(cache->store(key, cubin));
  EXPECT_EQ(cache->find(key).cubin, cubin);
  ASSERT_TRUE(cache->store(key, ""));
  EXPECT_EQ(cache->find(key).cubin, "");
}

TEST(DiskCache, EveryDamagedByteAndEveryCutIsNoticed) {
  const TemporaryFolder dir;
  const auto cache = DiskCache::open({.dir = dir.path()});
  const KernelKey key = sha256("some key");
  ASSERT_TRUE(cache->store(key, "the machine code"));
  const std::string whole = *read_file(cache->path_of(key));
  const auto put = [&](const std::string& bytes) {
    std::ofstream(cache->path_of(key), std::ios::binary | std::ios::trunc) << bytes;
    return cache->find(key);
  };
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x20);
    const auto found = put(damaged);
    EXPECT_TRUE(found.was_corrupt && !found.cubin) << "byte " << i;
    const auto cut = put(whole.substr(0, i));
    EXPECT_TRUE(cut.was_corrupt && !cut.cubin) << "cut at " << i;
  }
  EXPECT_TRUE(put(whole + "x").was_corrupt);
  EXPECT_EQ(put(whole).cubin, "the machine code");
}

TEST(DiskCache, ForgetsTheOldestWhenItIsFull) {
  const TemporaryFolder dir;
  const auto cache = DiskCache::open({.dir = dir.path(), .max_bytes = 3500});
  const std::string cubin(1000, 'c');
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(cache->store(sha256(std::to_string(i)), cubin));
    fs::last_write_time(cache->path_of(sha256(std::to_string(i))),
                        fs::file_time_type(std::chrono::hours(i)));
  }
  EXPECT_FALSE(cache->find(sha256("0")).cubin);
  EXPECT_FALSE(cache->find(sha256("2")).cubin);
  EXPECT_TRUE(cache->find(sha256("3")).cubin);
  EXPECT_TRUE(cache->find(sha256("5")).cubin);
}

TEST(DiskCache, AFolderThatCannotBeIsAnError) {
  const TemporaryFolder dir;
  std::ofstream(dir.path() / "file") << "x";
  EXPECT_FALSE(DiskCache::open({.dir = dir.path() / "file" / "below"}));
}

TEST(KernelLibrary, MemoryThenDiskThenCompiler) {
  const TemporaryFolder dir;
  const KernelSource source = simple_source("int a;");
  KernelLibrary first = library_over(dir.path(), std::make_unique<FakeCompiler>());
  const auto cubin = first.cubin(source);
  ASSERT_TRUE(cubin);
  EXPECT_EQ(*first.cubin(source), *cubin) << "the same string object";
  EXPECT_EQ(first.stats().num_compiled, 1);
  KernelLibrary second = library_over(dir.path(), std::make_unique<FakeCompiler>());
  EXPECT_EQ(**second.cubin(source), **cubin);
  EXPECT_EQ(second.stats().num_compiled, 0);
  EXPECT_EQ(second.stats().num_cached, 1);
  KernelLibrary newer = library_over(dir.path(), std::make_unique<FakeCompiler>("fake 2"));
  ASSERT_TRUE(newer.cubin(source));
  EXPECT_EQ(newer.stats().num_compiled, 1) << "another compiler's code is another kernel";
}

TEST(KernelLibrary, ADamagedFileIsCompiledAnewAndReplaced) {
  set_log_level(LogLevel::kOff);
  const TemporaryFolder dir;
  const KernelSource source = simple_source("int a;");
  KernelLibrary first = library_over(dir.path(), std::make_unique<FakeCompiler>());
  const std::string good = **first.cubin(source);
  for (const auto& file : fs::directory_iterator(dir.path())) fs::resize_file(file.path(), 100);
  KernelLibrary second = library_over(dir.path(), std::make_unique<FakeCompiler>());
  EXPECT_EQ(**second.cubin(source), good);
  EXPECT_EQ(second.stats().num_corrupt, 1);
  EXPECT_EQ(second.stats().num_compiled, 1);
  KernelLibrary third = library_over(dir.path(), std::make_unique<FakeCompiler>());
  EXPECT_EQ(**third.cubin(source), good);
  EXPECT_EQ(third.stats().num_compiled, 0);
}

TEST(KernelLibrary, ThreadsThatAskAtOnceCompileOnce) {
  auto owned = std::make_unique<FakeCompiler>();
  const FakeCompiler& compiler = *owned;
  KernelLibrary library({}, std::nullopt, std::nullopt, std::move(owned));
  std::vector<const std::string*> got(16);
  {
    std::vector<std::jthread> threads;
    for (auto& slot : got) {
      threads.emplace_back([&library, &slot] { slot = *library.cubin(simple_source("int a;")); });
    }
  }
  EXPECT_EQ(compiler.num_compiles, 1);
  for (const std::string* cubin : got) EXPECT_EQ(cubin, got[0]);
}

TEST(KernelLibrary, AFailureReachesEveryWaiterAndIsNotRemembered) {
  auto owned = std::make_unique<FakeCompiler>();
  const FakeCompiler& compiler = *owned;
  KernelLibrary library({}, std::nullopt, std::nullopt, std::move(owned));
  std::atomic<int> num_failed{0};
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] { num_failed += !library.cubin(simple_source("error")); });
    }
  }
  EXPECT_EQ(num_failed, 4);
  EXPECT_EQ(compiler.num_compiles, 4);
}

TEST(KernelLibrary, WithoutACompilerTheKernelIsNamed) {
  KernelLibrary library({}, std::nullopt, std::nullopt, nullptr);
  const auto cubin = library.cubin(simple_source("int a;"));
  ASSERT_FALSE(cubin);
  EXPECT_EQ(cubin.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(cubin.error().message, HasSubstr("kernel simple for sm_90a"));
}

TEST(KernelLibrary, WarmUpCountsEveryKernelAndKeepsTheFirstError) {
  auto owned = std::make_unique<FakeCompiler>();
  const FakeCompiler& compiler = *owned;
  KernelLibrary library({}, std::nullopt, std::nullopt, std::move(owned));
  std::vector<KernelSource> sources;
  for (int i = 0; i < 20; ++i) sources.push_back(simple_source(fmt::format("int a{};", i)));
  std::vector<int64_t> seen;
  ASSERT_TRUE(library.warm_up(sources, 4, [&](int64_t done, int64_t total, const std::string&) {
    EXPECT_EQ(total, 20);
    seen.push_back(done);
  }));
  ASSERT_EQ(seen.size(), 20U);
  for (size_t i = 0; i < seen.size(); ++i) EXPECT_EQ(seen[i], static_cast<int64_t>(i) + 1);
  for (const KernelSource& source : sources) ASSERT_TRUE(library.cubin(source));
  EXPECT_EQ(compiler.num_compiles, 20);
  sources[7].text = "error";
  sources[7].name = "bad";
  const Status status = library.warm_up(sources, 4, nullptr);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, HasSubstr("fake log of bad"));
  EXPECT_TRUE(library.warm_up({}, 4, nullptr));
}

// Several processes race for the same kernels in one folder; none may ever read a torn file.
TEST(KernelLibrary, ProcessesShareACacheFolder) {
  const TemporaryFolder dir;
  constexpr int kProcesses = 6, kKernels = 12;
  std::vector<pid_t> children;
  for (int child = 0; child < kProcesses; ++child) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      int num_wrong = 0;
      for (int round = 0; round < 3; ++round) {
        KernelLibrary library = library_over(dir.path(), std::make_unique<FakeCompiler>());
        for (int i = 0; i < kKernels; ++i) {
          const KernelSource source =
              simple_source(fmt::format("int a{};", (i + child) % kKernels));
          const auto cubin = library.cubin(source);
          num_wrong += !cubin || **cubin != FakeCompiler().compile(source, "sm_90a")->cubin;
        }
        num_wrong += static_cast<int>(library.stats().num_corrupt);
      }
      ::_exit(num_wrong > 100 ? 100 : num_wrong);
    }
    children.push_back(pid);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 0);
  }
  std::vector<std::string> leftovers;
  int num_files = 0;
  for (const auto& file : fs::directory_iterator(dir.path())) {
    ++num_files;
    if (file.path().extension() != ".cubin") leftovers.push_back(file.path());
  }
  EXPECT_EQ(num_files, kKernels);
  EXPECT_THAT(leftovers, IsEmpty());
}

std::string some_bundle(int num_kernels) {
  std::vector<BundleEntry> entries;
  for (int i = 0; i < num_kernels; ++i) {
    const KernelSource source = simple_source(fmt::format("int a{};", i));
    entries.push_back({*source_key(source, "sm_90a"), fmt::format("kernel {}", i),
                       std::string(static_cast<size_t>(1000 + i), static_cast<char>(i))});
  }
  return *make_bundle(entries, {.arch = "sm_90a", .compiler = "fake 1"});
}

TEST(Bundle, RoundTrip) {
  const TemporaryFolder dir;
  const fs::path path = dir.path() / "kernels.bundle";
  ASSERT_TRUE(write_file_atomic(path, some_bundle(50)));
  const auto bundle = Bundle::open(path);
  ASSERT_TRUE(bundle) << bundle.error().message;
  EXPECT_EQ(bundle->size(), 50U);
  EXPECT_EQ(bundle->info().arch, "sm_90a");
  EXPECT_EQ(bundle->info().compiler, "fake 1");
  for (int i = 0; i < 50; ++i) {
    const auto key = source_key(simple_source(fmt::format("int a{};", i)), "sm_90a");
    const auto cubin = bundle->find(*key);
    ASSERT_TRUE(cubin && *cubin);
    EXPECT_EQ(**cubin, std::string(static_cast<size_t>(1000 + i), static_cast<char>(i)));
  }
  EXPECT_EQ(*bundle->find(sha256("no kernel")), std::nullopt);
  EXPECT_TRUE(Bundle::parse(some_bundle(0), "empty"));
}

TEST(Bundle, EveryDamagedByteIsNoticedInTheIndexAtOnceAndInAKernelWhenTaken) {
  const std::string whole = some_bundle(3);
  const size_t index_end = whole.size() - 1000 - 1001 - 1002;
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    const auto bundle = Bundle::parse(damaged, "test");
    if (i < index_end) {
      EXPECT_FALSE(bundle) << "byte " << i;
      continue;
    }
    ASSERT_TRUE(bundle);
    int num_damaged = 0;
    for (int k = 0; k < 3; ++k) {
      const auto key = source_key(simple_source(fmt::format("int a{};", k)), "sm_90a");
      num_damaged += !bundle->find(*key);
    }
    EXPECT_EQ(num_damaged, 1) << "byte " << i;
  }
}

TEST(Bundle, CutsAndNonsenseAreErrors) {
  const std::string whole = some_bundle(3);
  for (size_t size = 0; size < whole.size(); size += 7) {
    EXPECT_FALSE(Bundle::parse(std::string_view(whole).substr(0, size), "cut"));
  }
  EXPECT_FALSE(Bundle::parse(whole + "x", "longer"));
  EXPECT_FALSE(Bundle::open("/nonexistent/kernels.bundle"));
  EXPECT_FALSE(make_bundle({{sha256("a"), "x", "1"}, {sha256("a"), "y", "2"}}, {}));
}

TEST(KernelLibrary, ABundleIsAskedFirstAndCompilesNothing) {
  const std::string bytes = some_bundle(5);
  auto owned = std::make_unique<FakeCompiler>();
  const FakeCompiler& compiler = *owned;
  KernelLibrary library({}, *Bundle::parse(bytes, "test"), std::nullopt, std::move(owned));
  ASSERT_TRUE(library.cubin(simple_source("int a3;")));
  EXPECT_EQ(library.stats().num_bundled, 1);
  EXPECT_EQ(compiler.num_compiles, 0);
  ASSERT_TRUE(library.cubin(simple_source("int not_bundled;")));
  EXPECT_EQ(compiler.num_compiles, 1);
  KernelLibrary other({.arch = "sm_100a"}, *Bundle::parse(bytes, "test"), std::nullopt, nullptr);
  EXPECT_FALSE(other.cubin(simple_source("int a3;"))) << "a bundle of another architecture";
}

// The compilers themselves. Skipped, in plain words, where they are not installed.
const char kRealKernel[] =
    "#include \"scale.h\"\n"
    "extern \"C\" __global__ void k(float* x) { x[threadIdx.x] *= kScale; }\n";

KernelSource real_source() {
  KernelSource source = simple_source(kRealKernel);
  source.headers = {{"scale.h", "constexpr float kScale = 3.0f;\n"}};
  return source;
}

TEST(Nvrtc, CompilesToMachineCodeWithoutAGpu) {
  const auto nvrtc = load_nvrtc();
  if (!nvrtc) GTEST_SKIP() << "not run: " << nvrtc.error().message;
  EXPECT_THAT((*nvrtc)->id(), HasSubstr("nvrtc "));
  const auto compiled = (*nvrtc)->compile(real_source(), "sm_90a");
  ASSERT_TRUE(compiled) << compiled.error().message;
  EXPECT_TRUE(
      compiled->cubin.starts_with("\x7f"
                                  "ELF"));
  const auto again = (*nvrtc)->compile(real_source(), "sm_90a");
  EXPECT_EQ(again->cubin, compiled->cubin) << "the same source, the same code";
}

TEST(Nvrtc, AFailureHoldsTheCommandAndTheLog) {
  const auto nvrtc = load_nvrtc();
  if (!nvrtc) GTEST_SKIP() << "not run: " << nvrtc.error().message;
  KernelSource source = real_source();
  source.text += "int oops = undefined_name;\n";
  const auto compiled = (*nvrtc)->compile(source, "sm_90a");
  ASSERT_FALSE(compiled);
  EXPECT_THAT(compiled.error().message, HasSubstr("undefined_name"));
  EXPECT_THAT(compiled.error().message, HasSubstr("--gpu-architecture=sm_90a"));
}

TEST(Nvrtc, CompilesOnManyThreads) {
  auto nvrtc = load_nvrtc();
  if (!nvrtc) GTEST_SKIP() << "not run: " << nvrtc.error().message;
  KernelLibrary library({}, std::nullopt, std::nullopt, std::move(*nvrtc));
  std::vector<KernelSource> sources(6, real_source());
  for (size_t i = 0; i < sources.size(); ++i) sources[i].text += fmt::format("// {}\n", i);
  const Status status = library.warm_up(sources, 3, nullptr);
  ASSERT_TRUE(status) << status.error().message;
  EXPECT_EQ(library.stats().num_compiled, 6);
}

TEST(Nvrtc, AMissingLibraryIsNamed) {
  const auto nvrtc = load_nvrtc("libno-such-nvrtc.so");
  ASSERT_FALSE(nvrtc);
  EXPECT_EQ(nvrtc.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(nvrtc.error().message, HasSubstr("libno-such-nvrtc.so"));
}

TEST(Nvcc, CompilesAndReportsFailures) {
  const TemporaryFolder dir;
  auto nvcc = find_nvcc("nvcc", dir.path());
  if (!nvcc) nvcc = find_nvcc("/usr/local/cuda/bin/nvcc", dir.path());
  if (!nvcc) GTEST_SKIP() << "not run: " << nvcc.error().message;
  EXPECT_THAT((*nvcc)->id(), HasSubstr("cuda"));
  const auto compiled = (*nvcc)->compile(real_source(), "sm_90a");
  ASSERT_TRUE(compiled) << compiled.error().message;
  EXPECT_TRUE(
      compiled->cubin.starts_with("\x7f"
                                  "ELF"));
  KernelSource bad = real_source();
  bad.text += "int oops = undefined_name;\n";
  const auto failed = (*nvcc)->compile(bad, "sm_90a");
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, HasSubstr("undefined_name"));
  EXPECT_THAT(failed.error().message, HasSubstr("-gencode=arch=compute_90a,code=sm_90a"));
  EXPECT_TRUE(fs::is_empty(dir.path())) << "scratch folders are removed";
}

TEST(Nvcc, SomethingElseIsNotNvcc) {
  const TemporaryFolder dir;
  EXPECT_FALSE(find_nvcc("/nonexistent/nvcc", dir.path()));
  EXPECT_FALSE(find_nvcc("true", dir.path()));
}

}  // namespace
}  // namespace volley::jit
