#pragma once

// Constrained decoding. A GrammarSpec says what the output must look like, CompiledGrammar::compile
// turns it into a byte-level pushdown automaton, and a GrammarState walks it along one sequence:
// at every position it names the tokens after which the document can still be completed.
//
// The idea of splitting masks into a part that depends on the top of the stack alone (cached) and a
// part that depends on what lies below is that of XGrammar (Dong et al., 2024). Here it is carried
// through every level: the mask of a stack is a chain of memos, one per frame that a token can
// leave, so masks are exact for any stack and nearly always warm.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/grammar/token_trie.h"

namespace volley {

// Where a JSON document may have white space beyond what its syntax needs. Always bounded: a model
// cannot fill its budget with blanks.
struct JsonWhitespace {
  // True: one space after ':' ; after '{', '[' and ',' and before '}' and ']' one space, or a
  // newline and up to max_indent spaces or max_indent / 4 tabs. False: none anywhere.
  bool allowed = true;
  int max_indent = 48;
};

struct JsonSchemaOptions {
  JsonWhitespace whitespace;
  // An object schema that names properties and is silent about additionalProperties is closed, as
  // in OpenAI's strict mode; true opens it, as the JSON Schema standard says.
  bool additional_properties_by_default = false;
};

// A function that the model may call; `parameters` is a JSON Schema, "" for any object.
struct ToolGrammar {
  std::string name;
  std::string parameters;
};

struct GrammarSpec {
  enum class Kind {
    kJsonObject,  // any JSON object
    kJsonSchema,  // `text` is the schema
    kRegex,       // the whole output matches `text`
    kEbnf,        // `text` has rules in the notation of GBNF; the first named "root" is the start
    kChoice,      // one of `choices`, byte for byte
    kToolCalls,   // one or more calls of `tools`
  };
  Kind kind = Kind::kJsonObject;
  std::string text;
  std::vector<std::string> choices;
  std::vector<ToolGrammar> tools;
  // Around every call; between them {"name": ..., "arguments": ...}. Calls are joined by a newline.
  std::string tool_call_begin = "<tool_call>\n";
  std::string tool_call_end = "\n</tool_call>";
  int max_tool_calls = 1;
  JsonSchemaOptions json;

  // Equal keys compile to equal grammars.
  std::string cache_key() const;
};

struct GrammarLimits {
  size_t max_text_bytes = 256 << 10;  // of the schema, the grammar or all choices together
  int max_depth = 64;                 // nesting of the schema, of groups in a grammar or a pattern
  int max_rules = 20'000;
  // See Budget in automaton.h: half a second and 100 MiB at the worst that was found.
  int64_t max_compile_steps = 20'000'000;
  int64_t max_states = 400'000;
  size_t max_cache_bytes = 64 << 20;  // of masks and transitions found while decoding
  // Masks are found ahead while this many trie nodes last (about 5 ns each), so that the thread
  // that decodes seldom waits for one.
  int64_t max_warm_nodes = 4'000'000;
};

// Immutable to its users, and safe to use from many threads: what it finds while decoding is cached
// inside under a lock. Law 1: what a mask says never depends on the cache.
class CompiledGrammar {
 public:
  static Result<std::shared_ptr<const CompiledGrammar>> compile(
      const GrammarSpec& spec, std::shared_ptr<const TokenTrie> vocabulary,
      const GrammarLimits& limits = {});
  ~CompiledGrammar();

  const TokenTrie& vocabulary() const;
  // States of the automaton; bytes that it and its caches hold now.
  int num_states() const;
  size_t memory_bytes() const;

  class Matcher;
  Matcher& matcher() const { return *matcher_; }

 private:
  explicit CompiledGrammar(std::unique_ptr<Matcher> matcher);
  std::unique_ptr<Matcher> matcher_;
};

// A place in a document. Copying it copies a few integers per open bracket.
class GrammarState {
 public:
  explicit GrammarState(std::shared_ptr<const CompiledGrammar> grammar);

  // Sets bit t % 32 of mask[t / 32] for every token t after which some document can be completed,
  // clears all others. End tokens are named where the document may end. mask has at least
  // ceil(vocab_size / 32) words; bits past the vocabulary are cleared. Never leaves the mask empty,
  // as long as the vocabulary has an end token and a token for each byte that the document needs.
  void allowed(std::span<uint32_t> mask) const;

  // Advances past `token`. False, and nothing changes, where allowed() does not name it.
  bool accept(int32_t token);

  // The same for bytes that no token need stand for.
  bool accept_bytes(std::string_view bytes);

  // The document may end here; it has ended (an end token was accepted).
  bool can_end() const;
  bool has_ended() const { return has_ended_; }

 private:
  friend class CompiledGrammar::Matcher;
  using Stack = std::vector<int32_t>;  // automaton states; where each open rule goes on

  std::shared_ptr<const CompiledGrammar> grammar_;
  std::vector<Stack> stacks_;  // one per way to read what was accepted, sorted
  bool is_complete_ = false;   // what was accepted is a document that nothing can follow
  bool has_ended_ = false;
};

// Compiled grammars by key, the least recently used dropped first. Threads may share it. Compiling
// happens outside the lock; two threads with one new key may both compile it.
class GrammarCache {
 public:
  GrammarCache(std::shared_ptr<const TokenTrie> vocabulary, size_t max_grammars = 128,
               GrammarLimits limits = {});
  ~GrammarCache();
  Result<std::shared_ptr<const CompiledGrammar>> compile(const GrammarSpec& spec);

 private:
  struct Entries;
  std::shared_ptr<const TokenTrie> vocabulary_;
  const size_t max_grammars_;
  const GrammarLimits limits_;
  std::unique_ptr<Entries> entries_;
};

}  // namespace volley
