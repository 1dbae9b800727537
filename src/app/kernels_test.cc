#include "app/kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/temporary_folder.h"
#include "gemm/shape_file.h"
#include "jit/bundle.h"
#include "jit/compiler.h"

namespace volley {
namespace {

using testing::HasSubstr;

std::string error_of(const std::vector<std::string>& arguments) {
  const auto code = run_kernels(arguments);
  return code ? std::string() : code.error().message;
}

TEST(Kernels, ExplainShowsTheChoice) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_kernels({"explain", "64", "2112", "7168", "--count", "3"}), 0);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_THAT(text, HasSubstr("2 segments"));
  EXPECT_THAT(text, HasSubstr("DRAM us"));
}

TEST(Kernels, WrongArgumentsAreNamed) {
  EXPECT_THAT(error_of({"explain", "64", "2113", "7168"}), HasSubstr("n is 2113"));
  EXPECT_THAT(error_of({"explain", "64", "2112", "7168", "--mma", "fp5"}), HasSubstr("fp5"));
  EXPECT_THAT(error_of({"build", "-o", "x"}), HasSubstr("--shapes"));
  EXPECT_THAT(error_of({"build", "--shapes", "/nonexistent", "-o", "x"}),
              HasSubstr("/nonexistent"));
  EXPECT_THAT(error_of({"build", "--arch", "sm_80", "--shapes", "x", "-o", "x"}),
              HasSubstr("sm_80"));
  EXPECT_THAT(error_of({"list", "CMakeLists.txt"}), HasSubstr("expected a kernel bundle"));
  EXPECT_THAT(error_of({}), HasSubstr("volley kernels --help"));
}

TEST(Kernels, ABundleHoldsWhatItsShapesNeed) {
  if (const auto nvrtc = jit::load_nvrtc(); !nvrtc)
    GTEST_SKIP() << "not run: " << nvrtc.error().message;
  const TemporaryFolder folder;
  const std::filesystem::path& dir = folder.path();
  const std::string shapes = R"([{"n": 2112, "k": 7168, "max_m": 20}])";
  ASSERT_TRUE(write_file_atomic(dir / "shapes.json", shapes));
  const std::string output = dir / "kernels.bundle";
  testing::internal::CaptureStdout();
  const auto code = run_kernels({"build", "--arch", "sm_90a", "--shapes", dir / "shapes.json", "-o",
                                 output, "--cache", dir / "cache", "--quiet"});
  testing::internal::GetCapturedStdout();
  ASSERT_TRUE(code) << code.error().message;
  const auto bundle = jit::Bundle::open(output);
  ASSERT_TRUE(bundle);
  EXPECT_GE(bundle->size(), 1U);
  EXPECT_EQ(bundle->info().arch, "sm_90a");
  std::vector<std::string> names;
  for (size_t i = 0; i < bundle->size(); ++i) names.emplace_back(bundle->name(i));
  EXPECT_THAT(names, testing::Contains(HasSubstr("fp8-bf16-dense")));
  EXPECT_THAT(names, testing::Contains("quantize"));
  // Again, now all from the cache: the same bytes.
  const std::string first = *read_file(output);
  testing::internal::CaptureStdout();
  ASSERT_TRUE(run_kernels({"build", "--shapes", dir / "shapes.json", "-o", output, "--cache",
                           dir / "cache", "--quiet"}));
  EXPECT_THAT(testing::internal::GetCapturedStdout(), HasSubstr("0 compiled"));
  EXPECT_EQ(*read_file(output), first);
}

TEST(ShapeFile, ReadsEveryKeyAndNamesWhatIsWrong) {
  const auto shapes = gemm::parse_shapes(
      R"([{"mma": "bf16", "out": "f32", "grouping": "masked", "n": 256, "k": 512, "max_m": 64,
           "groups": 3, "group_align": 32, "segments": 2}])",
      "test");
  ASSERT_TRUE(shapes) << shapes.error().message;
  ASSERT_EQ(shapes->size(), 1U);
  const gemm::GemmShape& s = shapes->front();
  EXPECT_EQ(s.mma, gemm::MmaKind::kBf16);
  EXPECT_EQ(s.out, gemm::OutKind::kF32);
  EXPECT_EQ(s.grouping, gemm::Grouping::kMasked);
  EXPECT_EQ(s.m, 64);
  EXPECT_EQ(s.num_groups, 3);
  EXPECT_EQ(s.segments, 2);
  const auto objection = [](const char* text) {
    const auto parsed = gemm::parse_shapes(text, "f.json");
    return parsed ? std::string() : parsed.error().message;
  };
  EXPECT_THAT(objection("{}"), HasSubstr("expected an array"));
  EXPECT_THAT(objection("[1]"), HasSubstr("shape 0: expected an object"));
  EXPECT_THAT(objection(R"([{"n": 8, "k": 128}])"), HasSubstr("max_m is missing"));
  EXPECT_THAT(objection(R"([{"n": 8, "k": 100, "max_m": 1}])"), HasSubstr("k is 100"));
  EXPECT_THAT(objection(R"([{"n": -8, "k": 128, "max_m": 1}])"),
              HasSubstr("n: expected an integer"));
  EXPECT_THAT(objection(R"([{"n": 8, "k": 128, "max_m": 1, "depth": 2}])"), HasSubstr("\"depth\""));
  EXPECT_THAT(objection(R"([{"mma": 3}])"), HasSubstr("mma: expected a name"));
  EXPECT_TRUE(gemm::parse_shapes(*read_file("deploy/kernels/qwen3-8b.json"), "the shipped list"));
}

}  // namespace
}  // namespace volley
