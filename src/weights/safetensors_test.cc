#include "weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "weights/test_files.h"

namespace volley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<std::vector<NamedTensor>> parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), "m.safetensors");
}

std::string error_of(std::string_view header, std::string_view data) {
  const auto result = parse(safetensors_bytes(header, data));
  return result ? "accepted" : result.error().message;
}

TEST(Safetensors, ReadsTensors) {
  const std::string bytes = SafetensorsBuilder()
                                .add("a", DType::kF32, {2}, bytes_of<float>({1.5f, -2.0f}))
                                .add("b", DType::kI64, {1}, bytes_of<int64_t>({7}))
                                .add("none", DType::kF32, {0, 3})
                                .bytes();
  const auto tensors = parse(bytes);
  ASSERT_TRUE(tensors) << tensors.error().message;
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].tensor.to_floats(), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ((*tensors)[1].tensor.int_at(0), 7);
  EXPECT_EQ((*tensors)[2].tensor.shape_string(), "[0, 3]");
}

TEST(Safetensors, AcceptsMetadataPaddingAndOddOffsets) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
      R"("a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}   )";
  const std::string file = safetensors_bytes(header, "\x05" + bytes_of<float>({2.5f}));
  const auto tensors = parse(file);
  ASSERT_TRUE(tensors) << tensors.error().message;
  EXPECT_EQ((*tensors)[1].tensor.float_at(0), 2.5f);
}

TEST(Safetensors, RefusesTruncatedFiles) {
  const std::string whole =
      SafetensorsBuilder().add("a", DType::kF32, {4}).add("b", DType::kBF16, {3}).bytes();
  ASSERT_TRUE(parse(whole));
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(parse(whole.substr(0, size))) << size;
  }
  EXPECT_FALSE(parse(whole + "x"));
  EXPECT_THAT(parse(whole.substr(0, 5)).error().message, HasSubstr("too short"));
  EXPECT_THAT(parse(whole.substr(0, 20)).error().message, HasSubstr("truncated"));
  EXPECT_THAT(parse(whole.substr(0, whole.size() - 1)).error().message, HasSubstr("truncated"));
  EXPECT_THAT(parse(whole + "x").error().message, HasSubstr("accounts for"));
}

TEST(Safetensors, RefusesHugeHeaders) {
  EXPECT_THAT(parse(std::string(8, '\xFF') + "{}").error().message, HasSubstr("at most"));
  std::string bytes = safetensors_bytes("{}", "");
  bytes[7] = '\x7F';
  EXPECT_FALSE(parse(bytes));
}

TEST(Safetensors, RefusesWrongHeaders) {
  struct Case {
    std::string_view header;
    std::string_view message;
  };
  constexpr std::string_view kData = "12345678";
  constexpr std::array kCases = {
      Case{"", "no JSON object"},
      Case{"[]", "no JSON object"},
      Case{"{} {}", "no JSON object"},
      Case{R"({"a":{"dtype":"F32")", "no JSON object"},
      Case{"\xFF\xFE{}", "no JSON object"},
      Case{R"({"a":1})", "expected an object"},
      Case{R"({"a":{"dtype":"F32","shape":[2]}})", "expected dtype, shape"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})", "unknown field"},
      Case{R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
           "dtype is given twice"},
      Case{R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
           R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           "'a' is given twice"},
      Case{R"({"a":{"dtype":7,"shape":[2],"data_offsets":[0,8]}})", "dtype is no string"},
      Case{R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", "dtype 'F64'"},
      Case{R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "takes 12 bytes"},
      Case{R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "sizes from 0 on"},
      Case{R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "sizes from 0 on"},
      Case{R"({"a":{"dtype":"F32","shape":[1,1,1,1,2],"data_offsets":[0,8]}})", "at most 4"},
      Case{R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", "at most 4"},
      Case{R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})",
           "sizes from 0 on"},
      Case{R"({"a":{"dtype":"F32","shape":[4611686018427387905,2],"data_offsets":[0,8]}})",
           "overflows"},
      Case{R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})",
           "overflows"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "two data_offsets"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,8]}})", "two data_offsets"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}})", "two data_offsets"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "outside"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})", "outside"},
      Case{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9223372036854775807]}})",
           "outside"},
      Case{R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
           R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           "overlapping"},
      Case{R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
           R"("b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
           "overlapping"},
      Case{R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
           R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
           "a gap"},
      Case{R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", "accounts for 4"},
      Case{R"({"__metadata__":3})", "no object"},
      Case{R"({"__metadata__":{"format":3}})", "no string"},
      Case{R"({"__metadata__":{},"__metadata__":{}})", "given twice"},
      Case{R"({})", "accounts for 0"},
  };
  for (const Case& c : kCases)
    EXPECT_THAT(error_of(c.header, kData), HasSubstr(c.message)) << c.header;
  EXPECT_THAT(error_of(std::string(5000, '['), kData), HasSubstr("no JSON object"));
  const std::string long_name(2000, 'n');
  EXPECT_THAT(
      error_of("{\"" + long_name + R"(":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", kData),
      HasSubstr("tensor name of 2000 bytes"));
}

