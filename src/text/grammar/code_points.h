#pragma once

// Sets of Unicode code points and their UTF-8 form as sequences of byte ranges.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace volley::grammar {

struct CodePointRange {
  uint32_t lo = 0;
  uint32_t hi = 0;  // inclusive
  bool operator==(const CodePointRange&) const = default;
};

// Sorted, disjoint, not adjacent; never holds a surrogate, which has no UTF-8.
class CodePointSet {
 public:
  CodePointSet() = default;
  explicit CodePointSet(std::vector<CodePointRange> ranges);  // in any order, overlapping or not
  static CodePointSet all();

  const std::vector<CodePointRange>& ranges() const { return ranges_; }
  bool empty() const { return ranges_.empty(); }
  bool contains(uint32_t code_point) const;
  CodePointSet complement() const;
  CodePointSet united(const CodePointSet& other) const;
  CodePointSet intersected(const CodePointSet& other) const;

 private:
  std::vector<CodePointRange> ranges_;
};

struct ByteRange {
  uint8_t lo = 0;
  uint8_t hi = 0;  // inclusive
};

// One to four ranges; the product of them is a set of UTF-8 encodings.
struct Utf8Sequence {
  int length = 0;
  ByteRange bytes[4];
};

// The encodings of `set`, exactly, as few products. Splitting as in Russ Cox, "Regular Expression
// Matching in the Wild" (2010).
std::vector<Utf8Sequence> utf8_sequences(const CodePointSet& set);

void append_utf8(std::string& out, uint32_t code_point);

// Takes the first code point off `text`; false (and nothing taken) where it is no UTF-8.
bool take_code_point(std::string_view& text, uint32_t& code_point);

}  // namespace volley::grammar
