// volley bench same-answer: the matrix of src/app/same_answer.h on prompt files.

#include <algorithm>

#include "app/commands.h"
#include "app/machine.h"
#include "app/progress.h"
#include "app/prompt_text.h"
#include "app/prompts.h"
#include "app/same_answer.h"
#include "base/file.h"
#include "base/log.h"

namespace volley {

Result<int> run_same_answer(const Options& options) {
  VOLLEY_TRY_STATUS(check_writable(options.same_answer.json_file));
  VOLLEY_TRY(const std::vector<BenchPrompt> prompts,
             read_prompt_files(options.bench.prompt_files, options.bench.limit));
  VOLLEY_TRY(const TargetConfig target_config, read_target_config(options.model.target));
  VOLLEY_TRY(const TextSide text, load_text(options.model.target));

  SameAnswerMatrix matrix;
  matrix.draft_lengths = SameAnswerMatrix::default_draft_lengths();
  matrix.max_tokens = options.answer.max_tokens;
  matrix.seed = options.answer.sampling.seed;
  matrix.sample = options.same_answer.full ? 0 : options.same_answer.sample;
  matrix.weight_format =
      weight_format_from_name(options.model.weight_format).value_or(WeightFormat::kAuto);
  if (options.model.isa == "auto") {
    matrix.isas = available_isas();
  } else {
    VOLLEY_TRY(const Isa isa, isa_of_flag(options.model.isa));
    matrix.isas = {isa};
  }
  for (const BenchPrompt& prompt : prompts) {
    std::vector<ChatMessage> messages = prompt.messages;
    messages.push_back({"user", prompt.turns.front()});
    VOLLEY_TRY(std::vector<int32_t> ids, encode_messages(text, options.model.raw, messages));
    const int limit = std::min(1024, target_config.max_position_embeddings - matrix.max_tokens - 1);
    if (static_cast<int>(ids.size()) > limit) {
      log_warning("{} line {} has {} tokens, the matrix takes at most {}: left out", prompt.source,
                  prompt.line, ids.size(), limit);
      continue;
    }
    matrix.prompts.push_back({prompt.source, std::move(ids)});
  }

  const TerminalState terminal = terminal_state();
  Progress progress(terminal.err_is_terminal, options.output.quiet, terminal.num_columns);
  set_log_level(options.output.verbose ? LogLevel::kInfo : LogLevel::kWarning);
  VOLLEY_TRY(const SameAnswerReport report,
             run_same_answer_matrix(options.model.target, options.model.draft, matrix,
                                    [&](int64_t done, int64_t total) {
                                      progress.show(fmt::format("[{}/{}] runs", done, total));
                                    }));
  progress.clear();
  fmt::print("{}", report.text());
  if (!options.same_answer.json_file.empty()) {
    VOLLEY_TRY_STATUS(
        write_file_atomic(options.same_answer.json_file, dump_json(report.json(), 2) + "\n"));
  }
  return report.same() ? kExitOk : kExitFailed;
}

}  // namespace volley
