#include "text/grammar/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/json.h"
#include "text/grammar/grammar_testing.h"

namespace volley {
namespace {

using Kind = GrammarSpec::Kind;
using GrammarPtr = std::shared_ptr<const CompiledGrammar>;

const std::shared_ptr<const TokenTrie>& vocabulary() {
  static const auto shared = small_vocabulary();
  return shared;
}

GrammarPtr compiled(const GrammarSpec& spec) {
  Result<GrammarPtr> grammar = CompiledGrammar::compile(spec, vocabulary());
  EXPECT_TRUE(grammar) << (grammar ? "" : grammar.error().message);
  return grammar ? *grammar : nullptr;
}

GrammarPtr regex(std::string text) {
  return compiled({.kind = Kind::kRegex, .text = std::move(text)});
}

GrammarPtr ebnf(std::string text) {
  return compiled({.kind = Kind::kEbnf, .text = std::move(text)});
}

std::string compile_error(const GrammarSpec& spec, const GrammarLimits& limits = {}) {
  const Result<GrammarPtr> grammar = CompiledGrammar::compile(spec, vocabulary(), limits);
  return grammar ? "no error" : grammar.error().message;
}

bool matches(const GrammarPtr& grammar, std::string_view text) {
  return accepts_document(grammar, text);
}

// The mask names a token exactly if accepting it succeeds, and something may always follow.
void expect_exact(const GrammarState& state) {
  const std::vector<uint32_t> mask = mask_of(state, *vocabulary());
  bool any = false;
  for (int32_t token = 0; token < vocabulary()->vocab_size(); ++token) {
    GrammarState next = state;
    const bool accepted = next.accept(token);
    ASSERT_EQ((mask[token / 32] >> (token % 32)) & 1, accepted) << vocabulary()->bytes_of(token);
    any |= accepted;
    // Token by token or byte by byte is the same.
    if (token <= 1) continue;
    GrammarState by_byte = state;
    bool bytes_accepted = true;
    for (const char c : vocabulary()->bytes_of(token)) {
      bytes_accepted = bytes_accepted && by_byte.accept_bytes({&c, 1});
    }
    ASSERT_EQ(accepted, bytes_accepted) << vocabulary()->bytes_of(token);
  }
  ASSERT_TRUE(any);
}

void expect_exact_walk(const GrammarPtr& grammar, std::string_view document) {
  GrammarState state(grammar);
  expect_exact(state);
  for (const char c : document) {
    ASSERT_TRUE(state.accept_bytes({&c, 1})) << document;
    expect_exact(state);
  }
  EXPECT_TRUE(state.can_end());
}

TEST(TokenTrie, HoldsEveryTokenOnce) {
  const int32_t end = 3;
  const TokenTrie trie({"ab", "", "a", "<end>", "b", "ab", "abc", "\xff"}, std::span(&end, 1));
  std::vector<std::pair<int, std::vector<int32_t>>> found;
  for (uint32_t node = 0; node < trie.nodes().size(); ++node) {
    const auto ids = trie.tokens_at(node);
    if (!ids.empty()) {
      found.emplace_back(trie.nodes()[node].depth, std::vector<int32_t>(ids.begin(), ids.end()));
    }
  }
  using testing::ElementsAre;
  using testing::Pair;
  EXPECT_THAT(found, ElementsAre(Pair(1, ElementsAre(2)), Pair(2, ElementsAre(0, 5)),
                                 Pair(3, ElementsAre(6)), Pair(1, ElementsAre(4)),
                                 Pair(1, ElementsAre(7))));
  EXPECT_TRUE(trie.is_end_token(3));
  EXPECT_EQ(trie.max_token_bytes(), 3);
  EXPECT_EQ(trie.bytes_of(-1), "");
  EXPECT_EQ(trie.bytes_of(99), "");
}

TEST(Regex, MatchesWhatItSays) {
  const auto date = regex("\\d{4}-\\d\\d?");
  EXPECT_TRUE(matches(date, "2024-1"));
  EXPECT_TRUE(matches(date, "2024-12"));
  EXPECT_FALSE(matches(date, "2024-"));
  EXPECT_FALSE(matches(date, "2024-123"));
  EXPECT_TRUE(matches(regex("^(?:ab|a(?<n>c))*?$"), "abacab"));
  EXPECT_TRUE(matches(regex("[^a-z\\d]+"), "A\xc3\xa9\xf0\x9f\x98\x80"));
  EXPECT_FALSE(matches(regex("[^\xc3\xa9]"), "\xc3\xa9"));
  EXPECT_TRUE(matches(regex("\\u00e9\\x41\\u{1F600}"),
                      "\xc3\xa9"
                      "A\xf0\x9f\x98\x80"));
  EXPECT_TRUE(matches(regex("\\ud83d\\ude00"), "\xf0\x9f\x98\x80"));
  EXPECT_TRUE(matches(regex(""), ""));
  EXPECT_TRUE(matches(regex("a|"), ""));
}

TEST(Regex, RefusesWhatItCannotDo) {
  for (const char* text :
       {"(?=a)", "(?!a)", "(?<=a)", "\\1",       "\\b",         "(a",     "a)", "[a",
        "a**",   "*a",    "a{2,1}", "a{",        "(a$)b",       "a^",     "\\", "\\p{L}",
        "(?i)a", "\xff",  "[b-a]",  "a{100001}", "\\u{110000}", "\\ud800"}) {
    EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = text}), testing::HasSubstr("regex"))
        << text;
  }
  EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = std::string(1000, '(')}),
              testing::HasSubstr("nested deeper"));
}

