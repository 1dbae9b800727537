// volley tokenize: the ids and pieces of a text.

#include "app/commands.h"
#include "app/machine.h"
#include "app/prompt_text.h"
#include "base/json.h"
#include "text/tokenizer.h"

namespace volley {

Result<int> run_tokenize(const Options& options) {
  VOLLEY_TRY(const std::string text,
             read_prompt_text(options.prompt, terminal_state().in_is_terminal));
  VOLLEY_TRY(const Tokenizer tokenizer, Tokenizer::load(options.model.target));
  const std::vector<int32_t> ids = tokenizer.encode(text);
  if (options.prompt.json) {
    Json pieces = Json::array();
    for (const int32_t id : ids) pieces.push_back(std::string(tokenizer.token_bytes(id)));
    fmt::print("{}\n", dump_json({{"ids", ids}, {"pieces", std::move(pieces)}}, 2));
    return kExitOk;
  }
  for (const int32_t id : ids) {
    // As a JSON string: newlines and bytes that are no character stay on their line.
    fmt::print("{:>8}  {}\n", id, dump_json(Json(std::string(tokenizer.token_bytes(id)))));
  }
  return kExitOk;
}

}  // namespace volley
