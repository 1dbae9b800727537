#pragma once

// Text to token ids and back: byte-level BPE from a Hugging Face tokenizer.json, with the ids that
// the `tokenizers` package gives.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley {

struct EncodeOptions {
  // Adds what the post-processor adds (a bos token, say). Text that a chat template rendered has
  // such tokens already: turn it off there.
  bool add_special_tokens = true;
  // Recognises the text of special tokens ("<|im_end|>") in the input. Turn it off for text that a
  // user may not use to forge turns.
  bool parse_special = true;
};

class Tokenizer {
 public:
  // `path`: a model folder holding tokenizer.json, or that file. Errors: kNotFound; kInvalidInput
  // for a broken file; kUnsupported, naming the component, for what is no byte-level BPE.
  // The file's truncation and padding settings are ignored, as Transformers ignores them.
  static Result<Tokenizer> load(const std::filesystem::path& path);
  // `json`: the content of a tokenizer.json; errors call it `what`.
  static Result<Tokenizer> from_json(std::string_view json, std::string_view what);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Thread-safe. Each maximal invalid part of bytes that are no UTF-8 counts as U+FFFD, as Python's
  // bytes.decode(errors="replace") has it.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // The text of `ids`; incomplete characters become U+FFFD, ids that name no token vanish.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;

  // The bytes that a token stands for, not necessarily whole characters; empty for an id that names
  // no token. Valid as long as the tokenizer.
  std::string_view token_bytes(int32_t id) const;
  // The token as tokenizer.json spells it ("Ġthe"); empty for an id that names no token.
  std::string_view token_text(int32_t id) const;
  bool is_token(int32_t id) const;
  // Special tokens are hidden by skip_special_tokens.
  bool is_special(int32_t id) const;
  // Ascending.
  const std::vector<int32_t>& special_ids() const;
  // The id of a token as tokenizer.json spells it.
  std::optional<int32_t> id_of(std::string_view token_text) const;
  // One more than the largest id. A model's vocabulary may be padded beyond it.
  int32_t vocab_size() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley
