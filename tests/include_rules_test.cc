// Who may include whom. The table is docs/architecture.md's, as data; a forbidden include fails
// here. Base is below everything; what a header includes may be named by its users as well (a model
// that includes ops/ops.h may say tensor/tensor.h).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace volley {
namespace {

namespace fs = std::filesystem;

// Files under src/`folder` may include headers that start with one of `may_include`: a folder
// ("kv/") or one header ("ops/ops.h"). Their own folder is always allowed. Of several rules the one
// with the longest folder holds.
struct IncludeRule {
  std::string_view folder;
  std::vector<std::string_view> may_include;
};

const std::vector<IncludeRule>& include_rules() {
  static const std::vector<IncludeRule> rules = {
      {"base/", {}},
      {"tensor/", {"base/"}},
      {"cuda/", {"tensor/", "base/"}},
      {"jit/", {"cuda/", "tensor/", "base/"}},
      {"gemm/", {"jit/", "cuda/", "tensor/", "base/"}},
      {"ep/", {"jit/", "cuda/", "tensor/", "base/"}},
      {"ops/", {"tensor/", "base/"}},
      {"ops/cuda/", {"gemm/", "ep/", "cuda/", "tensor/", "base/", "ops/"}},
      {"weights/", {"tensor/", "base/"}},
      {"hub/", {"base/"}},
      {"model/", {"ops/ops.h", "weights/", "tensor/", "base/"}},
      {"kv/", {"base/"}},
      {"spec/", {"base/"}},
      {"sched/", {"kv/", "spec/", "base/"}},
      {"engine/", {"model/", "sched/", "kv/", "spec/", "ops/ops.h", "tensor/", "base/"}},
      {"engine/grammar_filter", {"engine/token_filter.h", "text/grammar/", "base/"}},
      {"text/", {"base/"}},
      {"server/",
       {"engine/engine.h", "engine/engine_thread.h", "engine/grammar_filter.h", "text/", "base/"}},
      {"app/", {""}},
  };
  return rules;
}

const IncludeRule* rule_of(std::string_view file) {
  const IncludeRule* best = nullptr;
  for (const IncludeRule& rule : include_rules()) {
    if (!file.starts_with(rule.folder)) continue;
    if (best == nullptr || rule.folder.size() > best->folder.size()) best = &rule;
  }
  return best;
}

// Tests, benchmarks and fuzzers stand beside the code and may reach further.
bool is_free(std::string_view file) {
  for (const std::string_view part : {"_test.", "_bench.", "_fuzz.", "_parity.", "/test_"}) {
    if (file.find(part) != std::string_view::npos) return true;
  }
  return false;
}

// The quoted includes of a source text, in order.
std::vector<std::string> quoted_includes(std::string_view text) {
  std::vector<std::string> found;
  while (!text.empty()) {
    const size_t newline = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(std::min(newline + 1, text.size()));
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    if (!line.starts_with('#')) continue;
    line.remove_prefix(1);
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    if (!line.starts_with("include")) continue;
    const size_t open = line.find('"');
    const size_t close = open == std::string_view::npos ? open : line.find('"', open + 1);
    if (close != std::string_view::npos)
      found.emplace_back(line.substr(open + 1, close - open - 1));
  }
  return found;
}

// Why `file` (relative to src/) may not include `header`; empty when it may.
std::string objection(std::string_view file, std::string_view header) {
  const IncludeRule* rule = rule_of(file);
  if (rule == nullptr) return std::string(file) + ": its folder has no rule in the table";
  if (header.find('/') == std::string_view::npos || header.starts_with("./") ||
      header.starts_with("../")) {
    return std::string(file) + " includes \"" + std::string(header) +
           "\": name the folder, as in \"base/result.h\"";
  }
  if (header.starts_with(rule->folder)) return {};
  for (const std::string_view allowed : rule->may_include) {
    if (header.starts_with(allowed)) return {};
  }
  return std::string(file) + " may not include \"" + std::string(header) + "\"";
}

std::vector<std::string> objections_under(const fs::path& src) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(src)) {
    const std::string extension = entry.path().extension();
    if (extension != ".h" && extension != ".cc" && extension != ".cu" && extension != ".cuh") {
      continue;
    }
    const std::string file = fs::relative(entry.path(), src).generic_string();
    if (is_free(file)) continue;
    std::ifstream stream(entry.path());
    const std::string text((std::istreambuf_iterator<char>(stream)), {});
    for (const std::string& header : quoted_includes(text)) {
      if (std::string why = objection(file, header); !why.empty()) found.push_back(why);
    }
  }
  return found;
}

TEST(IncludeRules, NoFileIncludesWhatItsFolderMayNot) {
  ASSERT_TRUE(fs::exists("src/base/result.h")) << "run from the root of the repository";
  EXPECT_THAT(objections_under("src"), testing::IsEmpty());
}

TEST(IncludeRules, TheScannerFindsQuotedIncludes) {
  EXPECT_THAT(quoted_includes("#pragma once\n#include <vector>\n  #  include \"a/b.h\"  // c\n"
                              "// #include \"no/no.h\"\n#include \"c.h\""),
              testing::ElementsAre("a/b.h", "c.h"));
}

TEST(IncludeRules, ForbiddenIncludesAreNamed) {
  EXPECT_EQ(objection("kv/page_pool.cc", "base/check.h"), "");
  EXPECT_EQ(objection("kv/page_pool.cc", "kv/page_pool.h"), "");
  EXPECT_EQ(objection("model/target.cc", "ops/ops.h"), "");
  EXPECT_EQ(objection("app/main.cc", "server/http.h"), "");
  EXPECT_EQ(objection("ops/cuda/moe.cc", "ep/buffer.h"), "");
  EXPECT_NE(objection("ops/cpu/cpu_ops.cc", "ep/buffer.h"), "");
  EXPECT_NE(objection("spec/draft_length.cc", "ops/ops.h"), "");
  EXPECT_NE(objection("model/target.cc", "ops/cpu/cpu_ops.h"), "");
  EXPECT_NE(objection("engine/engine.cc", "weights/safetensors.h"), "");
  EXPECT_NE(objection("server/http.cc", "engine/sampler.h"), "");
  EXPECT_NE(objection("base/json.cc", "json.h"), "");
  EXPECT_NE(objection("new_folder/a.cc", "base/check.h"), "");
}

}  // namespace
}  // namespace volley
