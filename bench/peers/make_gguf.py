#!/usr/bin/env python3
"""Writes a Hugging Face folder of a dense Qwen3 target as a GGUF file, so that llama.cpp can be
measured on the same weights. FP8 weights with 128x128 scales are multiplied out first, as any engine
without FP8 units has to.

    bench/peers/make_gguf.py TARGET OUT.gguf [--type bf16|f16|f32|q8_0|q4_0]

TARGET may be the name of a shape, such as qwen3-0.6b: random weights then, and no tokenizer.

Needs numpy and gguf (PyPI)."""

import argparse
import json
import pathlib
import re

import gguf
import numpy as np

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}

# The sizes that `volley bench --shape` knows, where llama.cpp's qwen3 runs them.
SHAPES = {
    name: {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate,
           "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128,
           "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
           "rope_theta": 1e6, "tie_word_embeddings": tied}
    for name, layers, hidden, intermediate, heads, tied in [
        ("qwen3-0.6b", 28, 1024, 3072, 16, True), ("qwen3-1.7b", 28, 2048, 6144, 16, True),
        ("qwen3-4b", 36, 2560, 9728, 32, True), ("qwen3-8b", 36, 4096, 12288, 32, False)]
}

# Hugging Face's names, and GGUF's.
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def e4m3_values():
    """The 256 values of FP8 e4m3 (fn: no infinities)."""
    code = np.arange(256, dtype=np.int32)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = np.ldexp(1.0 + mantissa / 8.0, exponent - 7)
    values = sign * np.where(exponent == 0, np.ldexp(mantissa / 8.0, -6), normal)
    values[(code & 0x7F) == 0x7F] = np.nan
    return values.astype(np.float32)


def read_safetensors(path):
    """Name -> float32 array."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    header_size = int(data[:8].view("<u8")[0])
    header = json.loads(data[8:8 + header_size].tobytes())
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[8 + header_size + begin:8 + header_size + end]
        kind = entry["dtype"]
        if kind == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind == "F16":
            values = raw.view("<f2").astype(np.float32)
        elif kind == "F32":
            values = raw.view("<f4").astype(np.float32)
        elif kind == "F8_E4M3":
            values = e4m3_values()[raw]
        else:
            raise SystemExit(f"{path}: {name}: dtype {kind} is not supported")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def read_weights(folder):
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    for name in [n for n in tensors if n.endswith("_scale_inv")]:
        scale = np.repeat(np.repeat(tensors.pop(name), 128, axis=0), 128, axis=1)
        weight = tensors[name.removesuffix("_scale_inv")]
        weight *= scale[:weight.shape[0], :weight.shape[1]]
    return tensors


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return TOP[stem] + ".weight"
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    if layer and layer.group(2) in LAYER:
        return f"blk.{layer.group(1)}.{LAYER[layer.group(2)]}.weight"
    raise SystemExit(f"{name}: not a tensor of a dense Qwen3")


def add_tokenizer(writer, folder, config):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    tokens = [f"[unused{i}]" for i in range(config["vocab_size"])]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    for text, idx in vocab.items():
        tokens[idx], kinds[idx] = text, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = (gguf.TokenType.CONTROL if added["special"]
                              else gguf.TokenType.USER_DEFINED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # the same split pattern
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    eos = config["eos_token_id"]
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    if config.get("bos_token_id") is not None:
        writer.add_bos_token_id(config["bos_token_id"])
    if config.get("pad_token_id") is not None:
        writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    text = template.read_text() if template.exists() else settings.get("chat_template")
    if text:
        writer.add_chat_template(text)


class Repeated:
    """A matrix of `rows` rows that repeats a run of them, which is quantised once."""

    def __init__(self, run, rows):
        self.run, self.rows = run, rows
        self.ndim = 2

    def quantized(self, kind):
        run = gguf.quants.quantize(self.run, kind)
        return np.resize(run, (self.rows, run.shape[1]))


def write_gguf(name, config, tokenizer_folder, weights, out, kind):
    """`weights` yields (GGUF name, float32 array or Repeated)."""
    quantization, file_type = TYPES[kind]
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(str(out), "qwen3")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta") or rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if tokenizer_folder is None:
        # Some: without one, llama.cpp 0.3.36 crashes.
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list([f"<{i}>" for i in range(config["vocab_size"])])
        writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
        writer.add_token_merges(["< 0"])
    else:
        add_tokenizer(writer, tokenizer_folder, config)
    for tensor, values in weights:
        # llama.cpp wants norms in f32.
        used = quantization if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = (values.quantized(used) if isinstance(values, Repeated)
                else gguf.quants.quantize(values, used))
        writer.add_tensor(tensor, data, raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_gguf(target, out, kind):
    folder = pathlib.Path(target)
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "qwen3":
        raise SystemExit(f"{target}: expected a dense Qwen3, got {config['model_type']}")
    weights = ((gguf_name(name), values) for name, values in read_weights(folder).items()
               if name != "lm_head.weight" or not config["tie_word_embeddings"])
    write_gguf(folder.name, config, folder, weights, out, kind)


def make_random_gguf(shape, out, kind):
    """Values decide no time, so large matrices repeat a run of them."""
    config = SHAPES[shape]
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    run = np.random.default_rng(1).standard_normal((1024, max(hidden, intermediate, q)),
                                                   dtype=np.float32)

    def matrix(rows, cols):
        return Repeated((run[:, :cols] / np.sqrt(cols)).astype(np.float32), rows)

    def weights():
        ones = np.ones
        yield "token_embd.weight", matrix(config["vocab_size"], hidden)
        yield "output_norm.weight", ones(hidden, np.float32)
        if not config["tie_word_embeddings"]:
            yield "output.weight", matrix(config["vocab_size"], hidden)
        for i in range(config["num_hidden_layers"]):
            for name, size in [("attn_norm", hidden), ("ffn_norm", hidden),
                               ("attn_q_norm", config["head_dim"]),
                               ("attn_k_norm", config["head_dim"])]:
                yield f"blk.{i}.{name}.weight", ones(size, np.float32)
            for name, rows, cols in [("attn_q", q, hidden), ("attn_k", kv, hidden),
                                     ("attn_v", kv, hidden), ("attn_output", hidden, q),
                                     ("ffn_gate", intermediate, hidden),
                                     ("ffn_up", intermediate, hidden),
                                     ("ffn_down", hidden, intermediate)]:
                yield f"blk.{i}.{name}.weight", matrix(rows, cols)

    write_gguf(shape, config, None, weights(), out, kind)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("out")
    parser.add_argument("--type", choices=TYPES, default="bf16")
    options = parser.parse_args()
    make = make_random_gguf if options.target in SHAPES else make_gguf
    make(options.target, options.out, options.type)
    print(f"{options.out}: {pathlib.Path(options.out).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
