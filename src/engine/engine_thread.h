#pragma once

// The one thread that owns an Engine, and the way to reach it from any other: submit, cancel,
// drain. Every queue here is bounded; what happened to a request is told through its sink.

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"

namespace volley {

// News of one request, in order. The last one has a finish reason or an error.
struct GenerationEvent {
  std::vector<int32_t> tokens;  // of one step; empty in the first event, which says "accepted"
  std::vector<TokenLogprobs> logprobs;  // one a token where asked for
  int num_cached_tokens = 0;            // of the prompt, found in the prefix cache
  int num_drafted = 0;                  // of all chains
  int draft_depth = 0;                  // of the longest chain
  int num_accepted_drafts = 0;
  FinishReason finish = FinishReason::kNone;
  std::optional<Error> error;  // the engine refused the request
  double queue_s = 0;          // from submit() to its first step

  bool last() const { return finish != FinishReason::kNone || error.has_value(); }
};

// Called on the engine thread between two steps, also from within the thread's end. It must be
// quick and must not call back into the EngineThread except for cancel().
using GenerationSink = std::function<void(GenerationEvent&&)>;

// Names a submitted request towards the EngineThread.
enum class Ticket : uint64_t {};

struct Submission {
  GenerationRequest request;
  GenerationSink sink;
};

// Totals since the start and the state after the last step.
struct EngineSnapshot {
  int num_running = 0;
  int num_waiting = 0;
  int num_pages = 0;
  int num_free_pages = 0;
  int64_t num_steps = 0;
  double busy_s = 0;              // spent in steps
  int64_t num_prompt_tokens = 0;  // of requests that the engine took
  int64_t num_generated_tokens = 0;
  int64_t num_drafts = 0;  // steps that verified drafts
  int64_t num_draft_tokens = 0;
  int64_t num_accepted_drafts = 0;
  std::vector<int64_t> drafted_at;   // [block_size - 1]
  std::vector<int64_t> accepted_at;  // [block_size - 1]
  int64_t num_prefix_queries = 0;    // prompt tokens looked up in the prefix cache, and found
  int64_t num_prefix_hits = 0;
  int64_t num_preemptions = 0;
  int64_t num_stopped = 0;  // requests by how they ended
  int64_t num_length = 0;
  int64_t num_cancelled = 0;
  int64_t num_refused = 0;
};

class EngineThread {
 public:
  struct Config {
    int max_live = 128;  // requests submitted and not ended; more are refused
  };

  // Takes over `engine`, which must be idle and outlive this; nobody else touches it from now on.
  // Its max_queued should be at least config.max_live.
  EngineThread(Engine& engine, const Config& config);
  // Ends every live request as cancelled and joins the thread.
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // Hands over all of `submissions` or none. kExhausted when they do not fit or after drain().
  // Each sink hears "accepted", or an error, once the engine has seen the request.
  Result<std::vector<Ticket>> submit(std::vector<Submission> submissions);

  // The request ends before the next step and its pages are free then; its sink hears kCancelled.
  // Unknown and ended tickets are ignored.
  void cancel(Ticket ticket);

  // From now on submit() refuses. True when everything that was live has ended within `timeout_s`.
  bool drain(double timeout_s);

  EngineSnapshot snapshot() const;
  int num_live() const;

 private:
  struct Live {
    Ticket ticket{};
    GenerationSink sink;
    int64_t num_prompt_tokens = 0;
    double submitted_s = 0;
    double scheduled_s = 0;  // its first step; 0 before
  };
  struct Pending {
    Ticket ticket{};
    Submission submission;
    double submitted_s = 0;
  };

  void run();
  bool take_mail(std::vector<Pending>& submissions, std::vector<Ticket>& cancels);
  void start(Pending pending);
  void stop_request(Ticket ticket);
  void deliver(const StepOutput& output);
  void end(RequestId id, GenerationEvent&& event);
  void publish();

  Engine& engine_;
  const Config config_;

  // The engine thread's own.
  std::unordered_map<RequestId, Live> live_;
  std::unordered_map<Ticket, RequestId> ids_;
  EngineSnapshot totals_;
  double step_start_s_ = 0;

  mutable std::mutex mutex_;
  std::condition_variable mail_;   // something in the boxes below
  std::condition_variable ended_;  // num_live_ fell
  std::vector<Pending> submissions_;
  std::vector<Ticket> cancels_;
  EngineSnapshot published_;
  int num_live_ = 0;
  uint64_t next_ticket_ = 1;
  bool draining_ = false;
  bool stopping_ = false;

  std::thread thread_;
};

}  // namespace volley
