#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "spec/acceptance.h"

namespace volley {
namespace {

// Rows of target_hidden a sequence may owe its drafter while it decodes plainly; then they are
// injected together, since one pass over fc and the key projections serves them all.
constexpr int kPendingHiddenRows = 32;

constexpr int kDefaultMaxModelLen = 8192;
constexpr int kMaxLogprobs = 128;

// Branches of one sequence, and the candidates of a position that may start one.
constexpr int kMaxBranches = 6;
constexpr int kCandidates = 4;
// With so few sequences in a step, further rows of the drafter's head and of the target's pass cost
// little: whole blocks are looked at and second guesses verified. With more, a few drafts beyond
// what survives on average are looked at.
constexpr int kFewSequences = 2;
constexpr int kExtraDrafts = 2;

// A drafter sees less than its target and spreads its probabilities wider. Sampling from it as it
// is lets the shared noise pick tokens that the surer target would not; at a lower temperature the
// noise decides close calls only.
constexpr float kDraftSharpness = 2.5;

int block_size_of(const DrafterConfig* drafter) {
  return drafter != nullptr ? drafter->block_size : 1;
}

TokenLogprobs logprobs_of(std::span<const float> logits, int32_t token, int num_top) {
  const double own = log_probability(logits, token);
  const double log_sum = logits[token] - own;
  TokenLogprobs result{.logprob = static_cast<float>(own)};
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min<size_t>(num_top, order.size());
  std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (auto it = order.begin(); it != end; ++it) {
    result.top.emplace_back(*it, static_cast<float>(logits[*it] - log_sum));
  }
  return result;
}

}  // namespace

double SpeculationStats::acceptance_length() const {
  // The first token comes from the prefill.
  const int64_t passes = num_target_passes - 1;
  return passes > 0 ? static_cast<double>(num_tokens - 1) / static_cast<double>(passes) : 1.0;
}

// A second guess beside the best chain of drafts, verified as a sequence of its own that shares all
// pages but the one the block begins in.
struct Engine::Branch {
  int32_t page;                     // a copy of that page, with this branch's keys
  std::vector<int32_t> page_table;  // the sequence's, with `page` in place of the original
};

// A live request: what the scheduler does not know of it.
struct Engine::Sequence {
  Sequence(RequestId request_id, GenerationRequest&& source, int block_size,
           const SurvivalEstimate& prior)
      : id(request_id),
        request(std::move(source)),
        filter(request.filter != nullptr ? request.filter->clone() : nullptr),
        outlook(std::max(1, block_size - 1), prior) {}

  bool drafts_at_all() const { return request.draft.mode != DraftPolicy::Mode::kOff; }
  bool greedy() const {
    return request.sampling.temperature == 0 && !request.sampling.edits_logits() &&
           filter == nullptr && request.num_logprobs < 0;
  }
  // The drafter's probabilities decide which of its guesses are verified.
  bool graded() const { return greedy() && (is_auto() || request.draft.branches); }
  bool is_auto() const { return request.draft.mode == DraftPolicy::Mode::kAuto; }
  bool is_stop(int32_t token) const {
    return std::find(request.stop_ids.begin(), request.stop_ids.end(), token) !=
           request.stop_ids.end();
  }

