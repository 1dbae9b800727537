"""Reads a pair of Hugging Face folders (bf16 or FP8, z-lab drafter layout) into the modules of model.py."""

import json
import pathlib

import torch
from safetensors.torch import load_file

from model import Config, Drafter, Linear, Target, fp8_dequantize


def read_tensors(folder):
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    result = {}
    for name, value in tensors.items():
        scale = tensors.get(name + "_scale_inv")
        if not name.endswith("_scale_inv"):
            result[name] = value.float() if scale is None else fp8_dequantize(value, scale)
    return result


def read_pair(target_folder, draft_folder, device):
    main = json.loads((pathlib.Path(target_folder) / "config.json").read_text())
    draft = json.loads((pathlib.Path(draft_folder) / "config.json").read_text())
    theta = main.get("rope_theta") or main["rope_parameters"]["rope_theta"]
    config = Config(
        vocab_size=main["vocab_size"], hidden_size=main["hidden_size"], intermediate_size=main["intermediate_size"],
        num_layers=main["num_hidden_layers"], num_heads=main["num_attention_heads"],
        num_kv_heads=main["num_key_value_heads"], head_dim=main["head_dim"], rope_theta=theta,
        num_draft_layers=draft["num_hidden_layers"], draft_block=draft["block_size"],
        draft_blocks=tuple(draft["dflash_config"].get("short_block_sizes", ())),
        taps=tuple(draft["dflash_config"]["target_layer_ids"]), mask_id=draft["dflash_config"]["mask_token_id"])
    target, drafter = Target(config), Drafter(config)
    weights = {n.removeprefix("model."): t for n, t in read_tensors(target_folder).items() if n != "lm_head.weight"}
    target.load_state_dict(weights)
    drafter.load_state_dict(read_tensors(draft_folder))
    for module in (target, drafter):
        for part in module.modules():
            if isinstance(part, Linear):
                part.rounded = False  # the stored values are final
        module.to(device)
    return config, target, drafter
