// grammar_bench TOKENIZER_FOLDER: what constrained decoding costs on a real vocabulary. For each
// grammar a document is written token by token: once with nothing cached (cold), then again and
// again (warm). Every document is checked to be accepted before a figure is printed.

#include <fmt/format.h>

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/check.h"
#include "text/grammar/grammar.h"
#include "text/tokenizer.h"

namespace volley {
namespace {

// The time of this thread alone: other work on the machine does not count.
double now_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

struct Case {
  const char* name;
  GrammarSpec spec;
  std::string document;
};

std::vector<Case> cases() {
  using Kind = GrammarSpec::Kind;
  std::vector<Case> all;
  all.push_back({"json_object",
                 {},
                 R"({"name": "Ada Lovelace", "born": 1815, "tags": ["mathematics", "poetry"],)"
                 R"( "address": {"city": "London", "zip": null}, "score": -12.5e3, "ok": true})"});
  all.push_back(
      {"person",
       {.kind = Kind::kJsonSchema,
        .text = R"({"type":"object","properties":{"name":{"type":"string"},
          "age":{"type":"integer","minimum":0,"maximum":150},"email":{"type":"string"},
          "married":{"type":"boolean"}},"required":["name","age","email","married"]})"},
       R"({"name": "Ada Lovelace", "age": 36, "email": "ada@example.com", "married": true})"});
  all.push_back(
      {"orders",
       {.kind = Kind::kJsonSchema,
        .text = R"({"type":"object","properties":{"id":{"type":"string","format":"uuid"},
          "status":{"enum":["new","paid","shipped","returned"]},
          "lines":{"type":"array","minItems":1,"maxItems":50,"items":{"$ref":"#/$defs/line"}},
          "note":{"type":["string","null"]}},"required":["id","status","lines","note"],
          "$defs":{"line":{"type":"object","properties":{"sku":{"type":"string",
          "pattern":"^[A-Z]{3}-[0-9]{4}$"},"count":{"type":"integer","minimum":1},
          "price":{"type":"number","minimum":0}},"required":["sku","count","price"]}}})"},
       R"({"id": "123e4567-e89b-12d3-a456-426614174000", "status": "shipped", "lines": [)"
       R"({"sku": "ABC-1234", "count": 3, "price": 9.95}, {"sku": "XYZ-0001", "count": 12,)"
       R"( "price": 100}], "note": "leave it at the door"})"});
  all.push_back({"tree (recursive)",
                 {.kind = Kind::kJsonSchema,
                  .text = R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{
          "value":{"type":"string"},"children":{"type":"array","items":{"$ref":"#/$defs/node"}}},
          "required":["value","children"]}}})"},
                 R"({"value": "a", "children": [{"value": "bc", "children": []}, {"value": "def",)"
                 R"( "children": [{"value": "gh", "children": []}]}]})"});
  all.push_back(
      {"bounded strings",
       {.kind = Kind::kJsonSchema,
        .text = R"({"type":"object","properties":{"title":{"type":"string","maxLength":80},
          "summary":{"type":"string","minLength":20,"maxLength":2000}},
          "required":["title","summary"]})"},
       R"({"title": "On the analytical engine", "summary": "It weaves algebraic patterns just as)"
       R"( the Jacquard loom weaves flowers and leaves; we may say that most aptly."})"});
  GrammarSpec tools{.kind = Kind::kToolCalls};
  tools.tools = {{"get_weather", R"({"type":"object","properties":{"city":{"type":"string"},
                   "unit":{"enum":["celsius","fahrenheit"]}},"required":["city"]})"},
                 {"search", R"({"type":"object","properties":{"query":{"type":"string"},
                   "limit":{"type":"integer"}},"required":["query"]})"}};
  all.push_back({"two tools", tools,
                 "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", "
                 "\"unit\": \"celsius\"}}\n</tool_call>"});
  all.push_back({"regex",
                 {.kind = Kind::kRegex, .text = "The (first|last) of [A-Z][a-z]+ \\d{4}(, .*)?\\."},
                 "The last of October 1815, or so."});
  std::string wide = R"({"type":"object","properties":{)", wide_document = "{";
  for (int i = 0; i < 200; ++i) {
    wide += fmt::format(R"({}"field_{}":{{"type":"integer"}})", i == 0 ? "" : ",", i);
    if (i % 10 == 0) wide_document += fmt::format(R"({}"field_{}": {})", i == 0 ? "" : ", ", i, i);
  }
  all.push_back(
      {"200 optional", {.kind = Kind::kJsonSchema, .text = wide + "}}"}, wide_document + "}"});
  return all;
}

