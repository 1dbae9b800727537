#pragma once

// Byte-level BPE: the vocabulary, the merges, and the merge loop for one word. Words and tokens are
// raw bytes here; the printable spelling of tokenizer.json ("Ġthe") ends at the loader.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace volley {

// The bytes spelled by `token` in the byte-level alphabet of GPT-2 (each byte one printable
// character), or nothing when a character is outside that alphabet.
std::optional<std::string> decode_byte_alphabet(std::string_view token);

// Maps byte strings to non-negative ids. The strings live in the map's arena.
class BytesToId {
 public:
  // False when `bytes` is present already.
  bool insert(std::string_view bytes, int32_t id);
  // -1 when absent.
  int32_t find(std::string_view bytes) const;

 private:
  struct Entry {
    uint64_t hash = 0;
    size_t begin = 0;
    uint32_t size = 0;
    int32_t id = -1;  // -1: free
  };
  void grow();
  size_t slot_of(uint64_t hash, std::string_view bytes) const;
  std::string_view bytes_of(const Entry& e) const { return {arena_.data() + e.begin, e.size}; }

  std::string arena_;
  std::vector<Entry> entries_;  // power of two, at most half full
  size_t num_entries_ = 0;
};

struct BpeOptions {
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges say
  bool fuse_unk = false;       // neighbouring unknown bytes become one unk
  int32_t unk_id = -1;         // -1: bytes without a token vanish, as in `tokenizers`
};

struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t merged;
};

// Buffers and a word cache of bounded size (about 0.7 MiB). One thread at a time.
class BpeScratch {
 public:
  BpeScratch();

 private:
  friend class Bpe;
  static constexpr size_t kMaxCachedBytes = 40;
  static constexpr size_t kMaxCachedIds = 8;
  static constexpr size_t kNumCached = 8192;
  struct CachedWord {
    uint64_t hash = 0;
    uint8_t num_bytes = 0;
    uint8_t num_ids = 0;
    char bytes[kMaxCachedBytes];
    int32_t ids[kMaxCachedIds];
  };
  // One symbol of a word being merged.
  struct Symbol {
    int32_t id;
    uint32_t rank;   // of the merge with the next symbol; kNoRank when there is none
    int32_t merged;  // what that merge gives
    uint32_t prev;   // heap path only
    uint32_t next;
  };

  std::vector<CachedWord> cache_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> heap_;
};

class Bpe {
 public:
  // `byte_ids[b]`: the id of the one-byte token b, or -1. `words`: every token that spells bytes.
  // `merges` in rank order; of two equal pairs the later counts, as in `tokenizers`.
  Bpe(const std::vector<int32_t>& byte_ids, BytesToId words, const std::vector<BpeMerge>& merges,
      int32_t vocab_size, BpeOptions options);

  // Appends the ids of one word. O(n log n) in its length. Thread-safe with a scratch per thread.
  // A word of more than 2^30 bytes is cut there.
  void encode_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;

  // The id of the token that spells `bytes`, or -1.
  int32_t find(std::string_view bytes) const { return words_.find(bytes); }

 private:
  struct MergeEntry {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const MergeEntry* find_merge(int32_t left, int32_t right) const;
  void set_rank(BpeScratch::Symbol& symbol, int32_t next_id) const;
  void load_symbols(std::string_view word, std::vector<BpeScratch::Symbol>& symbols) const;
  void merge_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;
  void merge_by_scan(std::vector<BpeScratch::Symbol>& symbols) const;
  void merge_by_heap(BpeScratch& scratch) const;

  std::vector<int32_t> byte_ids_;
  BytesToId words_;
  std::vector<MergeEntry> merges_;  // open addressing, power of two, at most half full
  size_t merge_mask_ = 0;
  BpeOptions options_;
  // Per id: do the merges turn this token's bytes into this one token? Found on first use; racing
  // threads find the same answer.
  enum Whole : uint8_t { kUnknown, kWhole, kParts };
  std::unique_ptr<uint8_t[]> whole_;
};

}  // namespace volley
