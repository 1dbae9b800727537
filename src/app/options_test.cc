#include "app/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace volley {
namespace {

using testing::HasSubstr;

Options parsed(std::vector<std::string> arguments) {
  const auto options = parse_options(std::move(arguments));
  EXPECT_TRUE(options.has_value()) << (options ? "" : options.error().message);
  return options.value_or(Options{});
}

std::string error_of(std::vector<std::string> arguments) {
  const auto options = parse_options(std::move(arguments));
  EXPECT_FALSE(options.has_value());
  if (options) return {};
  EXPECT_EQ(options.error().kind == ErrorKind::kIo, false);
  EXPECT_EQ(options.error().message.find('\n'), std::string::npos) << options.error().message;
  return options.error().message;
}

TEST(Options, BareAndHelpShowHelp) {
  EXPECT_EQ(parsed({}).verb, Verb::kHelp);
  EXPECT_THAT(parsed({}).help, HasSubstr("generate"));
  const Options help = parsed({"generate", "--help"});
  EXPECT_EQ(help.verb, Verb::kHelp);
  EXPECT_THAT(help.help, HasSubstr("Examples:"));
  EXPECT_THAT(help.help, HasSubstr("--speculative-config"));
}

TEST(Options, GenerateTakesTheNamesOfTheEcosystem) {
  const Options a = parsed({"generate", "-m", "T", "-md", "D", "-p", "hi", "-n", "7", "-t", "3",
                            "--temp", "0.5", "-s", "9", "--stop", "a", "--stop", "b"});
  EXPECT_EQ(a.verb, Verb::kGenerate);
  EXPECT_EQ(a.model.target, "T");
  EXPECT_EQ(a.model.draft, "D");
  EXPECT_EQ(a.prompt.text, "hi");
  EXPECT_EQ(a.answer.max_tokens, 7);
  EXPECT_EQ(a.model.num_threads, 3);
  EXPECT_FLOAT_EQ(a.answer.sampling.temperature, 0.5f);
  EXPECT_EQ(a.answer.sampling.seed, 9u);
  EXPECT_THAT(a.answer.stop_strings, testing::ElementsAre("a", "b"));

  const Options b = parsed({"generate", "--model=T", "--model-draft=D", "--n-predict=4",
                            "--num-speculative-tokens=5", "--draft-sampling=argmax", "--isa=amx"});
  EXPECT_EQ(b.model.draft, "D");
  EXPECT_EQ(b.answer.max_tokens, 4);
  EXPECT_EQ(b.model.draft_length.name(), "5");
  EXPECT_EQ(b.model.draft_sampling, DraftSampling::kArgmax);
  EXPECT_TRUE(b.model.draft_length.branches);
  EXPECT_FALSE(parsed({"generate", "-m", "T", "-md", "D", "--no-draft-branches"})
                   .model.draft_length.policy(16)
                   .branches);
  EXPECT_EQ(b.model.isa, "amx");
}

TEST(Options, SpeculativeConfigNamesTheDrafter) {
  const Options options =
      parsed({"generate", "--target", "T", "--speculative-config",
              R"({"method": "dflash", "model": "D", "num_speculative_tokens": 7})"});
  EXPECT_EQ(options.model.draft, "D");
  EXPECT_EQ(options.model.draft_length.name(), "7");
  for (const char* bad :
       {R"({"method": "eagle3", "model": "D"})", R"({"method": "dflash"})", R"([1])",
        R"({"model":)", R"({"model": 3})", R"({"model": "D", "num_speculative_tokens": -1})",
        R"({"model": "D", "unheard_of": 1})"}) {
    EXPECT_THAT(error_of({"generate", "-m", "T", "--speculative-config", bad}),
                HasSubstr("--speculative-config"))
        << bad;
  }
  EXPECT_THAT(
      error_of({"generate", "-m", "T", "-md", "D", "--speculative-config", R"({"model": "E"})"}),
      HasSubstr("both name a drafter"));
}

TEST(Options, DraftLengths) {
  EXPECT_EQ(parsed({"chat", "-m", "T"}).model.draft_length.name(), "auto");
  EXPECT_EQ(
      parsed({"chat", "-m", "T", "--draft-length", "full"}).model.draft_length.policy(16).length,
      15);
  EXPECT_EQ(
      parsed({"chat", "-m", "T", "--spec-draft-n-max", "0"}).model.draft_length.policy(16).length,
      0);
  for (const char* bad : {"-1", "1000", "many", "7.5", ""}) {
    EXPECT_FALSE(DraftLengthChoice::parse(bad).has_value()) << bad;
  }
}

TEST(Options, LogitBiasHasThreeForms) {
  const Options options = parsed({"generate", "-m", "T", "--logit-bias", "12+1.5", "--logit-bias",
                                  "7-2", "--logit-bias", R"({"3": -100})", "--logit-bias", "5=2"});
  EXPECT_THAT(options.answer.sampling.logit_bias,
              testing::ElementsAre(testing::Pair(12, 1.5f), testing::Pair(7, -2.f),
                                   testing::Pair(3, -100.f), testing::Pair(5, 2.f)));
  for (const char* bad : {"12", "x=1", "12=", "12=abc", "-4=1", R"({"a": 1})", R"({"1": "x"})"}) {
    EXPECT_THAT(error_of({"generate", "-m", "T", "--logit-bias", bad}), HasSubstr("--logit-bias"))
        << bad;
  }
}

TEST(Options, AbsurdFlagsAreRefusedInOneLine) {
  error_of({"generate"});
  error_of({"no-such-command"});
  error_of({"generate", "-m", "T", "--no-such-flag"});
  error_of({"generate", "-m", "T", "--threads", "lots"});
  error_of({"generate", "-m", "T", "--threads", "-4"});
  error_of({"generate", "-m", "T", "--threads", "99999999999999999999"});
  error_of({"generate", "-m", "T", "-n", "0"});
  error_of({"generate", "-m", "T", "--temperature", "-1"});
  error_of({"generate", "-m", "T", "--temperature", "nan"});
  error_of({"generate", "-m", "T", "--top-p", "0"});
  error_of({"generate", "-m", "T", "--weight-format", "q4_0"});
  error_of({"generate", "-m", "T", "--weight-format", "int8,int4"});
  error_of({"generate", "-m", "T", "--backend", "ref", "--weight-format", "int8"});
  error_of({"bench", "--shape", "qwen3-0.6b", "-m", "T"});
  error_of({"bench", "--shape", "qwen3-0.6b", "--budget-s", "0"});
  error_of({"bench", "--shape", "qwen3-0.6b", "--passes", "step,wrong"});
  error_of({"bench", "--shape", "qwen3-0.6b", "--contexts", "128,0"});
  error_of({"bench", "--shape", "qwen3-0.6b", "--prefills", "63"});
  error_of({"generate", "-m", "T", "--pack-cache-gib", "0"});
  error_of({"generate", "-m", "T", "--isa", "sse9"});
  error_of({"generate", "-m", "T", "--backend", "cuda9"});
  error_of({"generate", "-m", "T", "--color", "loud"});
  error_of({"generate", "-m", "T", "-p", "a", "-f", "b"});
  error_of({"generate", "-m"});
  error_of({"bench", "-m", "T", "--prompts", "x"});
  error_of({"bench", "-m", "T", "-md", "D"});
  error_of({"bench", "-m", "T", "-md", "D", "--prompts", "x", "--synthetic"});
  error_of({"bench", "-m", "T", "-md", "D", "--prompts", "x", "--plot", "x.png"});
  error_of({"bench", "-m", "T", "-md", "D", "--prompts", "x", "--compare", "coupled,argmax"});
  error_of({"inspect"});
}

TEST(Options, DefaultsDependOnTheCommand) {
  EXPECT_EQ(parsed({"generate", "-m", "T"}).answer.max_tokens, 256);
  EXPECT_EQ(parsed({"bench", "-m", "T", "-md", "D", "--prompts", "x"}).answer.max_tokens, 128);
  const Options same =
      parsed({"bench", "same-answer", "-m", "T", "-md", "D", "--prompts", "x", "--full"});
  EXPECT_EQ(same.verb, Verb::kSameAnswer);
  EXPECT_EQ(same.answer.max_tokens, 24);
  EXPECT_TRUE(same.same_answer.full);
}

}  // namespace
}  // namespace volley
