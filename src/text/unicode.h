#pragma once

// UTF-8, and what each code point is to the `tokenizers` package (tools/make_unicode_tables.py says
// where the classes come from: token ids depend on its Unicode version, not on the newest one).

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace volley {

enum CodePointFlag : uint8_t {
  kLetter = 1,      // \p{L}
  kNumber = 2,      // \p{N} of the regex engine
  kSpace = 4,       // \s
  kNumeric = 8,     // split off by the Digits pre-tokenizer; close to kNumber, not equal
  kWordChar = 16,   // \w: forbids a single_word added token beside it
  kNfcUnsafe = 32,  // NFC may change it or attach it to what stands before
  kNfcBase = 64,    // NFC may change it when an unsafe code point follows
};

// One byte of flags for every code point, in two stages (about 60 KiB). Build once, share.
class CodePointTable {
 public:
  static const CodePointTable& instance();

  // `code_point` < 0x110000.
  uint8_t flags(uint32_t code_point) const {
    return pages_[page_of_[code_point >> 8] * size_t{256} + (code_point & 255)];
  }
  // `byte` < 0x80.
  uint8_t ascii(uint8_t byte) const { return ascii_[byte]; }

 private:
  CodePointTable();
  std::array<uint8_t, 128> ascii_;
  std::array<uint16_t, 0x1100> page_of_;
  std::vector<uint8_t> pages_;
};

struct DecodedChar {
  uint32_t code_point;
  uint32_t num_bytes;
};

// Decodes the character at `p`, which must start one in valid UTF-8.
inline DecodedChar decode_valid_utf8(const char* p) {
  const auto byte = [p](int i) { return static_cast<uint32_t>(static_cast<uint8_t>(p[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) {
    return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

void append_utf8(uint32_t code_point, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Step {
  kCharacter,   // a whole character
  kInvalid,     // bytes that no continuation can make valid
  kIncomplete,  // the start of a character; more bytes may complete it
};
struct Utf8Piece {
  Utf8Step step;
  size_t num_bytes;  // at least 1
};

// Looks at the start of a non-empty `bytes`. An invalid piece is the "maximal subpart" of Unicode
// section 3.9, so replacing each with U+FFFD gives what Python's errors="replace" and Rust's
// from_utf8_lossy give.
Utf8Piece next_utf8_piece(std::string_view bytes);

bool is_valid_utf8(std::string_view bytes);

// `bytes` with every maximal invalid subpart replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view bytes);

// Normalization Form C of valid UTF-8, as the `tokenizers` package computes it. Linear time but for
// a sort within runs of combining marks. Returns false, leaving `out` alone, when `text` is already
// normalized.
bool normalize_nfc(std::string_view text, std::string& out);

}  // namespace volley
