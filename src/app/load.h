#pragma once

// Model folders to a running engine. The only place where a backend is chosen.

#include <memory>
#include <string>
#include <vector>

#include "app/chat_format.h"
#include "app/options.h"
#include "engine/engine.h"
#include "ops/cpu/cpu_ops.h"
#include "text/tokenizer.h"

namespace volley {

// What an engine runs on.
struct Backend {
  bool is_ref = false;
  Isa isa = Isa::kAuto;
  int num_threads = 1;
  WeightFormat weight_format = WeightFormat::kAuto;
  std::string pack_cache;  // a folder, or empty: every start packs
  int64_t pack_cache_bytes = 0;
};
Result<Backend> choose_backend(const ModelOptions& options);

// A target, its drafter if there is one, and their engine. Destroyed in reverse order.
struct LoadedModels {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<TargetModel> target;
  std::unique_ptr<DflashDrafter> drafter;  // may be null
  std::unique_ptr<Engine> engine;
  int num_threads = 1;
  double load_s = 0;

  const TargetConfig& target_config() const { return target->config(); }
};
Result<LoadedModels> load_models(const std::string& target_folder, const std::string& draft_folder,
                                 const Backend& backend, const EngineConfig& config);

// Text on both sides of the model.
struct TextSide {
  Tokenizer tokenizer;
  ChatFormat chat;
};
Result<TextSide> load_text(const std::string& target_folder);
// What messages become: through the chat template where there is one and not `raw`, or joined.
Result<std::vector<int32_t>> encode_messages(const TextSide& text, bool raw,
                                             const std::vector<ChatMessage>& messages);

// All of it, as the flags say. `raw` turns the chat template off.
struct Loaded {
  LoadedModels models;
  TextSide text;
  bool raw = false;

  Result<std::vector<int32_t>> prompt_ids(const std::vector<ChatMessage>& messages) const {
    return encode_messages(text, raw, messages);
  }
};
// `prefix_caching`: later prompts may reuse what earlier ones computed (a conversation's history).
// Benchmarks turn it off: every prompt is prefilled.
Result<Loaded> load(const ModelOptions& options, bool prefix_caching);

}  // namespace volley
