#include "gemm/deepgemm_peer.h"

#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/json.h"

extern char** environ;  // the command runs with the process's own

namespace volley::gemm {
namespace {

// Compiling all kernels of a run on few cores takes the longest.
constexpr int kTimeoutSeconds = 900;

const char* grouping_name(Grouping grouping) {
  switch (grouping) {
    case Grouping::kRowIndex:
      return "row index";
    case Grouping::kPrefixSum:
      return "prefix sum";
    case Grouping::kMasked:
      return "masked";
    default:
      return "dense";
  }
}

Json problem_json(const DeepGemmProblem& problem) {
  const GemmShape& s = problem.shape;
  return Json{{"mma", s.mma == MmaKind::kFp8 ? "fp8" : "bf16"},
              {"grouping", grouping_name(s.grouping)},
              {"m", s.m},
              {"n", s.n},
              {"k", s.k},
              {"num_groups", s.num_groups},
              {"group_rows", problem.group_rows},
              {"expected_m", s.expected_m > 0 ? s.expected_m : s.m}};
}

tl::unexpected<Error> not_understood(const std::string& line) {
  return make_error(ErrorKind::kIo, "DeepGEMM's process answered \"{}\"", line.substr(0, 200));
}

// An object, or the error that it reports.
Result<Json> parse_answer(const std::string& line, ErrorKind kind_of_error) {
  auto answer = parse_json(line, "DeepGEMM's answer");
  if (!answer || !answer->is_object()) return not_understood(line);
  if (const auto error = answer->find("error"); error != answer->end()) {
    return make_error(kind_of_error, "{}",
                      error->is_string() ? error->get<std::string>() : dump_json(*error));
  }
  return std::move(*answer);
}

Result<double> number(const Json& object, const char* name, const std::string& line) {
  const auto value = object.find(name);
  if (value == object.end() || !value->is_number()) return not_understood(line);
  return value->get<double>();
}

}  // namespace

Result<std::unique_ptr<DeepGemmPeer>> DeepGemmPeer::start(const std::string& command) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return make_error(ErrorKind::kIo, "no socket: {}", std::strerror(errno));
  }
  const timeval timeout = {.tv_sec = kTimeoutSeconds, .tv_usec = 0};
  ::setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string shell = "sh", option = "-c", text = command;
  char* const argv[] = {shell.data(), option.data(), text.data(), nullptr};
  pid_t child = 0;
  const int code = ::posix_spawnp(&child, "sh", &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (code != 0) {
    ::close(ends[0]);
    return make_error(ErrorKind::kUnsupported, "sh: cannot run it: {}", std::strerror(code));
  }
  std::unique_ptr<DeepGemmPeer> peer(new DeepGemmPeer(ends[0], child));
  const auto line = peer->read_line();
  if (!line) {
    return make_error(ErrorKind::kUnsupported, "\"{}\" did not start: {}", command,
                      line.error().message);
  }
  VOLLEY_TRY(const Json greeting, parse_answer(*line, ErrorKind::kUnsupported));
  const auto version = greeting.find("version");
  if (version == greeting.end() || !version->is_string()) return not_understood(*line);
  peer->version_ = version->get<std::string>();
  return peer;
}

DeepGemmPeer::~DeepGemmPeer() {
  ::close(socket_);
  ::kill(child_, SIGTERM);  // it may be in the middle of something
  while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

bool DeepGemmPeer::has(const GemmShape& shape) {
  return (shape.mma == MmaKind::kFp8 || shape.mma == MmaKind::kBf16) &&
         shape.out == OutKind::kBf16 && shape.grouping != Grouping::kAlongK;
}

Result<double> DeepGemmPeer::compile(const std::vector<DeepGemmProblem>& problems) {
  Json request = {{"compile", Json::array()}};
  for (const DeepGemmProblem& problem : problems) {
    request["compile"].push_back(problem_json(problem));
  }
  VOLLEY_TRY_STATUS(send_line(dump_json(request)));
  VOLLEY_TRY(const std::string line, read_line());
  VOLLEY_TRY(const Json answer, parse_answer(line, ErrorKind::kIo));
  return number(answer, "seconds", line);
}

Status DeepGemmPeer::prepare(const DeepGemmProblem& problem, size_t num_sets, size_t repeats) {
  VOLLEY_TRY_STATUS(send_line(dump_json(
      Json{{"prepare", problem_json(problem)}, {"num_sets", num_sets}, {"repeats", repeats}})));
  VOLLEY_TRY(const std::string line, read_line());
  VOLLEY_TRY_STATUS(parse_answer(line, ErrorKind::kIo));
  return {};
}

Result<DeepGemmRound> DeepGemmPeer::round(int index) {
  VOLLEY_TRY_STATUS(send_line(dump_json(Json{{"round", index}})));
  VOLLEY_TRY(const std::string line, read_line());
  VOLLEY_TRY(const Json answer, parse_answer(line, ErrorKind::kIo));
  DeepGemmRound round;
  VOLLEY_TRY(round.rot_us, number(answer, "rot_us", line));
  const auto cold = answer.find("cold_us");
  if (cold == answer.end() || !cold->is_array() || cold->empty()) return not_understood(line);
  for (const Json& us : *cold) {
    if (!us.is_number()) return not_understood(line);
    round.cold_us.push_back(us.get<double>());
  }
  return round;
}

Status DeepGemmPeer::send_line(const std::string& line) {
  const std::string bytes = line + '\n';
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t sent = ::send(socket_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      return make_error(ErrorKind::kIo, "DeepGEMM's process is gone: {}", std::strerror(errno));
    }
    at += static_cast<size_t>(sent);
  }
  return {};
}

Result<std::string> DeepGemmPeer::read_line() {
  for (;;) {
    if (const size_t end = unread_.find('\n'); end != std::string::npos) {
      std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    char buffer[4096];
    const ssize_t got = ::recv(socket_, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      return make_error(ErrorKind::kIo, "no answer within {} s", kTimeoutSeconds);
    }
    if (got < 0) return make_error(ErrorKind::kIo, "{}", std::strerror(errno));
    if (got == 0) return make_error(ErrorKind::kIo, "DeepGEMM's process ended");
    unread_.append(buffer, static_cast<size_t>(got));
  }
}

}  // namespace volley::gemm
