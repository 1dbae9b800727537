#pragma once

// One generating request from submission to its last byte. Lives on the server's thread; the engine
// reaches it through posted events.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/http.h"
#include "server/metrics.h"
#include "server/prepare.h"
#include "server/trace.h"

namespace volley::server {

// What one log line says of a request.
struct RequestLog {
  std::string endpoint;
  std::string peer;
  std::string request_id;
  TraceIds trace;
  int status = 0;
  double start_s = 0;
  bool client_gone = false;
  // Of generating requests:
  int num_answers = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;
  int64_t num_tokens = 0;
  double queue_s = 0;
  double first_token_s = 0;
  double acceptance_length = 0;
  std::string finish_reason;  // of the first answer
};

struct TaskContext {
  EngineThread* engine = nullptr;
  const Tokenizer* tokenizer = nullptr;
  std::function<void(std::function<void()>)> post;  // to the server's thread
  Metrics* metrics = nullptr;
  std::function<void(const RequestLog&)> log;
  std::vector<std::pair<std::string, std::string>> headers;  // of the response
};

class GenerationTask : public std::enable_shared_from_this<GenerationTask> {
 public:
  GenerationTask(TaskContext context, PreparedGeneration prepared, RequestLog log,
                 std::shared_ptr<Responder> responder);

  void start();

 private:
  struct Slot {
    Answer answer;
    AnswerRecord record;
    Ticket ticket{};
    double last_step_s = 0;
  };

  void on_event(int idx, const GenerationEvent& event);
  void on_tokens(int idx, const GenerationEvent& event);
  void open_stream();
  void end_answer(int idx);
  void end();
  void fail(const ApiError& error);
  void cancel_rest();
  void write_log(int status);

  TaskContext context_;
  PreparedGeneration prepared_;
  RequestLog log_;
  std::shared_ptr<Responder> responder_;
  std::vector<Slot> slots_;
  int num_open_ = 0;
  bool streaming_ = false;
  bool over_ = false;
};

}  // namespace volley::server
