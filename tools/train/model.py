"""The demo pair as PyTorch modules: a Qwen3 target, a DFlash drafter, and the FP8 rounding both are trained under.

Shapes: B rows, L tokens a row, A anchors a row, S tokens a draft block, H hidden, V vocabulary.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

FP8_MAX = 448.0
FP8_TILE = 128
IGNORE = -100


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 8192
    hidden_size: int = 512
    intermediate_size: int = 1536
    num_layers: int = 9
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position: int = 4096
    num_draft_layers: int = 2
    draft_block: int = 16
    draft_blocks: tuple = ()  # shorter blocks that the drafter was trained on, too
    taps: tuple = (1, 4, 7)  # ids of target layers whose outputs feed the drafter
    eot_id: int = 0
    im_start_id: int = 1
    im_end_id: int = 2
    mask_id: int = 3
    assistant_id: int = 471  # first token of "assistant", after <|im_start|> the mark of an answer


def fp8_quantize(weight):
    """weight [O, I] -> e4m3 values [O, I] and one power-of-two scale per 128x128 tile.

    A power of two keeps 3-bit mantissas 3-bit: value * scale is exact in bf16.
    """
    rows, cols = weight.shape[0] // FP8_TILE, weight.shape[1] // FP8_TILE
    tiles = weight.float().view(rows, FP8_TILE, cols, FP8_TILE)
    amax = tiles.abs().amax(dim=(1, 3), keepdim=True).clamp_min(1e-20)
    scale = torch.exp2(torch.ceil(torch.log2(amax / FP8_MAX)))
    values = (tiles / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return values.view(weight.shape), scale.view(rows, cols)


def fp8_dequantize(values, scale):
    rows, cols = scale.shape
    tiles = values.float().view(rows, FP8_TILE, cols, FP8_TILE)
    return (tiles * scale.view(rows, 1, cols, 1)).view(values.shape)


def fp8_round(weight):
    """The value the exported checkpoint will hold; the gradient passes straight through."""
    with torch.no_grad():
        rounded = fp8_dequantize(*fp8_quantize(weight))
    return weight + (rounded - weight).detach()


class Linear(nn.Module):
    """y = x W^T in bf16, W rounded to FP8 tiles on every use: training sees the weights that will ship."""

    def __init__(self, num_in, num_out, std=0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_out, num_in) * std)
        self.rounded = True

    def effective(self):
        return fp8_round(self.weight) if self.rounded else self.weight

    def forward(self, x):
        return F.linear(x, self.effective().to(x.dtype))


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def rope_table(config, positions):
    """positions [..., L] -> cos, sin [..., L, head_dim / 2] float."""
    half = config.head_dim // 2
    inverse = config.rope_theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
    angle = positions.float().unsqueeze(-1) * inverse
    return angle.cos(), angle.sin()


def rope(x, cos, sin):
    """x [B, heads, L, head_dim]; cos, sin broadcast to [B, 1, L, head_dim / 2]."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def head_logits(hidden, embedding):
    """float32 logits of bf16 values: they reach 50, where bf16 has steps of 0.25 and the best two often tie."""
    return F.linear(hidden.float(), embedding.bfloat16().float())


def attend(q, k, v, mask):
    """mask: a BlockMask (training on a GPU) or a dense bool mask (evaluation, CPU)."""
    if isinstance(mask, BlockMask):
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        q_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.hidden_size, q_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(q_size, config.hidden_size, std=0.0)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def split(self, x):
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def queries(self, x, angles):
        return rope(self.q_norm(self.split(self.q_proj(x))), *angles)

    def keys(self, x, angles):
        return rope(self.k_norm(self.split(self.k_proj(x))), *angles)

    def values(self, x):
        return self.split(self.v_proj(x))

    def merge(self, heads):
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, std=0.0)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)


class Target(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, tokens):
        return F.embedding(tokens, self.embed_tokens.weight).bfloat16()

    def head(self, hidden):
        return head_logits(hidden, self.embed_tokens.weight)

    def forward(self, tokens, mask):
        """tokens [B, L] -> final hidden [B, L, H], taps [B, L, n * H]."""
        angles = rope_table(self.config, torch.arange(tokens.shape[1], device=tokens.device))
        x = self.embed(tokens)
        taps = []
        for idx, layer in enumerate(self.layers):
            h, attn = layer.input_layernorm(x), layer.self_attn
            heads = attend(attn.queries(h, angles), attn.keys(h, angles), attn.values(h), mask)
            x = x + attn.merge(heads)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if idx in self.config.taps:
                taps.append(x)
        return self.norm(x), torch.cat(taps, dim=-1)


