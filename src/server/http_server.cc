#include "server/http_server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <cctype>
#include <chrono>
#include <unordered_set>

#include "base/log.h"

namespace volley::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

// Bytes a client may send ahead while its previous request is answered.
constexpr size_t kMaxPipelinedBytes = 64 << 10;
// A refused request's body is read and thrown away for this long, lest the close destroy the
// response on its way.
constexpr double kLingerSeconds = 2;
constexpr size_t kMaxLingerBytes = 64 << 20;

std::string head_text(const HttpResponse& response, std::string_view framing, bool keep_alive) {
  std::string text =
      fmt::format("HTTP/1.1 {} {}\r\n{}", response.status, status_text(response.status), framing);
  if (!response.content_type.empty()) {
    text += fmt::format("Content-Type: {}\r\n", response.content_type);
  }
  for (const auto& [name, value] : response.headers) {
    text += fmt::format("{}: {}\r\n", name, value);
  }
  if (!keep_alive) text += "Connection: close\r\n";
  return text + "\r\n";
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

class Connection;

}  // namespace

struct HttpServer::Impl {
  Impl(const HttpLimits& http_limits, HttpHandler& http_handler)
      : limits(http_limits), handler(http_handler), acceptor(io), accept_pause(io), signals(io) {}

  void accept();
  void wait_signal();

  const HttpLimits limits;
  HttpHandler& handler;
  std::unordered_set<Connection*> connections;  // outlives them: the last die with `io`
  asio::io_context io{1};
  tcp::acceptor acceptor;
  asio::steady_timer accept_pause;
  asio::signal_set signals;
  std::function<void(int)> signal_task;
};

namespace {

// One client. Lives as long as an operation on its socket or timer is pending, or an answer to it.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, const HttpLimits& limits, HttpHandler& handler,
             std::unordered_set<Connection*>& all)
      : limits_(limits),
        handler_(handler),
        all_(all),
        socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        in_(limits.max_header_bytes + kMaxPipelinedBytes) {
    all_.insert(this);
    set_socket_options();
    error_code ignored;
    const tcp::endpoint peer = socket_.remote_endpoint(ignored);
    peer_ = peer.address().to_string();
  }
  ~Connection() { all_.erase(this); }

  void start() { read_head(); }
  // A request was read, and the last byte of its answer has not left.
  bool is_answering() const { return !closed_ && (answering_ || out_bytes_ > 0); }

  // The methods of the current exchange's responder; stale ones are told apart by number.
  bool is_current(uint64_t exchange) const {
    return !closed_ && answering_ && exchange == exchange_;
  }
  void send(HttpResponse response);
  void start_stream(const HttpResponse& head);
  void write_stream(std::string_view data);
  void finish_stream();
  void set_on_gone(std::function<void()> callback) { on_gone_ = std::move(callback); }

 private:
  void set_socket_options();
  void read_head();
  void read_body();
  void on_read_error(error_code error);
  void answer_and_close(HttpResponse response);
  void dispatch();
  void fill_request(HttpRequest& request);
  void watch();
  void queue(std::string bytes);
  void pump();
  void next();
  void linger();
  void drain_input();
  void drop();
  void arm(double seconds, bool reading);

  const HttpLimits& limits_;
  HttpHandler& handler_;
  std::unordered_set<Connection*>& all_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  uint64_t timer_round_ = 0;
  beast::flat_buffer in_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::string peer_;

  uint64_t exchange_ = 0;   // counts requests
  bool answering_ = false;  // a request was read, its answer is not complete
  bool streaming_ = false;
  bool chunked_ = false;
  bool head_only_ = false;
  bool keep_alive_ = true;
  bool closing_ = false;  // after what is queued, close
  bool closed_ = false;
  bool watching_ = false;
  bool read_after_watch_ = false;
  std::vector<char> lingering_;
  size_t lingered_bytes_ = 0;
  std::function<void()> on_gone_;

  std::vector<std::string> out_;  // waits for the write in progress
  std::vector<std::string> writing_;
  size_t out_bytes_ = 0;  // of both
};

class ConnectionResponder : public Responder {
 public:
  ConnectionResponder(std::shared_ptr<Connection> connection, uint64_t exchange)
      : connection_(std::move(connection)), exchange_(exchange) {}

  void send(HttpResponse response) override {
    if (live()) connection_->send(std::move(response));
  }
  void start_stream(HttpResponse head) override {
    if (live()) connection_->start_stream(head);
  }
  void write(std::string_view data) override {
    if (live()) connection_->write_stream(data);
  }
  void finish() override {
    if (live()) connection_->finish_stream();
  }
  void on_gone(std::function<void()> callback) override {
    if (live()) {
      connection_->set_on_gone(std::move(callback));
    } else {
      callback();
    }
  }