  RequestId id;
  GenerationRequest request;
  std::unique_ptr<TokenFilter> filter;
  TokenCounts counts;
  // Tapped states of positions [num_injected, num_computed), which the drafter is owed; held while
  // the sequence runs. [kPendingHiddenRows + block_size, num_taps * hidden_size]
  Tensor hidden;
  int draft_length = 0;  // asked of the next step
  int draft_block = 0;   // rows of its block there
  // Of this step: all that the drafter's best guess says, with its probabilities where graded, and
  // what of it is verified: the best chain, then its branches.
  std::vector<int32_t> guess;
  std::vector<float> guess_probabilities;
  int first_guess_row = 0;           // of draft_logits_
  std::vector<float> match_chances;  // [guess.size(), kCandidates]
  BranchPlanner branch_planner;
  std::vector<std::vector<int32_t>> chains;
  std::vector<Branch> branches;  // chains[1], chains[2], ...
  std::vector<int32_t> fresh;    // tokens of this step
  std::vector<TokenLogprobs> fresh_logprobs;
  DraftOutlook outlook;
  SpeculationStats stats;
  FinishReason finish = FinishReason::kNone;
  ScheduledSequence* scheduled = nullptr;  // while it is in this step's plan
};

Status EngineConfig::validate() const {
  const auto check = [](const char* name, int value, int low, int high) -> Status {
    if (value >= low && value <= high) return {};
    return invalid("{}: expected a number in [{}, {}], got {}", name, low, high, value);
  };
  VOLLEY_TRY_STATUS(check("max_num_seqs", max_num_seqs, 1, 1024));
  VOLLEY_TRY_STATUS(check("max_model_len", max_model_len, 0, 1 << 24));
  VOLLEY_TRY_STATUS(check("max_queued", max_queued, 1, 1 << 20));
  VOLLEY_TRY_STATUS(check("prefill_chunk", prefill_chunk, 1, 1 << 16));
  VOLLEY_TRY_STATUS(check("page_size", page_size, 32, 4096));
  if (page_size % 32 != 0)
    return invalid("page_size: expected a multiple of 32, got {}", page_size);
  if (kv_positions < 0 || kv_positions > (int64_t{1} << 31)) {
    return invalid("kv_positions: expected 0 (automatic) to 2^31, got {}", kv_positions);
  }
  return {};
}

ModelLimits Engine::model_limits(const EngineConfig& config, const TargetConfig& target,
                                 const DrafterConfig* drafter) {
  const int block_size = block_size_of(drafter);
  const int max_len = config.max_model_len > 0
                          ? config.max_model_len
                          : std::min(target.max_position_embeddings, kDefaultMaxModelLen);
  const int decode_rows = config.max_num_seqs * block_size;
  return {.max_rows = decode_rows + std::max(config.prefill_chunk, kPendingHiddenRows + block_size),
          .max_output_rows = decode_rows,
          .max_positions = max_len};
}

namespace {

SchedulerConfig scheduler_config(const EngineConfig& config, const ModelLimits& limits,
                                 int block_size) {
  const int64_t page_size = config.page_size;
  const int64_t pages_of_one = (limits.max_positions + page_size - 1) / page_size;
  const int64_t wanted = config.kv_positions > 0 ? config.kv_positions / page_size
                                                 : config.max_num_seqs * pages_of_one;
  return {.max_num_seqs = config.max_num_seqs,
          .max_queued = config.max_queued,
          .num_pages = static_cast<int>(std::max(wanted, pages_of_one)),
          .page_size = config.page_size,
          .max_rows = limits.max_output_rows + config.prefill_chunk,
          .max_output_rows = limits.max_output_rows,
          .draft_rows = block_size - 1,
          .max_positions = limits.max_positions,
          .prefix_caching = config.prefix_caching};
}

}  // namespace

Engine::Engine(const EngineConfig& config, const ModelLimits& limits, TargetModel& target,
               DflashDrafter* drafter, Ops& ops)
    : config_(config),
      target_(target),
      drafter_(drafter),
      ops_(ops),
      max_model_len_(limits.max_positions),
      block_size_(block_size_of(drafter != nullptr ? &drafter->config() : nullptr)),
      scheduler_(scheduler_config(config, limits, block_size_)),
      sampler_(target.config().vocab_size),
      mask_((target.config().vocab_size + 31) / 32),
      verify_cost_(limits.max_output_rows),
      draft_cost_(limits.max_output_rows),
      draft_planner_(planner_config()),
      survival_(std::max(1, block_size_ - 1)) {}

Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(const EngineConfig& config, TargetModel& target,
                                               DflashDrafter* drafter, Ops& ops) {
  VOLLEY_TRY_STATUS(config.validate());
  if (config.max_model_len > target.config().max_position_embeddings) {
    return invalid("max_model_len: the checkpoint has {} positions, {} were asked for",
                   target.config().max_position_embeddings, config.max_model_len);
  }
  if (drafter != nullptr && drafter->config().block_size - 1 > kMaxDraftLength) {
    return make_error(ErrorKind::kUnsupported, "block_size {}: at most {} is supported",
                      drafter->config().block_size, kMaxDraftLength + 1);
  }
  const ModelLimits limits =
      model_limits(config, target.config(), drafter != nullptr ? &drafter->config() : nullptr);
  std::unique_ptr<Engine> engine(new Engine(config, limits, target, drafter, ops));
  VOLLEY_TRY_STATUS(engine->allocate(limits));
  engine->calibrate();
  return engine;
}

Status Engine::allocate(const ModelLimits& limits) {
  const int num_pages = scheduler_.pages().num_pages();
  const int num_branch_pages = drafter_ != nullptr ? config_.max_num_seqs * kMaxBranches : 0;
  VOLLEY_TRY(target_kv_,
             ops_.create_kv(target_.kv_shape(num_pages + num_branch_pages, config_.page_size)));
  for (int i = 0; i < num_branch_pages; ++i) free_branch_pages_.push_back(num_pages + i);
  VOLLEY_TRY(logits_,
             ops_.allocate(limits.max_output_rows, target_.config().vocab_size, DType::kF32));
  verify_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs * (1 + kMaxBranches));
  output_rows_.reserve(limits.max_rows);
  argmax_ids_.resize(limits.max_rows);
  if (drafter_ == nullptr) return {};

  const DrafterConfig& draft = drafter_->config();
  VOLLEY_TRY(draft_kv_, ops_.create_kv(drafter_->kv_shape(num_pages, config_.page_size)));
  VOLLEY_TRY(draft_logits_,
             ops_.allocate(limits.max_output_rows, draft.draft_vocab_size, DType::kF32));
  draft_row_.resize(target_.config().vocab_size);
  candidates_.resize(limits.max_output_rows * kCandidates);
  probabilities_.resize(limits.max_output_rows * kCandidates);
  target_.set_taps(draft.taps);
  const int64_t hidden_cols =
      static_cast<int64_t>(draft.taps.size()) * target_.config().hidden_size;
  VOLLEY_TRY(target_hidden_, ops_.allocate(limits.max_rows, hidden_cols, DType::kF32));
  for (int i = 0; i < config_.max_num_seqs; ++i) {
    VOLLEY_TRY(Tensor buffer,
               ops_.allocate(kPendingHiddenRows + block_size_, hidden_cols, DType::kF32));
    free_hidden_.push_back(std::move(buffer));
  }
  draft_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs);
  inject_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs);
  kept_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs);
  return {};
}