TEST(Regex, NoDocument) {
  EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = "a[]"}),
              testing::HasSubstr("no document satisfies"));
}

TEST(Ebnf, RulesAndRecursion) {
  const auto sums = ebnf(R"GBNF(
    # sums of products
    root    ::= product ("+" product)*
    product ::= factor ("*" factor)*   # the usual
    factor  ::= [0-9]+
              | "(" root ")"
              | name
    name ::= [a-z_] [a-z0-9_]{0,3}
  )GBNF");
  for (const char* text : {"1", "1+2*3", "((a_1))*(b+4)", "abcd"}) {
    EXPECT_TRUE(matches(sums, text)) << text;
  }
  for (const char* text : {"", "+", "(1", "1)", "abcde", "1++2"}) {
    EXPECT_FALSE(matches(sums, text)) << text;
  }
  expect_exact_walk(sums, "((1+a)*(b_2))+3");
}

TEST(Ebnf, EscapesAndNullableRules) {
  const auto grammar =
      ebnf("root ::= sp \"\\x41\\u00e9\\\"\\n\" sp end\nsp ::= \" \"*\nend ::= \"!\"?");
  EXPECT_TRUE(matches(grammar, "A\xc3\xa9\"\n"));
  EXPECT_TRUE(matches(grammar, "  A\xc3\xa9\"\n  !"));
  EXPECT_TRUE(matches(ebnf("root ::= a b\na ::= b\nb ::= \"x\"?"), ""));
  EXPECT_TRUE(matches(ebnf("root ::= a b\na ::= b\nb ::= \"x\"?"), "xx"));
}

TEST(Ebnf, AmbiguityIsExact) {
  const auto palindromes = ebnf("root ::= \"a\" root \"a\" | \"b\" root \"b\" | [ab]?");
  EXPECT_TRUE(matches(palindromes, "abbaabba"));
  EXPECT_TRUE(matches(palindromes, "aba"));
  EXPECT_FALSE(matches(palindromes, "abab"));
  expect_exact_walk(palindromes, "abbabba");
  const auto pairs = ebnf("root ::= \"a\" root root | \"a\"");
  EXPECT_TRUE(matches(pairs, "aaaaa"));
  EXPECT_FALSE(matches(pairs, "aaaa"));
  expect_exact_walk(pairs, "aaaaaaa");
}

TEST(Ebnf, Errors) {
  const auto error = [](const char* text) {
    return compile_error({.kind = Kind::kEbnf, .text = text});
  };
  EXPECT_THAT(error("root ::= a"), testing::HasSubstr("'a' is used but not defined"));
  EXPECT_THAT(error("a ::= \"x\""), testing::HasSubstr("no rule named 'root'"));
  EXPECT_THAT(error("root ::= root \"x\" | \"y\""), testing::HasSubstr("left recursive"));
  EXPECT_THAT(error("root ::= e root | \"y\"\ne ::= \"\"  | \"z\""),
              testing::HasSubstr("left recursive"));
  EXPECT_THAT(error("root ::= \"x\" root"), testing::HasSubstr("no document satisfies"));
  EXPECT_THAT(error("root ::= \"a\"\nroot ::= \"b\""), testing::HasSubstr("line 2"));
  for (const char* text : {"root ::= (", "root ::= \"", "root ::= [a", "root ::= *", "root = 1",
                           "root ::= \"a\"{3,2}", "::=", "root ::= )", "root ::= \"\\d\""}) {
    EXPECT_THAT(error(text), testing::HasSubstr("grammar, line")) << text;
  }
}

