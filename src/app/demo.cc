// volley demo: the same prompts decoded plainly and with drafts, side by side, for a person to
// watch.

#include <cstdio>

#include "app/bench_measure.h"
#include "app/bench_stats.h"
#include "app/block_colors.h"
#include "app/commands.h"
#include "app/machine.h"
#include "app/prompt_text.h"
#include "base/file.h"

namespace volley {
namespace {

constexpr size_t kShownPromptBytes = 300;
constexpr size_t kCompactAnswerBytes = 160;

// The start of `text`, cut at a character's edge.
std::string start_of(const std::string& text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + " ...";
}

std::string one_line(std::string text) {
  for (char& c : text) {
    if (c == '\n' || c == '\r' || c == '\t') c = ' ';
  }
  return text;
}

double speedup_of(const BenchAnswer& answer) {
  const double plain = answer.plain.decode_tok_s();
  return plain > 0 ? answer.drafted.decode_tok_s() / plain : 0;
}

double acceptance_of(const BenchAnswer& answer) {
  return answer.for_acceptance().speculation.acceptance_length();
}

class Demo {
 public:
  Demo(const Options& options, Loaded& loaded, AnswerRequest request)
      : loaded_(loaded),
        runner_(options, loaded, std::move(request)),
        terminal_(terminal_state()),
        color_(use_color(options.output.color, terminal_)) {}

  Status play(const std::vector<BenchPrompt>& prompts) {
    const int count = static_cast<int>(prompts.size());
    for (int i = 0; i < count; ++i) {
      std::vector<ChatMessage> messages = prompts[i].messages;
      messages.push_back({"user", prompts[i].turns.front()});
      VOLLEY_TRY(const std::vector<int32_t> ids, loaded_.prompt_ids(messages));
      if (i == 0) VOLLEY_TRY_STATUS(runner_.warm_up(ids));
      fmt::print("{}  {}\n",
                 bold(fmt::format("[{}/{}] {}", i + 1, count, prompts[i].source), color_),
                 dim(one_line(start_of(prompts[i].turns.front(), kShownPromptBytes)), color_));
      std::fflush(stdout);
      VOLLEY_TRY(BenchAnswer answer, show(ids));
      answer.source = prompts[i].source;
      answer.prompt_idx = i;
      answers_.push_back(std::move(answer));
    }
    return {};
  }

  const std::vector<BenchAnswer>& answers() const { return answers_; }

  void print_table() const {
    fmt::print("{}\n", bold(fmt::format("{:<14} {:>6}  {:>11}  {:>13}  {:>7}  {:>17}  {}", "source",
                                        "tokens", "plain tok/s", "drafted tok/s", "speedup",
                                        "acceptance_length", "identical"),
                            color_));
    for (const BenchAnswer& a : answers_) {
      fmt::print("{:<14} {:>6}  {:>11.1f}  {:>13.1f}  {:>6.2f}x  {:>17.2f}  {}\n",
                 a.source.substr(0, 14), a.plain.num_tokens(), a.plain.decode_tok_s(),
                 a.drafted.decode_tok_s(), speedup_of(a), acceptance_of(a),
                 a.identical ? "yes" : "NO");
    }
    fmt::print("{}\n", bold(fmt::format("{:<14} {:>6}  {:>11}  {:>13}  {:>6.2f}x  {:>17.2f}  {}",
                                        "mean", "", "", "", mean(speedup_of), mean(acceptance_of),
                                        all_identical() ? "yes" : "NO"),
                            color_));
  }

  Json json() const {
    Json prompts = Json::array();
    for (const BenchAnswer& a : answers_) {
      prompts.push_back({{"source", a.source},
                         {"tokens", a.plain.num_tokens()},
                         {"plain_tok_s", a.plain.decode_tok_s()},
                         {"draft_tok_s", a.drafted.decode_tok_s()},
                         {"speedup", speedup_of(a)},
                         {"acceptance_length", acceptance_of(a)},
                         {"identical", a.identical}});
    }
    return {{"prompts", std::move(prompts)},
            {"mean_speedup", mean(speedup_of)},
            {"mean_acceptance_length", mean(acceptance_of)},
            {"all_identical", all_identical()}};
  }

