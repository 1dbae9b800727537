#include "engine/engine.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "base/clock.h"
#include "spec/acceptance.h"

namespace volley {
namespace {

// Rows of target_hidden a sequence may owe its drafter while it decodes plainly; then they are
// injected together, since one pass over fc and the key projections serves them all.
constexpr int kPendingHiddenRows = 32;

constexpr int kDefaultMaxModelLen = 8192;

int block_size_of(const DrafterConfig* drafter) { return drafter != nullptr ? drafter->block_size : 1; }

}  // namespace

double SpeculationStats::acceptance_length() const {
  // The first token comes from the prefill.
  const int64_t passes = num_target_passes - 1;
  return passes > 0 ? static_cast<double>(num_tokens - 1) / static_cast<double>(passes) : 1.0;
}

// A live request. Its tokens [0, num_computed) have target KV; those in [0, num_injected) have
// drafter KV too; the hidden states of the ones between wait in `hidden`.
struct Engine::Sequence {
  Sequence(RequestId request_id, GenerationRequest&& source, int page_size,
           const DraftLengthConfig& draft_config, const SurvivalEstimate& prior)
      : id(request_id),
        request(std::move(source)),
        tokens(request.prompt_ids),
        pages(page_size),
        chooser(draft_config, prior) {}

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const {
    return num_tokens() - static_cast<int64_t>(request.prompt_ids.size());
  }
  bool decodes() const { return num_tokens() - num_computed == 1; }
  bool greedy() const {
    return request.sampling.temperature == 0 && !request.sampling.edits_logits();
  }

  RequestId id;
  GenerationRequest request;
  std::vector<int32_t> tokens;  // prompt and answer
  int64_t num_computed = 0;
  int64_t num_injected = 0;
  PageTable pages;
  TokenCounts counts;
  Tensor hidden;                // [kPendingHiddenRows + block_size, num_taps * hidden_size]
  std::vector<int32_t> drafts;  // of this step
  std::vector<int32_t> fresh;   // tokens of this step
  DraftLengthChooser chooser;
  SpeculationStats stats;
  FinishReason finish = FinishReason::kNone;
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
  if (page_size % 32 != 0) return invalid("page_size: expected a multiple of 32, got {}", page_size);
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

Engine::Engine(const EngineConfig& config, TargetModel& target, DflashDrafter* drafter, Ops& ops)
    : config_(config),
      target_(target),
      drafter_(drafter),
      ops_(ops),
      max_model_len_(model_limits(config, target.config(), nullptr).max_positions),
      block_size_(drafter != nullptr ? drafter->config().block_size : 1),
      pages_(config.max_num_seqs *
             ((max_model_len_ + config.page_size - 1) / config.page_size)),
      sampler_(target.config().vocab_size),
      verify_cost_(config.max_num_seqs * block_size_),
      draft_cost_(config.max_num_seqs * block_size_),
      survival_(std::max(1, std::min(block_size_ - 1, kMaxDraftLength))) {}

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
  std::unique_ptr<Engine> engine(new Engine(config, target, drafter, ops));
  VOLLEY_TRY_STATUS(engine->allocate());
  engine->calibrate();
  return engine;
}

Status Engine::allocate() {
  const ModelLimits limits =
      model_limits(config_, target_.config(), drafter_ != nullptr ? &drafter_->config() : nullptr);
  VOLLEY_TRY(target_kv_,
             ops_.create_kv(target_.kv_shape(pages_.num_pages(), config_.page_size)));
  VOLLEY_TRY(logits_, ops_.allocate(limits.max_output_rows, target_.config().vocab_size,
                                    DType::kF32));
  verify_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs);
  output_rows_.reserve(limits.max_rows);
  argmax_ids_.resize(limits.max_rows);
  if (drafter_ == nullptr) return {};

