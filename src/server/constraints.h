#pragma once

// What a request wants its answer to look like, compiled to what the engine asks at every token.

#include <atomic>
#include <memory>

#include "engine/grammar_filter.h"
#include "server/api_request.h"
#include "text/grammar/grammar.h"
#include "text/tokenizer.h"

namespace volley::server {

// The vocabulary of a model as grammars see it. `end_tokens` end an answer.
std::shared_ptr<const TokenTrie> make_token_trie(const Tokenizer& tokenizer, int64_t vocab_size,
                                                 std::span<const int32_t> end_tokens);

// Thread-safe; equal constraints are compiled once.
class Constraints {
 public:
  explicit Constraints(std::shared_ptr<const TokenTrie> vocabulary)
      : cache_(std::move(vocabulary)) {}

  // `tools`: the request's, for tool calls. Errors name what the grammar cannot express.
  Result<std::shared_ptr<const TokenFilter>> compile(const Constraint& constraint,
                                                     const Json& tools, bool parallel_tool_calls);

  int64_t num_compiled() const { return num_compiled_; }

 private:
  GrammarCache cache_;
  std::atomic<int64_t> num_compiled_ = 0;
};

}  // namespace volley::server
