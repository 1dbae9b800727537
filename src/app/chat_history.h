#pragma once

// What was said, and how much of it still fits the context.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "app/chat_format.h"

namespace volley {

class ChatHistory {
 public:
  explicit ChatHistory(std::string system) : system_(std::move(system)) { reset(); }

  void reset();
  void add_user(std::string text) { messages_.push_back({"user", std::move(text)}); }
  void add_assistant(std::string text) { messages_.push_back({"assistant", std::move(text)}); }
  void drop_last() { messages_.pop_back(); }
  // Forgets the oldest user turn and its answer, never the system message nor the newest turn.
  // False when there is nothing to forget.
  bool drop_oldest_turn();

  const std::vector<ChatMessage>& messages() const { return messages_; }

 private:
  std::string system_;
  std::vector<ChatMessage> messages_;
};

struct FittedPrompt {
  std::vector<int32_t> prompt_ids;
  int num_dropped = 0;  // messages forgotten on the way
};
using EncodeMessages = std::function<Result<std::vector<int32_t>>(const std::vector<ChatMessage>&)>;

// Forgets the oldest turns of `history` until what is left encodes to at most `max_tokens`. Errors:
// the newest turn alone does not fit (nothing is forgotten then); those of `encode`.
Result<FittedPrompt> fit_history(ChatHistory& history, int max_tokens,
                                 const EncodeMessages& encode);

}  // namespace volley