  const DrafterConfig& draft = drafter_->config();
  VOLLEY_TRY(draft_kv_,
             ops_.create_kv(drafter_->kv_shape(pages_.num_pages(), config_.page_size)));
  VOLLEY_TRY(draft_logits_,
             ops_.allocate(limits.max_output_rows, draft.draft_vocab_size, DType::kF32));
  draft_sampler_ = std::make_unique<Sampler>(target_.config().vocab_size);
  draft_row_.resize(target_.config().vocab_size);
  target_.set_taps(draft.taps);
  const int64_t hidden_cols = static_cast<int64_t>(draft.taps.size()) * target_.config().hidden_size;
  VOLLEY_TRY(target_hidden_, ops_.allocate(limits.max_rows, hidden_cols, DType::kF32));
  for (int i = 0; i < config_.max_num_seqs; ++i) {
    VOLLEY_TRY(Tensor buffer,
               ops_.allocate(kPendingHiddenRows + block_size_, hidden_cols, DType::kF32));
    free_hidden_.push_back(std::move(buffer));
  }
  draft_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs);
  inject_rows_ = RowBatch(limits.max_rows, config_.max_num_seqs);
  return {};
}

// Learns what passes cost by running a request of one token repeated, plain and drafted, before the
// first real one arrives.
void Engine::calibrate() {
  if (drafter_ == nullptr || max_model_len_ < 4 * block_size_) return;
  const int prompt_len = std::min(64, max_model_len_ / 4);
  for (const int length : {0, block_size_ - 1, (block_size_ - 1) / 2, 3}) {
    if (length >= block_size_) continue;
    GenerationRequest request{.prompt_ids = std::vector<int32_t>(prompt_len, 0),
                              .max_tokens = max_model_len_ - prompt_len,
                              .draft = DraftPolicy::fixed(length)};
    const Result<RequestId> id = submit(std::move(request));
    CHECK(id.has_value());
    const double deadline = now_s() + 0.5;
    for (int i = 0; i < 8 && !idle() && (i < 3 || now_s() < deadline); ++i) step();
    cancel(*id);
  }
  survival_ = SurvivalEstimate(std::max(1, block_size_ - 1));
  finished_.clear();
}

Result<RequestId> Engine::submit(GenerationRequest request) {
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
  if (request.draft.mode == DraftPolicy::Mode::kFixed) {
    if (request.draft.length < 0 || request.draft.length >= std::max(block_size_, 1)) {
      return invalid("draft length: expected 0 to {} (the drafter's block of {} less the anchor), "
                     "got {}",
                     block_size_ - 1, block_size_, request.draft.length);
    }
  }
  VOLLEY_TRY_STATUS(request.sampling.validate(vocab_size));
  if (queue_.size() >= static_cast<size_t>(config_.max_queued)) {
    return make_error(ErrorKind::kExhausted, "{} requests are waiting already, the limit is {}",
                      queue_.size(), config_.max_queued);
  }
  const auto prompt_len = static_cast<int>(request.prompt_ids.size());
  request.max_tokens = std::min(request.max_tokens, max_model_len_ - prompt_len);
  if (drafter_ == nullptr) request.draft = DraftPolicy::off();
  if (request.draft.mode == DraftPolicy::Mode::kFixed && request.draft.length == 0) {
    request.draft = DraftPolicy::off();
  }
  if (request.prefill_chunk == 0) request.prefill_chunk = config_.prefill_chunk;
  request.prefill_chunk = std::min(request.prefill_chunk, config_.prefill_chunk);
  const RequestId id{next_id_++};
  queue_.push_back({id, std::move(request)});
  return id;
}

void Engine::admit() {
  while (!queue_.empty() && static_cast<int>(sequences_.size()) < config_.max_num_seqs) {
    Queued queued = std::move(queue_.front());
    queue_.erase(queue_.begin());
    const DraftLengthConfig draft_config{.max_length = std::max(1, block_size_ - 1)};
    auto sequence = std::make_unique<Sequence>(queued.id, std::move(queued.request),
                                               config_.page_size, draft_config, survival_);
    // All pages the request can ever need: with one place a sequence, there is always room.
    const int64_t prompt_len = sequence->num_tokens();
    CHECK(sequence->pages.grow(prompt_len + sequence->request.max_tokens, pages_));
    sequence->tokens.reserve(prompt_len + sequence->request.max_tokens + block_size_);
    if (sequence->request.sampling.edits_logits()) {
      sequence->counts.add_prompt(sequence->request.prompt_ids);
    }
    if (sequence->request.draft.mode != DraftPolicy::Mode::kOff) {
      sequence->hidden = std::move(free_hidden_.back());
      free_hidden_.pop_back();
    }
    sequence->stats.drafted_at.assign(block_size_ - 1, 0);
    sequence->stats.accepted_at.assign(block_size_ - 1, 0);
    sequences_.push_back(std::move(sequence));
  }
}

