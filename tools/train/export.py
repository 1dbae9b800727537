"""Writes the pair as Hugging Face folders: FP8 e4m3 matrices in 128x128 tiles, the rest in bf16.

  python export.py --folder DIR --target models/demo-target --draft models/demo-draft
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

import runtime
from model import FP8_TILE, Linear, fp8_quantize

SHARD_BYTES = 15_000_000
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                "weight_block_size": [FP8_TILE, FP8_TILE], "modules_to_not_convert": ["lm_head"]}


def tensors_of(module, prefix=""):
    linear = {name for name, m in module.named_modules() if isinstance(m, Linear)}
    tensors = {}
    for name, value in module.state_dict().items():
        owner = name.removesuffix(".weight")
        if owner in linear:
            values, scale = fp8_quantize(value.cpu())
            mantissa, _ = torch.frexp(scale)
            assert (mantissa == 0.5).all(), "scales must be powers of two"
            tensors[prefix + name] = values.contiguous()
            tensors[f"{prefix}{owner}.weight_scale_inv"] = scale.float().contiguous()
        else:
            tensors[prefix + name] = value.cpu().bfloat16().contiguous()
    return tensors


def common_config(config):
    return {
        "attention_bias": False, "attention_dropout": 0.0, "dtype": "bfloat16", "head_dim": config.head_dim,
        "hidden_act": "silu", "hidden_size": config.hidden_size, "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size, "max_position_embeddings": config.max_position,
        "model_type": "qwen3", "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta, "sliding_window": None, "tie_word_embeddings": True,
        "use_sliding_window": False, "vocab_size": config.vocab_size, "quantization_config": QUANTIZATION,
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def save(tensors, path):
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_shards(folder, tensors):
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if size + num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += num_bytes
    for old in folder.glob("model*.safetensors*"):
        old.unlink()
    if len(shards) == 1:
        save(shards[0], folder / "model.safetensors")
        return
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())}, "weight_map": {}}
    for idx, shard in enumerate(shards):
        file = f"model-{idx + 1:05d}-of-{len(shards):05d}.safetensors"
        save(shard, folder / file)
        index["weight_map"] |= {name: file for name in shard}
    write_json(folder / "model.safetensors.index.json", index)


def export_target(config, target, folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, tensors_of(target, "model."))
    write_json(folder / "config.json", {
        "architectures": ["Qwen3ForCausalLM"], **common_config(config), "bos_token_id": config.eot_id,
        "eos_token_id": config.im_end_id, "pad_token_id": config.eot_id, "num_hidden_layers": config.num_layers,
        "max_window_layers": config.num_layers, "layer_types": ["full_attention"] * config.num_layers,
        "use_cache": True})
    write_json(folder / "generation_config.json", {
        "bos_token_id": config.eot_id, "eos_token_id": [config.im_end_id, config.eot_id],
        "pad_token_id": config.eot_id, "do_sample": False})


def export_drafter(config, drafter, folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder, tensors_of(drafter))
    write_json(folder / "config.json", {
        "architectures": ["DFlashDraftModel"], **common_config(config), "block_size": config.draft_block,
        "dflash_config": {"mask_token_id": config.mask_id, "target_layer_ids": list(config.taps),
                          **({"short_block_sizes": list(config.draft_blocks)} if config.draft_blocks else {})},
        "num_hidden_layers": config.num_draft_layers, "num_target_layers": config.num_layers,
        "layer_types": ["full_attention"] * config.num_draft_layers})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", dest="run", type=pathlib.Path, required=True)
    parser.add_argument("--target", type=pathlib.Path)
    parser.add_argument("--draft", type=pathlib.Path)
    args = parser.parse_args()
    device = torch.device("cpu")
    if args.target:
        config, target, _ = runtime.load(args.run / "joint.pt", device)
        export_target(config, target, args.target)
    if args.draft:
        trained = args.run / "drafter.pt"
        config, _, drafter = runtime.load(trained if trained.exists() else args.run / "joint.pt", device)
        export_drafter(config, drafter, args.draft)


if __name__ == "__main__":
    main()
