// volley inspect: what a checkpoint is, and whether a drafter fits a target.

#include <map>
#include <optional>

#include "app/chat_format.h"
#include "app/commands.h"
#include "app/weight_error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer.h"
#include "weights/config.h"
#include "weights/drafter_config.h"
#include "weights/model_files.h"

namespace volley {
namespace {

// "20.4 M", "40.7 MB": three digits that a person can take in.
std::string short_count(double value, std::string_view unit) {
  const char* prefix = "";
  for (const char* next : {"k", "M", "G", "T"}) {
    if (value < 1000) break;
    value /= 1000;
    prefix = next;
  }
  return fmt::format("{:.{}f} {}{}", value, *prefix == '\0' ? 0 : 1, prefix, unit);
}

// Rows of "name  value", shown as a table or as JSON.
class Facts {
 public:
  void add(const std::string& name, const Json& value, const std::string& shown = "") {
    json_[name] = value;
    rows_.emplace_back(name, !shown.empty()      ? shown
                             : value.is_string() ? value.get<std::string>()
                                                 : dump_json(value));
  }
  const Json& json() const { return json_; }
  std::string table() const {
    std::string out;
    for (const auto& [name, shown] : rows_) out += fmt::format("  {:<24} {}\n", name, shown);
    return out;
  }

