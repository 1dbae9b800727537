#include "app/machine.h"

#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <set>
#include <sstream>

namespace volley {
namespace {

std::string first_line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Cores of the control group's quota ("200000 100000" is two); 0: no quota.
int quota_cores() {
  std::istringstream line(first_line_of("/sys/fs/cgroup/cpu.max"));
  double quota = 0, period = 0;
  if (!(line >> quota >> period) || quota <= 0 || period <= 0) return 0;  // "max 100000"
  return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

}  // namespace

int usable_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
  // Hyper-threads of a core share the list of its siblings.
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string siblings = first_line_of(
        fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    cores.insert(siblings.empty() ? fmt::format("cpu {}", cpu) : siblings);
  }
  int count = std::max(1, static_cast<int>(cores.size()));
  if (const int quota = quota_cores(); quota > 0) count = std::min(count, quota);
  return count;
}

std::string cpu_model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16}) {
    if (isa_available(isa)) isas.push_back(isa);
  }
  return isas;
}

Result<Isa> isa_of_flag(const std::string& flag) {
  Isa isa = Isa::kAuto;
  if (flag == "avx2") isa = Isa::kAvx2;
  if (flag == "avx512") isa = Isa::kAvx512;
  if (flag == "amx") isa = Isa::kAmxBf16;
  if (isa_available(isa)) return isa;
  if (isa == Isa::kAuto) {
    return make_error(ErrorKind::kUnsupported,
                      "this processor has no AVX2: --backend ref still runs, slowly");
  }
  std::string names;
  for (const Isa available : available_isas()) names += fmt::format(" {}", isa_name(available));
  return make_error(ErrorKind::kUnsupported, "--isa {}: this machine has{}", flag,
                    names.empty() ? std::string(" no unit of Volley's") : names);
}

TerminalState terminal_state() {
  TerminalState state;
  state.out_is_terminal = isatty(STDOUT_FILENO) == 1;
  state.err_is_terminal = isatty(STDERR_FILENO) == 1;
  state.in_is_terminal = isatty(STDIN_FILENO) == 1;
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  state.wants_no_color = (no_color != nullptr && *no_color != '\0') ||
                         (term != nullptr && std::string_view(term) == "dumb");
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    state.num_columns = size.ws_col;
  }
  return state;
}

bool use_color(ColorMode mode, const TerminalState& terminal) {
  if (mode != ColorMode::kAuto) return mode == ColorMode::kAlways;
  return terminal.out_is_terminal && !terminal.wants_no_color;
}

}  // namespace volley
