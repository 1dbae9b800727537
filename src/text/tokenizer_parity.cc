// Encodes and decodes a file of texts, for tools/tokenizer_parity.py to compare with the
// `tokenizers` package, and measures encoding speed on one core.
//
//   tokenizer_parity TOKENIZER TEXTS RESULTS [plain]   compare; "plain": no special tokens
//   tokenizer_parity TOKENIZER TEXTS bench             MB/s
//
// TEXTS: records of a uint32 byte count and that many bytes. RESULTS: per text a uint32 count and
// that many int32 ids, then a uint32 byte count and the decoded text.

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "text/tokenizer.h"

namespace volley {
namespace {

Result<std::vector<std::string_view>> split_records(std::string_view bytes) {
  std::vector<std::string_view> texts;
  while (!bytes.empty()) {
    uint32_t size = 0;
    if (bytes.size() < sizeof(size)) return invalid("the texts end inside a record");
    std::memcpy(&size, bytes.data(), sizeof(size));
    bytes.remove_prefix(sizeof(size));
    if (bytes.size() < size) return invalid("the texts end inside a record");
    texts.push_back(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  return texts;
}

void append_u32(size_t value, std::string& out) {
  const auto v = static_cast<uint32_t>(value);
  out.append(reinterpret_cast<const char*>(&v), sizeof(v));
}

Status write_results(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts,
                     bool special, const std::string& path) {
  std::string out;
  for (const std::string_view text : texts) {
    const std::vector<int32_t> ids =
        tokenizer.encode(text, {.add_special_tokens = special, .parse_special = special});
    append_u32(ids.size(), out);
    out.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
    const std::string decoded = tokenizer.decode(ids, !special);
    append_u32(decoded.size(), out);
    out.append(decoded);
  }
  return write_file_atomic(path, out);
}

void bench(const Tokenizer& tokenizer, const std::vector<std::string_view>& texts) {
  std::vector<double> mb_per_s;
  size_t num_bytes = 0;
  size_t num_tokens = 0;
  for (int round = 0; round < 5; ++round) {
    num_bytes = num_tokens = 0;
    const auto start = std::chrono::steady_clock::now();
    for (const std::string_view text : texts) {
      num_bytes += text.size();
      num_tokens += tokenizer.encode(text).size();
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    mb_per_s.push_back(static_cast<double>(num_bytes) / 1e6 / seconds.count());
  }
  const double cold = mb_per_s[0];
  std::sort(mb_per_s.begin(), mb_per_s.end());
  fmt::print("{:.1f} MB in {} texts, {} tokens, one core: first round {:.1f} MB/s, median {:.1f}\n",
             static_cast<double>(num_bytes) / 1e6, texts.size(), num_tokens, cold,
             mb_per_s[mb_per_s.size() / 2]);
}

Status run(const std::vector<std::string>& args) {
  if (args.size() < 3)
    return invalid("usage: tokenizer_parity TOKENIZER TEXTS RESULTS|bench [plain]");
  const auto start = std::chrono::steady_clock::now();
  VOLLEY_TRY(const Tokenizer tokenizer, Tokenizer::load(args[0]));
  const std::chrono::duration<double, std::milli> load_ms =
      std::chrono::steady_clock::now() - start;
  VOLLEY_TRY(const std::string bytes, read_file(args[1], size_t{4} << 30));
  VOLLEY_TRY(const std::vector<std::string_view> texts, split_records(bytes));
  if (args[2] == "bench") {
    fmt::print("loaded in {:.0f} ms\n", load_ms.count());
    bench(tokenizer, texts);
    return {};
  }
  return write_results(tokenizer, texts, args.size() < 4 || args[3] != "plain", args[2]);
}

}  // namespace
}  // namespace volley

int main(int argc, char** argv) {
  const auto status = volley::run(std::vector<std::string>(argv + 1, argv + argc));
  if (status) return 0;
  fmt::print(stderr, "tokenizer_parity: {}\n", status.error().message);
  return 2;
}
