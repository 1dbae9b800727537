#pragma once

// The rows of one forward pass, built by the engine: tokens of one or more sequences, the rows of a
// sequence standing together in the order of their positions.

#include <cstdint>
#include <span>
#include <vector>

#include "ops/ops.h"

namespace volley {

class RowBatch {
 public:
  explicit RowBatch(int max_rows = 0, int max_sequences = 0) {
    token_ids_.reserve(max_rows);
    positions_.reserve(max_rows);
    sequences_.reserve(max_rows);
    page_tables_.reserve(max_sequences);
    first_rows_.reserve(max_sequences);
  }

  void clear() {
    token_ids_.clear();
    positions_.clear();
    sequences_.clear();
    page_tables_.clear();
    first_rows_.clear();
  }

  // The rows added from here on belong to a sequence with these pages.
  void begin_sequence(const int32_t* page_table) {
    page_tables_.push_back(page_table);
    first_rows_.push_back(num_rows());
  }
  void add(int32_t token_id, int64_t position) {
    token_ids_.push_back(token_id);
    positions_.push_back(static_cast<int32_t>(position));
    sequences_.push_back(static_cast<int32_t>(page_tables_.size()) - 1);
  }

  int num_rows() const { return static_cast<int>(positions_.size()); }
  bool empty() const { return positions_.empty(); }
  std::span<const int32_t> token_ids() const { return token_ids_; }
  std::span<const int32_t> positions() const { return positions_; }
  std::span<const int32_t> sequences() const { return sequences_; }
  // First row of sequence `idx` in this batch.
  int first_row(int sequence_idx) const { return first_rows_[sequence_idx]; }
  int num_sequences() const { return static_cast<int>(page_tables_.size()); }
  RowPlaces places() const { return {positions_, sequences_, page_tables_}; }

 private:
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<int32_t> sequences_;
  std::vector<const int32_t*> page_tables_;
  std::vector<int32_t> first_rows_;
};

// Limits a model allocates its workspaces for; no forward pass exceeds them.
struct ModelLimits {
  int max_rows = 0;         // rows of one pass
  int max_output_rows = 0;  // rows of one pass whose logits are wanted
  int max_positions = 0;    // absolute positions of a sequence
};

}  // namespace volley