// Learns what passes cost, plain and drafted, alone and in batches, by running made-up requests
// before the first real one arrives.
void Engine::calibrate() {
  if (drafter_ == nullptr || max_model_len_ < 4 * block_size_) return;
  const double deadline_s = now_s() + 4;
  const int full = block_size_ - 1;
  for (int num_sequences = 1; num_sequences <= config_.max_num_seqs; num_sequences *= 2) {
    // Plain decoding last, when all pages are warm: it must not look slower than it is.
    for (const int draft_length : {full, full / 2, 3, 0}) {
      if (draft_length <= full) calibrate_batch(num_sequences, draft_length, deadline_s);
    }
  }
  survival_ = SurvivalEstimate(std::max(1, full));
  draft_planner_ = DraftPlanner(planner_config());
  finished_.clear();
}

void Engine::calibrate_batch(int num_sequences, int draft_length, double deadline_s) {
  const int prompt_len = std::min({32, max_model_len_ / 4, config_.prefill_chunk});
  std::vector<RequestId> ids;
  for (int i = 0; i < num_sequences; ++i) {
    // Their own salt: made-up prefixes serve nobody.
    const Result<RequestId> id = submit({.prompt_ids = std::vector<int32_t>(prompt_len, 0),
                                         .max_tokens = max_model_len_ - prompt_len,
                                         .draft = DraftPolicy::fixed(draft_length),
                                         .priority = 1,
                                         .cache_salt = ~uint64_t{0}});
    if (id) ids.push_back(*id);
  }
  // The first passes over all rows are cold, and on a shared machine some take long; medians
  // forgive less than half.
  const int passes =
      3 + std::min(8, 64 / num_sequences) + num_sequences * prompt_len / config_.prefill_chunk;
  for (int i = 0; i < passes + 5 && !idle() && (i < passes || now_s() < deadline_s); ++i) step();
  for (const RequestId id : ids) cancel(id);
}

Status Engine::check(const GenerationRequest& request) const {
  const int64_t vocab_size = target_.config().vocab_size;
  if (request.prompt_ids.empty()) return invalid("prompt: expected at least one token, got none");
  if (static_cast<int64_t>(request.prompt_ids.size()) >= max_model_len_) {
    return invalid("prompt: {} tokens do not fit a context of {} with room for an answer",
                   request.prompt_ids.size(), max_model_len_);
  }
  for (const int32_t id : request.prompt_ids) {
    if (id < 0 || id >= vocab_size) {
      return invalid("prompt: token id {} is outside the vocabulary of {}", id, vocab_size);
    }
  }
  if (request.max_tokens < 1) {
    return invalid("max_tokens: expected at least 1, got {}", request.max_tokens);
  }
  if (request.prefill_chunk < 0) {
    return invalid("prefill_chunk: expected 0 (the engine's) or more, got {}",
                   request.prefill_chunk);
  }
  if (request.num_logprobs < -1 || request.num_logprobs > kMaxLogprobs) {
    return invalid("logprobs: expected -1 (none) to {}, got {}", kMaxLogprobs,
                   request.num_logprobs);
  }
  if (request.draft.mode == DraftPolicy::Mode::kFixed &&
      (request.draft.length < 0 || request.draft.length >= block_size_)) {
    return invalid(
        "draft length: expected 0 to {} (the drafter's block of {} less the anchor), "
        "got {}",
        block_size_ - 1, block_size_, request.draft.length);
  }
  return request.sampling.validate(vocab_size);
}

Result<RequestId> Engine::submit(GenerationRequest request) {
  VOLLEY_TRY_STATUS(check(request));
  const auto prompt_len = static_cast<int>(request.prompt_ids.size());
  request.max_tokens = std::min(request.max_tokens, max_model_len_ - prompt_len);
  const bool drafts_nothing =
      request.draft.mode == DraftPolicy::Mode::kFixed && request.draft.length == 0;
  if (drafter_ == nullptr || drafts_nothing) request.draft = DraftPolicy::off();
  if (request.prefill_chunk == 0) request.prefill_chunk = config_.prefill_chunk;

  const RequestId id{next_id_};
  auto sequence = std::make_unique<Sequence>(id, std::move(request), block_size_, survival_);
  VOLLEY_TRY_STATUS(scheduler_.add(
      {.id = id,
       .prompt_ids = sequence->request.prompt_ids,
       .priority = sequence->request.priority,
       .prefill_chunk = std::min(sequence->request.prefill_chunk, config_.prefill_chunk),
       .uses_drafter = sequence->drafts_at_all(),
       .cache_salt = sequence->request.cache_salt}));
  if (sequence->request.sampling.edits_logits()) {
    sequence->counts.add_prompt(sequence->request.prompt_ids);
  }
  sequence->stats.drafted_at.assign(block_size_ - 1, 0);
  sequence->stats.accepted_at.assign(block_size_ - 1, 0);
  sequences_.emplace(next_id_++, std::move(sequence));
  return id;
}

DraftPlannerConfig Engine::planner_config() const {
  std::vector<int> block_sizes;
  if (drafter_ != nullptr) block_sizes = drafter_->config().short_block_sizes;
  block_sizes.push_back(std::max(block_size_, 2));
  return {.block_sizes = std::move(block_sizes),
          .body_share = drafter_ != nullptr ? drafter_->body_share() : 1,
          .extra_drafts = kExtraDrafts};
}

// Of this step's draft pass.
int Engine::draft_cost_rows() const {
  int num_drafts = 0;
  for (const Item& item : items_) num_drafts += item.plan.num_drafts;
  return draft_planner_.cost_rows(draft_rows_.num_rows(), num_drafts);
}

