// The program: arguments in, exit code out.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "app/bench_serve.h"
#include "app/commands.h"
#include "app/kernels.h"
#include "app/model_folders.h"
#include "app/options.h"
#include "app/serve.h"
#include "base/log.h"

namespace volley {
namespace {

LogLevel log_level(const Options& options) {
  if (options.output.quiet) return LogLevel::kOff;
  if (options.output.verbose) return LogLevel::kDebug;
  // A single answer should be readable with stderr on the same screen.
  const bool talks = options.verb == Verb::kGenerate || options.verb == Verb::kChat ||
                     options.verb == Verb::kInspect || options.verb == Verb::kTokenize;
  return talks ? LogLevel::kWarning : LogLevel::kInfo;
}

const char* environment_variable(const char* name) {
  return std::getenv(name);
}

Result<int> run(Options options) {
  if (options.verb != Verb::kDownload && options.verb != Verb::kTokenize) {
    const Hub hub(hub_config(environment_variable, options.model.hub_cache));
    VOLLEY_TRY_STATUS(find_model_folders(hub, download_line(options.output.quiet, nullptr),
                                         options.model, options.folders));
    options.model.pack_cache = pack_cache_folder(environment_variable, options.model.pack_cache);
  }
  switch (options.verb) {
    case Verb::kHelp:
      std::fputs(options.help.c_str(), stdout);
      return kExitOk;
    case Verb::kGenerate:
      return run_generate(options);
    case Verb::kChat:
      return run_chat(options);
    case Verb::kBench:
      return run_bench(options);
    case Verb::kSameAnswer:
      return run_same_answer(options);
    case Verb::kDemo:
      return run_demo(options);
    case Verb::kInspect:
      return run_inspect(options);
    case Verb::kTokenize:
      return run_tokenize(options);
    case Verb::kDownload:
      return run_download(options, Hub(hub_config(environment_variable, options.model.hub_cache)));
  }
  return kExitFailed;
}

int report(const Error& error) {
  std::fflush(stdout);
  fmt::print(stderr, "volley: {}\n", error.message);
  return exit_code_of(error);
}

int run_program(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away is a failed write, not a death
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (!words.empty() && words[0] == "serve") {  // has a config file and an environment of its own
    const auto code = run_serve({words.begin() + 1, words.end()}, environment_variable);
    return code ? *code : report(code.error());
  }
  if (!words.empty() && words[0] == "kernels") {
    const auto code = run_kernels({words.begin() + 1, words.end()});
    return code ? *code : report(code.error());
  }
  if (words.size() > 1 && words[0] == "bench" && words[1] == "serve") {
    const auto code = run_bench_serve({words.begin() + 2, words.end()});
    return code ? *code : report(code.error());
  }
  auto options = parse_options(std::vector<std::string>(argv + 1, argv + argc));
  if (!options) return report(options.error());
  set_log_level(log_level(*options));
  const auto code = run(std::move(*options));
  if (!code) return report(code.error());
  if (std::fflush(stdout) != 0) {
    return report({ErrorKind::kIo, "standard output could not be written"});
  }
  return *code;
}

}  // namespace

int exit_code_of(const Error& error) {
  return error.kind == ErrorKind::kIo ? kExitFailed : kExitBadInput;
}

}  // namespace volley

int main(int argc, char** argv) {
  try {
    return volley::run_program(argc, argv);
  } catch (const std::exception& error) {
    // Out of memory, most likely: our own code does not throw.
    fmt::print(stderr, "volley: failed: {}\n", error.what());
    return volley::kExitFailed;
  }
}
