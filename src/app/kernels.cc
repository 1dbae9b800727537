#include "app/kernels.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "app/commands.h"
#include "base/clock.h"
#include "base/file.h"
#include "gemm/gemm.h"
#include "gemm/quantizer.h"
#include "gemm/shape_file.h"

namespace volley {
namespace {

struct KernelsOptions {
  std::string arch = "sm_90a";
  std::string shapes_file;
  std::string output;
  std::string cache_dir;
  std::string nvrtc;
  std::string nvcc;
  int threads = 0;
  bool quiet = false;

  std::string bundle;  // list

  int m = 0, n = 0, k = 0;  // explain
  std::string mma = "fp8", out = "bf16", grouping = "dense";
  int groups = 1, group_align = 128, expected_m = 0, segments = 0;
  int count = 10;
};

Result<std::unique_ptr<jit::Compiler>> open_compiler(const KernelsOptions& o) {
  if (!o.nvcc.empty()) return jit::find_nvcc(o.nvcc, std::filesystem::temp_directory_path());
  return jit::load_nvrtc(o.nvrtc);
}

Result<int> build(const KernelsOptions& o) {
  if (o.arch != "sm_90a") {
    return make_error(ErrorKind::kUnsupported, "--arch {}: the kernels are for sm_90a (Hopper)",
                      o.arch);
  }
  VOLLEY_TRY(const std::string text, read_file(o.shapes_file, 4 << 20));
  VOLLEY_TRY(const std::vector<gemm::GemmShape> shapes, gemm::parse_shapes(text, o.shapes_file));
  VOLLEY_TRY(auto compiler, open_compiler(o));
  const std::string compiler_id = compiler->id();
  std::optional<jit::DiskCache> cache;
  if (!o.cache_dir.empty()) {
    VOLLEY_TRY(jit::DiskCache opened, jit::DiskCache::open({.dir = o.cache_dir}));
    cache = std::move(opened);
  }
  jit::KernelLibrary library({.arch = o.arch}, std::nullopt, std::move(cache), std::move(compiler));
  VOLLEY_TRY(std::vector<jit::KernelSource> sources, gemm::kernels_for(shapes, gemm::DeviceSpec{}));
  sources.push_back(gemm::quantizer_source());
  const int threads = o.threads > 0
                          ? o.threads
                          : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  const double start_s = now_s();
  VOLLEY_TRY_STATUS(
      library.warm_up(sources, threads, [&](int64_t done, int64_t total, const std::string& name) {
        if (!o.quiet) fmt::print(stderr, "[{}/{}] {}\n", done, total, name);
      }));
  std::vector<jit::BundleEntry> entries;
  for (const jit::KernelSource& source : sources) {
    VOLLEY_TRY(const jit::KernelKey key, jit::source_key(source, o.arch));
    VOLLEY_TRY(const std::string* cubin, library.cubin(source));
    entries.push_back({key, source.name, *cubin});
  }
  VOLLEY_TRY(const std::string bytes,
             jit::make_bundle(std::move(entries), {.arch = o.arch, .compiler = compiler_id}));
  VOLLEY_TRY_STATUS(write_file_atomic(o.output, bytes));
  const auto stats = library.stats();
  fmt::print(
      "{}: {} kernels for {} shapes, {} bytes; {} compiled by {}, {} from the cache, {:.1f} s on "
      "{} "
      "threads\n",
      o.output, sources.size(), shapes.size(), bytes.size(), stats.num_compiled, compiler_id,
      stats.num_cached, now_s() - start_s, threads);
  return kExitOk;
}

Result<int> list(const KernelsOptions& o) {
  VOLLEY_TRY(const jit::Bundle bundle, jit::Bundle::open(o.bundle));
  fmt::print("{} kernels for {}, compiled by {}\n", bundle.size(), bundle.info().arch,
             bundle.info().compiler);
  for (size_t i = 0; i < bundle.size(); ++i) fmt::print("{}\n", bundle.name(i));
  return kExitOk;
}

Result<int> explain(const KernelsOptions& o) {
  gemm::GemmShape shape = {.m = o.m,
                           .n = o.n,
                           .k = o.k,
                           .num_groups = o.groups,
                           .group_align = o.group_align,
                           .expected_m = o.expected_m,
                           .segments = o.segments};
  VOLLEY_TRY(shape.mma, gemm::mma_from_name(o.mma));
  VOLLEY_TRY(shape.out, gemm::out_from_name(o.out));
  VOLLEY_TRY(shape.grouping, gemm::grouping_from_name(o.grouping));
  VOLLEY_TRY(const std::string text, gemm::explain(shape, gemm::DeviceSpec{}, o.count));
  std::fputs(text.c_str(), stdout);
  return kExitOk;
}

}  // namespace

Result<int> run_kernels(const std::vector<std::string>& arguments) {
  KernelsOptions o;
  CLI::App app("Matrix kernels for Hopper GPUs, compiled ahead of time. Needs no GPU.");
  app.name("volley kernels");
  app.require_subcommand(1);

  CLI::App* build_command =
      app.add_subcommand("build", "compile what a list of shapes needs, into a bundle");
  build_command
      ->add_option("--shapes", o.shapes_file, "JSON list of shapes (src/gemm/shape_file.h)")
      ->required();
  build_command->add_option("-o,--output", o.output, "the bundle")->required();
  build_command->add_option("--arch", o.arch, "GPU architecture [sm_90a]");
  build_command->add_option("--cache", o.cache_dir, "folder of kernels compiled before [none]");
  build_command->add_option("--threads", o.threads, "[one a core]")->check(CLI::Range(1, 1024));
  build_command->add_option("--nvrtc", o.nvrtc, "path of libnvrtc.so [searched]");
  build_command->add_option("--nvcc", o.nvcc, "compile with this nvcc instead of NVRTC");
  build_command->add_flag("--quiet", o.quiet, "no progress");

  CLI::App* list_command = app.add_subcommand("list", "the kernels of a bundle");
  list_command->add_option("bundle", o.bundle, "a bundle")->required();

  CLI::App* explain_command = app.add_subcommand(
      "explain", "which configuration a product gets, and the arithmetic behind it");
  explain_command->add_option("m", o.m, "rows of A")->required();
  explain_command->add_option("n", o.n, "rows of the weight")->required();
  explain_command->add_option("k", o.k, "columns of both")->required();
  explain_command->add_option("--mma", o.mma, "fp8, bf16, mxfp4, nvfp4 or fp8rows [fp8]");
  explain_command->add_option("--out", o.out, "bf16 or f32 [bf16]");
  explain_command->add_option("--grouping", o.grouping,
                              "dense, row_index, prefix_sum or masked [dense]");
  explain_command->add_option("--groups", o.groups, "weights [1]");
  explain_command->add_option("--group-align", o.group_align,
                              "rows a group begins at a multiple of [128]");
  explain_command->add_option("--expected-m", o.expected_m, "masked: rows a group likely has");
  explain_command->add_option("--segments", o.segments, "reduction plan [the weight's own]");
  explain_command->add_option("--count", o.count, "candidates to show [10]")
      ->check(CLI::Range(1, 1000));

  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
    app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    for (const CLI::App* command : {build_command, list_command, explain_command}) {
      if (!command->parsed()) continue;
      std::fputs(command->help().c_str(), stdout);
      return kExitOk;
    }
    std::fputs(app.help().c_str(), stdout);
    return kExitOk;
  } catch (const CLI::ParseError& error) {
    return invalid("kernels: {} (volley kernels --help)", error.what());
  }
  if (build_command->parsed()) return build(o);
  if (list_command->parsed()) return list(o);
  return explain(o);
}

}  // namespace volley
