#include "server/load_client.h"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cmath>
#include <memory>
#include <optional>

#include "base/clock.h"

namespace volley::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kMaxBufferBytes = 16 << 20;

std::string http_request(const LoadConfig& config, std::string_view method, std::string_view path,
                         std::string_view body) {
  std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n", method,
                                 path, config.host, config.port);
  if (!config.api_key.empty()) text += fmt::format("Authorization: Bearer {}\r\n", config.api_key);
  if (method == "POST") {
    text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  return text + "\r\n" + std::string(body);
}

// The body of an HTTP/1.1 response as it comes: takes the framing off.
class BodyReader {
 public:
  // False when the bytes are no HTTP.
  bool push(std::string_view bytes, std::string& body) {
    raw_ += bytes;
    if (status_ == 0) {
      const size_t end = raw_.find("\r\n\r\n");
      if (end == std::string::npos) return raw_.size() < kMaxBufferBytes;
      if (!raw_.starts_with("HTTP/1.") || end < 12) return false;
      status_ = std::atoi(raw_.c_str() + 9);
      std::string head = raw_.substr(0, end);
      std::transform(head.begin(), head.end(), head.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      chunked_ = head.find("transfer-encoding: chunked") != std::string::npos;
      raw_.erase(0, end + 4);
    }
    if (!chunked_) {
      body += raw_;
      raw_.clear();
      return true;
    }
    for (;;) {
      const size_t line = raw_.find("\r\n");
      if (line == std::string::npos) return true;
      const size_t size = std::strtoul(raw_.c_str(), nullptr, 16);
      if (size > kMaxBufferBytes) return false;
      if (raw_.size() < line + 2 + size + 2) return true;
      body.append(raw_, line + 2, size);
      raw_.erase(0, line + 2 + size + 2);
      if (size == 0) return true;
    }
  }
  int status() const { return status_; }

 private:
  std::string raw_;
  int status_ = 0;
  bool chunked_ = false;
};

class Run;

// One request on a connection of its own.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(Run& run, size_t idx);
  void start();

 private:
  void on_connected(error_code error);
  void read();
  void on_body();
  void on_event(std::string_view data);
  void end(std::string error);

  Run& run_;
  size_t idx_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  std::string request_;
  std::array<char, 16384> chunk_;
  BodyReader reader_;
  std::string body_;
  double last_text_s_ = 0;
  bool over_ = false;
};

class Run {
 public:
  Run(const LoadConfig& config, const std::vector<LoadRequest>& requests,
      const std::function<void(int)>& on_done)
      : config_(config),
        requests_(requests),
        on_done_(on_done),
        results_(requests.size()),
        timer_(io_) {}

  Result<std::vector<LoadResult>> run() {
    error_code error;
    tcp::resolver resolver(io_);
    const auto found = resolver.resolve(config_.host, std::to_string(config_.port), error);
    if (error || found.empty()) {
      return make_error(ErrorKind::kIo, "{}: {}", config_.host, error.message());
    }
    endpoint_ = *found.begin();
    start_s_ = now_s();
    launch();
    io_.run();
    return std::move(results_);
  }

  // Starts what may start now.
  void launch() {
    while (next_ < requests_.size() && in_flight_ < config_.max_concurrency) {
      if (config_.open_loop) {
        const double wait_s = requests_[next_].start_s - (now_s() - start_s_);
        if (wait_s > 0) {
          timer_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
              std::chrono::duration<double>(wait_s)));
          timer_.async_wait([this](error_code error) {
            if (!error) launch();
          });
          return;
        }
      }
      ++in_flight_;
      std::make_shared<Stream>(*this, next_++)->start();
    }
  }

  void done() {
    --in_flight_;
    on_done_(++num_done_);
    launch();
  }

  const LoadConfig& config_;
  const std::vector<LoadRequest>& requests_;
  const std::function<void(int)>& on_done_;
  asio::io_context io_;
  std::vector<LoadResult> results_;
  tcp::endpoint endpoint_;
  double start_s_ = 0;

 private:
  asio::steady_timer timer_;
  size_t next_ = 0;
  int in_flight_ = 0;
  int num_done_ = 0;
};

