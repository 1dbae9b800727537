#include "app/load.h"

#include "app/machine.h"
#include "base/clock.h"
#include "base/log.h"
#include "ops/cpu/pack_cache.h"
#include "ops/ref/ref_ops.h"
#include "weights/model_files.h"

namespace volley {

Result<Backend> choose_backend(const ModelOptions& options) {
  Backend backend{.is_ref = options.backend == "ref"};
  if (backend.is_ref) return backend;
  backend.num_threads = options.num_threads > 0 ? options.num_threads : usable_cores();
  VOLLEY_TRY(backend.isa, isa_of_flag(options.isa));
  const auto format = weight_format_from_name(options.weight_format);
  if (!format) {
    return invalid("--weight-format: expected auto, bf16, fp8, int8 or int4, got '{}'",
                   options.weight_format);
  }
  backend.weight_format = *format;
  if (options.pack_cache != "off") backend.pack_cache = options.pack_cache;
  backend.pack_cache_bytes = int64_t{options.pack_cache_gib} << 30;
  return backend;
}

namespace {

// A line now and then while weights are packed, which can take a minute.
class PackProgress {
 public:
  explicit PackProgress(int64_t num_bytes) : num_bytes_(num_bytes), last_s_(now_s()) {}
  void add(int64_t bytes) {
    done_ += bytes;
    if (now_s() - last_s_ < kEveryS) return;
    last_s_ = now_s();
    log_info("packing weights: {:.0f}% of {:.1f} GB",
             100.0 * static_cast<double>(done_) / static_cast<double>(num_bytes_),
             1e-9 * static_cast<double>(num_bytes_));
  }

