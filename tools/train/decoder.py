"""Batched decoding of the target with a static cache, one CUDA graph per cache length."""

import torch
import torch.nn.functional as F

from model import rope_table

UNFINISHED = 0xFFFF
BUCKET = 64  # cache columns are read in multiples of this


def norm(x, weight, eps):
    return F.rms_norm(x.float(), weight.shape, weight, eps).bfloat16()


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).bfloat16()


class Decoder:
    """Prompts are left-padded, so that all rows write the same cache column; a row's positions start at its pad."""

    def __init__(self, target, rows, columns):
        self.config, self.rows, self.columns = target.config, rows, columns
        self.device = target.embed_tokens.weight.device
        c = self.config
        with torch.no_grad():
            self.embedding = target.embed_tokens.weight.bfloat16()
            self.head = self.embedding.float()
            self.final_norm = target.norm.weight.detach().float()
            self.layers = [self.layer_weights(layer) for layer in target.layers]
        shape = (c.num_layers, rows, c.num_kv_heads, columns, c.head_dim)
        self.keys = torch.zeros(shape, dtype=torch.bfloat16, device=self.device)
        self.values = torch.zeros(shape, dtype=torch.bfloat16, device=self.device)
        self.token = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.column = torch.zeros(1, dtype=torch.long, device=self.device)
        self.pad = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.temperature = torch.zeros(rows, 1, device=self.device)
        self.noise = torch.zeros(rows, c.vocab_size, device=self.device)
        self.graphs, self.pool = {}, torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    @staticmethod
    def layer_weights(layer):
        attn, mlp = layer.self_attn, layer.mlp
        half = lambda linear: linear.effective().bfloat16()
        return {
            "ln1": layer.input_layernorm.weight.detach(), "ln2": layer.post_attention_layernorm.weight.detach(),
            "q_norm": attn.q_norm.weight.detach(), "k_norm": attn.k_norm.weight.detach(),
            "qkv": torch.cat([half(attn.q_proj), half(attn.k_proj), half(attn.v_proj)]), "o": half(attn.o_proj),
            "gate_up": torch.cat([half(mlp.gate_proj), half(mlp.up_proj)]), "down": half(mlp.down_proj),
        }

    def qkv(self, x, w, cos, sin):
        """x [n, L, H] -> q [n, heads, L, D], k and v [n, kv heads, L, D]."""
        c = self.config
        heads = F.linear(norm(x, w["ln1"], c.rms_norm_eps), w["qkv"]).unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
        q, k, v = heads.split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=1)
        q = rotate(norm(q, w["q_norm"], c.rms_norm_eps), cos, sin)
        return q, rotate(norm(k, w["k_norm"], c.rms_norm_eps), cos, sin), v

    def feed_forward(self, x, w):
        gate, up = F.linear(norm(x, w["ln2"], self.config.rms_norm_eps), w["gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, w["down"])

    def logits(self, x):
        """float32 products: logits reach 50, where bf16 has steps of 0.25 and the best two often tie."""
        return F.linear(norm(x, self.final_norm, self.config.rms_norm_eps).float(), self.head)

    def sample(self, logits):
        return (logits + self.temperature[:len(logits)] * self.noise[:len(logits)]).argmax(-1)

    def prefill(self, tokens, pad, rows_per_pass=128):
        """tokens [n, P] left-padded, pad [n] -> logits of the last column [n, V]; fills columns 0..P-1."""
        c, (count, length) = self.config, tokens.shape
        index = torch.arange(length, device=self.device)
        outputs = []
        for start in range(0, count, rows_per_pass):
            part, left = tokens[start:start + rows_per_pass], pad[start:start + rows_per_pass]
            cos, sin = (t.unsqueeze(1) for t in rope_table(c, index - left.unsqueeze(1)))
            visible = (index.view(1, 1, -1) >= left.view(-1, 1, 1)) & (index.view(1, 1, -1) <= index.view(1, -1, 1))
            visible = (visible | torch.eye(length, dtype=torch.bool, device=self.device)).unsqueeze(1)
            x = F.embedding(part, self.embedding)
            for idx, w in enumerate(self.layers):
                q, k, v = self.qkv(x, w, cos, sin)
                rows = slice(start, start + len(part))
                self.keys[idx, rows, :, :length], self.values[idx, rows, :, :length] = k, v
                k, v = (t.repeat_interleave(c.num_heads // c.num_kv_heads, dim=1) for t in (k, v))
                heads = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
                x = self.feed_forward(x + F.linear(heads.transpose(1, 2).flatten(2), w["o"]), w)
            outputs.append(self.logits(x[:, -1]))
        return torch.cat(outputs)

    def step(self, width):
        """One token for every row, reading cache columns 0..width-1. Static shapes: can be captured."""
        c = self.config
        cos, sin = (t.view(-1, 1, 1, c.head_dim // 2) for t in rope_table(c, self.column - self.pad))
        index = torch.arange(width, device=self.device)
        hidden = (index < self.pad.unsqueeze(1)) | (index > self.column)
        bias = torch.zeros_like(hidden, dtype=torch.bfloat16).masked_fill_(hidden, float("-inf"))[:, None, None]
        x = F.embedding(self.token, self.embedding).unsqueeze(1)
        group = c.num_heads // c.num_kv_heads
        for idx, w in enumerate(self.layers):
            q, k, v = self.qkv(x, w, cos, sin)
            self.keys[idx].index_copy_(2, self.column, k)
            self.values[idx].index_copy_(2, self.column, v)
            q = q.reshape(self.rows, c.num_kv_heads, group, c.head_dim)
            scores = q @ self.keys[idx, :, :, :width].transpose(2, 3)
            probs = torch.softmax(scores.float() * c.head_dim ** -0.5 + bias, dim=-1).bfloat16()
            heads = probs @ self.values[idx, :, :, :width]
            x = self.feed_forward(x + F.linear(heads.reshape(self.rows, 1, -1), w["o"]), w)
        self.token.copy_(self.sample(self.logits(x[:, 0])))
        self.column += 1

    def draw_noise(self):
        self.noise.uniform_(1e-9, 1.0 - 1e-7).log_().neg_().log_().neg_()  # Gumbel

    def advance(self, width, fresh_noise):
        if self.device.type != "cuda":
            if fresh_noise:
                self.draw_noise()
            return self.step(width)
        key = (width, fresh_noise)
        if key not in self.graphs:
            kept = self.token.clone(), self.column.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self.step(width)
            torch.cuda.current_stream().wait_stream(stream)
            self.token.copy_(kept[0])
            self.column.copy_(kept[1])
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                if fresh_noise:
                    self.draw_noise()
                self.step(width)
            self.token.copy_(kept[0])
            self.column.copy_(kept[1])
            self.graphs[key] = graph
        self.graphs[key].replay()

    @torch.no_grad()
    def generate(self, prompts, temperature, max_new, noise=None, stop_early=0.0):
        """prompts: list of token lists (at most `rows`); temperature: list of floats.

        Tokens are argmax(logits + T * g), g Gumbel noise: fresh, or noise(step) -> [rows, V] if given.
        -> tokens [n, max_new] on the CPU; a row is filled with eot after its own end, with UNFINISHED where it was
        stopped before.
        """
        c, count = self.config, len(prompts)
        longest = -(-max(map(len, prompts)) // 32) * 32
        assert longest + max_new <= self.columns and count <= self.rows
        batch = torch.full((self.rows, longest), c.eot_id, dtype=torch.long)
        pad = torch.full((self.rows,), longest - 1, dtype=torch.long)
        for row, ids in enumerate(prompts):
            batch[row, longest - len(ids):] = torch.as_tensor(ids, dtype=torch.long)
            pad[row] = longest - len(ids)
        self.pad.copy_(pad)
        self.temperature.zero_()
        self.temperature[:count, 0] = torch.tensor(temperature, device=self.device)
        any_noise = max(temperature) > 0
        passes = max(1, min(self.rows, 65536 // longest))
        logits = self.prefill(batch.to(self.device), self.pad, passes)
        if noise is not None:
            self.noise.copy_(noise(0))
        elif any_noise:
            self.draw_noise()
        self.token.copy_(self.sample(logits))
        self.column.fill_(longest)
        output = torch.full((self.rows, max_new), c.eot_id, dtype=torch.long, device=self.device)
        done = torch.zeros(self.rows, dtype=torch.bool, device=self.device)
        done[count:] = True
        for step in range(max_new):
            output[:, step] = torch.where(done, c.eot_id, self.token)
            done |= (self.token == c.im_end_id) | (self.token == c.eot_id)
            if step + 1 == max_new or (step % 16 == 15 and float((~done).float().mean()) <= stop_early):
                break
            if noise is not None:
                self.noise.copy_(noise(step + 1))
            width = min(self.columns, -(-(longest + step + 1) // BUCKET) * BUCKET)
            self.advance(width, noise is None and any_noise)
        if step + 1 < max_new:
            output[:, step + 1:] = torch.where(done, c.eot_id, UNFINISHED).unsqueeze(1)
        return output[:count].cpu()