Stream::Stream(Run& run, size_t idx) : run_(run), idx_(idx), socket_(run.io_), timer_(run.io_) {
  request_ = http_request(run.config_, "POST", run.config_.path, run.requests_[idx].body);
}

void Stream::start() {
  run_.results_[idx_].start_s = now_s();
  timer_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(run_.config_.request_timeout_s)));
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (!error) self->end("timed out");
  });
  socket_.async_connect(
      run_.endpoint_, [self = shared_from_this()](error_code error) { self->on_connected(error); });
}

void Stream::on_connected(error_code error) {
  if (error) return end(error.message());
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  asio::async_write(socket_, asio::buffer(request_),
                    [self = shared_from_this()](error_code write_error, size_t) {
                      if (write_error) return self->end(write_error.message());
                      self->read();
                    });
}

void Stream::read() {
  socket_.async_read_some(
      asio::buffer(chunk_), [self = shared_from_this()](error_code error, size_t num_bytes) {
        if (self->over_) return;
        if (num_bytes > 0) {
          if (!self->reader_.push({self->chunk_.data(), num_bytes}, self->body_)) {
            return self->end("the answer is no HTTP");
          }
          if (self->reader_.status() == 200) self->on_body();
        }
        if (self->over_) return;
        if (error) {
          const int status = self->reader_.status();
          if (status != 0 && status != 200) {
            return self->end(fmt::format("{}: {}", status, self->body_.substr(0, 200)));
          }
          return self->end(error == asio::error::eof ? "the stream ended early" : error.message());
        }
        self->read();
      });
}

void Stream::on_body() {
  std::erase(body_, '\r');  // lines may end in CR LF; JSON text has no bare CR
  size_t end_of_event;
  while (!over_ && (end_of_event = body_.find("\n\n")) != std::string::npos) {
    const std::string event = body_.substr(0, end_of_event);
    body_.erase(0, end_of_event + 2);
    const size_t data = event.find("data: ");
    if (data == std::string::npos) continue;
    const std::string_view value = std::string_view(event).substr(data + 6);
    if (value == "[DONE]") return end("");
    on_event(value);
  }
}

void Stream::on_event(std::string_view data) {
  const double now = now_s();
  LoadResult& result = run_.results_[idx_];
  const auto event = parse_json(data, "event");
  if (!event || !event->is_object()) return end("an event is no JSON");
  if (event->contains("error")) return end(dump_json((*event)["error"]).substr(0, 200));
  if (const auto usage = event->find("usage"); usage != event->end() && usage->is_object()) {
    result.num_prompt_tokens = usage->value("prompt_tokens", int64_t{0});
    result.num_tokens = usage->value("completion_tokens", int64_t{0});
  }
  const auto choices = event->find("choices");
  if (choices == event->end() || !choices->is_array() || choices->empty()) return;
  const Json& choice = choices->front();
  std::string text;
  if (choice.contains("text") && choice["text"].is_string()) text = choice["text"];
  if (choice.contains("delta") && choice["delta"].is_object()) {
    for (const char* part : {"reasoning_content", "content"}) {
      const auto found = choice["delta"].find(part);
      if (found != choice["delta"].end() && found->is_string()) text += found->get<std::string>();
    }
  }
  if (text.empty()) return;
  result.text += text;
  ++result.num_text_events;
  if (result.first_token_s == 0) {
    result.first_token_s = now - result.start_s;
  } else {
    result.gaps_s.push_back(now - last_text_s_);
  }
  last_text_s_ = now;
  result.end_s = now - result.start_s;
}

void Stream::end(std::string error) {
  if (std::exchange(over_, true)) return;
  LoadResult& result = run_.results_[idx_];
  result.ok = error.empty();
  result.error = std::move(error);
  if (result.num_tokens == 0) {
    result.has_usage = false;
    result.num_tokens = result.num_text_events;
  }
  if (result.end_s == 0) result.end_s = now_s() - result.start_s;
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
  run_.done();
}

struct Summary {
  double mean = 0, median = 0, deviation = 0;
  std::vector<double> values;  // sorted

