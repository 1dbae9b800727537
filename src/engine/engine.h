#pragma once

// The step loop. An Engine owns the KV pages, the sequences and their random state; one thread
// calls it. Each step drafts blocks for the sequences that decode, verifies them together with
// prompt chunks in one pass of the target, keeps what matches, and reports the new tokens.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/sampler.h"
#include "engine/token_filter.h"
#include "model/dflash.h"
#include "model/target.h"
#include "sched/scheduler.h"
#include "spec/draft_branches.h"
#include "spec/draft_length.h"
#include "spec/draft_rest.h"

namespace volley {

// How many tokens to draft in a cycle.
struct DraftPolicy {
  enum class Mode { kOff, kFixed, kAuto };
  Mode mode = Mode::kAuto;
  int length = 0;  // for kFixed, at most block_size - 1
  // At temperature 0: spend the rows of `length` drafts on the drafter's second thoughts as well,
  // where they are the better bet (spec/draft_branches.h).
  bool branches = true;

  static DraftPolicy off() { return {.mode = Mode::kOff}; }
  static DraftPolicy fixed(int length) {
    return {.mode = Mode::kFixed, .length = length, .branches = false};
  }
};

// How a draft is chosen from the drafter's logits at temperature > 0. Neither changes the output.
enum class DraftSampling {
  kCoupled,  // sampled, sharpened, with the position's own noise, which the target will use as well
  kArgmax,
};

struct EngineConfig {
  int max_num_seqs = 1;      // sequences computed at the same time
  int max_model_len = 0;     // positions of a sequence; 0: the checkpoint's limit, at most 8192
  int max_queued = 64;       // requests waiting for a place
  int prefill_chunk = 256;   // most prompt rows of a sequence in one step
  int page_size = 64;        // positions a KV page
  int64_t kv_positions = 0;  // positions all pages hold; 0: max_num_seqs * max_model_len
  bool prefix_caching = true;

  Status validate() const;
};

struct GenerationRequest {
  std::vector<int32_t> prompt_ids;
  int max_tokens = 256;
  SamplingParams sampling;
  std::vector<int32_t> stop_ids;  // end the answer; the stop token itself is reported
  DraftPolicy draft;
  DraftSampling draft_sampling = DraftSampling::kCoupled;
  int prefill_chunk = 0;  // 0: the engine's
  // The state before the first token of the answer; null: every token may come.
  std::shared_ptr<const TokenFilter> filter;
  int num_logprobs = -1;    // -1: none; otherwise the token's and this many of the most likely
  int priority = 0;         // higher runs first
  uint64_t cache_salt = 0;  // prefixes are shared only between requests of the same salt
};

struct TokenLogprobs {
  float logprob = 0;                           // of the token, before penalties and temperature
  std::vector<std::pair<int32_t, float>> top;  // the most likely tokens, best first
};

enum class FinishReason { kNone, kStop, kLength, kCancelled };

// What speculation did for one request.
struct SpeculationStats {
  int64_t num_target_passes = 0;  // that yielded tokens, the prefill's last included
  int64_t num_tokens = 0;         // generated
  int64_t num_draft_passes = 0;
  int64_t num_drafted = 0;
  int64_t num_accepted_drafts = 0;
  std::vector<int64_t> drafted_at;   // [block_size - 1] drafts verified at each position
  std::vector<int64_t> accepted_at;  // of these, kept

  // Tokens gained per target pass of decoding, the bonus token included.
  double acceptance_length() const;
};

// New tokens of one request after a step. `tokens` lives until the next step.
struct StepOutput {
  RequestId id{};
  std::span<const int32_t> tokens;          // empty after a prompt chunk
  std::span<const TokenLogprobs> logprobs;  // one a token where asked for
  int num_cached_tokens = 0;                // of the prompt, found in the prefix cache
  int num_drafted = 0;                      // of all chains
  int draft_depth = 0;                      // of the longest chain
  int num_accepted_drafts = 0;
  FinishReason finish = FinishReason::kNone;
};

class Engine {
 public:
  // `drafter` may be null: then every request decodes plainly. Models and `ops` outlive the engine;
  // models must have been created with model_limits(). Allocates everything that steps need and,
  // with a drafter, measures what passes cost (a few dozen passes).
  static Result<std::unique_ptr<Engine>> create(const EngineConfig& config, TargetModel& target,
                                                DflashDrafter* drafter, Ops& ops);

  ~Engine();

  // The limits to create models with for an engine of this configuration.
  static ModelLimits model_limits(const EngineConfig& config, const TargetConfig& target,
                                  const DrafterConfig* drafter);

  // Queues a request. Errors: an empty or too long prompt, token ids outside the vocabulary, bad
  // sampling parameters, a full queue (kExhausted).
  Result<RequestId> submit(GenerationRequest request);

