// The program from outside: exit codes, one-line messages, output shapes, on a small checkpoint.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/json.h"

namespace volley {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string((std::istreambuf_iterator<char>(file)), {});
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// The character that stands for a byte in byte-level vocabularies (GPT-2's bytes_to_unicode).
std::string byte_character(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code_point = byte;
  if (!printable(byte)) {
    code_point = 256;
    for (int b = 0; b < byte; ++b) code_point += printable(b) ? 0 : 1;
  }
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 63))};
}

// A tokenizer whose token ids are the bytes: what a checkpoint of 256 tokens can use.
Json byte_tokenizer() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[byte_character(byte)] = byte;
  return {
      {"version", "1.0"},
      {"added_tokens", Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
}

struct RunResult {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class CliTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ =
        fs::temp_directory_path() / ("volley-cli-" + std::to_string(getpid()) + "-" +
                                     testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
    fs::create_directories(root_);
    copy_golden("qwen3-tied-bf16-sharded", "target");
    copy_golden("drafter-z-lab", "draft");
    write_text(root_ / "target/tokenizer.json", dump_json(byte_tokenizer()));
    write_text(
        root_ / "target/tokenizer_config.json",
        R"({"chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"})");
    write_text(root_ / "prompts.jsonl",
               "{\"source\": \"a\", \"prompt\": \"one two three\"}\n"
               "{\"source\": \"b\", \"turns\": [\"four\", \"five\"]}\n");
  }
  void TearDown() override { fs::remove_all(root_); }

  void copy_golden(const std::string& from, const std::string& to) {
    fs::create_directories(root_ / to);
    for (const auto& file : fs::directory_iterator("tests/golden/" + from)) {
      if (file.path().filename() != "golden.safetensors") {
        fs::copy_file(file.path(), root_ / to / file.path().filename());
      }
    }
  }

  // `arguments` as a shell reads them; TARGET and DRAFT stand for the folders.
  RunResult run(std::string arguments, const std::string& input = "") {
    const auto replace = [&](const std::string& name, const fs::path& path) {
      for (size_t at; (at = arguments.find(name)) != std::string::npos;) {
        arguments.replace(at, name.size(), path.string());
      }
    };
    replace("TARGET", root_ / "target");
    replace("DRAFT", root_ / "draft");
    replace("ROOT", root_);
    write_text(root_ / "stdin", input);
    const std::string command = std::string(VOLLEY_BINARY) + " " + arguments + " < " +
                                (root_ / "stdin").string() + " > " + (root_ / "stdout").string() +
                                " 2> " + (root_ / "stderr").string();
    const int status = std::system(command.c_str());
    return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1,
            .out = text_of(root_ / "stdout"),
            .err = text_of(root_ / "stderr")};
  }

  // Exit code 2 and one line that says why.
  void expect_refused(const std::string& arguments, const std::string& says,
                      const std::string& input = "") {
    const RunResult result = run(arguments, input);
    EXPECT_EQ(result.exit_code, 2) << arguments << "\n" << result.err;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_THAT(result.err, testing::StartsWith("volley: ")) << arguments;
    EXPECT_THAT(result.err, HasSubstr(says)) << arguments;
    EXPECT_EQ(result.out, "") << arguments;
  }

  fs::path root_;
};

TEST_F(CliTest, GenerateGivesTheSameTextWithAndWithoutADrafter) {
  const RunResult plain = run("generate -m TARGET -p hello -n 24 --json --ignore-eos -t 1");
  ASSERT_EQ(plain.exit_code, 0) << plain.err;
  const Json expected = Json::parse(plain.out);
  EXPECT_EQ(expected["ids"].size(), 24u);
  EXPECT_EQ(expected["finish_reason"], "length");
  for (const char* length : {"3", "full", "auto", "0"}) {
    const RunResult drafted =
        run(std::string("generate -m TARGET -md DRAFT -p hello -n 24 --json --ignore-eos -t 1 "
                        "--draft-length ") +
            length);
    ASSERT_EQ(drafted.exit_code, 0) << drafted.err;
    EXPECT_EQ(Json::parse(drafted.out)["ids"], expected["ids"]) << length;
  }
}