// The draft length of every decoding sequence, before the scheduler reserves pages for it.
void Engine::choose_draft_lengths() {
  draft_candidates_.clear();
  draft_owners_.clear();
  int num_others = 0;
  for (const auto& [id, sequence] : sequences_) {
    sequence->draft_length = 0;
    const ScheduledSequence* scheduled = scheduler_.find(sequence->id);
    if (!scheduled->decodes()) {
      // It will decode soon. While prompts fill a step, a decoded token is worth what it will be
      // then, not what it would be with the few that decode now.
      num_others += num_others < config_.max_num_seqs;
      continue;
    }
    // The bonus token is always there: one draft fewer than the tokens still allowed.
    const int64_t remaining = sequence->request.max_tokens - sequence->stats.num_tokens;
    const int bound = static_cast<int>(std::min<int64_t>(block_size_ - 1, remaining - 1));
    const DraftPolicy& policy = sequence->request.draft;
    if (policy.mode == DraftPolicy::Mode::kAuto && bound > 0) {
      draft_candidates_.push_back({.outlook = &sequence->outlook, .max_length = bound});
      draft_owners_.push_back(sequence.get());
      continue;
    }
    if (policy.mode == DraftPolicy::Mode::kFixed) {
      sequence->draft_length = std::min(policy.length, bound);
      sequence->draft_block = draft_planner_.block_for(policy.length);
    }
    num_others += 1 + sequence->draft_length;
  }
  const int block = draft_planner_.choose(draft_candidates_, num_others, draft_cost_, verify_cost_);
  const bool is_small = std::ssize(draft_candidates_) + num_others <= kFewSequences;
  for (size_t i = 0; i < draft_candidates_.size(); ++i) {
    const DraftCandidate& candidate = draft_candidates_[i];
    int& length = draft_owners_[i]->draft_length;
    length = candidate.length;
    draft_owners_[i]->draft_block = block;
    if (length == 0 || !draft_owners_[i]->graded()) continue;
    // Which of these are verified is decided when they are known.
    const int most = std::min(candidate.max_length, block - 1);
    length = is_small ? most : std::min(most, length + kExtraDrafts);
  }
}

void Engine::plan() {
  const auto find = [&](RequestId id) -> Sequence& {
    return *sequences_.at(static_cast<uint64_t>(id));
  };
  choose_draft_lengths();
  const StepPlan plan = scheduler_.plan(
      [&](const ScheduledSequence& scheduled) { return find(scheduled.id).draft_length; });
  for (const RequestId id : plan.preempted) detach(find(id));
  items_.clear();
  for (const PlannedItem& item : plan.items) {
    Sequence& sequence = find(item.sequence->id);
    sequence.scheduled = item.sequence;
    attach(sequence);
    items_.push_back({&sequence, item});
  }
}

// A running sequence with drafts holds one buffer for the states its drafter is owed.
void Engine::attach(Sequence& sequence) {
  if (!sequence.drafts_at_all() || !sequence.hidden.view().empty()) return;
  CHECK(!free_hidden_.empty());
  sequence.hidden = std::move(free_hidden_.back());
  free_hidden_.pop_back();
}

void Engine::detach(Sequence& sequence) {
  CHECK(sequence.branches.empty());
  if (sequence.hidden.view().empty()) return;
  free_hidden_.push_back(std::exchange(sequence.hidden, Tensor()));
}

std::span<const StepOutput> Engine::step() {
  finished_.clear();
  outputs_.clear();
  if (idle()) return {};
  plan();
  draft_blocks();
  build_verify_batch();
  verify();
  collect_outputs();
  remove_finished();
  return outputs_;
}

// Brings the drafter's context up to num_computed.
void Engine::inject_pending(Sequence& sequence) {
  ScheduledSequence& scheduled = *sequence.scheduled;
  const auto num_pending = static_cast<int>(scheduled.num_computed - scheduled.num_injected);
  if (num_pending == 0) return;
  inject_rows_.clear();
  inject_rows_.begin_sequence(scheduled.pages.data());
  for (int i = 0; i < num_pending; ++i) inject_rows_.add(0, scheduled.num_injected + i);
  drafter_->inject(inject_rows_, sequence.hidden.first_rows(num_pending), *draft_kv_);
  scheduled.num_injected = scheduled.num_computed;
}

// The same in one pass, which reads each matrix once, for all sequences that draft in this step;
// and, when one that does not is about to owe too much, for all that owe much.
void Engine::inject_pending_together() {
  const auto owed = [](const Item& item) {
    if (!item.sequence->drafts_at_all()) return int64_t{0};
    return item.plan.sequence->num_computed - item.plan.sequence->num_injected;
  };
  const bool flushes = std::any_of(items_.begin(), items_.end(), [&](const Item& item) {
    return owed(item) + item.plan.num_known > kPendingHiddenRows &&
           item.plan.num_known <= kPendingHiddenRows;
  });
  const auto joins = [&](const Item& item) {
    return item.plan.num_drafts > 0 || (flushes && owed(item) > kPendingHiddenRows / 2);
  };
  if (std::count_if(items_.begin(), items_.end(), joins) == 1) {
    inject_pending(*std::find_if(items_.begin(), items_.end(), joins)->sequence);
    return;
  }
  inject_rows_.clear();
  const auto inject = [&] {
    if (inject_rows_.empty()) return;
    drafter_->inject(inject_rows_, target_hidden_.first_rows(inject_rows_.num_rows()), *draft_kv_);
    inject_rows_.clear();
  };
  for (const Item& item : items_) {
    ScheduledSequence& scheduled = *item.plan.sequence;
    const auto num_pending = static_cast<int>(owed(item));
    if (!joins(item) || num_pending == 0) continue;
    if (inject_rows_.num_rows() + num_pending > target_hidden_.view().rows) inject();
    // target_hidden_ is free between the target's passes.
    ops_.copy(item.sequence->hidden.first_rows(num_pending),
              target_hidden_.view().row_range(inject_rows_.num_rows(), num_pending));
    inject_rows_.begin_sequence(scheduled.pages.data());
    for (int i = 0; i < num_pending; ++i) inject_rows_.add(0, scheduled.num_injected + i);
    scheduled.num_injected = scheduled.num_computed;
  }
  inject();
}

