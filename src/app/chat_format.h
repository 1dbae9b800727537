#pragma once

// Messages to the text that the model was trained to answer.

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/chat_template.h"

namespace volley {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;

  bool operator==(const ChatMessage&) const = default;
};

// A checkpoint's chat template, if it has one.
class ChatFormat {
 public:
  // Errors: a malformed template. None at all is no error: the model is then prompted raw.
  static Result<ChatFormat> load(const std::string& folder);

  bool has_template() const { return template_.has_value(); }
  // The conversation, and the opening of the assistant's turn. Errors: those of the template.
  Result<std::string> render(const std::vector<ChatMessage>& messages) const;

 private:
  std::optional<ChatTemplate> template_;
};

}  // namespace volley