  explicit Summary(std::vector<double> all) : values(std::move(all)) {
    std::sort(values.begin(), values.end());
    if (values.empty()) return;
    for (const double value : values) mean += value / static_cast<double>(values.size());
    for (const double value : values) {
      deviation += (value - mean) * (value - mean) / static_cast<double>(values.size());
    }
    deviation = std::sqrt(deviation);
    median = percentile(50);
  }
  // Linear between neighbours, as numpy has it.
  double percentile(double p) const {
    if (values.empty()) return 0;
    const double at = p / 100 * static_cast<double>(values.size() - 1);
    const auto low = static_cast<size_t>(at);
    const size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
  }
};

}  // namespace

Result<std::vector<LoadResult>> run_load(const LoadConfig& config,
                                         const std::vector<LoadRequest>& requests,
                                         const std::function<void(int)>& on_done) {
  return Run(config, requests, on_done).run();
}

Result<std::string> http_get(const LoadConfig& config, const std::string& path) {
  asio::io_context io;
  error_code error;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(config.host, std::to_string(config.port), error);
  tcp::socket socket(io);
  if (!error) asio::connect(socket, found, error);
  if (!error) asio::write(socket, asio::buffer(http_request(config, "GET", path, "")), error);
  BodyReader reader;
  std::string body;
  std::array<char, 16384> chunk;
  while (!error) {
    const size_t num_bytes = socket.read_some(asio::buffer(chunk), error);
    if (!reader.push({chunk.data(), num_bytes}, body)) break;
  }
  if (reader.status() == 200) return body;
  return make_error(
      ErrorKind::kIo, "http://{}:{}{}: {}", config.host, config.port, path,
      reader.status() != 0 ? fmt::format("status {}", reader.status()) : error.message());
}

Json load_report(const std::vector<LoadResult>& results, double duration_s, const LoadGoal& goal,
                 const std::vector<double>& percentiles) {
  int64_t completed = 0, good = 0, prompt_tokens = 0, tokens = 0, without_usage = 0;
  std::vector<double> ttft, tpot, itl, e2el;
  for (const LoadResult& result : results) {
    if (!result.ok) continue;
    ++completed;
    prompt_tokens += result.num_prompt_tokens;
    tokens += result.num_tokens;
    without_usage += result.has_usage ? 0 : 1;
    ttft.push_back(1e3 * result.first_token_s);
    e2el.push_back(1e3 * result.end_s);
    double per_token = 0;
    if (result.num_tokens > 1) {
      per_token =
          1e3 * (result.end_s - result.first_token_s) / static_cast<double>(result.num_tokens - 1);
      tpot.push_back(per_token);
    }
    for (const double gap : result.gaps_s) itl.push_back(1e3 * gap);
    const auto meets = [](double limit, double value) { return limit <= 0 || value <= limit; };
    good += meets(goal.ttft_ms, ttft.back()) && meets(goal.tpot_ms, per_token) &&
            meets(goal.e2el_ms, e2el.back());
  }
  Json report;
  report["duration"] = duration_s;
  report["completed"] = completed;
  report["failed"] = static_cast<int64_t>(results.size()) - completed;
  report["total_input_tokens"] = prompt_tokens;
  report["total_output_tokens"] = tokens;
  // Their events were counted instead; a server that has no usage sends a token an event, as a
  // rule.
  if (without_usage > 0) report["answers_without_usage"] = without_usage;
  report["request_throughput"] = static_cast<double>(completed) / duration_s;
  report["request_goodput"] = static_cast<double>(good) / duration_s;
  report["output_throughput"] = static_cast<double>(tokens) / duration_s;
  report["total_token_throughput"] = static_cast<double>(tokens + prompt_tokens) / duration_s;
  const auto add = [&](const std::string& name, std::vector<double> values) {
    const Summary summary(std::move(values));
    report["mean_" + name + "_ms"] = summary.mean;
    report["median_" + name + "_ms"] = summary.median;
    report["std_" + name + "_ms"] = summary.deviation;
    for (const double p : percentiles) {
      report[fmt::format("p{}_{}_ms", p, name)] = summary.percentile(p);
    }
  };
  add("ttft", std::move(ttft));
  add("tpot", std::move(tpot));
  add("itl", std::move(itl));
  add("e2el", std::move(e2el));
  return report;
}

}  // namespace volley::server