void Engine::draft_blocks() {
  draft_rows_.clear();
  output_rows_.clear();
  const double start = now_s();
  bool usual = true;  // not the first draft after many plain steps, which injects much
  for (Item& item : items_) {
    item.sequence->chains.assign(1, {});
    item.sequence->guess.clear();
    item.sequence->guess_probabilities.clear();
    if (item.plan.num_drafts == 0) continue;
    const ScheduledSequence& scheduled = *item.plan.sequence;
    usual &= scheduled.num_computed - scheduled.num_injected <= block_size_;
    draft_rows_.begin_sequence(scheduled.pages.data());
    draft_rows_.add(scheduled.tokens.back(), scheduled.num_computed);
    // Blocks as the drafter was trained on, whatever is kept of them: with other numbers of masks
    // a drafter's acceptance_length falls from 5.0 to 1.2 on one prompt.
    const int64_t room = max_model_len_ - scheduled.num_computed;
    const auto num_block_rows =
        static_cast<int>(std::min<int64_t>(item.sequence->draft_block, room));
    for (int i = 1; i < num_block_rows; ++i) {
      if (i <= item.plan.num_drafts) output_rows_.push_back(draft_rows_.num_rows());
      draft_rows_.add(drafter_->config().mask_token_id, scheduled.num_computed + i);
    }
  }
  inject_pending_together();
  if (draft_rows_.empty()) return;
  propose(drafter_->draft(draft_rows_, output_rows_, *draft_kv_));
  if (usual) draft_cost_.observe(draft_cost_rows(), now_s() - start);
}

// Turns the drafter's hidden states, one row a draft, into proposals.
void Engine::propose(const TensorView& hidden) {
  bool any_graded = false;
  bool all_argmax = true;
  for (const Item& item : items_) {
    if (item.plan.num_drafts == 0) continue;
    const Sequence& sequence = *item.sequence;
    any_graded |= sequence.graded();
    all_argmax &= sequence.greedy() ||
                  (!sequence.filter && sequence.request.draft_sampling == DraftSampling::kArgmax);
  }
  const auto num_rows = static_cast<size_t>(hidden.rows);
  const std::span<int32_t> ids = std::span(argmax_ids_).first(num_rows);
  const bool argmax_alone = all_argmax && !any_graded;
  if (argmax_alone) {
    drafter_->argmax(hidden, ids);
  } else {
    const TensorView logits = draft_logits_.first_rows(hidden.rows);
    drafter_->logits(hidden, logits);
    if (any_graded) {
      ops_.top_candidates(logits, std::span(candidates_).first(num_rows * kCandidates),
                          std::span(probabilities_).first(num_rows * kCandidates));
    }
  }
  int first_row = 0;
  for (Item& item : items_) {
    if (item.plan.num_drafts == 0) continue;
    Sequence& sequence = *item.sequence;
    if (argmax_alone) {
      sequence.guess.assign(ids.begin() + first_row,
                            ids.begin() + first_row + item.plan.num_drafts);
    } else if (sequence.graded()) {
      grade(item, first_row);
    } else {
      propose_from_logits(item, first_row);
    }
    first_row += item.plan.num_drafts;
    // Nothing follows a stop token.
    const auto stop = std::find_if(sequence.guess.begin(), sequence.guess.end(),
                                   [&](int32_t token) { return sequence.is_stop(token); });
    if (stop != sequence.guess.end()) sequence.guess.erase(stop + 1, sequence.guess.end());
    if (!sequence.graded()) sequence.chains[0] = sequence.guess;
  }
  if (any_graded) share_verify_rows();
}

// Drafts by the target's own sampling rule, with the same noise, on the drafter's logits. A grammar
// is advanced on a copy, so that every draft is one it allows.
void Engine::propose_from_logits(Item& item, int first_row) {
  Sequence& sequence = *item.sequence;
  SamplingParams params = sequence.request.sampling;
  const bool coupled = sequence.request.draft_sampling == DraftSampling::kCoupled;
  params.temperature = coupled ? params.temperature / kDraftSharpness : 0;
  const std::unique_ptr<TokenFilter> filter = sequence.filter ? sequence.filter->clone() : nullptr;
  for (int i = 1; i <= item.plan.num_drafts; ++i) {
    std::span<const uint32_t> mask;
    if (filter != nullptr) {
      filter->allowed(mask_);
      mask = mask_;
    }
    const int32_t token =
        sampler_.sample(draft_logits_row(first_row + i - 1), params, &sequence.counts,
                        item.plan.sequence->num_computed + i, mask);
    sequence.guess.push_back(token);
    if (sequence.is_stop(token)) return;
    if (filter != nullptr) filter->accept(token);
  }
}

