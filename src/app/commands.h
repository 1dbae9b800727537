#pragma once

// One function a subcommand; each returns the process's exit code or the error to show.

#include "app/options.h"
#include "hub/hub.h"

namespace volley {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitBadInput = 2;

Result<int> run_generate(const Options& options);
Result<int> run_chat(const Options& options);
Result<int> run_bench(const Options& options);
Result<int> run_same_answer(const Options& options);
Result<int> run_demo(const Options& options);
Result<int> run_inspect(const Options& options);
Result<int> run_tokenize(const Options& options);
// Prints the folder of each of options.folders.
Result<int> run_download(const Options& options, const Hub& hub);

// What the caller gave is wrong (2), or the program could not do its work (1).
int exit_code_of(const Error& error);

}  // namespace volley