class Drafter(nn.Module):
    """DFlash v1: a block [anchor, MASK x (S-1)] is denoised in one bidirectional pass; every layer also
    attends to keys and values projected from the target's tapped hidden states (the injected context)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.fc = Linear(config.hidden_size * len(config.taps), config.hidden_size)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_draft_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, target, taps, anchor_tokens, anchors, mask):
        """taps [B, L, n*H], anchor_tokens and anchors (positions) [B, A] -> hidden [B, A, S, H]."""
        config = self.config
        rows, num_anchors = anchors.shape
        steps = torch.arange(config.draft_block, device=anchors.device)
        positions = (anchors.unsqueeze(-1) + steps).flatten(1)  # [B, A*S]
        context_angles = rope_table(config, torch.arange(taps.shape[1], device=taps.device))
        angles = tuple(t.unsqueeze(1) for t in rope_table(config, positions))

        embedding = target.embed_tokens.weight.detach()
        first = F.embedding(anchor_tokens, embedding).unsqueeze(2)
        masks = embedding[config.mask_id].expand(rows, num_anchors, config.draft_block - 1, -1)
        x = torch.cat((first, masks), dim=2).flatten(1, 2).bfloat16()
        context = self.hidden_norm(self.fc(taps))
        for layer in self.layers:
            h, attn = layer.input_layernorm(x), layer.self_attn
            keys = torch.cat((attn.keys(context, context_angles), attn.keys(h, angles)), dim=2)
            values = torch.cat((attn.values(context), attn.values(h)), dim=2)
            heads = attend(attn.queries(h, angles), keys, values, mask)
            x = x + attn.merge(heads)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x).unflatten(1, (num_anchors, config.draft_block))


def document_ids(tokens, eot_id):
    """tokens [B, L] -> index of the packed document each token belongs to (its end mark included)."""
    ends = (tokens == eot_id).int()
    return ends.cumsum(-1) - ends


def prompt_tokens(tokens, config):
    """tokens [B, L] -> bool: inside a turn that is not the assistant's (its marks included). Plain text has no turns."""
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    is_mark = (tokens == config.im_start_id) | (tokens == config.eot_id)
    last = torch.where(is_mark, index, 0).cummax(dim=1).values
    role = tokens.gather(1, (last + 1).clamp_max(tokens.shape[1] - 1))
    turn = tokens.gather(1, last) == config.im_start_id
    return turn & ((role != config.assistant_id) | (index < last + 4))


def causal_mask_mod(doc):
    def allowed(b, h, q, k):
        return (q >= k) & (doc[b, q] == doc[b, k])

    return allowed


def draft_mask_mod(doc, anchors, length, size, lengths=None):
    """Queries: A blocks of S. Keys: L context tokens, then the blocks. A block sees its document's tokens
    strictly before its anchor, and itself in both directions: its first `lengths` [B, A] places where that is given."""

    def allowed(b, h, q, k):
        block = q // size
        anchor = anchors[b, block]
        position = k.clamp(max=length - 1)
        context = (k < length) & (k < anchor) & (doc[b, position] == doc[b, anchor])
        own = (k >= length) & ((k - length) // size == block)
        if lengths is not None:
            own = own & ((k - length) % size < lengths[b, block])
        return context | own

    return allowed


def block_labels(tokens, doc, anchors, size):
    """Labels of block positions 1..S-1 [B, A, S-1]: tokens of the anchor's own document, else IGNORE."""
    length = tokens.shape[1]
    positions = anchors.unsqueeze(-1) + torch.arange(1, size, device=anchors.device)
    inside = positions < length
    flat = positions.clamp_max(length - 1).flatten(1)
    labels = tokens.gather(1, flat).view_as(positions)
    same = doc.gather(1, flat).view_as(positions) == doc.gather(1, anchors).unsqueeze(-1)
    return torch.where(inside & same, labels, IGNORE), positions.clamp_max(length - 1)


def position_weights(size, gamma, device):
    """exp(-(k-1)/gamma) for k = 1..S-1 (DFlash, section on training)."""
    return torch.exp(-torch.arange(size - 1, device=device) / gamma)


def settle(module):
    """Rounds to bf16 what the checkpoint stores in bf16 (embedding and norms), before anything is generated."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1 or "embed_tokens" in name:
                p.copy_(p.bfloat16().float())


_compiled_block_mask = None


def build_mask(mod, rows, num_queries, num_keys, device, sparse):
    """A BlockMask where flex attention will be compiled, else the same mask dense."""
    global _compiled_block_mask
    if not sparse:
        return create_mask(mod, rows, 1, num_queries, num_keys, device=device)
    if _compiled_block_mask is None:
        _compiled_block_mask = torch.compile(create_block_mask, dynamic=False)
    return _compiled_block_mask(mod, rows, 1, num_queries, num_keys, device=device)