  bool all_identical() const {
    for (const BenchAnswer& answer : answers_) {
      if (!answer.identical) return false;
    }
    return true;
  }

 private:
  // Decodes one prompt and shows the drafted answer while it comes, or its beginning in a log.
  Result<BenchAnswer> show(const std::vector<int32_t>& ids) {
    const auto on_step = [&](const AnswerStep& step) {
      if (terminal_.out_is_terminal || color_) {
        fmt::print("{}", color_ ? tint_step(step.text, step.step_idx) : step.text);
        std::fflush(stdout);
      }
      return true;
    };
    VOLLEY_TRY(BenchAnswer answer, runner_.measure(ids, on_step));
    if (terminal_.out_is_terminal || color_) {
      fmt::print("{}", answer.drafted.text.ends_with('\n') ? "" : "\n");
    } else {
      fmt::print("{}\n", one_line(start_of(answer.drafted.text, kCompactAnswerBytes)));
    }
    fmt::print("{}\n\n",
               dim(fmt::format("plain {:.0f} tok/s, drafted {:.0f} tok/s: {:.2f}x; {:.2f} "
                               "tokens a pass; text {}",
                               answer.plain.decode_tok_s(), answer.drafted.decode_tok_s(),
                               speedup_of(answer), answer.drafted.speculation.acceptance_length(),
                               answer.identical ? "identical" : "DIFFERS"),
                   color_));
    std::fflush(stdout);
    return answer;
  }

  template <class F>
  double mean(F of) const {
    double sum = 0;
    for (const BenchAnswer& answer : answers_) sum += of(answer);
    return answers_.empty() ? 0 : sum / static_cast<double>(answers_.size());
  }

  Loaded& loaded_;
  BenchRunner runner_;
  const TerminalState terminal_;
  const bool color_;
  std::vector<BenchAnswer> answers_;
};

}  // namespace

Result<int> run_demo(const Options& options) {
  VOLLEY_TRY_STATUS(check_writable(options.bench.json_file));
  VOLLEY_TRY(AnswerRequest request, make_request(options));
  VOLLEY_TRY(const std::vector<BenchPrompt> prompts,
             read_prompt_files(options.bench.prompt_files, options.bench.limit));
  VOLLEY_TRY(Loaded loaded, load(options.model, /*prefix_caching=*/false));
  bind_to_model(options, loaded, request.generation);

  const bool color = use_color(options.output.color, terminal_state());
  fmt::print("{}\nEach prompt is decoded plainly and with drafts, on the same models.{}\n\n",
             bold("Volley: block-diffusion speculative decoding, the same text sooner", color),
             color ? " Tokens that came in one step share a colour." : "");
  Demo demo(options, loaded, std::move(request));
  VOLLEY_TRY_STATUS(demo.play(prompts));
  demo.print_table();
  fmt::print(
      "\n{}, {}, {} thread{}. tok/s: tokens after the first / time of decode steps.\n"
      "acceptance_length: tokens gained a target pass{}.\n",
      cpu_model_name(), loaded.models.ops->name(), loaded.models.num_threads,
      loaded.models.num_threads == 1 ? "" : "s",
      options.model.draft_length.mode == DraftLengthChoice::Mode::kAuto
          ? " with the whole block drafted; the timed runs draft as much as pays"
          : "");
  if (!options.bench.json_file.empty()) {
    VOLLEY_TRY_STATUS(write_file_atomic(options.bench.json_file, dump_json(demo.json(), 2) + "\n"));
  }
  return demo.all_identical() ? kExitOk : kExitFailed;
}

}  // namespace volley
