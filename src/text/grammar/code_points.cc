#include "text/grammar/code_points.h"

#include <algorithm>

namespace volley::grammar {
namespace {

constexpr uint32_t kMaxCodePoint = 0x10ffff;
constexpr uint32_t kFirstSurrogate = 0xd800;
constexpr uint32_t kLastSurrogate = 0xdfff;

int encode(uint32_t c, uint8_t out[4]) {
  if (c < 0x80) {
    out[0] = static_cast<uint8_t>(c);
    return 1;
  }
  const int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (int i = length - 1; i > 0; --i, c >>= 6) out[i] = static_cast<uint8_t>(0x80 | (c & 0x3f));
  out[0] = static_cast<uint8_t>((0xf00 >> length & 0xff) | c);
  return length;
}

// Splits [lo, hi] until its encodings are a product of byte ranges.
void split(uint32_t lo, uint32_t hi, std::vector<Utf8Sequence>& out) {
  for (const uint32_t last_of_length : {0x7fu, 0x7ffu, 0xffffu}) {
    if (lo <= last_of_length && hi > last_of_length) {
      split(lo, last_of_length, out);
      split(last_of_length + 1, hi, out);
      return;
    }
  }
  for (int i = 1; i < 4 && hi >= 0x80; ++i) {
    const uint32_t low_bits = (uint32_t{1} << (6 * i)) - 1;
    if ((lo & ~low_bits) == (hi & ~low_bits)) continue;
    if ((lo & low_bits) != 0) {
      split(lo, lo | low_bits, out);
      split((lo | low_bits) + 1, hi, out);
      return;
    }
    if ((hi & low_bits) != low_bits) {
      split(lo, (hi & ~low_bits) - 1, out);
      split(hi & ~low_bits, hi, out);
      return;
    }
  }
  uint8_t first[4], last[4];
  Utf8Sequence sequence;
  sequence.length = encode(lo, first);
  encode(hi, last);
  for (int i = 0; i < sequence.length; ++i) sequence.bytes[i] = {first[i], last[i]};
  out.push_back(sequence);
}

}  // namespace

CodePointSet::CodePointSet(std::vector<CodePointRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](auto a, auto b) { return a.lo < b.lo; });
  const auto add = [&](uint32_t lo, uint32_t hi) {
    if (lo > hi) return;
    if (!ranges_.empty() && lo <= ranges_.back().hi + 1) {
      ranges_.back().hi = std::max(ranges_.back().hi, hi);
    } else {
      ranges_.push_back({lo, hi});
    }
  };
  for (const CodePointRange range : ranges) {
    const uint32_t hi = std::min(range.hi, kMaxCodePoint);
    if (range.lo < kFirstSurrogate) add(range.lo, std::min(hi, kFirstSurrogate - 1));
    if (hi > kLastSurrogate) add(std::max(range.lo, kLastSurrogate + 1), hi);
  }
}

CodePointSet CodePointSet::all() {
  return CodePointSet({{0, kMaxCodePoint}});
}

bool CodePointSet::contains(uint32_t code_point) const {
  return std::any_of(ranges_.begin(), ranges_.end(),
                     [=](auto r) { return r.lo <= code_point && code_point <= r.hi; });
}

CodePointSet CodePointSet::complement() const {
  std::vector<CodePointRange> gaps;
  uint32_t next = 0;
  for (const CodePointRange range : ranges_) {
    if (range.lo > next) gaps.push_back({next, range.lo - 1});
    next = range.hi + 1;
  }
  if (next <= kMaxCodePoint) gaps.push_back({next, kMaxCodePoint});
  return CodePointSet(std::move(gaps));
}

CodePointSet CodePointSet::united(const CodePointSet& other) const {
  std::vector<CodePointRange> both = ranges_;
  both.insert(both.end(), other.ranges_.begin(), other.ranges_.end());
  return CodePointSet(std::move(both));
}

CodePointSet CodePointSet::intersected(const CodePointSet& other) const {
  return complement().united(other.complement()).complement();
}

std::vector<Utf8Sequence> utf8_sequences(const CodePointSet& set) {
  std::vector<Utf8Sequence> sequences;
  for (const CodePointRange range : set.ranges()) split(range.lo, range.hi, sequences);
  return sequences;
}

void append_utf8(std::string& out, uint32_t code_point) {
  uint8_t bytes[4];
  const int length = encode(code_point, bytes);
  out.append(reinterpret_cast<const char*>(bytes), length);
}

bool take_code_point(std::string_view& text, uint32_t& code_point) {
  if (text.empty()) return false;
  const uint8_t first = static_cast<uint8_t>(text[0]);
  const int length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  if (length == 0 || first > 0xf4 || text.size() < static_cast<size_t>(length)) return false;
  uint32_t c = length == 1 ? first : first & (0x7f >> length);
  for (int i = 1; i < length; ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    if ((byte & 0xc0) != 0x80) return false;
    c = c << 6 | (byte & 0x3f);
  }
  if ((length == 3 && c < 0x800) || (length == 4 && (c < 0x10000 || c > kMaxCodePoint)) ||
      (c >= kFirstSurrogate && c <= kLastSurrogate)) {
    return false;
  }
  code_point = c;
  text.remove_prefix(length);
  return true;
}

}  // namespace volley::grammar
