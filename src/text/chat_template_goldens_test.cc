// Real chat templates against the renderings of jinja2 3.1.2, as tools/make_jinja_goldens.py and
// the collection under $VOLLEY_SHARED (or ../shared) hold them.

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>

#include "base/file.h"
#include "text/jinja/template.h"

namespace volley {
namespace {

namespace fs = std::filesystem;

// 2026-07-26 12:00, the time at which the goldens were made.
std::tm golden_time() {
  std::tm time = {};
  time.tm_year = 126;
  time.tm_mon = 6;
  time.tm_mday = 26;
  time.tm_hour = 12;
  time.tm_isdst = -1;
  std::mktime(&time);
  return time;
}

Json read_json(const fs::path& path) {
  return *parse_json(*read_file(path), path.string());
}

// Counts the goldens of `folder` that came out as they should, and reports the others.
int check_goldens(const fs::path& folder) {
  int num_equal = 0;
  std::map<std::string, Json> contexts;
  std::ifstream lines(folder / "goldens.jsonl");
  EXPECT_TRUE(lines) << folder;
  for (std::string line; std::getline(lines, line);) {
    const Json golden = *parse_json(line, "goldens.jsonl");
    const auto context_name = golden["context"].get<std::string>();
    if (!contexts.contains(context_name)) {
      contexts[context_name] = read_json(folder / "contexts" / (context_name + ".json"));
    }
    const auto name = golden["template"].get<std::string>();
    const auto parsed = jinja::Template::parse(*read_file(folder / name), name);
    const auto text = parsed ? parsed->render(contexts[context_name], golden_time)
                             : tl::unexpected<Error>(parsed.error());
    bool equal = false;
    if (golden.contains("error")) {
      const auto expected = golden["error"].get<std::string>();
      equal = !text && text.error().message.ends_with(expected);
      EXPECT_TRUE(equal) << name << " with " << context_name << "\nwants error " << expected
                         << "\ngot " << (text ? "text: " + *text : text.error().message);
    } else {
      const auto expected = golden["expected"].get<std::string>();
      equal = text && *text == expected;
      EXPECT_TRUE(equal) << name << " with " << context_name << "\n"
                         << (text ? "wants: " + expected + "\ngot:   " + *text
                                  : text.error().message);
    }
    num_equal += equal ? 1 : 0;
  }
  return num_equal;
}

TEST(ChatTemplateGoldens, Fixtures) {
  EXPECT_GE(check_goldens("tests/data/templates"), 60);
}

TEST(ChatTemplateGoldens, SharedCollection) {
  const char* variable = std::getenv("VOLLEY_SHARED");
  const fs::path folder =
      fs::path(variable != nullptr ? variable : "../shared") / "data" / "templates";
  if (!fs::exists(folder / "goldens.jsonl")) {
    GTEST_SKIP() << "DID NOT RUN: no template collection in " << folder
                 << "; set VOLLEY_SHARED to the folder that holds data/templates";
  }
  const int num_equal = check_goldens(folder);
  std::cout << num_equal << " goldens of " << folder << " are equal\n";
  EXPECT_GE(num_equal, 790);
}

}  // namespace
}  // namespace volley
