#include "app/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <sstream>

#include "base/json.h"

namespace volley {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxTokens = 1 << 24;
constexpr int kMaxConcurrency = 1024;

// What CLI11 fills and parse_options() then checks: values whose text needs a parser of ours.
struct RawValues {
  std::string draft_length = "auto";
  bool no_draft_branches = false;
  std::string draft_sampling = "coupled";
  std::string speculative_config;
  std::string color = "auto";
  std::string compare;
  bool random_weights = false;
  std::vector<std::string> logit_bias;
};

void add_hub_flags(CLI::App& app, Options& o) {
  app.add_option("--revision", o.model.revision, "branch, tag or commit of a hub id [main]")
      ->type_name("REV")
      ->group("Models");
  app.add_option("--draft-revision", o.model.draft_revision, "that of the drafter's [main]")
      ->type_name("REV")
      ->group("Models");
  app.add_option("--hub-cache", o.model.hub_cache,
                 "the Hugging Face cache [HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub]")
      ->type_name("DIR")
      ->group("Models");
}

void add_model_flags(CLI::App& app, Options& o, RawValues& raw) {
  app.add_option("-m,--target,--model", o.model.target,
                 "target: a Hugging Face model folder, or a hub id, which is downloaded")
      ->type_name("DIR|ID")
      ->group("Models");
  app.add_option("--draft,--model-draft,--draft-model", o.model.draft,
                 "DFlash drafter of that target (also -md); without one, plain decoding")
      ->type_name("DIR|ID")
      ->group("Models");
  app.add_option("--speculative-config", raw.speculative_config,
                 R"(the drafter in vLLM's form: {"method":"dflash","model":DIR,)"
                 R"("num_speculative_tokens":N})")
      ->type_name("JSON")
      ->group("Models");
  add_hub_flags(app, o);
  app.add_option("--max-model-len,-c", o.model.max_model_len,
                 "positions of a sequence [the checkpoint's, at most 8192]")
      ->type_name("N")
      ->group("Models");
}

void add_machine_flags(CLI::App& app, Options& o) {
  app.add_option("-t,--threads", o.model.num_threads,
                 "threads [the physical cores this process may use]")
      ->type_name("N")
      ->group("Machine");
  app.add_option("--isa", o.model.isa, "CPU unit: auto, avx2, avx512 or amx [auto]")
      ->type_name("NAME")
      ->group("Machine");
  app.add_option("--backend", o.model.backend, "cpu, or ref: the slow oracle [cpu]")
      ->type_name("NAME")
      ->group("Machine");
  app.add_option(
         "--weight-format", o.model.weight_format,
         "how the CPU holds weights: bf16, fp8, int8, int4, or auto: as stored where that is "
         "fp8, bf16 otherwise [auto]")
      ->type_name("NAME")
      ->group("Machine");
  app.add_option(
         "--pack-cache", o.model.pack_cache,
         "where quantised weights are kept for the next start, or off [VOLLEY_CACHE/packed, "
         "XDG_CACHE_HOME/volley/packed or ~/.cache/volley/packed]")
      ->type_name("DIR|off")
      ->group("Machine");
  app.add_option("--pack-cache-gib", o.model.pack_cache_gib,
                 "how large that may grow; what was not used for longest goes first [32]")
      ->type_name("N")
      ->group("Machine");
  app.add_option("--prefill-chunk", o.model.prefill_chunk, "prompt tokens a pass [256]")
      ->type_name("N")
      ->group("Machine");
}

void add_draft_flags(CLI::App& app, RawValues& raw) {
  app.add_option("--draft-length,--num-speculative-tokens,--spec-draft-n-max", raw.draft_length,
                 "tokens drafted a cycle: a number, full (the drafter's block), or auto: what pays "
                 "at present, none included [auto]")
      ->type_name("N|auto")
      ->group("Speculation (changes speed, never the text)");
  app.add_flag(
         "--no-draft-branches", raw.no_draft_branches,
         "under auto, verify the drafter's best chain alone, not its second guesses beside it")
      ->group("Speculation (changes speed, never the text)");
  app.add_option("--draft-sampling", raw.draft_sampling,
                 "at temperature > 0: coupled (with the noise the target will use) or argmax "
                 "[coupled]")
      ->type_name("NAME")
      ->group("Speculation (changes speed, never the text)");
}

void add_answer_flags(CLI::App& app, Options& o, RawValues& raw) {
  const char* group = "Answer";
  SamplingParams& s = o.answer.sampling;
  app.add_option("-n,--max-tokens,--n-predict", o.answer.max_tokens,
                 "most tokens to generate [256]")
      ->type_name("N")
      ->group(group);
  app.add_option("--temperature,--temp", s.temperature,
                 "0 takes the most likely token; generation_config.json does not change this [0]")
      ->type_name("T")
      ->group(group);
  app.add_option("--top-k", s.top_k, "keep the K most likely tokens, 0: all [0]")
      ->type_name("K")
      ->group(group);
  app.add_option("--top-p", s.top_p, "keep the most likely tokens that sum to P [1]")
      ->type_name("P")
      ->group(group);
  app.add_option("--min-p", s.min_p, "keep tokens of at least P times the best one's share [0]")
      ->type_name("P")
      ->group(group);
  app.add_option("--repetition-penalty,--repeat-penalty", s.repetition_penalty,
                 "over prompt and answer, 1: off [1]")
      ->type_name("X")
      ->group(group);
  app.add_option("--presence-penalty", s.presence_penalty, "over the answer, -2 to 2 [0]")
      ->type_name("X")
      ->group(group);
  app.add_option("--frequency-penalty", s.frequency_penalty,
                 "over the answer, a token's count times X, -2 to 2 [0]")
      ->type_name("X")
      ->group(group);
  app.add_option("--logit-bias", raw.logit_bias,
                 "ID=BIAS, ID+BIAS, ID-BIAS or a JSON object; may be repeated")
      ->type_name("BIAS")
      ->take_all()
      ->expected(1)
      ->group(group);
  app.add_option("-s,--seed", s.seed, "same seed, same text [0]")->type_name("N")->group(group);
  app.add_option("--stop", o.answer.stop_strings,
                 "end the answer before this text; may be repeated")
      ->type_name("TEXT")
      ->take_all()
      ->expected(1)
      ->group(group);
  app.add_flag("--ignore-eos", o.answer.ignore_eos, "go on after the model's end token")
      ->group(group);
}

void add_raw_flag(CLI::App& app, Options& o) {
  app.add_flag("--raw", o.model.raw, "the prompt as it is, without the chat template")
      ->group("Prompt");
}

void add_output_flags(CLI::App& app, Options& o, RawValues& raw) {
  app.add_option("--color", raw.color,
                 "tint tokens by the step they came in: auto, always or never [auto]")
      ->type_name("WHEN")
      ->group("Output");
  app.add_flag("-v,--verbose", o.output.verbose, "log more to stderr")->group("Output");
  app.add_flag("-q,--quiet", o.output.quiet, "no log and no statistics")->group("Output");
}

void add_prompt_files(CLI::App& app, Options& o) {
  app.add_option("--prompts", o.bench.prompt_files,
                 "JSONL: a line has prompt (or question), messages, or turns, and an optional "
                 "source; may be repeated")
      ->type_name("FILE")
      ->take_all()
      ->expected(1)
      ->group("Prompt");
  app.add_option("--limit", o.bench.limit, "at most N prompts of each source [all]")
      ->type_name("N")
      ->group("Prompt");
}

// Every subcommand with its flags. The pointers in `verbs` belong to `app`.
struct VerbApp {
  CLI::App* app;
  Verb verb;
};

std::vector<VerbApp> define(CLI::App& app, Options& o, RawValues& raw) {
  std::vector<VerbApp> verbs;
  const auto add = [&](CLI::App& parent, Verb verb, const char* name, const char* what,
                       const char* footer) -> CLI::App& {
    CLI::App* sub = parent.add_subcommand(name, what);
    sub->footer(footer);
    sub->get_formatter()->column_width(44);
    verbs.push_back({sub, verb});
    return *sub;
  };

  CLI::App& generate =
      add(app, Verb::kGenerate, "generate", "answer one prompt",
          "Examples:\n"
          "  volley generate -m models/demo-target -md models/demo-draft -p 'What is a kayak?'\n"
          "  volley generate -m DIR -md DIR --temperature 0.7 --seed 4 -n 64 --json < prompt.txt\n"
          "  volley generate -m DIR --raw --stop $'\\n' -p 'The capital of France is'");
  add_model_flags(generate, o, raw);
  generate.add_option("-p,--prompt", o.prompt.text, "the user's message")
      ->type_name("TEXT")
      ->group("Prompt");
  generate
      .add_option("-f,--prompt-file,--file", o.prompt.file,
                  "read it from a file; without -p and -f, from standard input")
      ->type_name("FILE")
      ->group("Prompt");
  generate.add_option("--system", o.prompt.system, "the system message")
      ->type_name("TEXT")
      ->group("Prompt");
  add_raw_flag(generate, o);
  add_answer_flags(generate, o, raw);
  add_draft_flags(generate, raw);
  add_machine_flags(generate, o);
  generate.add_flag("--json", o.prompt.json, "print one JSON object instead of the text")
      ->group("Output");
  add_output_flags(generate, o, raw);

  CLI::App& chat = add(app, Verb::kChat, "chat", "talk; the history is kept",
                       "Ctrl-C stops an answer; at the prompt, Ctrl-C or Ctrl-D leaves.\n"
                       "Example:\n"
                       "  volley chat -m models/demo-target -md models/demo-draft");
  add_model_flags(chat, o, raw);
  chat.add_option("--system", o.prompt.system, "the system message")
      ->type_name("TEXT")
      ->group("Prompt");
  add_answer_flags(chat, o, raw);
  add_draft_flags(chat, raw);
  add_machine_flags(chat, o);
  add_output_flags(chat, o, raw);

  CLI::App& bench = add(
      app, Verb::kBench, "bench", "plain against drafted decoding, on datasets or synthetic shapes",
      "Both decode in one run on the same loaded models, in alternating order, and their tokens\n"
      "are compared. tok/s = tokens after the first / time of decode steps, prefill excluded.\n"
      "Examples:\n"
      "  volley bench -m DIR -md DIR --prompts gsm8k.jsonl -n 128 --json out.json --plot out.svg\n"
      "  volley bench -m DIR -md DIR --synthetic --prompt-tokens 512 -n 128\n"
      "  volley bench --shape qwen3-0.6b --weight-format bf16,int8,int4\n"
      "  volley bench -m DIR -md DIR --prompts gsm8k.jsonl -n 64 --ignore-eos --concurrency 1,8\n"
      "  volley bench same-answer -m DIR -md DIR --prompts mixed.jsonl --sample 1000");
  add_model_flags(bench, o, raw);
  add_prompt_files(bench, o);
  add_raw_flag(bench, o);
  bench.add_flag("--synthetic", o.bench.synthetic, "random tokens as prompts")->group("Prompt");
  bench.add_option("--prompt-tokens", o.bench.prompt_tokens, "length of synthetic prompts [512]")
      ->type_name("N")
      ->group("Prompt");
  bench
      .add_option("--concurrency", o.bench.concurrency,
                  "throughput with so many requests in flight, such as 1,2,4,8; a run each")
      ->type_name("N,...")
      ->delimiter(',')
      ->group("Prompt");
  bench.add_option("--rounds", o.bench.rounds, "with --concurrency: medians of so many rounds [3]")
      ->type_name("N")
      ->group("Prompt");
  add_answer_flags(bench, o, raw);
  add_draft_flags(bench, raw);
  bench
      .add_option("--compare", raw.compare,
                  "coupled,argmax: also measure the acceptance of both draft samplings")
      ->type_name("NAMES")
      ->group("Speculation (changes speed, never the text)");
  add_machine_flags(bench, o);
  bench.add_option("--json", o.bench.json_file, "write the result")
      ->type_name("FILE")
      ->group("Output");
  bench.add_option("--csv", o.bench.csv_file, "write a line for every answer")
      ->type_name("FILE")
      ->group("Output");
  bench.add_option("--plot", o.bench.plot_file, "draw speedup and acceptance: .svg or .html")
      ->type_name("FILE")
      ->group("Output");
  add_output_flags(bench, o, raw);

  const char* shapes = "Shapes";
  bench
      .add_option("--shape", o.bench.shapes,
                  "instead: time single passes of qwen3-0.6b, qwen3-1.7b, qwen3-4b, qwen3-8b or "
                  "llama3.1-8b with random weights beside what the machine could do; a list")
      ->delimiter(',')
      ->type_name("NAMES")
      ->group(shapes);
  bench.add_flag("--random-weights", raw.random_weights, "what --shape does in any case")
      ->group(shapes);
  bench.add_option("--passes", o.bench.passes, "which passes to time [step,verify,draft,prefill]")
      ->delimiter(',')
      ->type_name("NAMES")
      ->group(shapes);
  bench
      .add_option("--contexts", o.bench.contexts,
                  "keys before a step [128,2048,8192]; other passes stand at the first")
      ->delimiter(',')
      ->type_name("N,...")
      ->group(shapes);
  bench.add_option("--prefills", o.bench.prefills, "tokens of the prompts [512,2048]")
      ->delimiter(',')
      ->type_name("N,...")
      ->group(shapes);
  bench
      .add_option("--budget-s", o.bench.budget_s,
                  "seconds of measuring, for each shape and format [60]")
      ->type_name("S")
      ->group(shapes);
  bench
      .add_option("--acceptance-length", o.bench.acceptance_length,
                  "compute the speedup at this one [the paper's for the shape]")
      ->type_name("X")
      ->group(shapes);

  CLI::App& same =
      add(bench, Verb::kSameAnswer, "same-answer",
          "run prompts at every setting and compare every token",
          "Temperature x draft length x prefill chunk x threads x CPU unit x sequences in flight.\n"
          "Within a CPU unit every token must equal that of the reference run (no drafting, the\n"
          "prompt in one chunk, one thread). Exit code 1 on any difference.\n"
          "Example:\n"
          "  volley bench same-answer -m DIR -md DIR --prompts mixed.jsonl --full");
  add_model_flags(same, o, raw);
  add_prompt_files(same, o);
  add_raw_flag(same, o);
  same.add_option("-n,--max-tokens", o.answer.max_tokens, "tokens of an answer [24]")
      ->type_name("N")
      ->group("Answer");
  same.add_option("-s,--seed", o.answer.sampling.seed, "of the answers and of the sample [0]")
      ->type_name("N")
      ->group("Answer");
  same.add_flag("--full", o.same_answer.full, "every setting of every prompt")->group("Matrix");
  same.add_option("--sample", o.same_answer.sample,
                  "a sample of N runs that covers every pair of settings [1000]")
      ->type_name("N")
      ->group("Matrix");
  same.add_option("--isa", o.model.isa, "one CPU unit: avx2, avx512 or amx [all this machine has]")
      ->type_name("NAME")
      ->group("Matrix");
  same.add_option("--weight-format", o.model.weight_format,
                  "bf16, fp8, int8, int4 or auto: how the CPU holds weights [auto]")
      ->type_name("NAME")
      ->group("Matrix");
  same.add_option("--json", o.same_answer.json_file, "write the result")
      ->type_name("FILE")
      ->group("Output");
  add_output_flags(same, o, raw);

  CLI::App& demo = add(app, Verb::kDemo, "demo", "watch drafted decoding beside plain decoding",
                       "Example:\n"
                       "  volley demo -m models/demo-target -md models/demo-draft");
  add_model_flags(demo, o, raw);
  add_prompt_files(demo, o);
  demo.add_option("-n,--max-tokens", o.answer.max_tokens, "tokens of an answer [128]")
      ->type_name("N")
      ->group("Answer");
  add_draft_flags(demo, raw);
  add_machine_flags(demo, o);
  demo.add_option("--json", o.bench.json_file, "write the result")
      ->type_name("FILE")
      ->group("Output");
  add_output_flags(demo, o, raw);

  CLI::App& inspect = add(app, Verb::kInspect, "inspect",
                          "say what a checkpoint is, and whether a drafter fits a target",
                          "Examples:\n"
                          "  volley inspect models/demo-target models/demo-draft\n"
                          "  volley inspect -m DIR -md DIR --json");
  inspect.add_option("folders", o.folders, "model folders, targets or drafters")->type_name("DIR");
  add_model_flags(inspect, o, raw);
  inspect
      .add_option("--weight-format", o.model.weight_format,
                  "also measure what fp8, int8 or int4 costs this target in precision, on the CPU")
      ->type_name("NAME")
      ->group("Machine");
  inspect.add_flag("--json", o.prompt.json, "print JSON")->group("Output");
  add_output_flags(inspect, o, raw);

  CLI::App& tokenize = add(app, Verb::kTokenize, "tokenize", "the token ids and pieces of a text",
                           "Example:\n"
                           "  volley tokenize -m models/demo-target -p 'two words'");
  tokenize.add_option("-m,--target,--model", o.model.target, "a model folder with tokenizer.json")
      ->type_name("DIR")
      ->group("Models");
  tokenize.add_option("-p,--prompt", o.prompt.text, "the text; without it, standard input")
      ->type_name("TEXT")
      ->group("Prompt");
  tokenize.add_option("-f,--prompt-file,--file", o.prompt.file, "read it from a file")
      ->type_name("FILE")
      ->group("Prompt");
  tokenize.add_flag("--json", o.prompt.json, "print JSON")->group("Output");
  add_output_flags(tokenize, o, raw);

  CLI::App& download =
      add(app, Verb::kDownload, "download", "bring a hub's models into the cache, or up to date",
          "Prints the folder of each. Other commands download what they lack by themselves.\n"
          "HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE and HF_HUB_OFFLINE mean what they mean to\n"
          "Hugging Face's tools, and the cache is the same.\n"
          "Example:\n"
          "  volley download Qwen/Qwen3-4B z-lab/Qwen3-4B-DFlash-b16");
  download.add_option("ids", o.folders, "hub ids")->type_name("ID");
  download.add_option("--revision", o.model.revision, "branch, tag or commit [main]")
      ->type_name("REV")
      ->group("Models");
  download
      .add_option("--hub-cache", o.model.hub_cache,
                  "the Hugging Face cache [HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub]")
      ->type_name("DIR")
      ->group("Models");
  add_output_flags(download, o, raw);
  return verbs;
}

// CLI11 takes one letter after a single dash; the ecosystem writes -md.
void expand_long_short_flags(std::vector<std::string>& arguments) {
  for (std::string& argument : arguments) {
    if (argument == "--") return;
    if (argument == "-md") argument = "--draft";
    if (argument.starts_with("-md=")) argument.replace(0, 3, "--draft");
  }
}

void set_defaults_of(Verb verb, Options& o, const CLI::App& app) {
  const bool max_tokens_given = [&] {
    const CLI::Option* option = app.get_option_no_throw("--max-tokens");
    return option != nullptr && option->count() > 0;
  }();
  if (max_tokens_given) return;
  if (verb == Verb::kSameAnswer) o.answer.max_tokens = 24;
  if (verb == Verb::kDemo || verb == Verb::kBench) o.answer.max_tokens = 128;
  if (verb == Verb::kChat) o.answer.max_tokens = 1024;
}

Status check_int(const char* flag, int value, int low, int high) {
  if (value >= low && value <= high) return {};
  return invalid("{}: expected a number from {} to {}, got {}", flag, low, high, value);
}

Status check_choice(const char* flag, const std::string& value,
                    std::initializer_list<const char*> choices) {
  for (const char* choice : choices) {
    if (value == choice) return {};
  }
  return invalid("{}: expected one of {}, got '{}'", flag, fmt::join(choices, ", "), value);
}

Status check_numbers(const Options& o) {
  VOLLEY_TRY_STATUS(check_int("--threads", o.model.num_threads, 0, kMaxThreads));
  VOLLEY_TRY_STATUS(check_int("--max-model-len", o.model.max_model_len, 0, kMaxTokens));
  VOLLEY_TRY_STATUS(check_int("--prefill-chunk", o.model.prefill_chunk, 1, 1 << 14));
  VOLLEY_TRY_STATUS(check_int("--max-tokens", o.answer.max_tokens, 1, kMaxTokens));
  VOLLEY_TRY_STATUS(check_int("--limit", o.bench.limit, 0, kMaxTokens));
  VOLLEY_TRY_STATUS(check_int("--prompt-tokens", o.bench.prompt_tokens, 1, kMaxTokens));
  for (const int concurrency : o.bench.concurrency) {
    VOLLEY_TRY_STATUS(check_int("--concurrency", concurrency, 1, kMaxConcurrency));
  }
  VOLLEY_TRY_STATUS(check_int("--rounds", o.bench.rounds, 1, 1000));
  VOLLEY_TRY_STATUS(check_int("--sample", o.same_answer.sample, 1, kMaxTokens));
  VOLLEY_TRY_STATUS(check_choice("--isa", o.model.isa, {"auto", "avx2", "avx512", "amx"}));
  VOLLEY_TRY_STATUS(check_choice("--backend", o.model.backend, {"cpu", "ref"}));
  VOLLEY_TRY_STATUS(check_int("--pack-cache-gib", o.model.pack_cache_gib, 1, 1 << 20));
  for (const std::string& format : o.bench.formats) {
    VOLLEY_TRY_STATUS(
        check_choice("--weight-format", format, {"auto", "bf16", "fp8", "int8", "int4"}));
  }
  if (o.bench.formats.size() != 1 && o.bench.shapes.empty())
    return invalid("--weight-format: one format, or a list with bench --shape");
  for (const std::string& pass : o.bench.passes) {
    VOLLEY_TRY_STATUS(check_choice("--passes", pass, {"step", "verify", "draft", "prefill"}));
  }
  // A page at least: longer contexts are filled with copies of the longest prompt's pages.
  for (const int tokens : o.bench.contexts) {
    VOLLEY_TRY_STATUS(check_int("--contexts", tokens, 64, 32768));
  }
  for (const int tokens : o.bench.prefills) {
    VOLLEY_TRY_STATUS(check_int("--prefills", tokens, 64, 32768));
  }
  if (!(o.bench.budget_s > 0 && o.bench.budget_s <= 86400))
    return invalid("--budget-s: expected a number of seconds, got {}", o.bench.budget_s);
  if (!(o.bench.acceptance_length >= 0 && o.bench.acceptance_length <= 1024))
    return invalid("--acceptance-length: expected a number from 1, got {}",
                   o.bench.acceptance_length);
  if (o.model.backend == "ref" && o.model.weight_format != "auto") {
    return invalid("--weight-format {}: --backend ref holds floats alone", o.model.weight_format);
  }
  // Token ids are checked against the vocabulary when the target is loaded.
  SamplingParams without_ids = o.answer.sampling;
  without_ids.logit_bias.clear();
  return without_ids.validate(1);
}

Status check_paths(const Options& o) {
  if (o.verb == Verb::kDownload && o.folders.empty()) {
    return invalid("nothing to download: give a hub id such as Qwen/Qwen3-4B");
  }
  if (o.verb == Verb::kBench && !o.bench.shapes.empty()) {
    if (!o.model.target.empty() || !o.bench.prompt_files.empty() || o.bench.synthetic)
      return invalid("--shape makes its own models and prompts: drop --target and --prompts");
    return {};
  }
  const bool needs_target = o.verb != Verb::kInspect && o.verb != Verb::kDownload;
  if (needs_target && o.model.target.empty()) {
    return invalid("no model: give the target's folder with --target DIR");
  }
  if (o.verb == Verb::kInspect && o.model.target.empty() && o.model.draft.empty() &&
      o.folders.empty()) {
    return invalid("nothing to inspect: give a model folder");
  }
  const bool compares =
      o.verb == Verb::kBench || o.verb == Verb::kSameAnswer || o.verb == Verb::kDemo;
  if (compares && o.model.draft.empty()) {
    return invalid("no drafter to compare plain decoding with: give its folder with --draft DIR");
  }
  if (compares && o.bench.prompt_files.empty() && !o.bench.synthetic) {
    return invalid("no prompts: give a file with --prompts FILE.jsonl{}",
                   o.verb == Verb::kBench ? ", or --synthetic" : "");
  }
  if (o.bench.synthetic && !o.bench.prompt_files.empty()) {
    return invalid("--synthetic and --prompts exclude each other: give one");
  }
  if (o.prompt.text && o.prompt.file) {
    return invalid("--prompt and --prompt-file exclude each other: give one");
  }
  const std::string& plot = o.bench.plot_file;
  if (!plot.empty() && !plot.ends_with(".svg") && !plot.ends_with(".html")) {
    return invalid("--plot: expected a name that ends in .svg or .html, got '{}'", plot);
  }
  return {};
}

Status apply_raw_values(const RawValues& raw, Options& o) {
  o.bench.formats.clear();
  std::istringstream formats(o.model.weight_format);
  for (std::string format; std::getline(formats, format, ',');) o.bench.formats.push_back(format);
  VOLLEY_TRY(o.model.draft_length, DraftLengthChoice::parse(raw.draft_length));
  o.model.draft_length.branches = !raw.no_draft_branches;
  VOLLEY_TRY_STATUS(check_choice("--draft-sampling", raw.draft_sampling, {"coupled", "argmax"}));
  if (raw.draft_sampling == "argmax") o.model.draft_sampling = DraftSampling::kArgmax;
  VOLLEY_TRY_STATUS(check_choice("--color", raw.color, {"auto", "always", "never"}));
  if (raw.color == "always") o.output.color = ColorMode::kAlways;
  if (raw.color == "never") o.output.color = ColorMode::kNever;
  VOLLEY_TRY_STATUS(
      check_choice("--compare", raw.compare, {"", "coupled,argmax", "argmax,coupled"}));
  o.bench.compare_samplings = !raw.compare.empty();
  for (const int concurrency : o.bench.concurrency) {
    o.model.max_num_seqs = std::max(o.model.max_num_seqs, concurrency);
  }
  for (const std::string& text : raw.logit_bias) {
    VOLLEY_TRY_STATUS(parse_logit_bias(text, o.answer.sampling.logit_bias));
  }
  if (!raw.speculative_config.empty()) {
    VOLLEY_TRY_STATUS(apply_speculative_config(raw.speculative_config, o.model));
  }
  if (o.bench.compare_samplings && o.answer.sampling.temperature == 0) {
    return invalid(
        "--compare: at temperature 0 both draft samplings are the same; give "
        "--temperature as well");
  }
  return {};
}

template <class T>
bool parse_whole(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

Result<DraftLengthChoice> DraftLengthChoice::parse(const std::string& text) {
  if (text == "auto") return DraftLengthChoice{};
  if (text == "full") return DraftLengthChoice{.mode = Mode::kFull};
  int length = -1;
  if (!parse_whole(text, length) || length < 0 || length > kMaxDraftLength) {
    return invalid("--draft-length: expected auto, full or a number from 0 to {}, got '{}'",
                   kMaxDraftLength, text);
  }
  return DraftLengthChoice{.mode = Mode::kFixed, .length = length};
}

DraftPolicy DraftLengthChoice::policy(int block_size) const {
  switch (mode) {
    case Mode::kAuto:
      return {.branches = branches};
    case Mode::kFull:
      return DraftPolicy::fixed(std::max(0, block_size - 1));
    case Mode::kFixed:
      return DraftPolicy::fixed(length);
  }
  return {};
}

std::string DraftLengthChoice::name() const {
  switch (mode) {
    case Mode::kAuto:
      return "auto";
    case Mode::kFull:
      return "full";
    case Mode::kFixed:
      return std::to_string(length);
  }
  return {};
}

Status parse_logit_bias(const std::string& text, std::vector<std::pair<int32_t, float>>& out) {
  const auto malformed = [&] {
    return invalid("--logit-bias: expected ID=BIAS, ID+BIAS, ID-BIAS or {{\"ID\": BIAS}}, got '{}'",
                   text);
  };
  const auto add = [&](std::string_view id_text, double bias) {
    int32_t id = -1;
    if (!parse_whole(id_text, id) || id < 0 || !std::isfinite(bias)) return false;
    out.emplace_back(id, static_cast<float>(bias));
    return true;
  };
  if (text.starts_with('{')) {
    VOLLEY_TRY(const Json object, parse_json(text, "--logit-bias"));
    for (const auto& [key, value] : object.items()) {
      if (!value.is_number() || !add(key, value.get<double>())) return malformed();
    }
    return {};
  }
  const size_t sign = text.find_first_of("=+-");
  if (sign == std::string::npos) return malformed();
  // from_chars reads a minus, not a plus.
  const std::string_view number =
      std::string_view(text).substr(text[sign] == '-' ? sign : sign + 1);
  float bias = 0;
  if (!parse_whole(number, bias) || !add(std::string_view(text).substr(0, sign), bias)) {
    return malformed();
  }
  return {};
}

Status apply_speculative_config(const std::string& json, ModelOptions& model) {
  const char* flag = "--speculative-config";
  VOLLEY_TRY(const Json config, parse_json(json, flag));
  if (!config.is_object()) return invalid("{}: expected a JSON object, got {}", flag, json);
  for (const auto& [key, value] : config.items()) {
    if (key == "method") {
      if (value != "dflash") {
        return make_error(ErrorKind::kUnsupported, "{}: method {}: only \"dflash\" is supported",
                          flag, dump_json(value));
      }
    } else if (key == "model") {
      if (!value.is_string()) return invalid("{}: model: expected a folder's name", flag);
      if (!model.draft.empty()) {
        return invalid("--draft and {} both name a drafter: give one", flag);
      }
      model.draft = value.get<std::string>();
    } else if (key == "revision") {
      if (!value.is_string()) return invalid("{}: revision: expected a name", flag);
      model.draft_revision = value.get<std::string>();
    } else if (key == "num_speculative_tokens") {
      const auto length = DraftLengthChoice::parse(dump_json(value));
      if (!value.is_number_integer() || !length) {
        return invalid("{}: num_speculative_tokens: expected a number from 0 to {}, got {}", flag,
                       kMaxDraftLength, dump_json(value));
      }
      model.draft_length = *length;
    } else if (key == "draft_sample_method") {
      if (value != "greedy" && value != "probabilistic") {
        return invalid("{}: draft_sample_method: expected greedy or probabilistic, got {}", flag,
                       dump_json(value));
      }
      model.draft_sampling = value == "greedy" ? DraftSampling::kArgmax : DraftSampling::kCoupled;
    } else {
      return invalid(
          "{}: unknown key \"{}\"; known are method, model, revision, num_speculative_tokens and "
          "draft_sample_method",
          flag, key);
    }
  }
  if (model.draft.empty()) return invalid("{}: \"model\", the drafter's folder, is missing", flag);
  return {};
}

Result<Options> parse_options(std::vector<std::string> arguments) {
  Options options;
  RawValues raw;
  CLI::App app(
      "Volley drafts a whole block of tokens in one pass of a small block-diffusion model,\n"
      "verifies it in one pass of the target, and keeps what matches: the same text, sooner.");
  app.name("volley");
  app.require_subcommand(0, 1);
  app.set_version_flag("--version", "volley 0.1.0");
  app.footer(
      "volley serve TARGET is an OpenAI-compatible server, volley bench serve puts load on one.\n"
      "volley kernels compiles and explains matrix kernels for Hopper GPUs.\n"
      "Each command has its own help: volley generate --help\n"
      "Exit codes: 0 done, 1 it failed (or answers differ), 2 bad input.");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const std::vector<VerbApp> verbs = define(app, options, raw);

  expand_long_short_flags(arguments);
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    std::ostringstream out, err;
    if (app.exit(error, out, err) == 0) {
      options.help = out.str();
      return options;
    }
    return invalid("{}; see volley --help", error.what());
  }
  const CLI::App* chosen = nullptr;
  for (const VerbApp& entry : verbs) {
    if (!entry.app->parsed()) continue;
    options.verb = entry.verb;  // a nested command stands after its parent
    chosen = entry.app;
  }
  if (chosen == nullptr) {
    options.help = app.help();
    return options;
  }
  set_defaults_of(options.verb, options, *chosen);
  VOLLEY_TRY_STATUS(apply_raw_values(raw, options));
  VOLLEY_TRY_STATUS(check_numbers(options));
  VOLLEY_TRY_STATUS(check_paths(options));
  return options;
}

}  // namespace volley
