#include "text/unicode.h"

#include <simdjson.h>
#include <utf8proc.h>

#include <algorithm>
#include <map>

#include "base/check.h"
#include "text/unicode_tables.h"

namespace volley {
namespace {

constexpr uint32_t kNumCodePoints = 0x110000;

void mark(std::vector<uint8_t>& flags, const unicode_tables::CodePointRange* ranges, size_t count,
          CodePointFlag flag) {
  for (size_t i = 0; i < count; ++i) {
    for (uint32_t c = ranges[i].first; c <= ranges[i].last; ++c) flags[c] |= flag;
  }
}

}  // namespace

const CodePointTable& CodePointTable::instance() {
  static const CodePointTable table;
  return table;
}

CodePointTable::CodePointTable() {
  namespace t = unicode_tables;
  std::vector<uint8_t> flags(kNumCodePoints);
  mark(flags, t::kLetter, t::kLetterCount, volley::kLetter);
  mark(flags, t::kNumber, t::kNumberCount, volley::kNumber);
  mark(flags, t::kSpace, t::kSpaceCount, volley::kSpace);
  mark(flags, t::kNumeric, t::kNumericCount, volley::kNumeric);
  mark(flags, t::kWord, t::kWordCount, kWordChar);
  mark(flags, t::kNfcUnsafe, t::kNfcUnsafeCount, volley::kNfcUnsafe);
  mark(flags, t::kNfcBase, t::kNfcBaseCount, volley::kNfcBase);

  std::map<std::vector<uint8_t>, uint16_t> seen;
  for (size_t page = 0; page < page_of_.size(); ++page) {
    std::vector<uint8_t> content(flags.begin() + page * 256, flags.begin() + (page + 1) * 256);
    const auto [it, is_new] = seen.emplace(std::move(content), static_cast<uint16_t>(seen.size()));
    if (is_new) pages_.insert(pages_.end(), it->first.begin(), it->first.end());
    page_of_[page] = it->second;
  }
  std::copy_n(flags.begin(), ascii_.size(), ascii_.begin());
}

void append_utf8(uint32_t c, std::string& out) {
  const auto push = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xC0 | c >> 6);
    push(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    push(0xE0 | c >> 12);
    push(0x80 | (c >> 6 & 0x3F));
    push(0x80 | (c & 0x3F));
  } else {
    push(0xF0 | c >> 18);
    push(0x80 | (c >> 12 & 0x3F));
    push(0x80 | (c >> 6 & 0x3F));
    push(0x80 | (c & 0x3F));
  }
}

Utf8Piece next_utf8_piece(std::string_view bytes) {
  const auto byte = [bytes](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8Step::kCharacter, 1};
  // The Unicode table of well-formed sequences: the lead byte fixes the length and the range of the
  // second byte; the others are 80..BF.
  size_t length = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Step::kInvalid, 1};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Step::kIncomplete, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Step::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::kCharacter, length};
}

bool is_valid_utf8(std::string_view bytes) {
  return simdjson::validate_utf8(bytes.data(), bytes.size());
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + 16);
  while (!bytes.empty()) {
    const Utf8Piece piece = next_utf8_piece(bytes);
    if (piece.step == Utf8Step::kCharacter) {
      out.append(bytes.substr(0, piece.num_bytes));
    } else {
      out.append(kReplacementCharacter);
    }
    bytes.remove_prefix(piece.num_bytes);
  }
  return out;
}

namespace {

// Normalizes one short segment: canonical decomposition, canonical order, composition. utf8proc's
// own loop is not used because it orders marks in quadratic time, which a prompt could exploit.
class SegmentNormalizer {
 public:
  void add(uint32_t code_point) {
    utf8proc_int32_t parts[16];
    int last_boundary = 0;
    const utf8proc_ssize_t n = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(code_point), parts, 16, UTF8PROC_DECOMPOSE, &last_boundary);
    CHECK(n >= 0 && n <= 16);
    points_.insert(points_.end(), parts, parts + n);
  }

  void finish(std::string& out) {
    order_marks();
    const utf8proc_ssize_t n = utf8proc_normalize_utf32(
        points_.data(), static_cast<utf8proc_ssize_t>(points_.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    CHECK(n >= 0);
    for (utf8proc_ssize_t i = 0; i < n; ++i) append_utf8(static_cast<uint32_t>(points_[i]), out);
    points_.clear();
  }

 private:
  static int combining_class(utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  }

  void order_marks() {
    for (size_t i = 0; i < points_.size();) {
      if (combining_class(points_[i]) == 0) {
        ++i;
        continue;
      }
      size_t end = i;
      while (end < points_.size() && combining_class(points_[end]) != 0) ++end;
      std::stable_sort(points_.begin() + static_cast<ptrdiff_t>(i),
                       points_.begin() + static_cast<ptrdiff_t>(end),
                       [](auto a, auto b) { return combining_class(a) < combining_class(b); });
      i = end;
    }
  }

  std::vector<utf8proc_int32_t> points_;
};

}  // namespace

bool normalize_nfc(std::string_view text, std::string& out) {
  // Nothing below U+0300 (lead byte 0xCC) changes alone or attaches to what stands before it.
  const auto is_interesting = [](char c) { return static_cast<uint8_t>(c) >= 0xCC; };
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const char* p = std::find_if(begin, end, is_interesting);
  if (p == end) return false;

  const CodePointTable& table = CodePointTable::instance();
  const char* copied = begin;  // everything before it is in `out` already
  const char* prev = p;        // the character before p; p itself when there is none
  if (prev > begin) {
    do --prev;
    while ((static_cast<uint8_t>(*prev) & 0xC0) == 0x80);
  }
  bool changed = false;
  std::string normalized;
  SegmentNormalizer segment;
  while (p < end) {
    const DecodedChar c = decode_valid_utf8(p);
    if (!(table.flags(c.code_point) & kNfcUnsafe)) {
      prev = p;
      p += c.num_bytes;
      continue;
    }
    // The segment: the character before (if it can change) and the run of unsafe characters.
    const char* start = p;
    if (prev != p && prev >= copied) {
      const DecodedChar base = decode_valid_utf8(prev);
      if (table.flags(base.code_point) & kNfcBase) {
        start = prev;
        segment.add(base.code_point);
      }
    }
    while (p < end) {
      const DecodedChar next = decode_valid_utf8(p);
      if (!(table.flags(next.code_point) & kNfcUnsafe)) break;
      segment.add(next.code_point);
      p += next.num_bytes;
    }
    normalized.append(copied, start);
    const size_t segment_start = normalized.size();
    segment.finish(normalized);
    if (std::string_view(normalized).substr(segment_start) !=
        std::string_view(start, static_cast<size_t>(p - start))) {
      changed = true;
    }
    copied = p;
    prev = p;
  }
  if (!changed) return false;
  normalized.append(copied, end);
  out = std::move(normalized);
  return true;
}

}  // namespace volley