double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(p * values.size()))];
}

// Mask and accept times in microseconds, one per token.
void write_document(const std::shared_ptr<const CompiledGrammar>& grammar,
                    const std::vector<int32_t>& tokens, std::vector<double>& mask_us,
                    std::vector<double>& accept_us) {
  GrammarState state(grammar);
  std::vector<uint32_t> mask((static_cast<size_t>(grammar->vocabulary().vocab_size()) + 31) / 32);
  for (const int32_t token : tokens) {
    double start = now_us();
    state.allowed(mask);
    mask_us.push_back((now_us() - start));
    CHECK((mask[token / 32] >> (token % 32)) & 1);
    start = now_us();
    CHECK(state.accept(token));
    accept_us.push_back((now_us() - start));
  }
  CHECK(state.can_end());
}

int run(const char* folder) {
  const Result<Tokenizer> tokenizer = Tokenizer::load(folder);
  if (!tokenizer) {
    fmt::print(stderr, "{}\n", tokenizer.error().message);
    return 1;
  }
  std::vector<std::string> bytes(static_cast<size_t>(tokenizer->vocab_size()));
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    if (!tokenizer->is_special(id)) bytes[id] = tokenizer->token_bytes(id);
  }
  const std::vector<int32_t> end = {tokenizer->special_ids().front()};
  double start = now_us();
  const auto vocabulary = std::make_shared<const TokenTrie>(std::move(bytes), end);
  fmt::print("{} tokens, {} trie nodes in {:.0f} ms\n\n", vocabulary->vocab_size(),
             vocabulary->nodes().size(), (now_us() - start) / 1000);
  fmt::print("{:<18} {:>10} {:>7} {:>7} | {:>9} {:>9} {:>9} | {:>8} {:>8} {:>8} | {:>9}\n",
             "grammar", "compile ms", "states", "tokens", "first p50", "p99", "max us", "warm p50",
             "p99 us", "accept", "KiB cache");
  for (const Case& one : cases()) {
    std::vector<double> compile_ms;
    std::shared_ptr<const CompiledGrammar> grammar;
    for (int i = 0; i < 5; ++i) {
      start = now_us();
      auto compiled = CompiledGrammar::compile(one.spec, vocabulary);
      compile_ms.push_back((now_us() - start) / 1000);
      CHECK(compiled.has_value());
      grammar = *compiled;
    }
    const std::vector<int32_t> tokens = tokenizer->encode(one.document);
    std::vector<double> cold, cold_accept, warm, accept;
    write_document(grammar, tokens, cold, cold_accept);
    for (int i = 0; i < 100; ++i) write_document(grammar, tokens, warm, accept);
    fmt::print(
        "{:<18} {:>10.2f} {:>7} {:>7} | {:>9.1f} {:>9.1f} {:>9.1f} | {:>8.2f} {:>8.2f} {:>8.2f} | "
        "{:>9}\n",
        one.name, percentile(compile_ms, 0.5), grammar->num_states(), tokens.size(),
        percentile(cold, 0.5), percentile(cold, 0.99), percentile(cold, 1), percentile(warm, 0.5),
        percentile(warm, 0.99), percentile(accept, 0.5), grammar->memory_bytes() / 1024);
  }
  return 0;
}

}  // namespace
}  // namespace volley

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: grammar_bench TOKENIZER_FOLDER\n");
    return 2;
  }
  return volley::run(argv[1]);
}
