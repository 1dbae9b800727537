// The first byte picks a kind of grammar, the rest is its text. Whatever compiles is walked: every
// mask names a way forward, and every token it names is accepted, here and on a copy. A schema's
// documents are JSON.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/json.h"
#include "text/grammar/grammar.h"
#include "text/grammar/grammar_testing.h"

namespace volley {
namespace {

// Small limits: a fuzzer learns from many small inputs.
constexpr GrammarLimits kLimits = {.max_text_bytes = 4096,
                                   .max_depth = 32,
                                   .max_rules = 500,
                                   .max_compile_steps = 200'000,
                                   .max_states = 5000,
                                   .max_cache_bytes = 1 << 20};
constexpr int kMaxTokens = 60;
constexpr int kMaxTextBytes = 400;

void walk(const std::shared_ptr<const CompiledGrammar>& grammar, uint64_t seed, bool is_json) {
  const TokenTrie& vocabulary = grammar->vocabulary();
  RandomStream random(seed);
  GrammarState state(grammar);
  std::string text;
  for (int i = 0; i < kMaxTokens && text.size() < kMaxTextBytes; ++i) {
    const std::vector<int32_t> tokens = tokens_of(mask_of(state, vocabulary));
    CHECK(!tokens.empty());
    const int32_t token = tokens[random.below(static_cast<uint32_t>(tokens.size()))];
    GrammarState copy = state;
    CHECK(state.accept(token));
    if (state.has_ended()) {
      if (is_json) CHECK(parse_json(text, "document").has_value());
      return;
    }
    // Bytes one by one say the same.
    for (const char c : vocabulary.bytes_of(token)) CHECK(copy.accept_bytes({&c, 1}));
    CHECK_EQ(copy.can_end(), state.can_end());
    text += vocabulary.bytes_of(token);
  }
}

}  // namespace
}  // namespace volley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace volley;
  using Kind = GrammarSpec::Kind;
  static const std::shared_ptr<const TokenTrie> vocabulary = small_vocabulary();
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  GrammarSpec spec;
  switch (data[0]) {
    case 'r':
      spec = {.kind = Kind::kRegex, .text = text};
      break;
    case 'g':
      spec = {.kind = Kind::kEbnf, .text = text};
      break;
    case 't':
      spec = {.kind = Kind::kToolCalls, .tools = {{"f", text}}};
      break;
    case 'o':
      spec = {.kind = Kind::kJsonSchema, .text = text};
      spec.json.additional_properties_by_default = true;
      break;
    default:
      spec = {.kind = Kind::kJsonSchema, .text = text};
  }
  const auto grammar = CompiledGrammar::compile(spec, vocabulary, kLimits);
  if (!grammar) {
    CHECK(!grammar.error().message.empty());
    return 0;
  }
  const uint64_t seed = size * 31 + data[size - 1];
  for (uint64_t i = 0; i < 2; ++i) walk(*grammar, seed + i, spec.kind == Kind::kJsonSchema);
  return 0;
}