int Engine::wanted_draft_length(Sequence& sequence) {
  const DraftPolicy& policy = sequence.request.draft;
  if (!sequence.decodes() || policy.mode == DraftPolicy::Mode::kOff) return 0;
  // The bonus token is always there: one draft fewer than the tokens still allowed.
  const int64_t remaining = sequence.request.max_tokens - sequence.num_generated();
  const int bound = static_cast<int>(std::min<int64_t>(block_size_ - 1, remaining - 1));
  if (policy.mode == DraftPolicy::Mode::kFixed) return std::min(policy.length, bound);
  return sequence.chooser.choose(bound, draft_cost_, verify_cost_);
}

void Engine::plan() {
  states_.clear();
  for (const auto& sequence : sequences_) {
    states_.push_back({.num_tokens = sequence->num_tokens(),
                       .num_computed = sequence->num_computed,
                       .prefill_chunk = sequence->request.prefill_chunk,
                       .draft_length = wanted_draft_length(*sequence)});
  }
  const int decode_rows = config_.max_num_seqs * block_size_;
  items_ = plan_step(states_, {.max_rows = decode_rows + config_.prefill_chunk,
                               .max_output_rows = decode_rows});
}

std::span<const StepOutput> Engine::step() {
  finished_.clear();
  outputs_.clear();
  admit();
  if (sequences_.empty()) return {};
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
  const auto num_pending = static_cast<int>(sequence.num_computed - sequence.num_injected);
  if (num_pending == 0) return;
  inject_rows_.clear();
  inject_rows_.begin_sequence(sequence.pages.data());
  for (int i = 0; i < num_pending; ++i) inject_rows_.add(0, sequence.num_injected + i);
  drafter_->inject(inject_rows_, sequence.hidden.first_rows(num_pending), *draft_kv_);
  sequence.num_injected = sequence.num_computed;
}

void Engine::draft_blocks() {
  const bool any = std::any_of(items_.begin(), items_.end(),
                               [](const StepItem& item) { return item.num_drafts > 0; });
  for (auto& sequence : sequences_) sequence->drafts.clear();
  if (!any) return;

  const double start = now_s();
  bool usual = true;  // not the first draft after many plain steps, which injects much
  draft_rows_.clear();
  output_rows_.clear();
  for (const StepItem& item : items_) {
    if (item.num_drafts == 0) continue;
    Sequence& sequence = *sequences_[item.sequence_idx];
    usual &= sequence.num_computed - sequence.num_injected <= block_size_;
    inject_pending(sequence);
    draft_rows_.begin_sequence(sequence.pages.data());
    draft_rows_.add(sequence.tokens.back(), sequence.num_computed);
    for (int i = 1; i <= item.num_drafts; ++i) {
      output_rows_.push_back(draft_rows_.num_rows());
      draft_rows_.add(drafter_->config().mask_token_id, sequence.num_computed + i);
    }
  }
  propose(drafter_->draft(draft_rows_, output_rows_, *draft_kv_));
  if (usual) draft_cost_.observe(draft_rows_.num_rows(), now_s() - start);
}

