"""DFlash v1 (arXiv 2602.06036) in plain PyTorch, float32, one sequence, no cache: the oracle for drafters.

Reads a drafter folder in the z-lab or the speculators layout. Written from the paper and from these sources:
  z-lab/dflash, dflash/model.py: the forward pass, default taps, hidden_states[id + 1];
  vllm, models/qwen3_dflash.py: causality precedence, use_swa, windows, d2t as distances, biases;
  vllm-project/speculators, models/dflash: aux ids = z-lab ids + 1, sliding_window_non_causal.
tools/make_golden_models.py --check-z-lab runs z-lab's own module on the same weights.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors import safe_open


def read_tensors(folder):
    """The checkpoint of a folder: one file or shards."""
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def default_taps(num_target_layers, num_draft_layers):
    """z-lab's choice where a config names no layers; round() is Python's, halves to even."""
    if num_draft_layers == 1:
        return [num_target_layers // 2]
    span = num_target_layers - 3 - 1
    return [int(round(1 + i * span / (num_draft_layers - 1))) for i in range(num_draft_layers)]


def rms_norm(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, positions, theta):
    """x [heads, rows, head_dim]: halves rotated, as in Transformers."""
    half = x.shape[-1] // 2
    inverse = 1.0 / theta ** (torch.arange(half, dtype=torch.float32) / half)
    angle = positions.float()[:, None] * inverse
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


class Drafter:
    def __init__(self, folder, target_embed, target_head):
        """target_embed, target_head [vocab, hidden]: used where the drafter has none of its own."""
        self.config = config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.weights = {name: t if name in ("d2t", "t2d") else t.float() for name, t in read_tensors(folder).items()}
        speculators = "speculators_model_type" in config
        self.sizes = sizes = config["transformer_layer_config"] if speculators else config
        dflash = config.get("dflash_config") or {}
        if speculators:
            self.taps = [i - 1 for i in config["aux_hidden_state_layer_ids"]]
        else:
            self.taps = dflash.get("target_layer_ids") or default_taps(config["num_target_layers"],
                                                                        config["num_hidden_layers"])
        self.block_size = config.get("block_size") or dflash["block_size"]
        self.mask_token_id = config["mask_token_id"] if speculators else dflash["mask_token_id"]
        self.theta = (sizes.get("rope_parameters") or sizes)["rope_theta"]

        types = sizes.get("layer_types") or ["full_attention"] * sizes["num_hidden_layers"]
        any_sliding = "sliding_attention" in types
        window = dflash.get("swa_window_size") or sizes.get("sliding_window")
        causal = config.get("is_causal") if config.get("is_causal") is not None else dflash.get("causal")
        sliding_causal = not config.get("sliding_window_non_causal", False)
        self.attention = []  # (window or None, causal in the block) of each layer
        for kind in types:
            sliding = kind == "sliding_attention"
            in_block = causal if causal is not None else sliding and sliding_causal
            windowed = sliding or (dflash.get("use_swa", False) and not any_sliding)
            self.attention.append((window if windowed else None, in_block))

        self.embed = self.weights.get("embed_tokens.weight", target_embed)
        self.head = self.weights.get("lm_head.weight", target_head)
        d2t = self.weights.get("d2t")
        self.target_ids = torch.arange(self.head.shape[0])  # target id of each row of the head
        if d2t is not None and self.head.shape[0] != sizes["vocab_size"]:
            self.target_ids = self.target_ids + d2t

    def mask(self, layer_idx, num_context):
        """[block, context + block] bool: what each query of a block at num_context sees."""
        window, causal = self.attention[layer_idx]
        query = torch.arange(num_context, num_context + self.block_size)[:, None]
        key = torch.arange(num_context + self.block_size)[None, :]
        seen = torch.ones(query.shape[0], key.shape[1], dtype=torch.bool)
        if causal:
            seen &= key <= query
        if window is not None:
            seen &= (query - key < window) & (key - query < window)
        return seen

    def linear(self, name, x):
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def heads(self, x):
        return x.unflatten(-1, (-1, self.sizes["head_dim"])).transpose(0, 1)

    @torch.inference_mode()
    def logits(self, target_hidden, anchor_token):
        """target_hidden [num_context, num_taps * hidden], the states before the anchor -> [block - 1, draft vocab]."""
        eps = self.sizes["rms_norm_eps"]
        num_context = target_hidden.shape[0]
        context = rms_norm(self.linear("fc", target_hidden), self.weights["hidden_norm.weight"], eps)
        ids = torch.tensor([anchor_token] + [self.mask_token_id] * (self.block_size - 1))
        positions = torch.arange(num_context + self.block_size)
        x = self.embed[ids]
        for i in range(self.sizes["num_hidden_layers"]):
            layer = f"layers.{i}."
            attention = layer + "self_attn."
            y = rms_norm(x, self.weights[layer + "input_layernorm.weight"], eps)
            both = torch.cat((context, y))  # the same projections see the context and the block
            q = rms_norm(self.heads(self.linear(attention + "q_proj", y)),
                         self.weights[attention + "q_norm.weight"], eps)
            k = rms_norm(self.heads(self.linear(attention + "k_proj", both)),
                         self.weights[attention + "k_norm.weight"], eps)
            v = self.heads(self.linear(attention + "v_proj", both))
            q = rotate(q, positions[num_context:], self.theta)
            k = rotate(k, positions, self.theta)
            group = q.shape[0] // k.shape[0]
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
            scores = q @ k.transpose(1, 2) * self.sizes["head_dim"] ** -0.5
            scores = scores.masked_fill(~self.mask(i, num_context), float("-inf"))
            out = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
            x = x + self.linear(attention + "o_proj", out)
            y = rms_norm(x, self.weights[layer + "post_attention_layernorm.weight"], eps)
            gate = F.silu(self.linear(layer + "mlp.gate_proj", y))
            x = x + self.linear(layer + "mlp.down_proj", gate * self.linear(layer + "mlp.up_proj", y))
        return rms_norm(x, self.weights["norm.weight"], eps)[1:] @ self.head.T

    def draft(self, target_hidden, anchor_token):
        """-> draft tokens [block - 1] as target ids, and the logits they are the argmax of."""
        logits = self.logits(target_hidden, anchor_token)
        return self.target_ids[logits.argmax(-1)], logits
