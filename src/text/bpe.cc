#include "text/bpe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "text/unicode.h"

namespace volley {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr size_t kMaxWordBytes = size_t{1} << 30;
// Up to this many symbols, looking for the lowest rank beats a heap.
constexpr size_t kMaxScanSymbols = 48;
// Buffers above this size are given back after the word that needed them.
constexpr size_t kKeptSymbols = 1 << 16;

uint64_t load_bytes(const char* p, size_t n) {
  uint64_t v = 0;
  std::memcpy(&v, p, n);
  return v;
}

uint64_t mix(uint64_t h) {
  h *= 0x9E3779B97F4A7C15u;
  return h ^ (h >> 29);
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t h = bytes.size() * 0xD6E8FEB86659FD93u;
  const char* p = bytes.data();
  size_t n = bytes.size();
  for (; n >= 8; p += 8, n -= 8) h = mix(h ^ load_bytes(p, 8));
  if (n > 0) h = mix(h ^ load_bytes(p, n));
  return mix(h);
}

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

// code point -> byte of GPT-2's alphabet, -1 outside it. Printable Latin-1 stands for itself, the
// other bytes follow from U+0100 in order.
std::array<int16_t, 0x144> make_alphabet() {
  std::array<int16_t, 0x144> byte_of;
  byte_of.fill(-1);
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool is_printable =
        (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
    byte_of[static_cast<size_t>(is_printable ? b : next++)] = static_cast<int16_t>(b);
  }
  return byte_of;
}

}  // namespace

std::optional<std::string> decode_byte_alphabet(std::string_view token) {
  static const std::array<int16_t, 0x144> byte_of = make_alphabet();
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t i = 0; i < token.size();) {
    const DecodedChar c = decode_valid_utf8(token.data() + i);
    if (c.code_point >= byte_of.size() || byte_of[c.code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte_of[c.code_point]));
    i += c.num_bytes;
  }
  return bytes;
}

size_t BytesToId::slot_of(uint64_t hash, std::string_view bytes) const {
  const size_t mask = entries_.size() - 1;
  size_t slot = hash & mask;
  while (entries_[slot].id >= 0 &&
         (entries_[slot].hash != hash || bytes_of(entries_[slot]) != bytes)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

void BytesToId::grow() {
  std::vector<Entry> old = std::move(entries_);
  entries_.assign(std::max<size_t>(16, old.size() * 2), Entry{});
  const size_t mask = entries_.size() - 1;
  for (const Entry& e : old) {
    if (e.id < 0) continue;
    size_t slot = e.hash & mask;
    while (entries_[slot].id >= 0) slot = (slot + 1) & mask;
    entries_[slot] = e;
  }
}

bool BytesToId::insert(std::string_view bytes, int32_t id) {
  CHECK_GE(id, 0);
  if ((num_entries_ + 1) * 2 > entries_.size()) grow();
  const uint64_t hash = hash_bytes(bytes);
  Entry& entry = entries_[slot_of(hash, bytes)];
  if (entry.id >= 0) return false;
  entry = {hash, arena_.size(), static_cast<uint32_t>(bytes.size()), id};
  arena_.append(bytes);
  ++num_entries_;
  return true;
}

int32_t BytesToId::find(std::string_view bytes) const {
  if (entries_.empty()) return -1;
  return entries_[slot_of(hash_bytes(bytes), bytes)].id;
}

BpeScratch::BpeScratch() : cache_(kNumCached) {}

Bpe::Bpe(const std::vector<int32_t>& byte_ids, BytesToId words, const std::vector<BpeMerge>& merges,
         int32_t vocab_size, BpeOptions options)
    : byte_ids_(byte_ids),
      words_(std::move(words)),
      options_(options),
      whole_(std::make_unique<uint8_t[]>(static_cast<size_t>(vocab_size))) {
  CHECK_EQ(byte_ids_.size(), 256u);
  const size_t num_slots = std::bit_ceil(std::max<size_t>(16, merges.size() * 2));
  merges_.resize(num_slots);
  merge_mask_ = num_slots - 1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t pair = pair_key(merges[rank].left, merges[rank].right);
    size_t slot = mix(pair) & merge_mask_;
    while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair) {
      slot = (slot + 1) & merge_mask_;
    }
    merges_[slot] = {pair, static_cast<uint32_t>(rank), merges[rank].merged};
  }
}

const Bpe::MergeEntry* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  size_t slot = mix(pair) & merge_mask_;
  while (merges_[slot].pair != kNoPair) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    slot = (slot + 1) & merge_mask_;
  }
  return nullptr;
}

void Bpe::set_rank(BpeScratch::Symbol& symbol, int32_t next_id) const {
  const MergeEntry* const merge = find_merge(symbol.id, next_id);
  symbol.rank = merge ? merge->rank : kNoRank;
  symbol.merged = merge ? merge->merged : -1;
}

