#include <gtest/gtest.h>

#include <string>

#include "base/check.h"
#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"
#include "base/temporary_folder.h"

namespace volley {
namespace {

TEST(Philox, KnownAnswers) {
  // Known-answer vectors published with the Random123 library.
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxBlock{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(
      philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}),
      (PhiloxBlock{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
}

TEST(Json, ReportsWhatAndWhere) {
  auto bad = parse_json("{\"a\": }", "config.json");
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().message.find("config.json"), std::string::npos);
}

TEST(Json, BoundsDepthAndSize) {
  EXPECT_FALSE(parse_json(std::string(2'000'000, '['), "deep"));
  EXPECT_TRUE(parse_json("[\"[[[[[[\\\"[[[\"]", "brackets in a string", {.max_depth = 1}));
  EXPECT_FALSE(parse_json("[1,2,3]", "big", {.max_bytes = 3}));
}

TEST(Json, DumpsBrokenUtf8) {
  EXPECT_EQ(dump_json(Json("a\xff")), "\"a\xef\xbf\xbd\"");
}

TEST(File, MissingDirectoryAndTooLarge) {
  EXPECT_EQ(read_file("/nonexistent/file").error().kind, ErrorKind::kNotFound);
  EXPECT_FALSE(read_file("/"));
  EXPECT_FALSE(MappedFile::open("/"));
  const TemporaryFolder folder;
  const std::string path = folder.path() / "file";
  ASSERT_TRUE(write_file_atomic(path, "hello"));
  EXPECT_EQ(*read_file(path), "hello");
  EXPECT_FALSE(read_file(path, 4));
  EXPECT_EQ(MappedFile::open(path)->bytes().size(), 5u);
}

TEST(CheckDeath, PrintsBothValues) {
  EXPECT_DEATH(CHECK_EQ(1, 2), "1 vs 2");
}

}  // namespace
}  // namespace volley
