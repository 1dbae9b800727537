#include "gemm/deepgemm_peer.h"

#include <gmock/gmock.h>

namespace volley::gemm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const DeepGemmProblem kProblem = {{.m = 64, .n = 2112, .k = 7168}, 64};

TEST(DeepGemmPeer, AnswersRequestsInTheirOrder) {
  // A peer that times nothing: each answer depends on the request that it read.
  const auto peer = DeepGemmPeer::start(R"(
    echo "{\"version\": \"1.0\"}"
    while read -r line; do
      case $line in
        *compile*masked*) echo "{\"seconds\": 2.5}" ;;
        *prepare*2112*num_sets*3*repeats*4*) echo "{}" ;;
        *round*7*) echo "{\"rot_us\": 9.5, \"cold_us\": [13, 14.5]}" ;;
        *) echo "{\"error\": \"unexpected request\"}" ;;
      esac
    done)");
  ASSERT_TRUE(peer) << peer.error().message;
  EXPECT_EQ((*peer)->version(), "1.0");
  DeepGemmProblem masked = kProblem;
  masked.shape.grouping = Grouping::kMasked;
  const auto seconds = (*peer)->compile({kProblem, masked});
  ASSERT_TRUE(seconds) << seconds.error().message;
  EXPECT_EQ(*seconds, 2.5);
  const Status prepared = (*peer)->prepare(kProblem, 3, 4);
  ASSERT_TRUE(prepared) << prepared.error().message;
  const auto round = (*peer)->round(7);
  ASSERT_TRUE(round) << round.error().message;
  EXPECT_EQ(round->rot_us, 9.5);
  EXPECT_THAT(round->cold_us, ElementsAre(13, 14.5));
  // A request that fails leaves the next one be.
  const auto other = (*peer)->round(1);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().message, "unexpected request");
  EXPECT_TRUE((*peer)->round(7));
}

TEST(DeepGemmPeer, SaysWhyItDidNotStart) {
  const auto absent = DeepGemmPeer::start("volley-no-such-program 2>/dev/null");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().kind, ErrorKind::kUnsupported);
  EXPECT_THAT(absent.error().message, HasSubstr("did not start"));
  const auto without = DeepGemmPeer::start(R"(echo '{"error": "no PyTorch"}')");
  ASSERT_FALSE(without);
  EXPECT_EQ(without.error().kind, ErrorKind::kUnsupported);
  EXPECT_EQ(without.error().message, "no PyTorch");
  const auto other = DeepGemmPeer::start("echo hello");
  ASSERT_FALSE(other);
  EXPECT_THAT(other.error().message, HasSubstr("\"hello\""));
}

TEST(DeepGemmPeer, SurvivesAPeerThatEndsOrTalksNonsense) {
  const auto gone = DeepGemmPeer::start(R"(echo '{"version": "1.0"}')");
  ASSERT_TRUE(gone) << gone.error().message;
  for (int i = 0; i < 3; ++i) EXPECT_FALSE((*gone)->round(i));
  const auto odd = DeepGemmPeer::start(
      R"(printf '{"version": "1.0"}\n[]\n{}\n{"rot_us": 1, "cold_us": [null]}\n'; cat >/dev/null)");
  ASSERT_TRUE(odd) << odd.error().message;
  EXPECT_FALSE((*odd)->round(0));
  EXPECT_FALSE((*odd)->compile({kProblem}));
  EXPECT_FALSE((*odd)->round(1));
}

TEST(DeepGemmPeer, HasWhatDeepGemmHasOnHopper) {
  EXPECT_TRUE(DeepGemmPeer::has({.mma = MmaKind::kFp8, .grouping = Grouping::kMasked}));
  EXPECT_TRUE(DeepGemmPeer::has({.mma = MmaKind::kBf16}));
  EXPECT_FALSE(DeepGemmPeer::has({.mma = MmaKind::kMxFp4}));
  EXPECT_FALSE(DeepGemmPeer::has({.mma = MmaKind::kBf16, .grouping = Grouping::kAlongK}));
}

}  // namespace
}  // namespace volley::gemm
