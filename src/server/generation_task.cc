#include "server/generation_task.h"

#include <algorithm>

#include "base/clock.h"

namespace volley::server {

GenerationTask::GenerationTask(TaskContext context, PreparedGeneration prepared, RequestLog log,
                               std::shared_ptr<Responder> responder)
    : context_(std::move(context)),
      prepared_(std::move(prepared)),
      log_(std::move(log)),
      responder_(std::move(responder)) {}

void GenerationTask::start() {
  std::vector<Submission> submissions;
  slots_.reserve(prepared_.answers.size());
  for (PreparedAnswer& prepared : prepared_.answers) {
    slots_.push_back({.answer = Answer(*context_.tokenizer, prepared.answer)});
    Slot& slot = slots_.back();
    slot.record = {.answer = &slot.answer,
                   .num_prompt_tokens = prepared.num_prompt_tokens,
                   .first_of_prompt = prepared.first_of_prompt};
    if (prepared.first_of_prompt) log_.num_prompt_tokens += prepared.num_prompt_tokens;
    const int idx = num_open_++;
    // The last event takes the sink's reference along: the task must die on the server's thread.
    GenerationSink sink = [self = shared_from_this(), idx,
                           post = context_.post](GenerationEvent&& event) mutable {
      std::shared_ptr<GenerationTask> task = event.last() ? std::move(self) : self;
      post([task = std::move(task), idx, event = std::move(event)] { task->on_event(idx, event); });
    };
    submissions.push_back({std::move(prepared.request), std::move(sink)});
  }
  log_.num_answers = num_open_;
  const Result<std::vector<Ticket>> tickets = context_.engine->submit(std::move(submissions));
  if (!tickets) return fail(api_error(tickets.error()));
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].ticket = (*tickets)[i];
  responder_->on_gone([weak = weak_from_this()] {
    const std::shared_ptr<GenerationTask> self = weak.lock();
    if (self == nullptr || self->over_) return;
    self->over_ = true;
    self->cancel_rest();
    self->context_.metrics->count_client_gone();
    self->log_.client_gone = true;
    self->write_log(self->streaming_ ? 200 : 0);
  });
}

void GenerationTask::on_event(int idx, const GenerationEvent& event) {
  if (over_) return;
  if (event.error) return fail(api_error(*event.error));
  if (prepared_.stream) open_stream();
  // A stop string's cancellation comes back after the answer is done; so may a step before it.
  if (slots_[idx].answer.done()) return;
  if (event.tokens.empty() && !event.last()) return;
  if (event.finish == FinishReason::kCancelled) {
    return fail({.status = 503, .message = "the server is shutting down"});
  }
  on_tokens(idx, event);
}

void GenerationTask::on_tokens(int idx, const GenerationEvent& event) {
  Slot& slot = slots_[idx];
  const double now = now_s();
  const AnswerDelta delta = slot.answer.push(event);
  if (slot.last_step_s == 0) {
    slot.record.first_token_s = now - log_.start_s;
    slot.record.queue_s = event.queue_s;
    slot.record.num_cached_tokens = event.num_cached_tokens;
    context_.metrics->observe_first_token(slot.record.first_token_s);
  } else {
    context_.metrics->observe_step_gap(now - slot.last_step_s);
  }
  slot.last_step_s = now;
  slot.record.end_s = now - log_.start_s;
  if (prepared_.stream) {
    std::string events = prepared_.format->step(idx, slot.record, delta);
    const bool done = slot.answer.done();
    if (done) events += prepared_.format->end_answer(idx, slot.record);
    const bool last = done && num_open_ == 1;
    if (!last) {
      responder_->write(events);
    } else {
      // One write for the last step and the end of all.
      std::vector<AnswerRecord> records;
      for (const Slot& each : slots_) records.push_back(each.record);
      responder_->write(events + prepared_.format->end(records));
    }
  }
  if (slot.answer.done() && !over_) end_answer(idx);
}

void GenerationTask::open_stream() {
  if (std::exchange(streaming_, true)) return;
  HttpResponse head{.content_type = "text/event-stream; charset=utf-8",
                    .headers = context_.headers};
  head.headers.emplace_back("Cache-Control", "no-store");
  head.headers.emplace_back("X-Accel-Buffering", "no");  // nginx would hold events back
  responder_->start_stream(std::move(head));
  responder_->write(prepared_.format->begin());
}

void GenerationTask::end_answer(int idx) {
  Slot& slot = slots_[idx];
  if (slot.answer.stopped_by_string()) context_.engine->cancel(slot.ticket);
  const auto num_tokens = static_cast<int64_t>(slot.answer.tokens().size());
  const AnswerRecord& record = slot.record;
  const double per_token =
      num_tokens > 1 ? (record.end_s - record.first_token_s) / static_cast<double>(num_tokens - 1)
                     : 0;
  context_.metrics->observe_answer(record.queue_s, record.end_s, per_token,
                                   slot.answer.finish_reason(),
                                   slot.answer.speculation().acceptance_length());
  if (--num_open_ == 0) end();
}

void GenerationTask::end() {
  over_ = true;
  if (streaming_) {
    responder_->finish();
  } else {
    std::vector<AnswerRecord> records;
    for (const Slot& slot : slots_) records.push_back(slot.record);
    responder_->send(
        {.body = dump_json(prepared_.format->whole(records)), .headers = context_.headers});
  }
  write_log(200);
}

// The request has failed, in the middle of a stream perhaps.
void GenerationTask::fail(const ApiError& error) {
  over_ = true;
  cancel_rest();
  if (streaming_) {
    responder_->write(prepared_.format->error(error));
    responder_->finish();
    return write_log(200);
  }
  HttpResponse response = error_response(error);
  response.headers.insert(response.headers.end(), context_.headers.begin(), context_.headers.end());
  responder_->send(std::move(response));
  write_log(error.status);
}

void GenerationTask::cancel_rest() {
  for (const Slot& slot : slots_) {
    if (!slot.answer.done()) context_.engine->cancel(slot.ticket);
  }
}

void GenerationTask::write_log(int status) {
  log_.status = status;
  int64_t steps = 0;
  int64_t decoded = 0;
  for (const Slot& slot : slots_) {
    const AnswerSpeculation& spec = slot.answer.speculation();
    log_.num_tokens += static_cast<int64_t>(slot.answer.tokens().size());
    if (slot.record.first_of_prompt) log_.num_cached_tokens += slot.record.num_cached_tokens;
    if (spec.num_steps > 1) {
      steps += spec.num_steps - 1;
      decoded += spec.num_tokens - 1;
    }
  }
  if (steps > 0) log_.acceptance_length = static_cast<double>(decoded) / static_cast<double>(steps);
  if (!slots_.empty()) {
    log_.queue_s = slots_[0].record.queue_s;
    log_.first_token_s = slots_[0].record.first_token_s;
    log_.finish_reason = slots_[0].answer.finish_reason();
  }
  context_.log(log_);
}

}  // namespace volley::server
