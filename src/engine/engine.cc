#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "engine/sequence.h"
#include "spec/acceptance.h"

namespace volley {
namespace {

constexpr int kDefaultMaxModelLen = 8192;
constexpr int kMaxLogprobs = 128;

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
  crowd_watch_ = {};
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
  VOLLEY_TRY(sequence->scheduled,
             scheduler_.add(
                 {.id = id,
                  .prompt_ids = sequence->request.prompt_ids,
                  .priority = sequence->request.priority,
                  .prefill_chunk = std::min(sequence->request.prefill_chunk, config_.prefill_chunk),
                  .uses_drafter = sequence->uses_drafter(),
                  .cache_salt = sequence->request.cache_salt}));
  if (sequence->request.sampling.edits_logits()) {
    sequence->counts.add_prompt(sequence->request.prompt_ids);
  }
  sequence->stats.drafted_at.assign(block_size_ - 1, 0);
  sequence->stats.accepted_at.assign(block_size_ - 1, 0);
  sequences_.emplace(next_id_++, std::move(sequence));
  return id;
}

void Engine::plan() {
  const auto find = [&](RequestId id) -> Sequence& {
    return *sequences_.at(static_cast<uint64_t>(id));
  };
  choose_who_rests();
  choose_draft_lengths();
  const StepPlan plan = scheduler_.plan(
      [&](const ScheduledSequence& scheduled) { return find(scheduled.id).draft_length; });
  for (const RequestId id : plan.preempted) detach(find(id));
  items_.clear();
  for (const PlannedItem& item : plan.items) {
    Sequence& sequence = find(item.sequence->id);
    attach(sequence);
    items_.push_back({&sequence, item});
  }
}

// A running sequence with a drafter holds one buffer for the states its drafter is owed.
void Engine::attach(Sequence& sequence) {
  if (!sequence.uses_drafter() || !sequence.hidden.view().empty()) return;
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

void Engine::build_verify_batch() {
  verify_rows_.clear();
  output_rows_.clear();
  tap_rows_.clear();
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
    item.first_tap_row = static_cast<int>(tap_rows_.size());
    if (sequence.uses_drafter()) {
      for (int row = first_row; row < verify_rows_.num_rows(); ++row) tap_rows_.push_back(row);
    }
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
  TapRows taps;
  if (!tap_rows_.empty()) {
    taps = {tap_rows_, target_hidden_.first_rows(static_cast<int64_t>(tap_rows_.size()))};
  }
  const TensorView hidden = target_.forward(verify_rows_, output_rows_, *target_kv_, taps);
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
      accept(item, first_output);
    } else {
      keep_target_hidden(sequence, item.first_tap_row, plan.num_known);
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
    first_output += item.num_outputs;
  }
  if (drafter_ != nullptr) inject_kept();
  tell_planner();
}

// The acceptance rule over one sequence's chains, then the bookkeeping.
void Engine::accept(const Item& planned, int first_output) {
  Sequence& sequence = *planned.sequence;
  const PlannedItem& item = planned.plan;
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
  keep_target_hidden(sequence, planned.first_tap_row + rows_before(accepted.chain, item.num_known),
                     num_right);
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