// The drafter's best guess, and how likely each of its candidates is to match.
void Engine::grade(Item& item, int first_row) {
  Sequence& sequence = *item.sequence;
  const auto target_ids = drafter_->target_ids();
  sequence.first_guess_row = first_row;
  sequence.match_chances.resize(item.plan.num_drafts * kCandidates);
  for (int i = 0; i < item.plan.num_drafts; ++i) {
    int32_t* candidates = &candidates_[(first_row + i) * kCandidates];
    const float* probabilities = &probabilities_[(first_row + i) * kCandidates];
    if (!target_ids.empty()) {
      for (int rank = 0; rank < kCandidates; ++rank) {
        candidates[rank] = target_ids[candidates[rank]];
      }
    }
    sequence.guess.push_back(candidates[0]);
    sequence.guess_probabilities.push_back(probabilities[0]);
    float* chances = &sequence.match_chances[i * kCandidates];
    chances[0] = static_cast<float>(confidence_(probabilities[0]));
    // The others share what the best leaves as the drafter has it.
    const float rest = (1 - chances[0]) / std::max(1e-6f, 1 - probabilities[0]);
    for (int rank = 1; rank < kCandidates; ++rank) {
      chances[rank] = std::min(1.0f, probabilities[rank] * rest);
    }
  }
}

// Gives the rows of the target's pass to the graded drafts that are worth most.
void Engine::share_verify_rows() {
  bids_.clear();
  bidders_.clear();
  int num_rows = 0;
  int num_tokens = 0;
  auto free_pages = static_cast<int>(free_branch_pages_.size());
  for (Item& item : items_) {
    Sequence& sequence = *item.sequence;
    num_rows += item.plan.num_known;
    num_tokens += item.plan.samples;
    if (!sequence.graded()) num_rows += static_cast<int>(sequence.chains[0].size());
    if (sequence.guess.empty() || !sequence.graded()) continue;
    const bool may_branch = sequence.request.draft.branches &&
                            (!sequence.is_auto() || std::ssize(items_) <= kFewSequences);
    const int num_branches = may_branch ? std::min(kMaxBranches, free_pages) : 0;
    free_pages -= num_branches;
    const int64_t block_start = item.plan.sequence->num_computed;
    sequence.branch_planner.start(
        std::span(sequence.match_chances).first(sequence.guess.size() * kCandidates), kCandidates,
        {.num_rows = 1 + item.plan.num_drafts,
         .max_branches = num_branches,
         // A branch has one page of its own.
         .max_branch_length =
             config_.page_size - 1 - static_cast<int>(block_start % config_.page_size)});
    const std::span<const DraftStep> steps = sequence.branch_planner.steps();
    if (!sequence.is_auto()) {  // the rows it was given, whatever they cost
      for (const DraftStep& step : steps) num_rows += step.rows;
      add_chains(sequence, sequence.branch_planner.plan(static_cast<int>(steps.size())));
      continue;
    }
    bids_.push_back({.steps = steps});
    bidders_.push_back(&sequence);
  }
  const double draft_s = draft_cost_.estimate(draft_cost_rows());
  share_rows(std::span(bids_), num_rows, num_tokens, /*may_take_none=*/true,
             [&](int, int rows) { return draft_s + verify_cost_.estimate(rows); });
  for (size_t i = 0; i < bids_.size(); ++i) {
    add_chains(*bidders_[i], bidders_[i]->branch_planner.plan(bids_[i].num_taken));
  }
}

// The best chain and its branches, with a copied page for each of them.
void Engine::add_chains(Sequence& sequence, const BranchPlan& plan) {
  const ScheduledSequence& scheduled = *sequence.scheduled;
  sequence.chains[0].assign(sequence.guess.begin(), sequence.guess.begin() + plan.main_length);
  const auto block_page = static_cast<size_t>(scheduled.num_computed / config_.page_size);
  for (const DraftBranch& branch : plan.branches) {
    std::vector<int32_t>& drafts = sequence.chains.emplace_back(
        sequence.guess.begin(), sequence.guess.begin() + branch.length);
    drafts[branch.fork] =
        candidates_[(sequence.first_guess_row + branch.fork) * kCandidates + branch.rank];
    const auto stop = std::find_if(drafts.begin(), drafts.end(),
                                   [&](int32_t token) { return sequence.is_stop(token); });
    if (stop != drafts.end()) drafts.erase(stop + 1, drafts.end());
    const int32_t* pages = scheduled.pages.data();
    Branch& added = sequence.branches.emplace_back(
        Branch{.page = free_branch_pages_.back(),
               .page_table = {pages, pages + scheduled.pages.num_pages()}});
    free_branch_pages_.pop_back();
    added.page_table[block_page] = added.page;
    ops_.copy_page(*target_kv_, pages[block_page], added.page,
                   static_cast<int>(scheduled.num_computed % config_.page_size));
  }
}

// Row `row` of the draft logits, over the target's vocabulary.
std::span<const float> Engine::draft_logits_row(int row) {
  const std::span<const float> logits(draft_logits_.view().row<float>(row),
                                      draft_logits_.view().cols);
  const auto target_ids = drafter_->target_ids();
  if (target_ids.empty()) return logits;
  std::fill(draft_row_.begin(), draft_row_.end(), -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < target_ids.size(); ++i) draft_row_[target_ids[i]] = logits[i];
  return draft_row_;
}

void Engine::build_verify_batch() {
  verify_rows_.clear();
  output_rows_.clear();
  greedy_step_ = true;
  for (Item& item : items_) {
    const int first_row = verify_rows_.num_rows();
    const auto first_output = static_cast<int>(output_rows_.size());
    Sequence& sequence = *item.sequence;
    add_chain(item.plan, item.plan.sequence->pages.data(), sequence.chains[0]);
    for (size_t i = 0; i < sequence.branches.size(); ++i) {
      add_chain(item.plan, sequence.branches[i].page_table.data(), sequence.chains[i + 1]);
    }
    if (item.plan.samples) greedy_step_ &= sequence.greedy();
    item.num_rows = verify_rows_.num_rows() - first_row;
    item.num_outputs = static_cast<int>(output_rows_.size()) - first_output;
  }
}

