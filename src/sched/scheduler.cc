#include "sched/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace volley {
namespace {

bool more_urgent(const ScheduledSequence* a, const ScheduledSequence* b) {
  if (a->priority != b->priority) return a->priority > b->priority;
  return a->arrival < b->arrival;
}

void insert_by_urgency(std::vector<ScheduledSequence*>& list, ScheduledSequence* sequence) {
  list.insert(std::upper_bound(list.begin(), list.end(), sequence, more_urgent), sequence);
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config), pages_(config.num_pages, config.page_size) {
  CHECK_GT(config.max_num_seqs, 0);
  CHECK_GE(config.max_output_rows, config.max_num_seqs);
  CHECK_GE(config.max_rows, config.max_output_rows);
}

Result<ScheduledSequence*> Scheduler::add(NewSequence added) {
  CHECK(!added.prompt_ids.empty());
  if (num_waiting() >= config_.max_queued) {
    return make_error(ErrorKind::kExhausted, "{} requests are waiting already, the limit is {}",
                      num_waiting(), config_.max_queued);
  }
  auto sequence = std::make_unique<ScheduledSequence>();
  sequence->id = added.id;
  sequence->priority = added.priority;
  sequence->arrival = next_arrival_++;
  sequence->prefill_chunk = added.prefill_chunk;
  sequence->uses_drafter = added.uses_drafter;
  sequence->cache_salt = added.cache_salt;
  sequence->prompt_len = static_cast<int64_t>(added.prompt_ids.size());
  sequence->tokens = std::move(added.prompt_ids);
  ScheduledSequence* result = sequence.get();
  insert_by_urgency(waiting_, result);
  const bool is_new =
      sequences_.emplace(static_cast<uint64_t>(added.id), std::move(sequence)).second;
  CHECK(is_new);
  return result;
}

// A waiting sequence runs when there is a place and pages for all its tokens beside what the
// running ones still need for theirs.
void Scheduler::admit() {
  int promised = 0;
  for (const ScheduledSequence* running : running_) {
    promised += running->pages.pages_missing(running->num_tokens() + 1, pages_);
  }
  while (!waiting_.empty() && num_running() < config_.max_num_seqs) {
    ScheduledSequence& next = *waiting_.front();
    PrefixMatch match;
    if (config_.prefix_caching) {
      // At least the last token is computed: its logits are wanted.
      const auto max_pages = static_cast<int>((next.num_tokens() - 1) / config_.page_size);
      match = pages_.match(next.tokens, max_pages, next.cache_salt, next.uses_drafter);
    }
    const auto num_matched = static_cast<int>(match.pages.size());
    next.pages.adopt(std::move(match.pages));
    const int missing = next.pages.pages_missing(next.num_tokens() + 1, pages_);
    if (!running_.empty() && promised + missing > pages_.num_available()) {
      next.pages.trim(0, pages_);
      return;
    }
    promised += missing;
    next.published_node = match.node;
    next.num_published = num_matched;
    next.num_computed = int64_t{num_matched} * config_.page_size;
    next.num_injected = next.uses_drafter ? next.num_computed : 0;
    if (next.num_generated() == 0) next.num_cached = next.num_computed;
    next.runs = true;
    waiting_.erase(waiting_.begin());
    insert_by_urgency(running_, &next);
  }
}

void Scheduler::send_back(ScheduledSequence& sequence) {
  CHECK(sequence.runs);
  sequence.runs = false;
  std::erase(running_, &sequence);
  sequence.pages.trim(0, pages_);
  sequence.num_computed = 0;
  sequence.num_injected = 0;
  sequence.num_published = 0;
  sequence.published_node = kRootNode;
  insert_by_urgency(waiting_, &sequence);
}

void Scheduler::preempt(ScheduledSequence& sequence, StepPlan& plan) {
  send_back(sequence);
  plan.preempted.push_back(sequence.id);
  ++num_preemptions_;
}

// Pages for the rows the sequence may get in this step; returns the drafts there is room for, or -1
// when the sequence itself had to give way.
int Scheduler::reserve(ScheduledSequence& sequence, int draft_length, StepPlan& plan) {
  const int64_t pending = sequence.num_tokens() - sequence.num_computed;
  const int64_t chunk = std::min<int64_t>(pending, std::max(1, sequence.prefill_chunk));
  const int64_t known_end = sequence.num_computed + chunk;
  while (true) {
    int64_t end = known_end + draft_length;
    if (draft_length > 0) {
      end = std::max(end, std::min<int64_t>(known_end + config_.draft_rows, config_.max_positions));
    }
    if (sequence.pages.grow(end, pages_)) return draft_length;
    if (draft_length > 0) {
      draft_length = 0;
      continue;
    }
    ScheduledSequence& victim = *running_.back();
    preempt(victim, plan);
    if (&victim == &sequence) return -1;
  }
}

StepPlan Scheduler::plan(const std::function<int(const ScheduledSequence&)>& draft_length) {
  StepPlan plan;
  admit();
  std::vector<SequenceState> states;
  // Victims come from the back, so those already reserved for are safe.
  for (size_t i = 0; i < running_.size(); ++i) {
    ScheduledSequence& sequence = *running_[i];
    const int wanted = sequence.decodes() ? draft_length(sequence) : 0;
    const int drafts = reserve(sequence, wanted, plan);
    if (drafts < 0) break;
    states.push_back({.num_tokens = sequence.num_tokens(),
                      .num_computed = sequence.num_computed,
                      .prefill_chunk = sequence.prefill_chunk,
                      .draft_length = drafts});
  }
  CHECK(!states.empty() || sequences_.empty());
  for (const StepItem& item : plan_step(states, {config_.max_rows, config_.max_output_rows})) {
    plan.items.push_back({.sequence = running_[item.sequence_idx],
                          .num_known = item.num_known,
                          .num_drafts = item.num_drafts,
                          .samples = item.samples});
  }
  return plan;
}

void Scheduler::commit(ScheduledSequence& sequence, int num_right, std::span<const int32_t> fresh) {
  sequence.tokens.insert(sequence.tokens.end(), fresh.begin(), fresh.end());
  sequence.num_computed += num_right;
  CHECK_LE(sequence.num_computed, sequence.num_tokens());
  sequence.pages.trim(sequence.num_computed + 1, pages_);
  publish_pages(sequence);
}

void Scheduler::publish_pages(ScheduledSequence& sequence) {
  if (!config_.prefix_caching) return;
  const int64_t ready = sequence.uses_drafter
                            ? std::min(sequence.num_computed, sequence.num_injected)
                            : sequence.num_computed;
  while ((sequence.num_published + 1) * int64_t{config_.page_size} <= ready) {
    const int page_idx = sequence.num_published;
    const auto tokens =
        std::span(sequence.tokens)
            .subspan(static_cast<size_t>(page_idx) * config_.page_size, config_.page_size);
    sequence.published_node = pages_.publish(sequence.published_node, tokens, sequence.cache_salt,
                                             sequence.pages.page(page_idx), sequence.uses_drafter);
    ++sequence.num_published;
  }
}

void Scheduler::restart(ScheduledSequence& sequence) {
  send_back(sequence);
}

bool Scheduler::remove(RequestId id) {
  const auto found = sequences_.find(static_cast<uint64_t>(id));
  if (found == sequences_.end()) return false;
  ScheduledSequence* sequence = found->second.get();
  sequence->pages.trim(0, pages_);
  std::erase(waiting_, sequence);
  std::erase(running_, sequence);
  sequences_.erase(found);
  return true;
}

}  // namespace volley
