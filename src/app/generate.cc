// volley generate: one prompt, one answer.

#include <unistd.h>

#include <cstdio>

#include "app/answer.h"
#include "app/answer_report.h"
#include "app/block_colors.h"
#include "app/commands.h"
#include "app/load.h"
#include "app/machine.h"
#include "app/prompt_text.h"

namespace volley {

Result<int> run_generate(const Options& options) {
  const TerminalState terminal = terminal_state();
  VOLLEY_TRY(const std::string prompt, read_prompt_text(options.prompt, terminal.in_is_terminal));
  VOLLEY_TRY(AnswerRequest request, make_request(options));
  VOLLEY_TRY(Loaded loaded, load(options.model, /*prefix_caching=*/true));

  std::vector<ChatMessage> messages;
  if (!options.prompt.system.empty()) messages.push_back({"system", options.prompt.system});
  messages.push_back({"user", prompt});
  VOLLEY_TRY(request.generation.prompt_ids, loaded.prompt_ids(messages));
  bind_to_model(options, loaded, request.generation);

  const bool color = use_color(options.output.color, terminal) && !options.prompt.json;
  const auto stream = [&](const AnswerStep& step) {
    if (options.prompt.json) return true;
    const std::string text = color ? tint_step(step.text, step.step_idx) : step.text;
    std::fwrite(text.data(), 1, text.size(), stdout);
    return std::fflush(stdout) == 0;
  };
  VOLLEY_TRY(const Answer answer,
             run_answer(*loaded.models.engine, loaded.text.tokenizer, std::move(request), stream));

  if (options.prompt.json) {
    fmt::print("{}\n", dump_json(answer_json(answer), 2));
    return kExitOk;
  }
  if (answer.text.empty() || answer.text.back() != '\n') fmt::print("\n");
  std::fflush(stdout);
  if (!options.output.quiet) {
    fmt::print(stderr, "{}\n",
               dim(answer_line(answer), terminal.err_is_terminal && !terminal.wants_no_color));
  }
  return kExitOk;
}

}  // namespace volley