TEST(Choice, ByteForByte) {
  const auto grammar =
      compiled({.kind = Kind::kChoice, .choices = {"red", "redder", "gr\xc3\xbcn"}});
  EXPECT_TRUE(matches(grammar, "red"));
  EXPECT_TRUE(matches(grammar, "redder"));
  EXPECT_TRUE(matches(grammar, "gr\xc3\xbcn"));
  EXPECT_FALSE(matches(grammar, "redd"));
  expect_exact_walk(grammar, "redder");
  EXPECT_THAT(compile_error({.kind = Kind::kChoice}), testing::HasSubstr("empty"));
}

TEST(JsonObject, AnyObjectAndNothingElse) {
  const auto grammar = compiled({});
  for (const char* text :
       {"{}", R"({"a":1})", R"({"a": [1, -2.5e3, {"b": null}], "c": "\u00e9\n\"", "d": true})",
        "{\n  \"a\": {\n    \"b\": []\n  }\n}", R"({"":"\ud83d\ude00"})"}) {
    EXPECT_TRUE(matches(grammar, text)) << text;
  }
  for (const char* text :
       {"", "[]", "1", "{", R"({"a"})", R"({"a":1,})", R"({a:1})", R"({"a":01})", R"({"a":"\x"})",
        R"({"a":"\ud83d"})", "{ \t}", R"({"a":  1})", "{\"a\":\"\n\"}", R"({"a":1} )",
        "{\"\xff\":1}", "{\"\xed\xa0\x80\":1}"}) {
    EXPECT_FALSE(matches(grammar, text)) << text;
  }
  expect_exact_walk(grammar, R"({"na": [1, {"b": "x\n"}, true], "c": -0.5e+10})");
}

TEST(JsonObject, CompactWithoutWhitespace) {
  GrammarSpec spec;
  spec.json.whitespace.allowed = false;
  const auto grammar = compiled(spec);
  EXPECT_TRUE(matches(grammar, R"({"a":[1,2]})"));
  EXPECT_FALSE(matches(grammar, R"({"a": [1,2]})"));
}

TEST(GrammarState, EndsOnceAndOnlyWhereItMay) {
  const auto grammar = compiled({.kind = Kind::kRegex, .text = "ab?"});
  GrammarState state(grammar);
  EXPECT_FALSE(state.can_end());
  EXPECT_FALSE(state.accept(1));
  EXPECT_TRUE(state.accept(2 + 'a'));
  EXPECT_TRUE(state.can_end());
  GrammarState copy = state;
  EXPECT_TRUE(copy.accept(2 + 'b'));
  EXPECT_THAT(tokens_of(mask_of(copy, *vocabulary())), testing::ElementsAre(1));
  EXPECT_THAT(tokens_of(mask_of(state, *vocabulary())), testing::ElementsAre(1, 2 + 'b'));
  EXPECT_TRUE(state.accept(1));
  EXPECT_TRUE(state.has_ended());
  EXPECT_THAT(tokens_of(mask_of(state, *vocabulary())), testing::ElementsAre(1));
  EXPECT_FALSE(state.accept(2 + 'b'));
  EXPECT_FALSE(state.accept(0));
  EXPECT_FALSE(state.accept(-1));
  EXPECT_FALSE(state.accept(1 << 20));
}

TEST(GrammarState, MaskWiderThanTheVocabulary) {
  const auto grammar = compiled({.kind = Kind::kRegex, .text = "a"});
  std::vector<uint32_t> mask(100, ~0u);
  GrammarState(grammar).allowed(mask);
  EXPECT_THAT(tokens_of(mask), testing::Contains(2 + 'a'));
  EXPECT_TRUE(std::all_of(mask.begin() + 20, mask.end(), [](uint32_t word) { return word == 0; }));
}

TEST(GrammarState, TheCacheChangesNothing) {
  // With no room at all every mask is computed anew.
  const GrammarSpec spec;
  const auto roomy = compiled(spec);
  const auto tight = CompiledGrammar::compile(spec, vocabulary(), {.max_cache_bytes = 0});
  ASSERT_TRUE(tight);
  GrammarState a(roomy), b(*tight);
  for (const char c : std::string_view(R"({"a": [1, {"b": "x\n"}, true], "c": -0.5e+10})")) {
    EXPECT_EQ(mask_of(a, *vocabulary()), mask_of(b, *vocabulary()));
    ASSERT_TRUE(a.accept_bytes({&c, 1}));
    ASSERT_TRUE(b.accept_bytes({&c, 1}));
  }
  EXPECT_TRUE(a.can_end() && b.can_end());
}