 private:
  bool live() const { return connection_->is_current(exchange_); }

  std::shared_ptr<Connection> connection_;
  uint64_t exchange_;
};

// The system would take megabytes for a client that reads nothing, and for a quarter of an hour
// resend to one whose machine is gone: meanwhile its answer would be computed.
void Connection::set_socket_options() {
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.set_option(tcp::socket::send_buffer_size(limits_.socket_buffer_bytes), ignored);
  socket_.set_option(tcp::socket::keep_alive(true), ignored);
  const int seconds = std::max(1, static_cast<int>(limits_.write_timeout_s));
  const int milliseconds = 1000 * seconds;
  const int probe_s = std::max(1, seconds / 3);
  const int num_probes = 2;
  const int fd = socket_.native_handle();
  ::setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &probe_s, sizeof(probe_s));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &probe_s, sizeof(probe_s));
  ::setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &num_probes, sizeof(num_probes));
}

// The connection is dropped, or a reader told 408, unless arm() or cancel comes first.
void Connection::arm(double seconds, bool reading) {
  const uint64_t round = ++timer_round_;
  timer_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
      std::chrono::duration<double>(seconds)));
  timer_.async_wait([self = shared_from_this(), round, reading](error_code error) {
    if (error || round != self->timer_round_ || self->closed_) return;
    if (reading && (self->in_.size() > 0 || (self->parser_ && self->parser_->got_some()))) {
      self->answer_and_close(self->handler_.malformed(408, "the request did not arrive in time"));
    } else {
      self->drop();
    }
  });
}

void Connection::read_head() {
  if (closed_) return;
  parser_.emplace();
  parser_->header_limit(static_cast<uint32_t>(limits_.max_header_bytes));
  parser_->body_limit(static_cast<uint64_t>(limits_.max_body_bytes));
  const uint64_t exchange = ++exchange_;
  if (in_.size() > 0) {
    arm(limits_.read_timeout_s, true);
  } else {
    arm(limits_.idle_timeout_s, true);
  }
  // The first bytes start the shorter clock of one request.
  http::async_read_some(socket_, in_, *parser_,
                        [self = shared_from_this(), exchange](error_code error, size_t) {
                          if (self->closed_ || self->closing_ || exchange != self->exchange_)
                            return;
                          if (error) return self->on_read_error(error);
                          self->arm(self->limits_.read_timeout_s, true);
                          if (self->parser_->is_header_done()) return self->read_body();
                          http::async_read_header(self->socket_, self->in_, *self->parser_,
                                                  [self](error_code header_error, size_t) {
                                                    if (self->closed_ || self->closing_) return;
                                                    if (header_error)
                                                      return self->on_read_error(header_error);
                                                    self->read_body();
                                                  });
                        });
}

void Connection::fill_request(HttpRequest& request) {
  const auto& message = parser_->get();
  request.method = std::string(message.method_string());
  const std::string_view target(message.target().data(), message.target().size());
  const size_t question = target.find('?');
  request.path = std::string(target.substr(0, question));
  if (question != std::string_view::npos) request.query = std::string(target.substr(question + 1));
  for (const auto& field : message) {
    request.headers.emplace_back(
        lower(std::string_view(field.name_string().data(), field.name_string().size())),
        std::string(field.value()));
  }
  request.peer = peer_;
}

void Connection::read_body() {
  const auto& message = parser_->get();
  head_only_ = message.method() == http::verb::head;
  chunked_ = message.version() >= 11;
  keep_alive_ = message.keep_alive() && message.version() >= 11;
  HttpRequest head;
  fill_request(head);
  if (std::optional<HttpResponse> refusal = handler_.refuse(head)) {
    if (parser_->is_done()) {
      answering_ = true;
      return send(std::move(*refusal));
    }
    return answer_and_close(std::move(*refusal));
  }
  if (lower(head.header("expect")) == "100-continue" && !parser_->is_done()) {
    queue("HTTP/1.1 100 Continue\r\n\r\n");
    arm(limits_.read_timeout_s, true);
  }
  if (parser_->is_done()) return dispatch();
  http::async_read(socket_, in_, *parser_, [self = shared_from_this()](error_code error, size_t) {
    if (self->closed_ || self->closing_) return;
    if (error) return self->on_read_error(error);
    self->dispatch();
  });
}

