#include "engine/grammar_filter.h"

#include <gtest/gtest.h>

#include "text/grammar/grammar_testing.h"

namespace volley {
namespace {

TEST(GrammarFilter, ClonesGoTheirOwnWay) {
  const auto vocabulary = small_vocabulary();
  const auto grammar = CompiledGrammar::compile(
      {.kind = GrammarSpec::Kind::kChoice, .choices = {"ab", "ac"}}, vocabulary);
  ASSERT_TRUE(grammar);
  GrammarFilter filter(*grammar);
  filter.accept(2 + 'a');
  const std::unique_ptr<TokenFilter> draft = filter.clone();
  draft->accept(2 + 'b');
  std::vector<uint32_t> mask((static_cast<size_t>(vocabulary->vocab_size()) + 31) / 32);
  draft->allowed(mask);
  EXPECT_EQ(tokens_of(mask), std::vector<int32_t>{1});
  filter.allowed(mask);
  EXPECT_EQ(tokens_of(mask), (std::vector<int32_t>{2 + 'b', 2 + 'c'}));
  EXPECT_TRUE(mask_allows(mask, 2 + 'c'));
}

}  // namespace
}  // namespace volley
