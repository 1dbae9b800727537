#include "text/tokenizer.h"

#include <mutex>
#include <utility>

#include "base/file.h"
#include "text/tokenizer_json.h"
#include "text/unicode.h"

namespace volley {
namespace {

struct EncodeScratch {
  PreTokenizerScratch pre_tokenizer;
  BpeScratch bpe;
  std::vector<AddedSpan> raw_spans;
  std::vector<AddedSpan> normalized_spans;
  std::vector<TextSpan> words;
  std::vector<TextSpan> byte_level_words;
  std::string normalized;
  std::string prefixed;

  // A scratch that one huge text has swollen is not worth keeping.
  bool is_small() const {
    return words.capacity() <= 1 << 20 && normalized.capacity() + prefixed.capacity() <= 16 << 20 &&
           pre_tokenizer.spans.capacity() + pre_tokenizer.matches.capacity() <= 1 << 21;
  }
};

}  // namespace

struct Tokenizer::Impl {
  static constexpr size_t kMaxIdleScratches = 16;

  TokenizerParts parts;
  std::vector<int32_t> special_ids;
  std::mutex mutex;
  std::vector<std::unique_ptr<EncodeScratch>> idle;  // guarded by mutex

  std::unique_ptr<EncodeScratch> take_scratch() {
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        std::unique_ptr<EncodeScratch> scratch = std::move(idle.back());
        idle.pop_back();
        return scratch;
      }
    }
    return std::make_unique<EncodeScratch>();
  }

  void give_back(std::unique_ptr<EncodeScratch> scratch) {
    if (!scratch->is_small()) return;
    const std::lock_guard lock(mutex);
    if (idle.size() < kMaxIdleScratches) idle.push_back(std::move(scratch));
  }

  // `text`: normalized, free of added tokens.
  void encode_words(std::string_view text, EncodeScratch& s, std::vector<int32_t>& out) const {
    parts.pre_tokenizer.split(text, s.pre_tokenizer, s.words);
    for (const TextSpan& span : s.words) {
      const std::string_view word = text.substr(span.begin, span.end - span.begin);
      if (parts.add_prefix_space) {
        encode_prefixed(word, s, out);
      } else {
        parts.bpe->encode_word(word, s.bpe, out);
      }
    }
  }

  void encode_prefixed(std::string_view word, EncodeScratch& s, std::vector<int32_t>& out) const {
    s.prefixed.clear();
    if (word[0] != ' ') s.prefixed.push_back(' ');
    s.prefixed.append(word);
    const std::string_view prefixed = s.prefixed;
    parts.byte_level.split(prefixed, s.pre_tokenizer, s.byte_level_words);
    for (const TextSpan& span : s.byte_level_words) {
      parts.bpe->encode_word(prefixed.substr(span.begin, span.end - span.begin), s.bpe, out);
    }
  }

  // `text`: a stretch between raw added tokens.
  void encode_stretch(std::string_view text, bool parse_special, EncodeScratch& s,
                      std::vector<int32_t>& out) const {
    if (parts.nfc && normalize_nfc(text, s.normalized)) text = s.normalized;
    if (parts.normalized_tokens.empty()) {
      encode_words(text, s, out);
      return;
    }
    s.normalized_spans.clear();
    parts.normalized_tokens.split(text, parse_special, s.normalized_spans);
    for (const AddedSpan& span : s.normalized_spans) {
      if (span.id >= 0) {
        out.push_back(span.id);
      } else {
        encode_words(text.substr(span.begin, span.end - span.begin), s, out);
      }
    }
  }

  void append_bytes(int32_t id, bool skip_special_tokens, std::string& out) const {
    const auto i = static_cast<size_t>(id);
    if (id < 0 || i >= parts.is_token.size()) return;
    if (skip_special_tokens && parts.is_special[i]) return;
    out.append(parts.bytes.get(id));
  }
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& path) {
  std::error_code ignored;
  const std::filesystem::path file =
      std::filesystem::is_directory(path, ignored) ? path / "tokenizer.json" : path;
  VOLLEY_TRY(const std::string json, read_file(file, TokenizerLimits::kMaxFileBytes));
  return from_json(json, file.string());
}

Result<Tokenizer> Tokenizer::from_json(std::string_view json, std::string_view what) {
  VOLLEY_TRY(TokenizerParts parts, parse_tokenizer_json(json, what));
  auto impl = std::make_unique<Impl>();
  impl->parts = std::move(parts);
  for (size_t id = 0; id < impl->parts.is_special.size(); ++id) {
    if (impl->parts.is_special[id]) impl->special_ids.push_back(static_cast<int32_t>(id));
  }
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const TokenizerParts& parts = impl_->parts;
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + parts.prefix_ids.size() + parts.suffix_ids.size());
  if (options.add_special_tokens) ids = parts.prefix_ids;
  std::unique_ptr<EncodeScratch> scratch = impl_->take_scratch();
  scratch->raw_spans.clear();
  parts.raw_tokens.split(text, options.parse_special, scratch->raw_spans);
  for (const AddedSpan& span : scratch->raw_spans) {
    if (span.id >= 0) {
      ids.push_back(span.id);
    } else {
      impl_->encode_stretch(text.substr(span.begin, span.end - span.begin), options.parse_special,
                            *scratch, ids);
    }
  }
  impl_->give_back(std::move(scratch));
  if (options.add_special_tokens) {
    ids.insert(ids.end(), parts.suffix_ids.begin(), parts.suffix_ids.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) impl_->append_bytes(id, skip_special_tokens, bytes);
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return impl_->parts.bytes.get(id);
}

std::string_view Tokenizer::token_text(int32_t id) const {
  return impl_->parts.text.get(id);
}

bool Tokenizer::is_token(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->parts.is_token[static_cast<size_t>(id)];
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->parts.is_special[static_cast<size_t>(id)];
}

const std::vector<int32_t>& Tokenizer::special_ids() const {
  return impl_->special_ids;
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token_text) const {
  const int32_t id = impl_->parts.id_of_text.find(token_text);
  if (id < 0) return std::nullopt;
  return id;
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->parts.is_token.size());
}

}  // namespace volley
