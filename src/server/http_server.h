#pragma once

// HTTP/1.1 over TCP: one thread, any number of connections (Boost.Asio and Beast). Keep-alive,
// chunked streams, deadlines on everything a client may delay.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "server/http.h"

namespace volley::server {

class HttpServer {
 public:
  // Listens on `address` (an IP literal or "localhost") and `port`; 0 takes a free one. `handler`
  // outlives the server.
  static Result<std::unique_ptr<HttpServer>> create(const std::string& address, int port,
                                                    const HttpLimits& limits, HttpHandler& handler);
  ~HttpServer();

  int port() const;

  // Serves on the calling thread until stop(). Open connections are then dropped.
  void run();
  // From any thread.
  void stop();
  // Runs `task` on the server's thread; from any thread, also before run().
  void post(std::function<void()> task);
  // Runs `task` on the server's thread after `seconds`.
  void post_after(double seconds, std::function<void()> task);
  // Runs `task` on the server's thread at each of these signals.
  void on_signals(std::vector<int> signals, std::function<void(int)> task);

  // Server thread only.
  int num_connections() const;
  // Of these, those whose request was read and whose answer has not wholly left.
  int num_answering() const;

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace volley::server