TEST(GrammarState, DeepNestingIsLinear) {
  const auto grammar = compiled({});
  GrammarState state(grammar);
  ASSERT_TRUE(state.accept_bytes("{\"a\":"));
  const std::string open(2000, '[');
  ASSERT_TRUE(state.accept_bytes(open));
  EXPECT_FALSE(state.can_end());
  expect_exact(state);
  ASSERT_TRUE(state.accept_bytes("1" + std::string(2000, ']') + "}"));
  EXPECT_TRUE(state.can_end());
}

TEST(GrammarState, ByteOutsideTheVocabularyIsNoWayOut) {
  // Without a token for 'b' the only documents are those that need none.
  const int32_t end = 0;
  const auto few = std::make_shared<const TokenTrie>(
      std::vector<std::string>{"<end>", "a", "c", "ab", "x"}, std::span(&end, 1));
  const auto grammar = CompiledGrammar::compile({.kind = Kind::kRegex, .text = "a(b|c)|xb"}, few);
  ASSERT_TRUE(grammar);
  GrammarState state(*grammar);
  std::vector<uint32_t> mask(1);
  state.allowed(mask);
  EXPECT_THAT(tokens_of(mask), testing::ElementsAre(1, 3));
}

TEST(GrammarCache, SharesAndForgets) {
  GrammarCache cache(vocabulary(), 2);
  const GrammarSpec a{.kind = Kind::kRegex, .text = "a"};
  const GrammarSpec b{.kind = Kind::kRegex, .text = "b"};
  const auto first = *cache.compile(a);
  EXPECT_EQ(*cache.compile(a), first);
  EXPECT_NE(*cache.compile(b), first);
  EXPECT_EQ(*cache.compile(a), first);
  ASSERT_TRUE(cache.compile({.kind = Kind::kRegex, .text = "c"}));
  EXPECT_EQ(*cache.compile(a), first);  // b was the least recently used
  EXPECT_FALSE(cache.compile({.kind = Kind::kRegex, .text = "("}));
  EXPECT_NE(a.cache_key(), b.cache_key());
  GrammarSpec open = a;
  open.json.additional_properties_by_default = true;
  EXPECT_NE(a.cache_key(), open.cache_key());
}

TEST(CompiledGrammar, ManyThreads) {
  const auto grammar = compiled({});
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      RandomStream random(seed);
      for (int i = 0; i < 5; ++i) {
        const std::string text = random_document(grammar, random, 60);
        EXPECT_TRUE(text.empty() || parse_json(text, "document")) << text;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Inputs made to hurt: each must answer soon, with an error that says what is wrong, or work.
TEST(Limits, AdversarialGrammars) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = "(a|b)*a(a|b){40}"}),
              testing::HasSubstr("too complex"));
  EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = "((a{1000}){1000}){1000}"}),
              testing::HasSubstr("too complex"));
  EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = "((){100000}){100000}"}),
              testing::HasSubstr("too complex"));
  EXPECT_THAT(compile_error({.kind = Kind::kRegex, .text = std::string(300 << 10, 'a')}),
              testing::HasSubstr("at most"));
  std::string chain = "root ::= r0 \"!\"\n";
  for (int i = 0; i < 5000; ++i) chain += fmt::format("r{} ::= r{} \"x\"\n", i, i + 1);
  chain += "r5000 ::= \"y\"\n";
  EXPECT_THAT(compile_error({.kind = Kind::kEbnf, .text = chain}),
              testing::HasSubstr("nest before the first byte"));
  std::string many;
  for (int i = 0; i < 20001; ++i) many += fmt::format("r{:x}::=\n", i);
  EXPECT_THAT(compile_error({.kind = Kind::kEbnf, .text = many}), testing::HasSubstr("rules"));
  // Exponentially many ways to read each byte.
  std::string ways = "root ::= a0\n";
  for (int i = 0; i < 30; ++i)
    ways += fmt::format("a{} ::= a{} \"x\" | a{} \"y\"\n", i, i + 1, i + 1);
  ways += "a30 ::= [a-z]\n";
  const auto ambiguous = ebnf(ways);
  GrammarState state(ambiguous);
  EXPECT_TRUE(state.accept(2 + 'q'));
  EXPECT_FALSE(tokens_of(mask_of(state, *vocabulary())).empty());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

}  // namespace
}  // namespace volley