// Turns the drafter's hidden states, one row a draft, into proposals.
void Engine::propose(const TensorView& hidden) {
  const auto proposes_argmax = [](const Sequence& sequence) {
    return sequence.request.draft_sampling == DraftSampling::kArgmax || sequence.greedy();
  };
  const bool all_argmax = std::all_of(items_.begin(), items_.end(), [&](const StepItem& item) {
    return item.num_drafts == 0 || proposes_argmax(*sequences_[item.sequence_idx]);
  });
  const std::span<int32_t> ids = std::span(argmax_ids_).first(hidden.rows);
  const TensorView logits = draft_logits_.first_rows(hidden.rows);
  if (all_argmax) {
    drafter_->argmax(hidden, ids);
  } else {
    drafter_->logits(hidden, logits);
  }

  const auto target_ids = drafter_->target_ids();
  int row = 0;
  for (const StepItem& item : items_) {
    Sequence& sequence = *sequences_[item.sequence_idx];
    for (int i = 1; i <= item.num_drafts; ++i, ++row) {
      if (all_argmax) {
        sequence.drafts.push_back(ids[row]);
        continue;
      }
      std::span<const float> row_logits(logits.row<float>(row), logits.cols);
      if (!target_ids.empty()) {
        std::fill(draft_row_.begin(), draft_row_.end(), -std::numeric_limits<float>::infinity());
        for (size_t j = 0; j < target_ids.size(); ++j) draft_row_[target_ids[j]] = row_logits[j];
        row_logits = draft_row_;
      }
      if (proposes_argmax(sequence)) {
        sequence.drafts.push_back(argmax(row_logits));
      } else {
        sequence.drafts.push_back(draft_sampler_->sample(row_logits, sequence.request.sampling,
                                                         &sequence.counts,
                                                         sequence.num_computed + i));
      }
    }
  }
}

void Engine::build_verify_batch() {
  verify_rows_.clear();
  output_rows_.clear();
  greedy_step_ = true;
  for (const StepItem& item : items_) {
    const Sequence& sequence = *sequences_[item.sequence_idx];
    verify_rows_.begin_sequence(sequence.pages.data());
    for (int i = 0; i < item.num_known; ++i) {
      const int64_t position = sequence.num_computed + i;
      verify_rows_.add(sequence.tokens[position], position);
    }
    if (!item.samples) continue;
    greedy_step_ &= sequence.greedy();
    output_rows_.push_back(verify_rows_.num_rows() - 1);
    for (int i = 0; i < item.num_drafts; ++i) {
      output_rows_.push_back(verify_rows_.num_rows());
      verify_rows_.add(sequence.drafts[i], sequence.num_tokens() + i);
    }
  }
}

void Engine::verify() {
  const double start = now_s();
  const bool taps = std::any_of(items_.begin(), items_.end(), [&](const StepItem& item) {
    return sequences_[item.sequence_idx]->request.draft.mode != DraftPolicy::Mode::kOff;
  });
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
                                        [](const StepItem& item) { return item.num_known == 1; });
  if (decodes_only) verify_cost_.observe(verify_rows_.num_rows(), now_s() - start);
}

// The target's token at `position`, from row `output_idx` of this step's logits.
int32_t Engine::target_token(const Sequence& sequence, int output_idx, int64_t position) {
  if (greedy_step_) return argmax_ids_[output_idx];
  const std::span<const float> row(output_logits_.row<float>(output_idx), output_logits_.cols);
  return sampler_.sample(row, sequence.request.sampling, &sequence.counts,
                                               position);
}

void Engine::collect_outputs() {
  int first_row = 0;
  int first_output = 0;
  for (const StepItem& item : items_) {
    Sequence& sequence = *sequences_[item.sequence_idx];
    sequence.fresh.clear();
    int num_accepted = 0;
    if (item.samples) {
      const int64_t before = sequence.stats.num_accepted_drafts;
      accept(sequence, item, first_row, first_output);
      num_accepted = static_cast<int>(sequence.stats.num_accepted_drafts - before);
    } else {
      keep_target_hidden(sequence, first_row, item.num_known);
      sequence.num_computed += item.num_known;
    }
    outputs_.push_back({.id = sequence.id,
                        .tokens = sequence.fresh,
                        .num_drafted = item.num_drafts,
                        .num_accepted_drafts = num_accepted,
                        .finish = sequence.finish});
    first_row += item.num_known + item.num_drafts;
    first_output += item.samples ? 1 + item.num_drafts : 0;
  }
}