// The known tokens of a planned item and the drafts after them.
void Engine::add_chain(const PlannedItem& item, const int32_t* page_table,
                       std::span<const int32_t> drafts) {
  const ScheduledSequence& scheduled = *item.sequence;
  verify_rows_.begin_sequence(page_table);
  for (int i = 0; i < item.num_known; ++i) {
    const int64_t position = scheduled.num_computed + i;
    verify_rows_.add(scheduled.tokens[position], position);
  }
  if (!item.samples) return;
  output_rows_.push_back(verify_rows_.num_rows() - 1);
  for (size_t i = 0; i < drafts.size(); ++i) {
    output_rows_.push_back(verify_rows_.num_rows());
    verify_rows_.add(drafts[i], scheduled.num_tokens() + static_cast<int64_t>(i));
  }
}

void Engine::verify() {
  const double start = now_s();
  const bool taps = std::any_of(items_.begin(), items_.end(),
                                [](const Item& item) { return item.sequence->drafts_at_all(); });
  const TensorView target_hidden =
      taps ? target_hidden_.first_rows(verify_rows_.num_rows()) : TensorView{};
  const TensorView hidden =
      target_.forward(verify_rows_, output_rows_, *target_kv_, taps ? &target_hidden : nullptr);
  if (greedy_step_) {
    target_.argmax(hidden, std::span(argmax_ids_).first(output_rows_.size()));
  } else {
    output_logits_ = logits_.first_rows(static_cast<int64_t>(output_rows_.size()));
    target_.logits(hidden, output_logits_);
  }
  const bool decodes_only = std::all_of(items_.begin(), items_.end(),
                                        [](const Item& item) { return item.plan.num_known == 1; });
  if (decodes_only) verify_cost_.observe(verify_rows_.num_rows(), now_s() - start);
}

// The target's token at `position`, from row `output_idx` of this step's logits.
int32_t Engine::target_token(Sequence& sequence, int output_idx, int64_t position) {
  if (greedy_step_) return argmax_ids_[output_idx];
  const std::span<const float> row(output_logits_.row<float>(output_idx), output_logits_.cols);
  std::span<const uint32_t> mask;
  if (sequence.filter != nullptr) {
    sequence.filter->allowed(mask_);
    mask = mask_;
  }
  const int32_t token =
      sampler_.sample(row, sequence.request.sampling, &sequence.counts, position, mask);
  if (sequence.filter != nullptr && !sequence.is_stop(token)) sequence.filter->accept(token);
  if (sequence.request.sampling.edits_logits()) sequence.counts.add_generated(token);
  if (sequence.request.num_logprobs >= 0) {
    sequence.fresh_logprobs.push_back(logprobs_of(row, token, sequence.request.num_logprobs));
  }
  return token;
}

void Engine::collect_outputs() {
  int first_row = 0;
  int first_output = 0;
  for (const Item& item : items_) {
    Sequence& sequence = *item.sequence;
    const PlannedItem& plan = item.plan;
    sequence.fresh.clear();
    sequence.fresh_logprobs.clear();
    const int64_t drafted_before = sequence.stats.num_drafted;
    const int64_t accepted_before = sequence.stats.num_accepted_drafts;
    size_t draft_depth = 0;
    for (const std::vector<int32_t>& chain : sequence.chains) {
      draft_depth = std::max(draft_depth, chain.size());
    }
    if (plan.samples) {
      accept(sequence, plan, first_row, first_output);
    } else {
      keep_target_hidden(sequence, first_row, plan.num_known);
      scheduler_.commit(*plan.sequence, plan.num_known, {});
    }
    outputs_.push_back(
        {.id = sequence.id,
         .tokens = sequence.fresh,
         .logprobs = sequence.fresh_logprobs,
         .num_cached_tokens = static_cast<int>(plan.sequence->num_cached),
         .num_drafted = static_cast<int>(sequence.stats.num_drafted - drafted_before),
         .draft_depth = static_cast<int>(draft_depth),
         .num_accepted_drafts =
             static_cast<int>(sequence.stats.num_accepted_drafts - accepted_before),
         .finish = sequence.finish});
    first_row += item.num_rows;
    first_output += item.num_outputs;
  }
  if (drafter_ != nullptr) inject_kept();
}