TEST(Checkpoint, OpensOneFile) {
  TemporaryFolder folder;
  folder.write("model.safetensors", SafetensorsBuilder().add("a", DType::kF32, {2}).bytes());
  auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  Checkpoint moved = std::move(*checkpoint);
  ASSERT_NE(moved.find("a"), nullptr);
  EXPECT_EQ(moved.find("a")->to_floats(), (std::vector<float>{0, 0}));
  EXPECT_EQ(moved.find("b"), nullptr);
  EXPECT_EQ(moved.num_bytes(), 8);
}

TEST(Checkpoint, SaysWhatIsMissing) {
  TemporaryFolder folder;
  const auto checkpoint = Checkpoint::open(folder.path());
  ASSERT_FALSE(checkpoint);
  EXPECT_EQ(checkpoint.error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(checkpoint.error().message, HasSubstr("model.safetensors"));
  folder.write("pytorch_model.bin", "x");
  EXPECT_THAT(Checkpoint::open(folder.path()).error().message, HasSubstr("convert it"));
}

class ShardedCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_.write(
        "x-1.safetensors",
        SafetensorsBuilder().add("a", DType::kF32, {2}).add("b", DType::kU8, {1}).bytes());
    folder_.write("x-2.safetensors", SafetensorsBuilder().add("c", DType::kF16, {2}).bytes());
  }
  Result<Checkpoint> open(std::string_view index) {
    folder_.write("model.safetensors.index.json", index);
    return Checkpoint::open(folder_.path());
  }
  std::string error(std::string_view index) {
    const auto result = open(index);
    return result ? "accepted" : result.error().message;
  }
  TemporaryFolder folder_;
};

TEST_F(ShardedCheckpoint, Opens) {
  const auto checkpoint = open(
      R"({"metadata":{},"weight_map":{"a":"x-1.safetensors","b":"x-1.safetensors","c":"x-2.safetensors"}})");
  ASSERT_TRUE(checkpoint) << checkpoint.error().message;
  EXPECT_THAT(checkpoint->names(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(checkpoint->num_files(), 2u);
}

TEST_F(ShardedCheckpoint, RefusesWrongIndexes) {
  EXPECT_THAT(error("{"), HasSubstr("weight_map"));
  EXPECT_THAT(error("{}"), HasSubstr("weight_map"));
  EXPECT_THAT(error(R"({"weight_map":[]})"), HasSubstr("weight_map"));
  EXPECT_THAT(error(R"({"weight_map":{}})"), HasSubstr("empty"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"x-1.safetensors","c":"x-2.safetensors"}})"),
              HasSubstr("holds tensor 'b'"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"x-1.safetensors","b":"x-1.safetensors",
                       "c":"x-2.safetensors","d":"x-2.safetensors"}})"),
              HasSubstr("lacks it"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"x-1.safetensors","b":"x-1.safetensors",
                       "c":"x-1.safetensors"}})"),
              HasSubstr("lacks it"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"x-1.safetensors","a":"x-2.safetensors"}})"),
              HasSubstr("listed twice"));
  EXPECT_THAT(error(R"({"weight_map":{"a":"x-3.safetensors"}})"), HasSubstr("cannot open"));
  EXPECT_THAT(error(R"({"weight_map":{"a":7}})"), HasSubstr("same folder"));
}

TEST_F(ShardedCheckpoint, StaysInsideItsFolder) {
  for (const char* file : {"../x-1.safetensors", "/etc/passwd", "sub/x-1.safetensors", "..", ".",
                           "", "x\\u0000y", "a\\\\b"}) {
    EXPECT_THAT(error(fmt::format(R"({{"weight_map":{{"a":"{}"}}}})", file)),
                HasSubstr("same folder"))
        << file;
  }
}

}  // namespace
}  // namespace volley