  // One step for all sequences; empty when idle. Outputs live until the next step. A sequence whose
  // pages were needed by a more urgent one goes back to the queue and goes on later, unchanged.
  std::span<const StepOutput> step();

  // The request ends at once; its pages are free when this returns. False if it is unknown.
  bool cancel(RequestId id);

  bool idle() const { return sequences_.empty(); }
  int max_model_len() const { return max_model_len_; }
  int block_size() const { return block_size_; }
  // Counts of running and waiting requests, pages and preemptions.
  const Scheduler& scheduler() const { return scheduler_; }

  // Statistics of a request that is live or ended in the last step; nullptr for others.
  const SpeculationStats* stats(RequestId id) const;

 private:
  struct Sequence;
  struct Branch;
  struct Item {
    Sequence* sequence;
    PlannedItem plan;
    int first_tap_row = 0;  // of tap_rows_, where the sequence uses its drafter
    int num_outputs = 0;    // rows of the target's pass with logits, branches included
  };

  Engine(const EngineConfig& config, const ModelLimits& limits, TargetModel& target,
         DflashDrafter* drafter, Ops& ops);
  Status allocate(const ModelLimits& limits);
  Status check(const GenerationRequest& request) const;
  void calibrate();
  void calibrate_batch(int num_sequences, int draft_length, double deadline_s);
  DraftPlannerConfig planner_config() const;
  int num_live() const {
    return std::min(static_cast<int>(sequences_.size()), config_.max_num_seqs);
  }
  int draft_cost_rows() const;
  void choose_who_rests();
  void choose_draft_lengths();
  void plan();
  void attach(Sequence& sequence);
  void detach(Sequence& sequence);
  void inject_pending(Sequence& sequence);
  void inject_pending_together();
  void tell_planner();
  void draft_blocks();
  void propose(const TensorView& hidden);
  void propose_from_logits(Item& item, int first_row);
  void grade(Item& item, int first_row);
  void share_verify_rows();
  void add_chains(Sequence& sequence, const BranchPlan& plan);
  std::span<const float> draft_logits_row(int row);
  void build_verify_batch();
  void add_chain(const PlannedItem& item, const int32_t* page_table,
                 std::span<const int32_t> drafts);
  void verify();
  void collect_outputs();
  void accept(const Item& planned, int first_output);
  void record(Sequence& sequence, int num_accepted);
  void keep_target_hidden(Sequence& sequence, int first_tap_row, int num_rows);
  int32_t target_token(Sequence& sequence, int output_idx, int64_t position);
  void inject_kept();
  void remove_finished();

  EngineConfig config_;
  TargetModel& target_;
  DflashDrafter* drafter_;
  Ops& ops_;
  int max_model_len_ = 0;
  int block_size_ = 1;
  uint64_t next_id_ = 1;

  Scheduler scheduler_;
  std::unique_ptr<KvCache> target_kv_;
  std::unique_ptr<KvCache> draft_kv_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;  // by RequestId
  std::vector<std::unique_ptr<Sequence>> finished_;                    // this step's, for stats()
  std::vector<int32_t> free_branch_pages_;  // of target_kv_, beyond the scheduler's
  std::vector<Tensor> free_hidden_;  // pending target_hidden rows, one buffer a running sequence

  // One step's working state.
  std::vector<Item> items_;
  RowBatch verify_rows_;
  RowBatch draft_rows_;
  RowBatch inject_rows_;
  RowBatch kept_rows_;  // of this step's taps, from row first_kept_row_ on: to be injected
  int first_kept_row_ = 0;
  std::vector<int32_t> output_rows_;
  std::vector<int32_t> tap_rows_;  // of verify_rows_, those whose states a drafter will see
  std::vector<int32_t> argmax_ids_;
  bool greedy_step_ = false;
  TensorView output_logits_;
  Tensor target_hidden_;  // [max_rows, num_taps * hidden_size], of tap_rows_
  Tensor logits_;         // [max_output_rows, vocab_size]
  Tensor draft_logits_;   // [max_output_rows, draft_vocab_size]
  Sampler sampler_;
  std::vector<float> draft_row_;      // draft logits spread over the target's vocabulary
  std::vector<uint32_t> mask_;        // [ceil(vocab_size / 32)]
  std::vector<int32_t> candidates_;   // [max_output_rows, kCandidates], of each drafted row
  std::vector<float> probabilities_;  // likewise
  std::vector<DraftCandidate> draft_candidates_;
  std::vector<Sequence*> draft_owners_;  // of draft_candidates_
  std::vector<DraftBid> bids_;
  std::vector<Sequence*> bidders_;  // of bids_
  std::vector<StepOutput> outputs_;

  CostTable verify_cost_;
  CostTable draft_cost_;
  DraftPlanner draft_planner_;
  CrowdWatch crowd_watch_;
  SurvivalEstimate survival_;  // over all requests: the prior of the next one
  Confidence confidence_;      // likewise, at temperature 0
};

}  // namespace volley
