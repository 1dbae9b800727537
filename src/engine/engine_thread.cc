#include "engine/engine_thread.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/clock.h"

namespace volley {

EngineThread::EngineThread(Engine& engine, const Config& config)
    : engine_(engine), config_(config) {
  CHECK(engine.idle());
  totals_.drafted_at.assign(engine.block_size() - 1, 0);
  totals_.accepted_at.assign(engine.block_size() - 1, 0);
  publish();
  thread_ = std::thread([this] { run(); });
}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    draining_ = true;
  }
  mail_.notify_one();
  thread_.join();
}

Result<std::vector<Ticket>> EngineThread::submit(std::vector<Submission> submissions) {
  std::vector<Ticket> tickets;
  {
    const std::lock_guard lock(mutex_);
    if (draining_) return make_error(ErrorKind::kExhausted, "the server is shutting down");
    const int count = static_cast<int>(submissions.size());
    if (num_live_ + count > config_.max_live) {
      return make_error(ErrorKind::kExhausted, "{} requests are in flight, at most {} are accepted",
                        num_live_, config_.max_live);
    }
    num_live_ += count;
    const double now = now_s();
    for (Submission& submission : submissions) {
      tickets.push_back(Ticket{next_ticket_++});
      submissions_.push_back({tickets.back(), std::move(submission), now});
    }
  }
  mail_.notify_one();
  return tickets;
}

void EngineThread::cancel(Ticket ticket) {
  {
    const std::lock_guard lock(mutex_);
    cancels_.push_back(ticket);
  }
  mail_.notify_one();
}

bool EngineThread::drain(double timeout_s) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  return ended_.wait_for(lock, std::chrono::duration<double>(timeout_s),
                         [this] { return num_live_ == 0; });
}

EngineSnapshot EngineThread::snapshot() const {
  const std::lock_guard lock(mutex_);
  EngineSnapshot copy = published_;
  copy.num_waiting += static_cast<int>(submissions_.size());
  return copy;
}

int EngineThread::num_live() const {
  const std::lock_guard lock(mutex_);
  return num_live_;
}

// Waits while there is nothing to do. False when the thread should end.
bool EngineThread::take_mail(std::vector<Pending>& submissions, std::vector<Ticket>& cancels) {
  submissions.clear();
  cancels.clear();
  std::unique_lock lock(mutex_);
  if (engine_.idle()) {
    mail_.wait(lock, [this] { return stopping_ || !submissions_.empty() || !cancels_.empty(); });
  }
  submissions.swap(submissions_);
  cancels.swap(cancels_);
  return !stopping_;
}

void EngineThread::run() {
  std::vector<Pending> submissions;
  std::vector<Ticket> cancels;
  while (take_mail(submissions, cancels)) {
    for (Pending& pending : submissions) start(std::move(pending));
    for (const Ticket ticket : cancels) stop_request(ticket);
    step_start_s_ = now_s();
    const std::span<const StepOutput> outputs = engine_.step();
    if (!outputs.empty()) {
      totals_.busy_s += now_s() - step_start_s_;
      ++totals_.num_steps;
    }
    for (const StepOutput& output : outputs) deliver(output);
    publish();
  }
  for (Pending& pending : submissions) start(std::move(pending));
  std::vector<Ticket> left;
  for (const auto& [ticket, id] : ids_) left.push_back(ticket);
  for (const Ticket ticket : left) stop_request(ticket);
  publish();
}

void EngineThread::start(Pending pending) {
  const auto num_prompt_tokens = static_cast<int64_t>(pending.submission.request.prompt_ids.size());
  GenerationSink sink = std::move(pending.submission.sink);
  const Result<RequestId> id = engine_.submit(std::move(pending.submission.request));
  if (!id) {
    ++totals_.num_refused;
    sink(GenerationEvent{.error = id.error()});
    const std::lock_guard lock(mutex_);
    --num_live_;
    ended_.notify_all();
    return;
  }
  totals_.num_prompt_tokens += num_prompt_tokens;
  ids_.emplace(pending.ticket, *id);
  const Live& live = live_
                         .emplace(*id, Live{pending.ticket, std::move(sink), num_prompt_tokens,
                                            pending.submitted_s})
                         .first->second;
  live.sink(GenerationEvent{});
}

void EngineThread::stop_request(Ticket ticket) {
  const auto found = ids_.find(ticket);
  if (found == ids_.end()) return;
  const RequestId id = found->second;
  engine_.cancel(id);
  ++totals_.num_cancelled;
  end(id, GenerationEvent{.finish = FinishReason::kCancelled});
}

void EngineThread::deliver(const StepOutput& output) {
  const auto found = live_.find(output.id);
  CHECK(found != live_.end());
  Live& live = found->second;
  if (live.scheduled_s == 0) {
    live.scheduled_s = step_start_s_;
    totals_.num_prefix_queries += live.num_prompt_tokens;
    totals_.num_prefix_hits += output.num_cached_tokens;
  }
  if (output.num_drafted > 0) {
    ++totals_.num_drafts;
    totals_.num_draft_tokens += output.num_drafted;
    totals_.num_accepted_drafts += output.num_accepted_drafts;
    for (int i = 0; i < output.draft_depth; ++i) ++totals_.drafted_at[i];
    for (int i = 0; i < output.num_accepted_drafts; ++i) ++totals_.accepted_at[i];
  }
  totals_.num_generated_tokens += static_cast<int64_t>(output.tokens.size());
  if (output.tokens.empty() && output.finish == FinishReason::kNone) return;  // a prompt chunk

  GenerationEvent event{.tokens = {output.tokens.begin(), output.tokens.end()},
                        .logprobs = {output.logprobs.begin(), output.logprobs.end()},
                        .num_cached_tokens = output.num_cached_tokens,
                        .num_drafted = output.num_drafted,
                        .draft_depth = output.draft_depth,
                        .num_accepted_drafts = output.num_accepted_drafts,
                        .finish = output.finish,
                        .queue_s = live.scheduled_s - live.submitted_s};
  switch (output.finish) {
    case FinishReason::kNone:
      live.sink(std::move(event));
      return;
    case FinishReason::kStop:
      ++totals_.num_stopped;
      break;
    case FinishReason::kLength:
      ++totals_.num_length;
      break;
    case FinishReason::kCancelled:
      ++totals_.num_cancelled;
      break;
  }
  end(output.id, std::move(event));
}

void EngineThread::end(RequestId id, GenerationEvent&& event) {
  const auto found = live_.find(id);
  CHECK(found != live_.end());
  ids_.erase(found->second.ticket);
  const GenerationSink sink = std::move(found->second.sink);
  live_.erase(found);
  // Whoever hears of the end may read the counters at once.
  publish();
  sink(std::move(event));
  const std::lock_guard lock(mutex_);
  --num_live_;
  ended_.notify_all();
}

void EngineThread::publish() {
  totals_.num_pages = engine_.scheduler().pages().num_pages();
  totals_.num_free_pages = engine_.scheduler().pages().num_available();
  totals_.num_running = engine_.scheduler().num_running();
  totals_.num_waiting = engine_.scheduler().num_waiting();
  totals_.num_preemptions = engine_.scheduler().num_preemptions();
  const std::lock_guard lock(mutex_);
  published_ = totals_;
}

}  // namespace volley