void Bpe::encode_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const {
  while (word.size() > kMaxWordBytes) {
    encode_word(word.substr(0, kMaxWordBytes), scratch, out);
    word.remove_prefix(kMaxWordBytes);
  }
  if (word.empty()) return;
  const int32_t id = words_.find(word);
  if (id >= 0) {
    if (options_.ignore_merges) {
      out.push_back(id);
      return;
    }
    std::atomic_ref<uint8_t> whole(whole_[static_cast<size_t>(id)]);
    uint8_t state = whole.load(std::memory_order_relaxed);
    if (state == kUnknown) {
      const size_t first = out.size();
      merge_word(word, scratch, out);
      state = out.size() == first + 1 && out[first] == id ? kWhole : kParts;
      whole.store(state, std::memory_order_relaxed);
      return;
    }
    if (state == kWhole) {
      out.push_back(id);
      return;
    }
  }
  if (word.size() > BpeScratch::kMaxCachedBytes) {
    merge_word(word, scratch, out);
    return;
  }
  const uint64_t hash = hash_bytes(word);
  BpeScratch::CachedWord& cached = scratch.cache_[hash % BpeScratch::kNumCached];
  if (cached.hash == hash && std::string_view(cached.bytes, cached.num_bytes) == word) {
    out.insert(out.end(), cached.ids, cached.ids + cached.num_ids);
    return;
  }
  const size_t first = out.size();
  merge_word(word, scratch, out);
  const size_t num_ids = out.size() - first;
  if (num_ids > BpeScratch::kMaxCachedIds) return;
  cached.hash = hash;
  cached.num_bytes = static_cast<uint8_t>(word.size());
  cached.num_ids = static_cast<uint8_t>(num_ids);
  std::copy(word.begin(), word.end(), cached.bytes);
  std::copy_n(out.begin() + static_cast<ptrdiff_t>(first), num_ids, cached.ids);
}

void Bpe::load_symbols(std::string_view word, std::vector<BpeScratch::Symbol>& symbols) const {
  symbols.clear();
  bool after_unk = false;
  for (const char c : word) {
    int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    const bool is_unk = id < 0;
    if (is_unk) {
      id = options_.unk_id;
      if (id < 0 || (options_.fuse_unk && after_unk)) continue;
    }
    after_unk = is_unk;
    symbols.push_back({id, kNoRank, -1, 0, 0});
  }
}

void Bpe::merge_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const {
  std::vector<BpeScratch::Symbol>& symbols = scratch.symbols_;
  load_symbols(word, symbols);
  for (size_t i = 0; i + 1 < symbols.size(); ++i) set_rank(symbols[i], symbols[i + 1].id);
  if (symbols.size() <= kMaxScanSymbols) {
    merge_by_scan(symbols);
  } else {
    merge_by_heap(scratch);
  }
  for (const BpeScratch::Symbol& s : symbols) {
    if (s.id >= 0) out.push_back(s.id);
  }
  if (symbols.capacity() > kKeptSymbols) {
    std::vector<BpeScratch::Symbol>().swap(symbols);
    std::vector<uint64_t>().swap(scratch.heap_);
  }
}

void Bpe::merge_by_scan(std::vector<BpeScratch::Symbol>& symbols) const {
  while (symbols.size() > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < symbols.size(); ++i) {
      if (symbols[i].rank < symbols[best].rank) best = i;
    }
    if (symbols[best].rank == kNoRank) break;
    symbols[best].id = symbols[best].merged;
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    if (best + 1 < symbols.size()) {
      set_rank(symbols[best], symbols[best + 1].id);
    } else {
      symbols[best].rank = kNoRank;
    }
    if (best > 0) set_rank(symbols[best - 1], symbols[best].id);
  }
}

// The lowest rank first, then the leftmost. Entries are (rank, position); an entry whose rank is no
// longer the one at its position is out of date. A symbol that was merged away has id -1.
void Bpe::merge_by_heap(BpeScratch& scratch) const {
  std::vector<BpeScratch::Symbol>& symbols = scratch.symbols_;
  std::vector<uint64_t>& heap = scratch.heap_;
  const auto num_symbols = static_cast<uint32_t>(symbols.size());
  const auto later = std::greater<uint64_t>();
  heap.clear();
  for (uint32_t i = 0; i < num_symbols; ++i) {
    symbols[i].prev = i == 0 ? kNone : i - 1;
    symbols[i].next = i + 1 == num_symbols ? kNone : i + 1;
    if (symbols[i].rank != kNoRank) heap.push_back(uint64_t{symbols[i].rank} << 32 | i);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  const auto push = [&](uint32_t position) {
    if (symbols[position].rank == kNoRank) return;
    heap.push_back(uint64_t{symbols[position].rank} << 32 | position);
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    const uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    const auto position = static_cast<uint32_t>(top);
    BpeScratch::Symbol& left = symbols[position];
    if (left.id < 0 || left.rank != top >> 32) continue;
    BpeScratch::Symbol& right = symbols[left.next];
    left.id = left.merged;
    left.next = right.next;
    right.id = -1;
    right.rank = kNoRank;
    left.rank = kNoRank;
    if (left.next != kNone) {
      symbols[left.next].prev = position;
      set_rank(left, symbols[left.next].id);
      push(position);
    }
    if (left.prev != kNone) {
      set_rank(symbols[left.prev], left.id);
      push(left.prev);
    }
  }
}

}  // namespace volley