// The acceptance rule over one sequence's block, then the bookkeeping.
void Engine::accept(Sequence& sequence, const StepItem& item, int first_row, int first_output) {
  const int64_t known = sequence.num_tokens();
  const auto is_stop = [&](int32_t token) {
    const auto& stops = sequence.request.stop_ids;
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  };
  const bool counts_matter = sequence.request.sampling.edits_logits();
  const int num_accepted = accept_draft(
      sequence.drafts,
      [&](int i) {
        const int32_t token = target_token(sequence, first_output + i, known + i);
        if (counts_matter) sequence.counts.add_generated(token);
        return token;
      },
      [&](int32_t token) { return !is_stop(token); }, sequence.fresh);
  const int num_fresh = static_cast<int>(sequence.fresh.size());
  sequence.tokens.insert(sequence.tokens.end(), sequence.fresh.begin(), sequence.fresh.end());

  // The known rows and the accepted drafts now have right KV; the newest token has none.
  const int num_right = item.num_known + num_fresh - 1;
  keep_target_hidden(sequence, first_row, num_right);
  sequence.num_computed += num_right;

  const bool stopped = is_stop(sequence.tokens.back());
  if (stopped) {
    sequence.finish = FinishReason::kStop;
  } else if (sequence.num_generated() >= sequence.request.max_tokens) {
    sequence.finish = FinishReason::kLength;
  }

  SpeculationStats& stats = sequence.stats;
  ++stats.num_target_passes;
  stats.num_tokens += num_fresh;
  if (item.num_drafts == 0) return;
  ++stats.num_draft_passes;
  stats.num_drafted += item.num_drafts;
  stats.num_accepted_drafts += num_accepted;
  for (int i = 0; i < item.num_drafts; ++i) ++stats.drafted_at[i];
  for (int i = 0; i < num_accepted; ++i) ++stats.accepted_at[i];
  const bool censored = stopped && num_accepted == num_fresh;
  sequence.chooser.observe(item.num_drafts, num_accepted, censored);
  survival_.observe(item.num_drafts, num_accepted, censored);
}

// Keeps rows [first_row, first_row + num_rows) of this step's taps for the drafter. A prompt's rows
// are injected at once; a decoding sequence's wait for its next draft, or until the buffer is full.
void Engine::keep_target_hidden(Sequence& sequence, int first_row, int num_rows) {
  if (sequence.request.draft.mode == DraftPolicy::Mode::kOff) return;
  const TensorView rows = target_hidden_.view().row_range(first_row, num_rows);
  const auto num_pending = static_cast<int>(sequence.num_computed - sequence.num_injected);
  if (num_pending + num_rows <= kPendingHiddenRows) {
    ops_.copy(rows, sequence.hidden.view().row_range(num_pending, num_rows));
    return;
  }
  inject_pending(sequence);
  inject_rows_.clear();
  inject_rows_.begin_sequence(sequence.pages.data());
  for (int i = 0; i < num_rows; ++i) inject_rows_.add(0, sequence.num_computed + i);
  drafter_->inject(inject_rows_, rows, *draft_kv_);
  sequence.num_injected = sequence.num_computed + num_rows;
}

void Engine::finish(Sequence& sequence, FinishReason reason) {
  sequence.finish = reason;
  sequence.pages.trim(0, pages_);
  if (!sequence.hidden.view().empty()) free_hidden_.push_back(std::move(sequence.hidden));
}

void Engine::remove_finished() {
  for (auto& sequence : sequences_) {
    if (sequence->finish == FinishReason::kNone) continue;
    finish(*sequence, sequence->finish);
    finished_.push_back(std::move(sequence));
  }
  std::erase_if(sequences_, [](const auto& sequence) { return sequence == nullptr; });
}

bool Engine::cancel(RequestId id) {
  const auto queued = std::find_if(queue_.begin(), queue_.end(),
                                   [&](const Queued& entry) { return entry.id == id; });
  if (queued != queue_.end()) {
    queue_.erase(queued);
    return true;
  }
  for (auto& sequence : sequences_) {
    if (sequence->id != id) continue;
    sequence->finish = FinishReason::kCancelled;
    remove_finished();
    return true;
  }
  return false;
}

const SpeculationStats* Engine::stats(RequestId id) const {
  for (const auto& list : {&sequences_, &finished_}) {
    for (const auto& sequence : *list) {
      if (sequence->id == id) return &sequence->stats;
    }
  }
  return nullptr;
}

}  // namespace volley
