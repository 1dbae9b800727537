#pragma once

// Name-to-field tables: the tensors of a checkpoint, by the names Hugging Face gives them, with
// every shape and dtype checked against the config. Views borrow the Checkpoint's mapping.

#include <cstdint>
#include <filesystem>
#include <vector>

#include "base/result.h"
#include "tensor/host_tensor.h"
#include "weights/config.h"
#include "weights/drafter_config.h"
#include "weights/safetensors.h"

namespace volley {

// One Transformer layer of a target or a drafter. q_size = num_heads * head_dim, kv_size =
// num_kv_heads * head_dim. Matrices are f32, f16, bf16, or f8_e4m3 with 128x128 scales; norms and
// biases f32, f16 or bf16. Fields that the config rules out are empty().
struct LayerWeights {
  HostTensor input_norm;           // [hidden_size]
  HostMatrix q;                    // [q_size, hidden_size]
  HostMatrix k;                    // [kv_size, hidden_size]
  HostMatrix v;                    // [kv_size, hidden_size]
  HostMatrix o;                    // [hidden_size, q_size]
  HostTensor q_bias;               // [q_size], with qkv_bias or attention_bias
  HostTensor k_bias;               // [kv_size]
  HostTensor v_bias;               // [kv_size]
  HostTensor o_bias;               // [hidden_size], with o_bias or attention_bias
  HostTensor q_norm;               // [head_dim], with qk_norm; always in a drafter
  HostTensor k_norm;               // [head_dim]
  HostTensor post_attention_norm;  // [hidden_size]
  HostMatrix gate;                 // [intermediate_size, hidden_size]
  HostMatrix up;                   // [intermediate_size, hidden_size]
  HostMatrix down;                 // [hidden_size, intermediate_size]
};

struct TargetWeights {
  HostMatrix embed;                  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;  // [num_layers]
  HostTensor norm;                   // [hidden_size]
  HostMatrix lm_head;                // [vocab_size, hidden_size]; is `embed` when tied
};

struct DrafterWeights {
  HostMatrix fc;                     // [hidden_size, num_taps * target_hidden_size]
  HostTensor hidden_norm;            // [hidden_size], after fc
  std::vector<LayerWeights> layers;  // [num_layers]
  HostTensor norm;                   // [hidden_size]
  HostMatrix embed;                  // [vocab_size, hidden_size]; empty: use the target's
  HostMatrix lm_head;                // [draft_vocab_size, hidden_size]; empty: use the target's
  // Target id of each row of lm_head, increasing; empty when the vocabularies are the same.
  std::vector<int32_t> draft_to_target;  // [draft_vocab_size]
  // Row of lm_head of each target id, -1 where it has none; empty when the same.
  std::vector<int32_t> target_to_draft;  // [vocab_size]
};

// Errors list the tensors that are missing, or that the config does not call for (the first few and
// their number); tensors known to be without effect, such as rotary inv_freq, are skipped.
Result<TargetWeights> read_target_weights(const Checkpoint& checkpoint, const TargetConfig& config);
Result<DrafterWeights> read_drafter_weights(const Checkpoint& checkpoint,
                                            const DrafterConfig& config);

// A whole model folder: config, mapped files, and views into them.
struct TargetFiles {
  TargetConfig config;
  Checkpoint checkpoint;
  TargetWeights weights;
};
struct DrafterFiles {
  DrafterConfig config;
  Checkpoint checkpoint;
  DrafterWeights weights;
};
Result<TargetFiles> open_target(const std::filesystem::path& folder);
Result<DrafterFiles> open_drafter(const std::filesystem::path& folder);

}  // namespace volley
