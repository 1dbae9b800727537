#pragma once

// The machine this process runs on: read once, at the edge of the program.

#include <string>
#include <vector>

#include "app/options.h"
#include "ops/cpu/cpu_ops.h"

namespace volley {

// Physical cores that the process may use: its CPU affinity, hyper-threads counted once, and the
// control group's CPU quota. At least 1.
int usable_cores();

// "Intel(R) Xeon(R) Processor"; "unknown processor" where /proc does not say.
std::string cpu_model_name();

// The CPU units that can run here, slowest first.
std::vector<Isa> available_isas();
// Of the flag's value: auto, avx2, avx512, amx. Errors: this machine lacks it.
Result<Isa> isa_of_flag(const std::string& flag);

struct TerminalState {
  bool out_is_terminal = false;
  bool err_is_terminal = false;
  bool in_is_terminal = false;
  bool wants_no_color = false;  // NO_COLOR is set, or TERM is dumb
  int num_columns = 80;
};
TerminalState terminal_state();
bool use_color(ColorMode mode, const TerminalState& terminal);

}  // namespace volley