void Connection::on_read_error(error_code error) {
  if (error == http::error::end_of_stream || error == asio::error::operation_aborted ||
      error == asio::error::connection_reset || error == asio::error::broken_pipe) {
    return drop();
  }
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return answer_and_close(handler_.malformed(
        431, fmt::format("headers: at most {} bytes are accepted", limits_.max_header_bytes)));
  }
  if (error == http::error::body_limit) {
    return answer_and_close(handler_.malformed(
        413, fmt::format("body: at most {} bytes are accepted", limits_.max_body_bytes)));
  }
  answer_and_close(handler_.malformed(400, fmt::format("not HTTP/1.1: {}", error.message())));
}

void Connection::answer_and_close(HttpResponse response) {
  keep_alive_ = false;
  closing_ = true;
  answering_ = true;
  send(std::move(response));
}

void Connection::dispatch() {
  HttpRequest request;
  fill_request(request);
  request.body = std::move(parser_->get().body());
  parser_.reset();
  answering_ = true;
  ++timer_round_;  // the handler takes its time
  timer_.cancel();
  const uint64_t exchange = exchange_;
  handler_.handle(std::move(request),
                  std::make_shared<ConnectionResponder>(shared_from_this(), exchange));
  if (is_current(exchange)) watch();
}

// Reads ahead while an answer is made: that is how a client's going away shows.
void Connection::watch() {
  if (watching_ || closed_ || in_.size() >= kMaxPipelinedBytes) return;
  watching_ = true;
  socket_.async_read_some(in_.prepare(4096),
                          [self = shared_from_this()](error_code error, size_t num_bytes) {
                            self->watching_ = false;
                            if (self->closed_ || self->closing_) return;
                            const bool resume = std::exchange(self->read_after_watch_, false);
                            if (error && !(resume && error == asio::error::operation_aborted))
                              return self->drop();
                            self->in_.commit(num_bytes);
                            if (resume) {
                              self->read_head();
                            } else if (self->answering_) {
                              self->watch();
                            }
                          });
}

void Connection::send(HttpResponse response) {
  const bool has_body = response.status != 204;
  std::string text = head_text(
      response, has_body ? fmt::format("Content-Length: {}\r\n", response.body.size()) : "",
      keep_alive_);
  if (has_body && !head_only_) text += response.body;
  answering_ = false;
  on_gone_ = nullptr;
  queue(std::move(text));
}

void Connection::start_stream(const HttpResponse& head) {
  streaming_ = true;
  if (!chunked_) keep_alive_ = false;
  queue(head_text(head, chunked_ ? "Transfer-Encoding: chunked\r\n" : "", keep_alive_));
}

void Connection::write_stream(std::string_view data) {
  if (!streaming_ || data.empty() || head_only_) return;
  // What waited before: one large event alone is nobody's fault.
  if (out_bytes_ > static_cast<size_t>(limits_.max_outbound_bytes)) return drop();
  queue(chunked_ ? fmt::format("{:x}\r\n{}\r\n", data.size(), data) : std::string(data));
}

void Connection::finish_stream() {
  if (!streaming_) return;
  streaming_ = false;
  answering_ = false;
  on_gone_ = nullptr;
  if (chunked_ && !head_only_) queue("0\r\n\r\n");
  if (writing_.empty() && out_.empty()) next();
}

void Connection::queue(std::string bytes) {
  out_bytes_ += bytes.size();
  out_.push_back(std::move(bytes));
  pump();
}

// One write at a time; what came meanwhile goes out together.
void Connection::pump() {
  if (closed_ || !writing_.empty() || out_.empty()) return;
  writing_.swap(out_);
  std::vector<asio::const_buffer> buffers;
  for (const std::string& bytes : writing_) buffers.push_back(asio::buffer(bytes));
  arm(limits_.write_timeout_s, false);
  asio::async_write(socket_, buffers, [self = shared_from_this()](error_code error, size_t sent) {
    if (self->closed_) return;
    if (error) return self->drop();
    self->out_bytes_ -= sent;
    self->writing_.clear();
    if (!self->out_.empty()) return self->pump();
    if (self->parser_ && !self->closing_ && !self->answering_ && !self->parser_->is_done()) {
      return self->arm(self->limits_.read_timeout_s, true);  // "100 Continue" went out
    }
    if (self->answering_) {
      ++self->timer_round_;
      self->timer_.cancel();
    } else {
      self->next();
    }
  });
}

void Connection::next() {
  if (closed_) return;
  if (!keep_alive_) return linger();
  if (watching_) {
    read_after_watch_ = true;
    error_code ignored;
    socket_.cancel(ignored);
  } else {
    read_head();
  }
}