TEST_F(CliTest, PromptsComeFromFlagsFilesAndStandardInput) {
  const std::string ids =
      Json::parse(run("generate -m TARGET -p hi -n 8 --json").out)["ids"].dump();
  write_text(root_ / "prompt.txt", "hi\n");
  EXPECT_EQ(Json::parse(run("generate -m TARGET -f ROOT/prompt.txt -n 8 --json").out)["ids"].dump(),
            ids);
  EXPECT_EQ(Json::parse(run("generate -m TARGET -n 8 --json", "hi").out)["ids"].dump(), ids);
  EXPECT_NE(
      Json::parse(run("generate -m TARGET -p hi --raw -n 8 --json").out)["usage"]["prompt_tokens"],
      Json::parse(run("generate -m TARGET -p hi -n 8 --json").out)["usage"]["prompt_tokens"]);
}

TEST_F(CliTest, ChatAnswersEveryLineOfAScript) {
  const RunResult chat =
      run("chat -m TARGET -md DRAFT -n 6", "one\n/stats\n/reset\ntwo\n/quit\nx\n");
  EXPECT_EQ(chat.exit_code, 0) << chat.err;
  EXPECT_THAT(chat.err, HasSubstr("begins anew"));
  EXPECT_THAT(chat.err, HasSubstr("tok/s"));
}

TEST_F(CliTest, BenchWritesTheAgreedJson) {
  const RunResult bench =
      run("bench -m TARGET -md DRAFT --prompts ROOT/prompts.jsonl -n 12 --json ROOT/out.json "
          "--csv ROOT/out.csv --plot ROOT/out.svg -t 1 -q");
  ASSERT_EQ(bench.exit_code, 0) << bench.err;
  EXPECT_THAT(bench.out, HasSubstr("acceptance_length"));
  const Json json = Json::parse(text_of(root_ / "out.json"));
  EXPECT_EQ(json["sources"]["a"]["prompts"], 1);
  EXPECT_EQ(json["sources"]["b"]["answers"], 2);
  EXPECT_EQ(json["sources"]["b"]["identical"], true);
  EXPECT_THAT(text_of(root_ / "out.svg"), testing::StartsWith("<svg"));
  EXPECT_EQ(run("bench -m TARGET -md DRAFT --synthetic --prompt-tokens 20 --limit 2 -n 8 -t 1 -q")
                .exit_code,
            0);
}

TEST_F(CliTest, DemoWritesTheAgreedJson) {
  const RunResult demo =
      run("demo -m TARGET -md DRAFT --prompts ROOT/prompts.jsonl -n 12 --json ROOT/out.json -t 1");
  ASSERT_EQ(demo.exit_code, 0) << demo.err;
  const Json json = Json::parse(text_of(root_ / "out.json"));
  EXPECT_EQ(json["prompts"].size(), 2u);
  EXPECT_EQ(json["all_identical"], true);
  for (const char* key : {"source", "tokens", "plain_tok_s", "draft_tok_s", "speedup",
                          "acceptance_length", "identical"}) {
    EXPECT_TRUE(json["prompts"][0].contains(key)) << key;
  }
  EXPECT_TRUE(json.contains("mean_speedup") && json.contains("mean_acceptance_length"));
}

TEST_F(CliTest, InspectSaysWhatFitsAndTokenizeWhatATextIs) {
  const RunResult fits = run("inspect TARGET DRAFT --json");
  EXPECT_EQ(fits.exit_code, 0) << fits.err;
  EXPECT_EQ(Json::parse(fits.out)["fit"]["ok"], true);
  fs::remove_all(root_ / "target");
  copy_golden("llama3-f16", "target");
  EXPECT_EQ(run("inspect TARGET DRAFT").exit_code, 1);
  write_text(root_ / "target/tokenizer.json", dump_json(byte_tokenizer()));
  EXPECT_EQ(Json::parse(run("tokenize -m TARGET -p ab --json").out)["ids"], Json({97, 98}));
}

TEST_F(CliTest, SameAnswerSample) {
  const RunResult same =
      run("bench same-answer -m TARGET -md DRAFT --prompts ROOT/prompts.jsonl -n 8 --sample 40 "
          "--json ROOT/out.json -q");
  EXPECT_EQ(same.exit_code, 0) << same.out << same.err;
  EXPECT_EQ(Json::parse(text_of(root_ / "out.json"))["different_runs"], 0);
}

