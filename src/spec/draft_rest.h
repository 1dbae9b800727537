#pragma once

// When a sequence does without its drafter altogether (law 2). One that may draft costs a little
// even while it does not: its states are tapped, kept and injected. Pure functions of what they are
// told.

#include <array>
#include <cstdint>

namespace volley {

// In a crowd, where drafting comes to nothing, those that begin rest.
class CrowdWatch {
 public:
  // Of fewer sequences each is its own judge (DraftPlanner).
  static constexpr int kCrowd = 16;

  // Once a step: whether sequences that begin now, beside `num_live` in all, rest.
  bool new_ones_rest(int num_live);
  // What became of a step in which `num_candidates` sequences could draft.
  void record(int num_live, int num_candidates, bool drafted);

 private:
  // By powers of two of num_live. After kSteps steps of which fewer than kLeastDrafted drafted come
  // kLeastRest of rest; then drafting is tried again, and each time that nothing came of it the
  // rest is twice as long.
  static constexpr int kSteps = 64;
  static constexpr double kLeastDrafted = 0.3;
  static constexpr int kLeastRest = 2048;
  static constexpr int kMostRest = 32 * 1024;
  struct Record {
    int num_steps = 0;
    int num_drafted = 0;
    int rest_left = 0;
    int last_rest = 0;
  };
  Record& at(int num_live);

  std::array<Record, 33> records_;
};

// When a resting sequence is worth computing anew, with its drafter: once decoding without has cost
// it the time that this takes. At worst that loses twice what hindsight would.
class RestRegret {
 public:
  // One more step at rest. With drafts, this sequence's tokens would come `promise` times as fast
  // as one in `token_s` seconds; computing it anew takes `restart_s`, and it has `num_tokens_left`
  // to go at most. Whether it is time.
  bool add(double promise, double token_s, double restart_s, int64_t num_tokens_left);
  void clear() { lost_s_ = 0; }

 private:
  static constexpr double kLeastPromise = 1.05;
  double lost_s_ = 0;
};

}  // namespace volley
