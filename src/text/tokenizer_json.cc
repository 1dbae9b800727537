#include "text/tokenizer_json.h"

#include <simdjson.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "base/log.h"
#include "text/unicode.h"

namespace volley {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;
using Limits = TokenizerLimits;

// Reads fields with errors that name the file and the field.
class Reader {
 public:
  explicit Reader(std::string_view what) : what_(what) {}

  template <class... Args>
  tl::unexpected<Error> bad(fmt::format_string<Args...> format, Args&&... args) const {
    return invalid("{}: {}", what_, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  tl::unexpected<Error> unsupported(fmt::format_string<Args...> format, Args&&... args) const {
    return make_error(ErrorKind::kUnsupported, "{}: {}", what_,
                      fmt::format(format, std::forward<Args>(args)...));
  }

  tl::unexpected<Error> failed(const Error& error) const {
    return make_error(error.kind, "{}: {}", what_, error.message);
  }

  // Nothing when the field is absent or null.
  static std::optional<element> field(const object& o, std::string_view key) {
    element value;
    if (o.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
    return value;
  }
  Result<element> required(const object& o, std::string_view key, std::string_view where) const {
    if (const std::optional<element> value = field(o, key)) return *value;
    return bad("{}: no field {}", where, key);
  }
  Result<object> as_object(const element& e, std::string_view where) const {
    object value;
    if (e.get(value) != simdjson::SUCCESS) return bad("{}: expected an object", where);
    return value;
  }
  Result<array> as_array(const element& e, std::string_view where) const {
    array value;
    if (e.get(value) != simdjson::SUCCESS) return bad("{}: expected an array", where);
    return value;
  }
  Result<std::string_view> as_string(const element& e, std::string_view where) const {
    std::string_view value;
    if (e.get(value) != simdjson::SUCCESS) return bad("{}: expected a string", where);
    return value;
  }
  Result<int32_t> as_id(const element& e, std::string_view where) const {
    uint64_t value = 0;
    if (e.get(value) != simdjson::SUCCESS) return bad("{}: expected a token id", where);
    if (value > static_cast<uint64_t>(Limits::kMaxTokenId)) {
      return bad("{}: token id {}, at most {} is accepted", where, value, Limits::kMaxTokenId);
    }
    return static_cast<int32_t>(value);
  }
  Result<bool> flag(const object& o, std::string_view key, bool fallback,
                    std::string_view where) const {
    const std::optional<element> e = field(o, key);
    if (!e) return fallback;
    bool value = false;
    if (e->get(value) != simdjson::SUCCESS) return bad("{}.{}: expected true or false", where, key);
    return value;
  }
  Result<std::string_view> type_of(const object& o, std::string_view where) const {
    VOLLEY_TRY(const element type, required(o, "type", where));
    return as_string(type, where);
  }

 private:
  std::string_view what_;
};

class Loader {
 public:
  explicit Loader(std::string_view what) : read_(what) {}

  Result<TokenizerParts> run(const object& root) {
    if (const auto version = Reader::field(root, "version")) {
      VOLLEY_TRY(const std::string_view v, read_.as_string(*version, "version"));
      if (v != "1.0") return read_.unsupported("version {}", v);
    }
    if (const auto normalizer = Reader::field(root, "normalizer")) {
      VOLLEY_TRY_STATUS(load_normalizer(*normalizer, 0));
    }
    VOLLEY_TRY_STATUS(load_pre_tokenizer(root));
    VOLLEY_TRY_STATUS(load_decoder(root));
    VOLLEY_TRY(const element model, read_.required(root, "model", "tokenizer"));
    VOLLEY_TRY_STATUS(load_model(model));
    if (const auto added = Reader::field(root, "added_tokens")) {
      VOLLEY_TRY_STATUS(load_added_tokens(*added));
    }
    if (const auto post_processor = Reader::field(root, "post_processor")) {
      VOLLEY_TRY_STATUS(load_post_processor(*post_processor, 0));
    }
    return std::move(parts_);
  }

 private:
  Status load_normalizer(const element& e, int depth) {
    VOLLEY_TRY(const object o, read_.as_object(e, "normalizer"));
    VOLLEY_TRY(const std::string_view type, read_.type_of(o, "normalizer"));
    if (type == "NFC") {
      parts_.nfc = true;
    } else if (type == "Sequence") {
      if (depth >= Limits::kMaxNesting) return read_.bad("normalizer: nested too deeply");
      VOLLEY_TRY(const element list, read_.required(o, "normalizers", "normalizer"));
      VOLLEY_TRY(const array items, read_.as_array(list, "normalizer.normalizers"));
      for (const element item : items) VOLLEY_TRY_STATUS(load_normalizer(item, depth + 1));
    } else {
      return read_.unsupported("normalizer {}", type);
    }
    return {};
  }

  Status load_pre_tokenizer(const object& root) {
    const auto e = Reader::field(root, "pre_tokenizer");
    if (e) VOLLEY_TRY_STATUS(load_pre_tokenizer_stage(*e, 0));
    if (!has_byte_level_) {
      return read_.unsupported("pre_tokenizer without ByteLevel: only byte-level BPE is supported");
    }
    return {};
  }

  Status load_pre_tokenizer_stage(const element& e, int depth) {
    VOLLEY_TRY(const object o, read_.as_object(e, "pre_tokenizer"));
    VOLLEY_TRY(const std::string_view type, read_.type_of(o, "pre_tokenizer"));
    if (type == "Sequence") {
      if (depth >= Limits::kMaxNesting) return read_.bad("pre_tokenizer: nested too deeply");
      VOLLEY_TRY(const element list, read_.required(o, "pretokenizers", "pre_tokenizer"));
      VOLLEY_TRY(const array items, read_.as_array(list, "pre_tokenizer.pretokenizers"));
      for (const element item : items) VOLLEY_TRY_STATUS(load_pre_tokenizer_stage(item, depth + 1));
      return {};
    }
    if (++num_pre_tokenizers_ > Limits::kMaxPreTokenizers) {
      return read_.bad("pre_tokenizer: more than {} stages", Limits::kMaxPreTokenizers);
    }
    if (has_byte_level_) return read_.unsupported("pre_tokenizer {} after ByteLevel", type);
    if (type == "ByteLevel") return load_byte_level(o);
    if (type == "Split") return load_split(o);
    if (type == "Digits") {
      VOLLEY_TRY(const bool individual, read_.flag(o, "individual_digits", false, "Digits"));
      parts_.pre_tokenizer.add_stage(
          make_numeric_finder(), individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous,
          false);
      return {};
    }
    return read_.unsupported("pre_tokenizer {}", type);
  }

  Status load_byte_level(const object& o) {
    has_byte_level_ = true;
    VOLLEY_TRY(parts_.add_prefix_space, read_.flag(o, "add_prefix_space", true, "ByteLevel"));
    VOLLEY_TRY(const bool use_regex, read_.flag(o, "use_regex", true, "ByteLevel"));
    if (use_regex) {
      VOLLEY_TRY(std::unique_ptr<PatternFinder> finder, make_regex_finder(kGpt2Pattern));
      PreTokenizer& where = parts_.add_prefix_space ? parts_.byte_level : parts_.pre_tokenizer;
      where.add_stage(std::move(finder), SplitBehavior::kIsolated, false);
    }
    return {};
  }

  Status load_split(const object& o) {
    VOLLEY_TRY(const element behavior_field, read_.required(o, "behavior", "Split"));
    VOLLEY_TRY(const std::string_view name, read_.as_string(behavior_field, "Split.behavior"));
    static constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
        {"Removed", SplitBehavior::kRemoved},
        {"Isolated", SplitBehavior::kIsolated},
        {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
        {"MergedWithNext", SplitBehavior::kMergedWithNext},
        {"Contiguous", SplitBehavior::kContiguous},
    };
    const auto* const behavior = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                              [name](const auto& b) { return b.first == name; });
    if (behavior == std::end(kBehaviors)) return read_.unsupported("Split behavior {}", name);
    VOLLEY_TRY(const bool invert, read_.flag(o, "invert", false, "Split"));
    VOLLEY_TRY(const element pattern, read_.required(o, "pattern", "Split"));
    VOLLEY_TRY(const object pattern_object, read_.as_object(pattern, "Split.pattern"));
    std::unique_ptr<PatternFinder> finder;
    if (const auto regex = Reader::field(pattern_object, "Regex")) {
      VOLLEY_TRY(const std::string_view text, read_.as_string(*regex, "Split.pattern.Regex"));
      auto made = make_regex_finder(text);
      if (!made) return read_.failed(made.error());
      finder = std::move(*made);
    } else if (const auto literal = Reader::field(pattern_object, "String")) {
      VOLLEY_TRY(const std::string_view text, read_.as_string(*literal, "Split.pattern.String"));
      if (text.empty()) return read_.unsupported("Split with an empty pattern");
      finder = make_literal_finder(std::string(text));
    } else {
      return read_.bad("Split.pattern: expected Regex or String");
    }
    parts_.pre_tokenizer.add_stage(std::move(finder), behavior->second, invert);
    return {};
  }

  Status load_decoder(const object& root) {
    const auto e = Reader::field(root, "decoder");
    if (!e) return read_.unsupported("decoder null: only ByteLevel is supported");
    VOLLEY_TRY(const object o, read_.as_object(*e, "decoder"));
    VOLLEY_TRY(const std::string_view type, read_.type_of(o, "decoder"));
    if (type != "ByteLevel") return read_.unsupported("decoder {}", type);
    return {};
  }

  Status load_model(const element& e) {
    VOLLEY_TRY(const object model, read_.as_object(e, "model"));
    if (const auto type_field = Reader::field(model, "type")) {
      VOLLEY_TRY(const std::string_view type, read_.as_string(*type_field, "model.type"));
      if (type != "BPE") return read_.unsupported("model {}", type);
    }
    BpeOptions options;
    VOLLEY_TRY_STATUS(refuse_model_options(model));
    VOLLEY_TRY(options.ignore_merges, read_.flag(model, "ignore_merges", false, "model"));
    VOLLEY_TRY(options.fuse_unk, read_.flag(model, "fuse_unk", false, "model"));

    VOLLEY_TRY(const element vocab_field, read_.required(model, "vocab", "model"));
    VOLLEY_TRY(const object vocab, read_.as_object(vocab_field, "model.vocab"));
    BytesToId words;
    std::vector<int32_t> byte_ids(256, -1);
    VOLLEY_TRY_STATUS(load_vocab(vocab, words, byte_ids));

    if (const auto unk = Reader::field(model, "unk_token")) {
      VOLLEY_TRY(const std::string_view token, read_.as_string(*unk, "model.unk_token"));
      options.unk_id = parts_.id_of_text.find(token);
      const bool needs_unk = std::find(byte_ids.begin(), byte_ids.end(), -1) != byte_ids.end();
      if (options.unk_id < 0 && needs_unk) {
        return read_.bad("model.unk_token: {} is not in the vocabulary", token);
      }
    }
    VOLLEY_TRY(const element merges_field, read_.required(model, "merges", "model"));
    VOLLEY_TRY(const array merges, read_.as_array(merges_field, "model.merges"));
    VOLLEY_TRY(const std::vector<BpeMerge> merge_list, load_merges(merges));
    parts_.bpe = std::make_unique<Bpe>(byte_ids, std::move(words), merge_list,
                                       static_cast<int32_t>(parts_.is_token.size()), options);
    return {};
  }

  Status refuse_model_options(const object& model) {
    if (const auto dropout = Reader::field(model, "dropout")) {
      double value = 0;
      if (dropout->get(value) != simdjson::SUCCESS || value != 0) {
        return read_.unsupported("model.dropout (encoding would be random)");
      }
    }
    VOLLEY_TRY(const bool byte_fallback, read_.flag(model, "byte_fallback", false, "model"));
    if (byte_fallback) return read_.unsupported("model.byte_fallback");
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (const auto affix = Reader::field(model, key)) {
        VOLLEY_TRY(const std::string_view value, read_.as_string(*affix, key));
        if (!value.empty()) return read_.unsupported("model.{} \"{}\"", key, value);
      }
    }
    return {};
  }

  Status load_vocab(const object& vocab, BytesToId& words, std::vector<int32_t>& byte_ids) {
    for (const auto& field : vocab) {
      const std::string_view token = field.key;
      if (token.size() > Limits::kMaxTokenBytes) {
        return read_.bad("model.vocab: a token of {} bytes, at most {} are accepted", token.size(),
                         Limits::kMaxTokenBytes);
      }
      VOLLEY_TRY(const int32_t id, read_.as_id(field.value, "model.vocab"));
      if (!parts_.id_of_text.insert(token, id)) {
        return read_.bad("model.vocab: token \"{}\" appears twice", token);
      }
      if (!name_token(id, token)) return read_.bad("model.vocab: two tokens have the id {}", id);
      ++num_model_tokens_;
      const std::optional<std::string> bytes = decode_byte_alphabet(token);
      parts_.bytes.set(id, bytes ? std::string_view(*bytes) : token);
      if (!bytes || bytes->empty()) continue;
      words.insert(*bytes, id);
      if (bytes->size() == 1) byte_ids[static_cast<uint8_t>((*bytes)[0])] = id;
    }
    return {};
  }

  // False when the id has a name already.
  bool name_token(int32_t id, std::string_view text) {
    const auto i = static_cast<size_t>(id);
    if (i >= parts_.is_token.size()) {
      parts_.is_token.resize(i + 1);
      parts_.is_special.resize(i + 1);
    }
    const bool is_new = !parts_.is_token[i];
    parts_.is_token[i] = 1;
    parts_.text.set(id, text);
    return is_new;
  }

  Result<std::vector<BpeMerge>> load_merges(const array& merges) {
    std::vector<BpeMerge> list;
    for (const element item : merges) {
      if (list.size() >= Limits::kMaxMerges) {
        return read_.bad("model.merges: more than {}", Limits::kMaxMerges);
      }
      std::string_view left;
      std::string_view right;
      std::string_view line;
      if (item.get(line) == simdjson::SUCCESS) {
        if (line.starts_with("#version")) continue;
        const size_t space = line.find(' ');
        if (space == std::string_view::npos ||
            line.find(' ', space + 1) != std::string_view::npos) {
          return read_.bad("model.merges[{}]: expected two tokens and one space", list.size());
        }
        left = line.substr(0, space);
        right = line.substr(space + 1);
      } else {
        VOLLEY_TRY(const array pair, read_.as_array(item, "model.merges"));
        if (pair.size() != 2) return read_.bad("model.merges[{}]: expected a pair", list.size());
        VOLLEY_TRY(left, read_.as_string(pair.at(0).value_unsafe(), "model.merges"));
        VOLLEY_TRY(right, read_.as_string(pair.at(1).value_unsafe(), "model.merges"));
      }
      merged_text_.assign(left).append(right);
      const BpeMerge merge = {parts_.id_of_text.find(left), parts_.id_of_text.find(right),
                              parts_.id_of_text.find(merged_text_)};
      if (merge.left < 0 || merge.right < 0 || merge.merged < 0) {
        return read_.bad("model.merges[{}]: \"{}\" + \"{}\": not all three are in the vocabulary",
                         list.size(), left, right);
      }
      if (left.empty() || right.empty()) {
        return read_.bad("model.merges[{}]: an empty token", list.size());
      }
      list.push_back(merge);
    }
    return list;
  }

  Result<AddedToken> read_added_token(const element& e) {
    VOLLEY_TRY(const object o, read_.as_object(e, "added_tokens"));
    AddedToken token;
    VOLLEY_TRY(const element content, read_.required(o, "content", "added_tokens"));
    VOLLEY_TRY(const std::string_view text, read_.as_string(content, "added_tokens.content"));
    if (text.size() > Limits::kMaxAddedTokenBytes) {
      return read_.bad("added_tokens: a token of {} bytes, at most {} are accepted", text.size(),
                       Limits::kMaxAddedTokenBytes);
    }
    token.content = std::string(text);
    VOLLEY_TRY(const element id, read_.required(o, "id", "added_tokens"));
    VOLLEY_TRY(token.id, read_.as_id(id, "added_tokens.id"));
    VOLLEY_TRY(token.single_word, read_.flag(o, "single_word", false, "added_tokens"));
    VOLLEY_TRY(token.lstrip, read_.flag(o, "lstrip", false, "added_tokens"));
    VOLLEY_TRY(token.rstrip, read_.flag(o, "rstrip", false, "added_tokens"));
    VOLLEY_TRY(token.normalized, read_.flag(o, "normalized", true, "added_tokens"));
    VOLLEY_TRY(token.special, read_.flag(o, "special", false, "added_tokens"));
    return token;
  }

  // `tokenizers` numbers added tokens itself: a token of the model keeps the model's id, the others
  // follow in order. Files agree with that; one that does not gets a warning, and the same ids.
  Status load_added_tokens(const element& e) {
    VOLLEY_TRY(const array items, read_.as_array(e, "added_tokens"));
    auto next_id = static_cast<int32_t>(num_model_tokens_);
    std::map<int32_t, AddedToken> by_id;
    size_t num_items = 0;
    for (const element item : items) {
      if (++num_items > Limits::kMaxAddedTokens) {
        return read_.bad("added_tokens: more than {}", Limits::kMaxAddedTokens);
      }
      VOLLEY_TRY(AddedToken token, read_added_token(item));
      if (token.content.empty()) continue;
      const int32_t declared_id = token.id;
      token.id = parts_.id_of_text.find(token.content);
      if (token.id < 0) {
        token.id = next_id++;
        if (token.id > Limits::kMaxTokenId) return read_.bad("added_tokens: too many token ids");
        parts_.id_of_text.insert(token.content, token.id);
      }
      if (token.id != declared_id) {
        log_warning("added token {} has the id {}, not {} as the file says", token.content,
                    token.id, declared_id);
      }
      const auto previous = by_id.find(token.id);
      if (previous != by_id.end() && previous->second.content == token.content) {
        token.special |= previous->second.special;
      }
      by_id[token.id] = std::move(token);
    }
    for (const auto& [id, token] : by_id) VOLLEY_TRY_STATUS(install_added_token(token));
    return {};
  }

  Status install_added_token(const AddedToken& token) {
    std::string normalized;
    const bool differs = token.normalized && parts_.nfc && normalize_nfc(token.content, normalized);
    const std::string_view pattern = differs ? normalized : token.content;
    AddedTokenMatcher& matcher = token.normalized ? parts_.normalized_tokens : parts_.raw_tokens;
    if (!matcher.add(pattern, token)) {
      return read_.bad("added_tokens: \"{}\" appears twice", pattern);
    }
    name_token(token.id, token.content);
    parts_.is_special[static_cast<size_t>(token.id)] = token.special && !differs;
    const std::optional<std::string> bytes = decode_byte_alphabet(pattern);
    parts_.bytes.set(token.id, bytes ? std::string_view(*bytes) : pattern);
    return {};
  }

  Status load_post_processor(const element& e, int depth) {
    VOLLEY_TRY(const object o, read_.as_object(e, "post_processor"));
    VOLLEY_TRY(const std::string_view type, read_.type_of(o, "post_processor"));
    if (type == "ByteLevel") return {};  // it trims offsets, which nobody asks for here
    if (type == "TemplateProcessing") return load_template(o);
    if (type == "Sequence") {
      if (depth >= Limits::kMaxNesting) return read_.bad("post_processor: nested too deeply");
      VOLLEY_TRY(const element list, read_.required(o, "processors", "post_processor"));
      VOLLEY_TRY(const array items, read_.as_array(list, "post_processor.processors"));
      for (const element item : items) VOLLEY_TRY_STATUS(load_post_processor(item, depth + 1));
      return {};
    }
    return read_.unsupported("post_processor {}", type);
  }

  Status load_template(const object& o) {
    VOLLEY_TRY(const element single, read_.required(o, "single", "TemplateProcessing"));
    VOLLEY_TRY(const array pieces, read_.as_array(single, "TemplateProcessing.single"));
    std::vector<int32_t> before;
    std::vector<int32_t> after;
    bool seen_sequence = false;
    for (const element piece_element : pieces) {
      VOLLEY_TRY(const object piece, read_.as_object(piece_element, "TemplateProcessing.single"));
      if (const auto sequence = Reader::field(piece, "Sequence")) {
        VOLLEY_TRY(const object s, read_.as_object(*sequence, "TemplateProcessing.Sequence"));
        VOLLEY_TRY(const element id, read_.required(s, "id", "TemplateProcessing.Sequence"));
        VOLLEY_TRY(const std::string_view name, read_.as_string(id, "TemplateProcessing.Sequence"));
        if (name != "A" || seen_sequence) {
          return read_.unsupported("TemplateProcessing.single other than one sequence A");
        }
        seen_sequence = true;
      } else if (const auto special = Reader::field(piece, "SpecialToken")) {
        VOLLEY_TRY_STATUS(append_special(o, *special, seen_sequence ? after : before));
      } else {
        return read_.bad("TemplateProcessing.single: expected Sequence or SpecialToken");
      }
    }
    if (!seen_sequence) return read_.unsupported("TemplateProcessing.single without a sequence");
    // A template later in a Sequence goes around what the earlier ones made.
    before.insert(before.end(), parts_.prefix_ids.begin(), parts_.prefix_ids.end());
    parts_.prefix_ids = std::move(before);
    parts_.suffix_ids.insert(parts_.suffix_ids.end(), after.begin(), after.end());
    return {};
  }

  Status append_special(const object& template_object, const element& special,
                        std::vector<int32_t>& out) {
    constexpr std::string_view kWhere = "TemplateProcessing.special_tokens";
    VOLLEY_TRY(const object s, read_.as_object(special, kWhere));
    VOLLEY_TRY(const element name_field, read_.required(s, "id", kWhere));
    VOLLEY_TRY(const std::string_view name, read_.as_string(name_field, kWhere));
    VOLLEY_TRY(const element all, read_.required(template_object, "special_tokens", kWhere));
    VOLLEY_TRY(const object tokens, read_.as_object(all, kWhere));
    VOLLEY_TRY(const element token, read_.required(tokens, name, kWhere));
    VOLLEY_TRY(const object token_object, read_.as_object(token, kWhere));
    VOLLEY_TRY(const element ids_field, read_.required(token_object, "ids", kWhere));
    VOLLEY_TRY(const array ids, read_.as_array(ids_field, kWhere));
    for (const element id_element : ids) {
      VOLLEY_TRY(const int32_t id, read_.as_id(id_element, kWhere));
      if (static_cast<size_t>(id) >= parts_.is_token.size()) {
        return read_.bad("{}: {} has the id {}, which names no token", kWhere, name, id);
      }
      if (out.size() >= Limits::kMaxTemplateIds) {
        return read_.bad("{}: more than {} ids", kWhere, Limits::kMaxTemplateIds);
      }
      out.push_back(id);
    }
    return {};
  }

  Reader read_;
  TokenizerParts parts_;
  bool has_byte_level_ = false;
  size_t num_pre_tokenizers_ = 0;
  size_t num_model_tokens_ = 0;
  std::string merged_text_;
};

}  // namespace

void TokenStrings::set(int32_t id, std::string_view value) {
  const auto i = static_cast<size_t>(id);
  if (i >= places_.size()) places_.resize(i + 1);
  places_[i] = {arena_.size(), static_cast<uint32_t>(value.size())};
  arena_.append(value);
}

std::string_view TokenStrings::get(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= places_.size()) return {};
  const Place& place = places_[static_cast<size_t>(id)];
  return std::string_view(arena_).substr(place.begin, place.size);
}

Result<TokenizerParts> parse_tokenizer_json(std::string_view json, std::string_view what) {
  if (json.size() > TokenizerLimits::kMaxFileBytes) {
    return invalid("{}: {} bytes, at most {} are accepted", what, json.size(),
                   TokenizerLimits::kMaxFileBytes);
  }
  simdjson::dom::parser parser;
  element root;
  if (const auto error = parser.parse(json.data(), json.size()).get(root)) {
    return invalid("{}: not valid JSON: {}", what, simdjson::error_message(error));
  }
  object root_object;
  if (root.get(root_object) != simdjson::SUCCESS) return invalid("{}: expected an object", what);
  return Loader(what).run(root_object);
}

}  // namespace volley
