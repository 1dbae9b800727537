#pragma once

// Reads a Hugging Face tokenizer.json into the parts that Tokenizer runs on.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_added.h"

namespace volley {

struct TokenizerLimits {
  static constexpr size_t kMaxFileBytes = size_t{256} << 20;
  static constexpr int32_t kMaxTokenId = (1 << 22) - 1;
  static constexpr size_t kMaxTokenBytes = 1 << 16;
  static constexpr size_t kMaxMerges = 1 << 22;
  static constexpr size_t kMaxAddedTokens = 1 << 17;
  static constexpr size_t kMaxAddedTokenBytes = 512;  // matching costs this much a byte at worst
  static constexpr size_t kMaxPreTokenizers = 32;
  static constexpr size_t kMaxTemplateIds = 1024;
  static constexpr int kMaxNesting = 8;
};

// Strings by token id, in one arena.
class TokenStrings {
 public:
  void set(int32_t id, std::string_view value);
  std::string_view get(int32_t id) const;

 private:
  struct Place {
    size_t begin = 0;
    uint32_t size = 0;
  };
  std::string arena_;
  std::vector<Place> places_;
};

struct TokenizerParts {
  bool nfc = false;
  PreTokenizer pre_tokenizer;  // all stages; with a prefix space, those before the byte-level one
  bool add_prefix_space = false;
  PreTokenizer byte_level;  // used with a prefix space only
  std::unique_ptr<Bpe> bpe;
  AddedTokenMatcher raw_tokens;         // searched before normalization
  AddedTokenMatcher normalized_tokens;  // searched after it
  std::vector<int32_t> prefix_ids;      // what the post-processor adds
  std::vector<int32_t> suffix_ids;

  BytesToId id_of_text;
  TokenStrings text;
  TokenStrings bytes;
  std::vector<uint8_t> is_token;  // by id
  std::vector<uint8_t> is_special;
};

Result<TokenizerParts> parse_tokenizer_json(std::string_view json, std::string_view what);

}  // namespace volley