// The acceptance rule over one sequence's chains, then the bookkeeping.
void Engine::accept(Sequence& sequence, const PlannedItem& item, int first_row, int first_output) {
  const int64_t known = item.sequence->num_tokens();
  // Where a chain's rows and outputs begin; each has the known rows, of which the last has logits.
  const auto rows_before = [&](int chain, int rows_of_each) {
    int rows = 0;
    for (int i = 0; i < chain; ++i) {
      rows += rows_of_each + static_cast<int>(sequence.chains[i].size());
    }
    return rows;
  };
  const Acceptance accepted = accept_drafts(
      sequence.chains,
      [&](int chain, int i) {
        return target_token(sequence, first_output + rows_before(chain, 1) + i, known + i);
      },
      [&](int32_t token) { return !sequence.is_stop(token); }, sequence.fresh);
  const int num_fresh = static_cast<int>(sequence.fresh.size());

  // The known rows and the accepted drafts now have right KV; the newest token has none.
  if (accepted.chain > 0) {
    const auto block_page = static_cast<int>(item.sequence->num_computed / config_.page_size);
    const int64_t end = item.sequence->num_computed + item.num_known +
                        static_cast<int64_t>(sequence.chains[accepted.chain].size());
    ops_.copy_page(*target_kv_, sequence.branches[accepted.chain - 1].page,
                   item.sequence->pages.data()[block_page],
                   static_cast<int>(std::min<int64_t>(
                       config_.page_size, end - int64_t{block_page} * config_.page_size)));
  }
  const int num_right = item.num_known + num_fresh - 1;
  keep_target_hidden(sequence, first_row + rows_before(accepted.chain, item.num_known), num_right);
  scheduler_.commit(*item.sequence, num_right, sequence.fresh);

  const bool stopped = sequence.is_stop(sequence.fresh.back());
  record(sequence, accepted.num_accepted);
  if (stopped) {
    sequence.finish = FinishReason::kStop;
  } else if (sequence.stats.num_tokens >= sequence.request.max_tokens) {
    sequence.finish = FinishReason::kLength;
  }
  for (const Branch& branch : sequence.branches) free_branch_pages_.push_back(branch.page);
  sequence.branches.clear();
}

void Engine::record(Sequence& sequence, int num_accepted) {
  SpeculationStats& stats = sequence.stats;
  ++stats.num_target_passes;
  stats.num_tokens += static_cast<int64_t>(sequence.fresh.size());
  const std::vector<int32_t>& guess = sequence.guess;
  if (guess.empty()) return;
  size_t longest = 0;
  for (const std::vector<int32_t>& chain : sequence.chains) {
    stats.num_drafted += static_cast<int64_t>(chain.size());
    longest = std::max(longest, chain.size());
  }
  ++stats.num_draft_passes;
  stats.num_accepted_drafts += num_accepted;
  for (size_t i = 0; i < longest; ++i) ++stats.drafted_at[i];
  for (int i = 0; i < num_accepted; ++i) ++stats.accepted_at[i];
  // What became of the whole best guess, verified or not, as far as the target's tokens tell.
  const auto mismatch =
      std::mismatch(guess.begin(), guess.end(), sequence.fresh.begin(), sequence.fresh.end());
  const auto num_matched = static_cast<int>(mismatch.first - guess.begin());
  const bool censored = num_matched == static_cast<int>(sequence.fresh.size());
  const auto num_drafted = static_cast<int>(guess.size());
  sequence.outlook.survival.observe(num_drafted, num_matched, censored);
  survival_.observe(num_drafted, num_matched, censored);
  const int num_known = std::min(num_drafted, censored ? num_matched : num_matched + 1);
  for (int i = 0; i < num_known && !sequence.guess_probabilities.empty(); ++i) {
    confidence_.observe(sequence.guess_probabilities[i], i < num_matched);
  }
}

// Keeps rows [first_row, first_row + num_rows) of this step's taps for the drafter. A decoding
// sequence's wait for its next draft; when the buffer is full, or for a prompt's many rows, they
// are injected before the step ends.
void Engine::keep_target_hidden(Sequence& sequence, int first_row, int num_rows) {
  if (!sequence.drafts_at_all()) return;
  ScheduledSequence& scheduled = *sequence.scheduled;
  const TensorView rows = target_hidden_.view().row_range(first_row, num_rows);
  const auto num_pending = static_cast<int>(scheduled.num_computed - scheduled.num_injected);
  if (num_pending + num_rows <= kPendingHiddenRows) {
    ops_.copy(rows, sequence.hidden.view().row_range(num_pending, num_rows));
    return;
  }
  if (num_pending > 0) {
    inject_kept();
    inject_pending(sequence);
  }
  // Prompts stand together in a step: one pass for all of them.
  const bool follows = first_row == first_kept_row_ + kept_rows_.num_rows();
  if (!follows) inject_kept();
  if (kept_rows_.empty()) first_kept_row_ = first_row;
  kept_rows_.begin_sequence(scheduled.pages.data());
  for (int i = 0; i < num_rows; ++i) kept_rows_.add(0, scheduled.num_computed + i);
  scheduled.num_injected = scheduled.num_computed + num_rows;
}

// Injects what keep_target_hidden() left in this step's taps.
void Engine::inject_kept() {
  if (kept_rows_.empty()) return;
  drafter_->inject(kept_rows_,
                   target_hidden_.view().row_range(first_kept_row_, kept_rows_.num_rows()),
                   *draft_kv_);
  kept_rows_.clear();
}

void Engine::remove_finished() {
  for (const Item& item : items_) {
    if (item.sequence->finish == FinishReason::kNone) continue;
    detach(*item.sequence);
    scheduler_.remove(item.sequence->id);
    const auto found = sequences_.find(static_cast<uint64_t>(item.sequence->id));
    finished_.push_back(std::move(found->second));
    sequences_.erase(found);
  }
  items_.clear();
}

bool Engine::cancel(RequestId id) {
  const auto found = sequences_.find(static_cast<uint64_t>(id));
  if (found == sequences_.end()) return false;
  detach(*found->second);
  scheduler_.remove(id);
  found->second->finish = FinishReason::kCancelled;
  finished_.push_back(std::move(found->second));
  sequences_.erase(found);
  return true;
}

const SpeculationStats* Engine::stats(RequestId id) const {
  const auto live = sequences_.find(static_cast<uint64_t>(id));
  if (live != sequences_.end()) return &live->second->stats;
  for (const auto& sequence : finished_) {
    if (sequence->id == id) return &sequence->stats;
  }
  return nullptr;
}

}  // namespace volley