 private:
  static constexpr double kEveryS = 2;
  int64_t num_bytes_;
  int64_t done_ = 0;
  double last_s_;
};

// A cache that cannot be had costs time at start and nothing else.
std::unique_ptr<cpu::PackCache> open_pack_cache(const Backend& backend) {
  if (backend.is_ref || backend.pack_cache.empty()) return nullptr;
  auto cache =
      cpu::PackCache::open({.dir = backend.pack_cache, .max_bytes = backend.pack_cache_bytes});
  if (cache) return std::make_unique<cpu::PackCache>(std::move(*cache));
  log_warning("{}", cache.error().message);
  return nullptr;
}

std::string describe(const cpu::PackCache* cache) {
  if (cache == nullptr) return "";
  const cpu::PackCache::Counts& counts = cache->counts();
  if (counts.corrupt > 0)
    log_warning("{}: {} files of packed weights were damaged; packed again", cache->dir().string(),
                counts.corrupt);
  if (!counts.store_error.empty())
    log_warning("packed weights are not all kept: {}", counts.store_error);
  const int num_asked = counts.hits + counts.misses;
  if (num_asked == 0) return "";
  return fmt::format("; {} of {} matrices from {}", counts.hits, num_asked, cache->dir().string());
}

}  // namespace

Result<LoadedModels> load_models(const std::string& target_folder, const std::string& draft_folder,
                                 const Backend& backend, const EngineConfig& config) {
  const double start = now_s();
  VOLLEY_TRY_STATUS(config.validate());
  // The mapped files may go once the weights are packed.
  VOLLEY_TRY(const TargetFiles target_files, open_target(target_folder));
  std::optional<DrafterFiles> draft_files;
  if (!draft_folder.empty()) {
    VOLLEY_TRY(draft_files, open_drafter(draft_folder));
    VOLLEY_TRY_STATUS(check_drafter_fits(target_files.config, draft_files->config));
  }

  const std::unique_ptr<cpu::PackCache> pack_cache = open_pack_cache(backend);
  // Shared with the ops, which outlive it here.
  const auto progress =
      std::make_shared<PackProgress>(target_files.checkpoint.num_bytes() +
                                     (draft_files ? draft_files->checkpoint.num_bytes() : 0));
  LoadedModels loaded;
  loaded.num_threads = backend.num_threads;
  if (backend.is_ref) {
    loaded.ops = make_ref_ops();
  } else {
    VOLLEY_TRY(loaded.ops,
               make_cpu_ops({.num_threads = backend.num_threads,
                             .isa = backend.isa,
                             .weight_format = backend.weight_format,
                             .pack_cache = pack_cache.get(),
                             .on_packed = [progress](int64_t bytes) { progress->add(bytes); }}));
  }
  const ModelLimits limits = Engine::model_limits(config, target_files.config,
                                                  draft_files ? &draft_files->config : nullptr);
  VOLLEY_TRY(loaded.target,
             TargetModel::create(target_files.config, target_files.weights, limits, *loaded.ops));
  if (draft_files) {
    VOLLEY_TRY(loaded.drafter, DflashDrafter::create(draft_files->config, draft_files->weights,
                                                     *loaded.target, limits, *loaded.ops));
  }
  VOLLEY_TRY(loaded.engine,
             Engine::create(config, *loaded.target, loaded.drafter.get(), *loaded.ops));
  loaded.load_s = now_s() - start;
  log_info("{} {}, {:.1f} MB of weights a pass{}; {}, {} thread{}; loaded in {:.2f} s{}",
           architecture_name(target_files.config.architecture), target_folder,
           1e-6 * static_cast<double>(loaded.target->num_weight_bytes()),
           draft_files ? fmt::format("; drafter {}, block of {}, {:.1f} MB", draft_folder,
                                     draft_files->config.block_size,
                                     1e-6 * static_cast<double>(loaded.drafter->num_weight_bytes()))
                       : std::string(", no drafter"),
           loaded.ops->name(), loaded.num_threads, loaded.num_threads == 1 ? "" : "s",
           loaded.load_s, describe(pack_cache.get()));
  return loaded;
}

Result<TextSide> load_text(const std::string& target_folder) {
  VOLLEY_TRY(Tokenizer tokenizer, Tokenizer::load(target_folder));
  VOLLEY_TRY(ChatFormat chat, ChatFormat::load(target_folder));
  return TextSide{std::move(tokenizer), std::move(chat)};
}

Result<std::vector<int32_t>> encode_messages(const TextSide& text, bool raw,
                                             const std::vector<ChatMessage>& messages) {
  if (!raw && text.chat.has_template()) {
    VOLLEY_TRY(const std::string rendered, text.chat.render(messages));
    // The template wrote the special tokens that the post-processor would add.
    return text.tokenizer.encode(rendered, {.add_special_tokens = false});
  }
  std::string joined;
  for (const ChatMessage& message : messages) {
    if (!joined.empty()) joined += "\n\n";
    joined += message.content;
  }
  return text.tokenizer.encode(joined);
}

Result<Loaded> load(const ModelOptions& options, bool prefix_caching) {
  VOLLEY_TRY(const Backend backend, choose_backend(options));
  // The configs first: they are small and tell best what is wrong with a folder.
  VOLLEY_TRY(const TargetConfig target_config, read_target_config(options.target));
  if (!options.draft.empty()) {
    VOLLEY_TRY(const DrafterConfig draft_config, read_drafter_config(options.draft));
    VOLLEY_TRY_STATUS(check_drafter_fits(target_config, draft_config));
  }
  VOLLEY_TRY(TextSide text, load_text(options.target));
  EngineConfig config;
  config.max_model_len = options.max_model_len;
  config.prefill_chunk = options.prefill_chunk;
  config.max_num_seqs = options.max_num_seqs;
  config.max_queued = std::max(config.max_queued, config.max_num_seqs);
  config.prefix_caching = prefix_caching;
  VOLLEY_TRY(LoadedModels models, load_models(options.target, options.draft, backend, config));
  const DraftLengthChoice& length = options.draft_length;
  const int longest = models.engine->block_size() - 1;
  if (length.mode == DraftLengthChoice::Mode::kFixed && models.drafter != nullptr &&
      length.length > longest) {
    return invalid("--draft-length {}: this drafter's block of {} drafts at most {}", length.length,
                   longest + 1, longest);
  }
  return Loaded{std::move(models), std::move(text), options.raw};
}

}  // namespace volley