 private:
  Json json_ = Json::object();
  std::vector<std::pair<std::string, std::string>> rows_;
};

void add_weights(const Checkpoint& checkpoint, Facts& facts) {
  int64_t num_params = 0;
  std::map<std::string, int64_t> bytes_of_dtype;
  for (const std::string_view name : checkpoint.names()) {
    const HostTensor& tensor = *checkpoint.find(name);
    num_params += tensor.num_elements();
    bytes_of_dtype[std::string(dtype_name(tensor.dtype))] +=
        tensor.num_elements() * dtype_bytes(tensor.dtype);
  }
  facts.add("parameters", num_params, short_count(static_cast<double>(num_params), ""));
  facts.add("bytes", checkpoint.num_bytes(),
            short_count(static_cast<double>(checkpoint.num_bytes()), "B"));
  facts.add("tensors", checkpoint.num_tensors());
  facts.add("files", checkpoint.num_files());
  Json dtypes = Json::object();
  std::string shown;
  for (const auto& [name, num_bytes] : bytes_of_dtype) {
    dtypes[name] = num_bytes;
    shown += fmt::format("{}{} ({})", shown.empty() ? "" : ", ", name,
                         short_count(static_cast<double>(num_bytes), "B"));
  }
  facts.add("dtypes", dtypes, shown);
}

void add_rope(const RopeConfig& rope, Facts& facts) {
  std::string shown = fmt::format("{}, theta {}", rope_type_name(rope.type), rope.theta);
  if (rope.type != RopeType::kDefault) shown += fmt::format(", factor {}", rope.factor);
  facts.add("rope",
            {{"type", rope_type_name(rope.type)}, {"theta", rope.theta}, {"factor", rope.factor}},
            shown);
}

std::string windows_shown(const std::vector<int>& windows) {
  size_t num_windowed = 0;
  int window = 0;
  for (const int layer_window : windows) {
    num_windowed += layer_window > 0 ? 1 : 0;
    window = std::max(window, layer_window);
  }
  if (num_windowed == 0) return "full in every layer";
  return fmt::format("sliding window of {} in {} of {} layers", window, num_windowed,
                     windows.size());
}

// Tokenizer and template; what is missing or broken is a fact as well, not a failure.
void add_text(const std::string& folder, Facts& facts) {
  if (const auto tokenizer = Tokenizer::load(folder)) {
    facts.add("tokenizer",
              {{"vocab_size", tokenizer->vocab_size()},
               {"special_tokens", tokenizer->special_ids().size()}},
              fmt::format("byte-level BPE, {} tokens, {} special", tokenizer->vocab_size(),
                          tokenizer->special_ids().size()));
  } else {
    facts.add("tokenizer", nullptr, tokenizer.error().message);
  }
  if (const auto chat = ChatFormat::load(folder)) {
    facts.add("chat template", chat->has_template(), chat->has_template() ? "yes" : "none");
  } else {
    facts.add("chat template", nullptr, chat.error().message);
  }
}

Result<Facts> target_facts(const std::string& folder) {
  VOLLEY_TRY(const TargetFiles files, open_target(folder));
  const TargetConfig& c = files.config;
  Facts facts;
  facts.add("kind", "target");
  facts.add("architecture", std::string(architecture_name(c.architecture)));
  add_weights(files.checkpoint, facts);
  facts.add("layers", c.num_layers);
  facts.add("hidden size", c.hidden_size);
  facts.add(
      "heads", {{"query", c.num_heads}, {"kv", c.num_kv_heads}, {"dim", c.head_dim}},
      fmt::format("{} query, {} key/value, {} wide", c.num_heads, c.num_kv_heads, c.head_dim));
  facts.add("intermediate size", c.intermediate_size);
  facts.add("vocabulary", c.vocab_size);
  facts.add("head", c.tie_word_embeddings ? "tied to the embedding" : "its own");
  facts.add("context", c.max_position_embeddings);
  add_rope(c.rope, facts);
  facts.add("attention", c.layer_window, windows_shown(c.layer_window));
  facts.add("end tokens", c.eos_token_ids);
  add_text(folder, facts);
  return facts;
}

Result<Facts> drafter_facts(const std::string& folder) {
  VOLLEY_TRY(const DrafterFiles files, open_drafter(folder));
  const DrafterConfig& c = files.config;
  Facts facts;
  facts.add("kind", "DFlash drafter");
  facts.add("layout", std::string(drafter_layout_name(c.layout)));
  add_weights(files.checkpoint, facts);
  facts.add("block size", c.block_size,
            fmt::format("{}: the anchor and {} drafts", c.block_size, c.block_size - 1));
  if (!c.short_block_sizes.empty()) {
    facts.add("short blocks", c.short_block_sizes,
              fmt::format("{}, for many sequences at once", fmt::join(c.short_block_sizes, ", ")));
  }
  facts.add("taps", c.taps, fmt::format("target layers {} (0-based outputs)", dump_json(c.taps)));
  facts.add("mask token", c.mask_token_id);
  facts.add("layers", c.num_layers);
  facts.add("hidden size", c.hidden_size);
  facts.add("tap width", c.target_hidden_size);
  facts.add("vocabulary", {{"target", c.vocab_size}, {"draft", c.draft_vocab_size}},
            c.has_reduced_vocab()
                ? fmt::format("{} of the target's {}", c.draft_vocab_size, c.vocab_size)
                : std::to_string(c.vocab_size));
  facts.add("embedding", files.weights.embed.empty() ? "the target's" : "its own");
  facts.add("head", files.weights.lm_head.empty() ? "the target's" : "its own");
  std::vector<int> windows;
  bool causal = false;
  for (const DraftLayerAttention& layer : c.attention) {
    windows.push_back(layer.window);
    causal |= layer.causal_in_block;
  }
  facts.add("attention", {{"windows", windows}, {"causal_in_block", causal}},
            fmt::format("{}; {} within the block", windows_shown(windows),
                        causal ? "causal" : "bidirectional"));
  add_rope(c.rope, facts);
  if (!c.verifier.empty()) facts.add("made for", c.verifier);
  return facts;
}

// A folder holds a drafter when its config says so.
Result<bool> is_drafter_folder(const std::string& folder) {
  VOLLEY_TRY(const std::string text, read_config_text(folder));
  VOLLEY_TRY(const Json config, parse_json(text, folder + "/config.json"));
  return is_drafter_config(config);
}

std::string fit_table(const DrafterFit& fit) {
  std::string out;
  for (const FitCheck& check : fit.checks) {
    out += fmt::format("  {:<4} {:<24} {}\n", check.ok ? "ok" : "NO", check.name, check.why);
  }
  return out;
}

Json fit_json(const DrafterFit& fit) {
  Json checks = Json::array();
  for (const FitCheck& check : fit.checks) {
    checks.push_back({{"name", check.name}, {"ok", check.ok}, {"why", check.why}});
  }
  return {{"ok", fit.ok()}, {"checks", std::move(checks)}};
}

}  // namespace

Result<int> run_inspect(const Options& options) {
  std::vector<std::string> folders = options.folders;
  if (!options.model.target.empty()) folders.push_back(options.model.target);
  if (!options.model.draft.empty()) folders.push_back(options.model.draft);

  Json models = Json::array();
  std::string text;
  std::optional<std::string> target, drafter;
  for (const std::string& folder : folders) {
    VOLLEY_TRY(const bool is_drafter, is_drafter_folder(folder));
    VOLLEY_TRY(const Facts facts, is_drafter ? drafter_facts(folder) : target_facts(folder));
    std::optional<std::string>& first = is_drafter ? drafter : target;
    if (!first) first = folder;
    Json model = {{"folder", folder}};
    model.update(facts.json());
    models.push_back(std::move(model));
    text += fmt::format("{}\n{}\n", folder, facts.table());
  }
  Json json = {{"models", std::move(models)}};
  bool fits = true;
  if (target && drafter) {
    VOLLEY_TRY(const TargetConfig target_config, read_target_config(*target));
    VOLLEY_TRY(const DrafterConfig drafter_config, read_drafter_config(*drafter));
    const DrafterFit fit = drafter_fit(target_config, drafter_config);
    fits = fit.ok();
    json["fit"] = fit_json(fit);
    text += fmt::format("{} {} {}\n{}", *drafter, fit.ok() ? "fits" : "does NOT fit", *target,
                        fit_table(fit));
  }
  if (const auto format = weight_format_from_name(options.model.weight_format);
      target && format && quant_group_size(*format) > 0) {
    VOLLEY_TRY(const WeightError error, measure_weight_error(*target, *format, options.model));
    json["weight_error"] = error.json();
    text += fmt::format("{}{}", text.empty() ? "" : "\n", error.table());
  }
  fmt::print("{}", options.prompt.json ? dump_json(json, 2) + "\n" : text);
  return fits ? kExitOk : kExitFailed;
}

}  // namespace volley
