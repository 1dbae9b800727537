// volley chat: a conversation at the terminal, or with a script on standard input.

#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "app/answer.h"
#include "app/answer_report.h"
#include "app/block_colors.h"
#include "app/chat_history.h"
#include "app/commands.h"
#include "app/load.h"
#include "app/machine.h"

namespace volley {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void on_interrupt(int) {
  interrupted = 1;
}

void catch_interrupts() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;  // no SA_RESTART: a waiting read returns
  sigaction(SIGINT, &action, nullptr);
}

// Lines of standard input. A read that Ctrl-C interrupts ends the input.
class LineReader {
 public:
  // False at the end of the input, at Ctrl-C, and at a line of absurd length.
  bool next(std::string& line) {
    for (;;) {
      if (const size_t newline = buffer_.find('\n'); newline != std::string::npos) {
        line = buffer_.substr(0, newline);
        buffer_.erase(0, newline + 1);
        if (line.ends_with('\r')) line.pop_back();
        return true;
      }
      char chunk[4096];
      const ssize_t count = read(STDIN_FILENO, chunk, sizeof(chunk));
      if (count <= 0 || buffer_.size() > kMaxLineBytes) break;
      buffer_.append(chunk, static_cast<size_t>(count));
    }
    line = std::exchange(buffer_, {});
    return !line.empty() && interrupted == 0;
  }

 private:
  static constexpr size_t kMaxLineBytes = size_t{16} << 20;
  std::string buffer_;
};

class Chat {
 public:
  Chat(const Options& options, Loaded& loaded, AnswerRequest request)
      : options_(options),
        loaded_(loaded),
        request_(std::move(request)),
        terminal_(terminal_state()),
        color_(use_color(options.output.color, terminal_)),
        history_(options.prompt.system) {}

  int talk() {
    if (terminal_.in_is_terminal && !options_.output.quiet) {
      fmt::print(stderr, "{}\n", faint("Ctrl-C stops an answer, Ctrl-D leaves, /help says more."));
    }
    LineReader reader;
    std::string line;
    for (;;) {
      interrupted = 0;
      if (terminal_.in_is_terminal) {
        fmt::print("{}", bold("> ", color_));
        std::fflush(stdout);
      }
      if (!reader.next(line)) break;
      if (line.find_first_not_of(" \t") == std::string::npos) continue;
      if (line == "/quit" || line == "/exit") break;
      if (line.starts_with('/')) {
        command(line);
      } else {
        reply(line);
      }
    }
    if (terminal_.in_is_terminal) fmt::print("\n");
    return kExitOk;
  }

 private:
  std::string faint(const std::string& text) const {
    return dim(text, terminal_.err_is_terminal && !terminal_.wants_no_color);
  }

  void command(const std::string& line) {
    if (line == "/reset") {
      history_.reset();
      fmt::print(stderr, "{}\n", faint("The conversation begins anew."));
    } else if (line == "/stats") {
      fmt::print(stderr, "{}\n",
                 faint(last_line_.empty() ? std::string("No answer yet.") : last_line_));
    } else {
      if (line != "/help") fmt::print(stderr, "There is no {}.\n", line);
      fmt::print(stderr,
                 "/reset  forget the conversation\n"
                 "/stats  the last answer's speed and acceptance\n"
                 "/quit   leave (also Ctrl-D)\n"
                 "/help   this\n");
    }
  }

  // Answers `line`; on an error, says so and takes the turn back.
  void reply(const std::string& line) {
    history_.add_user(line);
    const auto answer = answer_history();
    if (!answer) {
      history_.drop_last();
      fmt::print(stderr, "volley: {}\n", answer.error().message);
      return;
    }
    history_.add_assistant(answer->text);
    if (!answer->text.ends_with('\n')) fmt::print("\n");
    std::fflush(stdout);
    last_line_ = answer_line(*answer);
    if (terminal_.err_is_terminal && !options_.output.quiet) {
      fmt::print(stderr, "{}\n", faint(last_line_));
    }
  }

  Result<Answer> answer_history() {
    AnswerRequest request = request_;
    VOLLEY_TRY(FittedPrompt fitted,
               fit_history(history_, prompt_limit(),
                           [&](const auto& messages) { return loaded_.prompt_ids(messages); }));
    if (fitted.num_dropped > 0) {
      fmt::print(stderr, "{}\n",
                 faint(fmt::format("The conversation outgrew the context of {} tokens: its oldest "
                                   "{} messages are forgotten.",
                                   loaded_.models.engine->max_model_len(), fitted.num_dropped)));
    }
    request.generation.prompt_ids = std::move(fitted.prompt_ids);
    return run_answer(*loaded_.models.engine, loaded_.text.tokenizer, std::move(request),
                      [&](const AnswerStep& step) {
                        fmt::print("{}", color_ ? tint_step(step.text, step.step_idx) : step.text);
                        std::fflush(stdout);
                        return interrupted == 0;
                      });
  }

  // Leaves room for an answer: the one asked for, or a quarter of the context.
  int prompt_limit() const {
    const int context = loaded_.models.engine->max_model_len();
    return context - std::min(request_.generation.max_tokens, context / 4);
  }

  const Options& options_;
  Loaded& loaded_;
  const AnswerRequest request_;
  const TerminalState terminal_;
  const bool color_;
  ChatHistory history_;
  std::string last_line_;
};

}  // namespace

Result<int> run_chat(const Options& options) {
  VOLLEY_TRY(AnswerRequest request, make_request(options));
  VOLLEY_TRY(Loaded loaded, load(options.model, /*prefix_caching=*/true));
  if (!loaded.text.chat.has_template()) {
    return make_error(ErrorKind::kUnsupported,
                      "{} has no chat template: use volley generate --raw with it",
                      options.model.target);
  }
  bind_to_model(options, loaded, request.generation);
  VOLLEY_TRY_STATUS(request.generation.sampling.validate(loaded.models.target_config().vocab_size));
  catch_interrupts();
  return Chat(options, loaded, std::move(request)).talk();
}

}  // namespace volley
