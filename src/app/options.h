#pragma once

// The command line as data. Parsing is a pure function of the arguments; nothing here touches
// files.

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"

namespace volley {

enum class Verb {
  kHelp,
  kGenerate,
  kChat,
  kBench,
  kSameAnswer,
  kDemo,
  kInspect,
  kTokenize,
  kDownload,
};
enum class ColorMode { kAuto, kAlways, kNever };

// How many tokens to draft, as asked for. kFull: the drafter's whole block, known once it is
// loaded.
struct DraftLengthChoice {
  enum class Mode { kAuto, kFull, kFixed };
  Mode mode = Mode::kAuto;
  int length = 0;        // for kFixed; 0: no drafting
  bool branches = true;  // under auto: also verify second guesses

  // Errors: neither "auto", "full" nor a number of at least 0.
  static Result<DraftLengthChoice> parse(const std::string& text);
  DraftPolicy policy(int block_size) const;
  std::string name() const;  // "auto", "full", "7"
};

struct ModelOptions {
  std::string target;
  std::string draft;                    // empty: plain decoding
  std::string revision = "main";        // of a target that is a hub id
  std::string draft_revision = "main";  // of such a drafter
  std::string hub_cache;                // empty: where Hugging Face's tools have it
  int num_threads = 0;                  // 0: the physical cores this process may use
  std::string isa = "auto";
  std::string backend = "cpu";
  std::string weight_format = "auto";
  // Where packed weights are kept: a folder, "off", or empty for the default of
  // pack_cache_folder().
  std::string pack_cache;
  int pack_cache_gib = 32;
  int max_model_len = 0;    // 0: the checkpoint's, at most 8192
  int prefill_chunk = 256;  // prompt tokens a pass
  int max_num_seqs = 1;     // sequences computed at the same time
  DraftLengthChoice draft_length;
  DraftSampling draft_sampling = DraftSampling::kCoupled;
  bool raw = false;  // no chat template
};

struct AnswerOptions {
  int max_tokens = 256;
  SamplingParams sampling;
  std::vector<std::string> stop_strings;
  bool ignore_eos = false;
};

struct OutputOptions {
  ColorMode color = ColorMode::kAuto;
  bool verbose = false;
  bool quiet = false;
};

struct PromptOptions {
  std::optional<std::string> text;
  std::optional<std::string> file;  // neither: standard input
  std::string system;
  bool json = false;
};

struct BenchOptions {
  std::vector<std::string> prompt_files;
  int limit = 0;  // prompts per source; 0: all
  bool synthetic = false;
  int prompt_tokens = 512;  // of synthetic prompts
  std::string json_file;
  std::string csv_file;
  std::string plot_file;
  bool compare_samplings = false;
  // Requests in flight, a run each; empty: one prompt at a time, in detail.
  std::vector<int> concurrency;
  int rounds = 3;  // of each way, where several are in flight
  // Not empty: passes of these shapes with random weights, in each of the formats.
  std::vector<std::string> shapes;
  std::vector<std::string> formats = {"bf16"};
  std::vector<std::string> passes = {"step", "verify", "draft", "prefill"};
  std::vector<int> contexts = {128, 2048, 8192};
  std::vector<int> prefills = {512, 2048};
  double budget_s = 60;          // of measuring, for each shape and format
  double acceptance_length = 0;  // 0: the published one
};

struct SameAnswerOptions {
  bool full = false;
  int sample = 1000;
  std::string json_file;
};

struct Options {
  Verb verb = Verb::kHelp;
  std::string help;  // for kHelp
  ModelOptions model;
  AnswerOptions answer;
  OutputOptions output;
  PromptOptions prompt;
  BenchOptions bench;
  SameAnswerOptions same_answer;
  std::vector<std::string> folders;  // of inspect, beside target and draft; of download, hub ids
};

// `arguments` without the program's name. Errors: unknown or malformed flags, values out of range,
// contradictions; the message says what to do.
Result<Options> parse_options(std::vector<std::string> arguments);

// ID=BIAS, ID+BIAS or ID-BIAS (llama.cpp), or a JSON object {"ID": BIAS, ...} (OpenAI); appends.
Status parse_logit_bias(const std::string& text, std::vector<std::pair<int32_t, float>>& out);

// vLLM's {"method": "dflash", "model": DIR, "num_speculative_tokens": N, ...} into `model`.
Status apply_speculative_config(const std::string& json, ModelOptions& model);

}  // namespace volley
