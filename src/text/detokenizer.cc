#include "text/detokenizer.h"

#include "text/unicode.h"

namespace volley {

std::string IncrementalDetokenizer::push(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (skip_special_tokens_ && tokenizer_->is_special(id)) continue;
    pending_.append(tokenizer_->token_bytes(id));
  }
  return take_certain_text();
}

std::string IncrementalDetokenizer::take_certain_text() {
  std::string text;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Piece piece = next_utf8_piece(rest);
    if (piece.step == Utf8Step::kIncomplete) break;
    text.append(piece.step == Utf8Step::kCharacter ? rest.substr(0, piece.num_bytes)
                                                   : kReplacementCharacter);
    rest.remove_prefix(piece.num_bytes);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return text;
}

std::string IncrementalDetokenizer::flush() {
  if (pending_.empty()) return {};
  pending_.clear();  // the start of one character: one U+FFFD
  return std::string(kReplacementCharacter);
}

}  // namespace volley