void Connection::linger() {
  error_code ignored;
  closing_ = true;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  // A cancelled read may still hold `in_` and `parser_`: the rest goes elsewhere.
  socket_.cancel(ignored);
  lingering_.resize(16 << 10);
  arm(kLingerSeconds, false);
  drain_input();
}

void Connection::drain_input() {
  socket_.async_read_some(asio::buffer(lingering_),
                          [self = shared_from_this()](error_code error, size_t num_bytes) {
                            if (self->closed_) return;
                            self->lingered_bytes_ += num_bytes;
                            if (error || self->lingered_bytes_ > kMaxLingerBytes) {
                              return self->drop();
                            }
                            self->drain_input();
                          });
}

void Connection::drop() {
  if (closed_) return;
  closed_ = true;
  ++timer_round_;
  timer_.cancel();
  error_code ignored;
  socket_.close(ignored);
  if (const std::function<void()> gone = std::exchange(on_gone_, nullptr)) gone();
}

}  // namespace

void HttpServer::Impl::accept() {
  acceptor.async_accept([this](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted) return;
    if (error) {
      // Out of file descriptors, most likely: the next close may help.
      log_warning("accept: {}", error.message());
      accept_pause.expires_after(std::chrono::milliseconds(50));
      accept_pause.async_wait([this](error_code stopped) {
        if (!stopped) accept();
      });
      return;
    }
    if (static_cast<int>(connections.size()) >= limits.max_connections) {
      HttpResponse full = handler.malformed(503, "too many connections");
      const std::string text =
          head_text(full, fmt::format("Content-Length: {}\r\n", full.body.size()), false) +
          full.body;
      error_code ignored;
      socket.non_blocking(true, ignored);
      socket.write_some(asio::buffer(text), ignored);
      socket.shutdown(tcp::socket::shutdown_send, ignored);
    } else {
      std::make_shared<Connection>(std::move(socket), limits, handler, connections)->start();
    }
    accept();
  });
}

void HttpServer::Impl::wait_signal() {
  signals.async_wait([this](error_code error, int signal) {
    if (error) return;
    signal_task(signal);
    wait_signal();
  });
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

Result<std::unique_ptr<HttpServer>> HttpServer::create(const std::string& address, int port,
                                                       const HttpLimits& limits,
                                                       HttpHandler& handler) {
  VOLLEY_TRY_STATUS(limits.validate());
  if (port < 0 || port > 65535) return invalid("port: expected 0 to 65535, got {}", port);
  error_code error;
  const asio::ip::address ip =
      asio::ip::make_address(address == "localhost" ? "127.0.0.1" : address, error);
  if (error) return invalid("host: expected an IP address or localhost, got '{}'", address);
  auto impl = std::make_unique<Impl>(limits, handler);
  const tcp::endpoint endpoint(ip, static_cast<unsigned short>(port));
  impl->acceptor.open(endpoint.protocol(), error);
  if (!error) impl->acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) impl->acceptor.bind(endpoint, error);
  if (!error) impl->acceptor.listen(4096, error);
  if (error) {
    return make_error(ErrorKind::kIo, "cannot listen on {}:{}: {}", address, port, error.message());
  }
  impl->accept();
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const {
  error_code ignored;
  return impl_->acceptor.local_endpoint(ignored).port();
}

void HttpServer::run() {
  const auto keep = asio::make_work_guard(impl_->io);
  impl_->io.run();
}

void HttpServer::stop() {
  impl_->io.stop();
}

void HttpServer::post(std::function<void()> task) {
  asio::post(impl_->io, std::move(task));
}

void HttpServer::post_after(double seconds, std::function<void()> task) {
  auto timer = std::make_shared<asio::steady_timer>(
      impl_->io, std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                     std::chrono::duration<double>(seconds)));
  timer->async_wait([timer, task = std::move(task)](error_code error) {
    if (!error) task();
  });
}

void HttpServer::on_signals(std::vector<int> signals, std::function<void(int)> task) {
  impl_->signal_task = std::move(task);
  for (const int signal : signals) {
    error_code ignored;
    impl_->signals.add(signal, ignored);
  }
  impl_->wait_signal();
}

int HttpServer::num_connections() const {
  return static_cast<int>(impl_->connections.size());
}

int HttpServer::num_answering() const {
  return static_cast<int>(std::count_if(impl_->connections.begin(), impl_->connections.end(),
                                        [](const Connection* one) { return one->is_answering(); }));
}

}  // namespace volley::server
