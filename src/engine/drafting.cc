// What an Engine does about drafts: who drafts and how much, the draft pass, which guesses are
// verified, and the states that the drafter is owed. The step itself is in engine.cc.

#include <algorithm>
#include <limits>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/sequence.h"

namespace volley {
namespace {

// With so few sequences in a step, further rows of the drafter's head and of the target's pass cost
// little: whole blocks are looked at and second guesses verified. With more, a few drafts beyond
// what survives on average are looked at.
constexpr int kFewSequences = 2;
constexpr int kExtraDrafts = 2;

// A drafter sees less than its target and spreads its probabilities wider. Sampling from it as it
// is lets the shared noise pick tokens that the surer target would not; at a lower temperature the
// noise decides close calls only.
constexpr float kDraftSharpness = 2.5;

}  // namespace

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

// Who does without a drafter (spec/draft_rest.h), before the scheduler admits.
void Engine::choose_who_rests() {
  if (drafter_ == nullptr) return;
  const bool new_ones_rest = crowd_watch_.new_ones_rest(num_live());
  const double promise = draft_planner_.promise(num_live(), survival_, draft_cost_, verify_cost_);
  const double token_s = verify_cost_.estimate(num_live()) / num_live();
  const int max_rows = verify_cost_.max_rows();
  const double row_s = verify_cost_.estimate(max_rows) / max_rows;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence->is_auto()) continue;
    ScheduledSequence& scheduled = *sequence->scheduled;
    if (sequence->rests && scheduled.runs && !new_ones_rest &&
        sequence->regret.add(promise, token_s, row_s * static_cast<double>(scheduled.num_computed),
                             sequence->request.max_tokens - sequence->stats.num_tokens)) {
      scheduler_.restart(scheduled);
    }
    if (scheduled.runs) continue;
    sequence->rests = new_ones_rest;
    sequence->regret.clear();
    scheduled.uses_drafter = sequence->uses_drafter();
  }
}

// The draft length of every decoding sequence, before the scheduler reserves pages for it.
void Engine::choose_draft_lengths() {
  draft_candidates_.clear();
  draft_owners_.clear();
  int num_others = 0;
  for (const auto& [id, sequence] : sequences_) {
    sequence->draft_length = 0;
    if (!sequence->scheduled->decodes()) {
      // It will decode soon. While prompts fill a step, a decoded token is worth what it will be
      // then, not what it would be with the few that decode now.
      num_others += num_others < config_.max_num_seqs;
      continue;
    }
    // The bonus token is always there: one draft fewer than the tokens still allowed.
    const int64_t remaining = sequence->request.max_tokens - sequence->stats.num_tokens;
    const int bound = static_cast<int>(std::min<int64_t>(block_size_ - 1, remaining - 1));
    const DraftPolicy& policy = sequence->request.draft;
    if (sequence->is_auto() && sequence->uses_drafter() && bound > 0) {
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
  const bool drafts =
      std::any_of(draft_candidates_.begin(), draft_candidates_.end(),
                  [](const DraftCandidate& candidate) { return candidate.length > 0; });
  crowd_watch_.record(num_live(), static_cast<int>(draft_candidates_.size()), drafts);
}

// What came of this step's drafts.
void Engine::tell_planner() {
  const bool decodes_only = std::all_of(items_.begin(), items_.end(),
                                        [](const Item& item) { return item.plan.num_known == 1; });
  if (draft_rows_.empty() || !decodes_only) return;
  size_t num_tokens = 0;
  for (const Item& item : items_) num_tokens += item.sequence->fresh.size();
  draft_planner_.observe(
      static_cast<double>(num_tokens),
      draft_cost_.estimate(draft_cost_rows()) + verify_cost_.estimate(verify_rows_.num_rows()));
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
    if (!item.sequence->uses_drafter()) return int64_t{0};
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
  bool all_graded = true;
  bool all_argmax = true;
  for (const Item& item : items_) {
    if (item.plan.num_drafts == 0) continue;
    const Sequence& sequence = *item.sequence;
    any_graded |= sequence.graded();
    all_graded &= sequence.graded();
    all_argmax &= sequence.greedy() ||
                  (!sequence.filter && sequence.request.draft_sampling == DraftSampling::kArgmax);
  }
  const auto num_rows = static_cast<size_t>(hidden.rows);
  const std::span<int32_t> ids = std::span(argmax_ids_).first(num_rows);
  const std::span<int32_t> candidates = std::span(candidates_).first(num_rows * kCandidates);
  const std::span<float> probabilities = std::span(probabilities_).first(num_rows * kCandidates);
  const bool argmax_alone = all_argmax && !any_graded;
  if (argmax_alone) {
    drafter_->argmax(hidden, ids);
  } else if (all_graded) {
    drafter_->candidates(hidden, candidates, probabilities);
  } else {
    const TensorView logits = draft_logits_.first_rows(hidden.rows);
    drafter_->logits(hidden, logits);
    if (any_graded) ops_.top_candidates(logits, candidates, probabilities);
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

// Keeps rows [first_tap_row, first_tap_row + num_rows) of this step's taps for the drafter. Those
// of a sequence that drafts, which will soon want them, and those of prompts are injected together
// at the end of the step; others wait until their sequence drafts again, or their buffer is full.
void Engine::keep_target_hidden(Sequence& sequence, int first_tap_row, int num_rows) {
  if (!sequence.uses_drafter()) return;
  ScheduledSequence& scheduled = *sequence.scheduled;
  const TensorView rows = target_hidden_.view().row_range(first_tap_row, num_rows);
  const auto num_pending = static_cast<int>(scheduled.num_computed - scheduled.num_injected);
  if (sequence.guess.empty() && num_pending + num_rows <= kPendingHiddenRows) {
    ops_.copy(rows, sequence.hidden.view().row_range(num_pending, num_rows));
    return;
  }
  if (num_pending > 0) {
    inject_kept();
    inject_pending(sequence);
  }
  if (first_tap_row != first_kept_row_ + kept_rows_.num_rows() && num_rows > kPendingHiddenRows)
    inject_kept();
  if (kept_rows_.empty()) first_kept_row_ = first_tap_row;
  // A few rows close ranks with those kept before: nobody wants what lies between any more. One by
  // one, since they may move by less than their number.
  const int first = first_kept_row_ + kept_rows_.num_rows();
  for (int i = 0; i < num_rows && first < first_tap_row; ++i)
    ops_.copy(rows.row_range(i, 1), target_hidden_.view().row_range(first + i, 1));
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

}  // namespace volley
