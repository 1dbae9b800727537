#pragma once

// Requests to step plans. The scheduler owns the tokens of every sequence and the pages they live
// in; each step it admits, matches prefixes, reserves pages for prompt chunks and draft blocks, and
// preempts the least urgent sequence when pages run out (its KV is computed again later, from the
// prefix that is still cached). No clock, no threads, no tensors: it is simulated over millions of
// steps.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "kv/kv_pages.h"
#include "sched/step_plan.h"

namespace volley {

enum class RequestId : uint64_t {};

struct SchedulerConfig {
  int max_num_seqs = 1;  // sequences computed at the same time
  int max_queued = 64;   // sequences waiting
  int num_pages = 0;     // at least what one sequence of the greatest length needs
  int page_size = 64;
  int max_rows = 0;         // of a step
  int max_output_rows = 0;  // of a step; at least max_num_seqs
  // Positions after the known tokens that a draft pass writes, however few drafts are kept of it,
  // and the positions a sequence can have; 0: no more than the drafts.
  int draft_rows = 0;
  int max_positions = 0;
  bool prefix_caching = true;
};

struct NewSequence {
  RequestId id{};
  std::vector<int32_t> prompt_ids;
  int priority = 0;         // higher runs first
  int prefill_chunk = 256;  // most prompt rows in one step
  bool uses_drafter = false;
  uint64_t cache_salt = 0;  // prefixes are shared only within a salt
};

// A sequence's state. Tokens [0, num_computed) have target KV in the pages, [0, num_injected) the
// drafter's too.
struct ScheduledSequence {
  RequestId id{};
  int priority = 0;
  uint64_t arrival = 0;
  int prefill_chunk = 0;
  bool uses_drafter = false;  // may change while it waits
  bool runs = false;          // it is not waiting
  uint64_t cache_salt = 0;
  int64_t prompt_len = 0;
  std::vector<int32_t> tokens;  // prompt and answer
  int64_t num_computed = 0;
  int64_t num_injected = 0;
  int64_t num_cached = 0;  // positions of the first prefix hit
  PageTable pages;
  PrefixNode published_node = kRootNode;
  int num_published = 0;  // pages

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const { return num_tokens() - prompt_len; }
  bool decodes() const { return num_tokens() - num_computed == 1; }
};

struct PlannedItem {
  ScheduledSequence* sequence = nullptr;
  int num_known = 0;     // known tokens to compute, from num_computed on
  int num_drafts = 0;    // draft rows after them
  bool samples = false;  // it yields a token
};

struct StepPlan {
  std::vector<PlannedItem> items;
  std::vector<RequestId> preempted;  // since the last plan; they wait again
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerConfig& config);

  // Queues a sequence, which lives until remove(); kExhausted when max_queued wait already.
  Result<ScheduledSequence*> add(NewSequence sequence);

  // The next step. draft_length(sequence) is asked for each decoding sequence. Empty only when
  // there is no sequence. Pages for every planned row are reserved.
  StepPlan plan(const std::function<int(const ScheduledSequence&)>& draft_length);

  // After a step: `num_right` of a planned item's rows hold what the sequence keeps (known tokens
  // and accepted drafts), and `fresh` tokens follow.
  void commit(ScheduledSequence& sequence, int num_right, std::span<const int32_t> fresh);

  // A running sequence waits again, and all its KV is computed anew.
  void restart(ScheduledSequence& sequence);

  // The sequence is over, wherever it stands. False if it is unknown.
  bool remove(RequestId id);

  bool idle() const { return sequences_.empty(); }
  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  const KvPages& pages() const { return pages_; }
  int64_t num_preemptions() const { return num_preemptions_; }

 private:
  void admit();
  void send_back(ScheduledSequence& sequence);
  void preempt(ScheduledSequence& sequence, StepPlan& plan);
  int reserve(ScheduledSequence& sequence, int draft_length, StepPlan& plan);
  void publish_pages(ScheduledSequence& sequence);

  SchedulerConfig config_;
  KvPages pages_;
  std::unordered_map<uint64_t, std::unique_ptr<ScheduledSequence>> sequences_;
  std::vector<ScheduledSequence*> waiting_;  // most urgent first
  std::vector<ScheduledSequence*> running_;  // most urgent first
  uint64_t next_arrival_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace volley