TEST_F(CliTest, MissingAndMalformedFlags) {
  expect_refused("generate", "--target");
  expect_refused("generate -m ROOT/nowhere -p x", "nowhere");
  expect_refused("generate -m TARGET -md ROOT/nowhere -p x", "nowhere");
  expect_refused("generate -m TARGET -p x --threads minus-one", "--threads");
  expect_refused("generate -m TARGET -p x --unheard-of", "--unheard-of");
  expect_refused("generate -m TARGET -p x -n -5", "--max-tokens");
  expect_refused("generate -m TARGET -p x --temperature -2", "temperature");
  expect_refused("generate -m TARGET -md DRAFT -p x --draft-length 12", "at most 7");
  expect_refused("generate -m TARGET -p x --max-model-len 100000", "max_model_len");
  expect_refused("generate -m TARGET -p x --logit-bias 5000=1", "5000");
  expect_refused("generate -m TARGET -p x --stop ''", "stop");
  expect_refused("generate -m TARGET", "empty");
  expect_refused("generate -m TARGET -f ROOT/nothing.txt", "nothing.txt");
  expect_refused("bench -m TARGET -md DRAFT --prompts ROOT/prompts.jsonl --json ROOT/no/out.json",
                 "no folder");
}

TEST_F(CliTest, PromptsPastTheContext) {
  expect_refused("generate -m TARGET --max-model-len 64 -n 4", "context", std::string(300, 'x'));
  expect_refused("bench -m TARGET -md DRAFT --max-model-len 32 --prompts ROOT/long.jsonl -q",
                 "long.jsonl");
  write_text(root_ / "long.jsonl", "{\"prompt\": \"" + std::string(300, 'x') + "\"}\n");
  expect_refused("bench -m TARGET -md DRAFT --max-model-len 32 --prompts ROOT/long.jsonl -q",
                 "no prompt fits");
}

TEST_F(CliTest, BrokenCheckpoints) {
  const fs::path shard = root_ / "target/model-00001-of-00002.safetensors";
  const std::string bytes = text_of(shard);
  write_text(shard, bytes.substr(0, bytes.size() / 2));
  expect_refused("generate -m TARGET -p x", "model-00001-of-00002.safetensors");
  write_text(shard, std::string(8, '\xff') + bytes.substr(8));
  expect_refused("generate -m TARGET -p x", "model-00001-of-00002.safetensors");
  write_text(shard, "");
  expect_refused("generate -m TARGET -p x", "model-00001-of-00002.safetensors");
  write_text(shard, bytes);

  const std::string config = text_of(root_ / "target/config.json");
  for (const std::string& broken :
       {std::string(), std::string("{"), std::string("[]"), std::string(100'000, '['),
        std::string(R"({"architectures": ["NoSuchModel"]})"),
        std::string(config).replace(config.find("\"hidden_size\""), 13, "\"hidden_sizE\"")}) {
    write_text(root_ / "target/config.json", broken);
    expect_refused("generate -m TARGET -p x", "config.json");
  }
  write_text(root_ / "target/config.json", config);

  write_text(root_ / "target/tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}");
  expect_refused("generate -m TARGET -p x", "tokenizer.json");
  fs::remove(root_ / "target/tokenizer.json");
  expect_refused("generate -m TARGET -p x", "tokenizer.json");
}

TEST_F(CliTest, BrokenTemplates) {
  const auto with_template = [&](const std::string& source) {
    write_text(root_ / "target/tokenizer_config.json", dump_json({{"chat_template", source}}));
  };
  with_template("{% for m in messages %}");
  expect_refused("generate -m TARGET -p x", "template");
  with_template("{{ raise_exception('only two roles') }}");
  expect_refused("generate -m TARGET -p x", "only two roles");
  with_template(
      "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}");
  expect_refused("generate -m TARGET -p x", "");
  write_text(root_ / "target/tokenizer_config.json", "{\"chat_template\": ");
  expect_refused("generate -m TARGET -p x", "tokenizer_config.json");
}

TEST_F(CliTest, DraftersOfAnotherTarget) {
  copy_golden("llama3-f16", "other");
  fs::copy_file(root_ / "target/tokenizer.json", root_ / "other/tokenizer.json");
  expect_refused("generate -m ROOT/other -md DRAFT -p x", "draft");
  expect_refused("generate -m DRAFT -p x", "draft");
  expect_refused("generate -m TARGET -md TARGET -p x", "draft");
}

TEST_F(CliTest, MalformedPromptFiles) {
  write_text(root_ / "bad.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": 3}\n");
  expect_refused("bench -m TARGET -md DRAFT --prompts ROOT/bad.jsonl", "bad.jsonl:2");
  write_text(root_ / "bad.jsonl", "not json\n");
  expect_refused("bench -m TARGET -md DRAFT --prompts ROOT/bad.jsonl", "bad.jsonl:1");
  expect_refused("bench -m TARGET -md DRAFT --prompts ROOT/no.jsonl", "no.jsonl");
  expect_refused("bench -m TARGET -md DRAFT --prompts ROOT", "regular file");
}

}  // namespace
}  // namespace volley
