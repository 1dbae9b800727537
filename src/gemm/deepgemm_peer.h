#pragma once

// DeepGEMM beside our kernels in the benchmark, where the user has it installed. Its interface is
// Python, so a process of its own times it (bench/peers/deepgemm.py) and is asked for one round of
// a measurement at a time: a line of JSON each way over a socket.

#include <memory>
#include <string>
#include <vector>

#include "gemm/shape.h"

namespace volley::gemm {

struct DeepGemmProblem {
  GemmShape shape;     // FP8 or bf16, bf16 out; dense, grouped by rows, prefix sum or masked
  int group_rows = 0;  // rows of each group that count; dense: m
};

struct DeepGemmRound {
  double rot_us = 0;            // a launch of the graph
  std::vector<double> cold_us;  // of each cold launch
};

class DeepGemmPeer {
 public:
  // Runs `command` with sh and waits for its first line. kUnsupported, with the command's own
  // reason, where it has no DeepGEMM or no GPU.
  static Result<std::unique_ptr<DeepGemmPeer>> start(const std::string& command);
  DeepGemmPeer(const DeepGemmPeer&) = delete;
  DeepGemmPeer& operator=(const DeepGemmPeer&) = delete;
  ~DeepGemmPeer();  // ends the process

  const std::string& version() const { return version_; }

  // Whether DeepGEMM has a product of this kind.
  static bool has(const GemmShape& shape);

  // Has the kernels of all problems compiled; returns the seconds that took.
  Result<double> compile(const std::vector<DeepGemmProblem>& problems);
  // Makes `num_sets` operand sets, checks a product and captures `repeats` launches of each.
  Status prepare(const DeepGemmProblem& problem, size_t num_sets, size_t repeats);
  // Round `index` of the prepared problem: as BenchGpu::time_contenders() times our own.
  Result<DeepGemmRound> round(int index);

 private:
  DeepGemmPeer(int socket, int child) : socket_(socket), child_(child) {}
  Status send_line(const std::string& line);
  Result<std::string> read_line();

  int socket_ = -1;
  int child_ = -1;
  std::string unread_;
  std::string version_;
};

}  // namespace volley::gemm
