#include "app/chat_history.h"

namespace volley {

void ChatHistory::reset() {
  messages_.clear();
  if (!system_.empty()) messages_.push_back({"system", system_});
}

bool ChatHistory::drop_oldest_turn() {
  const size_t first = system_.empty() ? 0 : 1;
  size_t end = first + 1;
  while (end < messages_.size() && messages_[end].role != "user") ++end;
  if (end >= messages_.size()) return false;  // only the newest turn is left
  messages_.erase(messages_.begin() + static_cast<std::ptrdiff_t>(first),
                  messages_.begin() + static_cast<std::ptrdiff_t>(end));
  return true;
}

Result<FittedPrompt> fit_history(ChatHistory& history, int max_tokens,
                                 const EncodeMessages& encode) {
  ChatHistory fitting = history;
  for (;;) {
    VOLLEY_TRY(std::vector<int32_t> ids, encode(fitting.messages()));
    if (static_cast<int64_t>(ids.size()) <= max_tokens) {
      const size_t num_dropped = history.messages().size() - fitting.messages().size();
      history = std::move(fitting);
      return FittedPrompt{std::move(ids), static_cast<int>(num_dropped)};
    }
    if (!fitting.drop_oldest_turn()) {
      return invalid("the message has {} tokens, the context has room for {}: shorten it",
                     ids.size(), max_tokens);
    }
  }
}

}  // namespace volley
