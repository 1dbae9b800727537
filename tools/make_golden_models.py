"""Makes tests/golden: small random checkpoints and what Transformers and the DFlash reference compute on them.

  python tools/make_golden_models.py                      # rewrites tests/golden
  python tools/make_golden_models.py --check-z-lab FILE   # compares tools/reference/dflash.py with z-lab's model.py

Needs torch, transformers 5 and safetensors. tests/golden/README.md describes the files. Weights are drawn so that
logits spread over several units; sequences and draft blocks whose two best logits nearly tie are left out, so that
"the same token" is a fair demand of an implementation whose logits agree within rounding.

The speculators layout was compared with vllm-project/speculators by reading (models/dflash: core.py, attention.py,
model_definitions.py): its layers are z-lab's, its window differs in training alone (counted from the anchor there,
from each query in vLLM and here).

FP8 goldens come from weights widened here, 128x128 groups from the upper left, the last ones cut off: what
Transformers' _dequantize_fp8_weight gives too, bit for bit. Its load-time dequantiser (5.23, Fp8Dequantize) divides a
matrix evenly among its scales instead, which is another matrix wherever a size is no multiple of 128.
"""

import argparse
import importlib.util
import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from reference import dflash  # noqa: E402

PROMPT_LENGTHS = (1, 9, 60)
NUM_GREEDY = 16
MIN_MARGIN = 0.02
FP8_BLOCK = 128


def draw_weights(model, generator):
    """Random weights of every kind; matrices keep the stream's scale, norms and biases are far from 1 and 0."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "q_norm" in name or "k_norm" in name:
                p.copy_(1.7 + 0.2 * noise)  # sharp attention: a wrong mask or angle shows
            elif "norm" in name:
                p.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.3 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                p.copy_(0.4 * noise)
            else:
                gain = 2.5 if "o_proj" in name or "down_proj" in name else 1.3
                p.copy_(gain * noise / p.shape[1] ** 0.5)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def edit_json(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def old_rope_spelling(config):
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope


def fp8_quantize(weight):
    """[O, I] -> e4m3 values and one float scale for each 128x128 block, the last ones cut off."""
    rows, cols = -(-weight.shape[0] // FP8_BLOCK), -(-weight.shape[1] // FP8_BLOCK)
    scale = torch.empty(rows, cols)
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for r in range(rows):
        for c in range(cols):
            block = (slice(r * FP8_BLOCK, (r + 1) * FP8_BLOCK), slice(c * FP8_BLOCK, (c + 1) * FP8_BLOCK))
            scale[r, c] = weight[block].abs().max() / 448
            values[block] = (weight[block] / scale[r, c]).to(torch.float8_e4m3fn)
    return values, scale


def fp8_dequantize(values, scale):
    spread = scale.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return values.float() * spread[: values.shape[0], : values.shape[1]]


def save_fp8(model, folder):
    """The linear layers in fp8, the rest in bf16; the model keeps the values that were written."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        if name.endswith("_proj.weight"):
            values, scale = fp8_quantize(value)
            tensors[name], tensors[name + "_scale_inv"] = values, scale
            value.copy_(fp8_dequantize(values, scale))
        else:
            tensors[name] = value.to(torch.bfloat16)
            value.copy_(tensors[name].float())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["Qwen3ForCausalLM"], "dtype": "bfloat16",
               "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                       "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
                                       "modules_to_not_convert": ["lm_head"]}}
    write_json(folder / "config.json", config)


def make_target(folder, config, dtype, seed, edit=None, shard=None, taps=(0,)):
    """Writes a target and its golden.safetensors; returns the float32 model that Transformers loads from it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    draw_weights(model, generator)
    if dtype == "fp8":
        with torch.no_grad():
            save_fp8(model, folder)
    else:
        model.to(dtype).save_pretrained(folder, max_shard_size=shard or "10MB")
        if edit:
            edit_json(folder / "config.json", edit)
        # What is on disk, as Transformers itself reads it, widened to float32.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    golden = {"taps": torch.tensor(taps, dtype=torch.int32)}
    for idx, length in enumerate(PROMPT_LENGTHS):
        ids, logits, hidden = sequence(model, length, NUM_GREEDY, taps, generator)
        golden |= {f"sequence{idx}.prompt_length": torch.tensor([length], dtype=torch.int32),
                   f"sequence{idx}.token_ids": ids.to(torch.int32), f"sequence{idx}.logits": logits,
                   f"sequence{idx}.target_hidden": hidden}
    save_file(golden, folder / "golden.safetensors")
    report(folder, golden["sequence2.logits"], golden["sequence2.token_ids"])
    return model


def report(folder, logits, ids):
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.name}: {size / 1024:.0f} KiB, logits std {logits.std():.2f}, "
          f"{len(set(ids[-NUM_GREEDY:].tolist()))} distinct tokens in the last {NUM_GREEDY}")


def margins(logits):
    best = logits.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


@torch.inference_mode()
def sequence(model, prompt_length, num_greedy, taps, generator):
    """A random prompt continued greedily -> ids [n], logits [n, vocab] and target_hidden [n, taps * hidden] at each."""
    while True:
        ids = torch.randint(model.config.vocab_size, (1, prompt_length), generator=generator)
        for _ in range(num_greedy):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
        out = model(ids, output_hidden_states=True)
        varied = len(set(ids[0, prompt_length:].tolist())) >= num_greedy // 2  # not caught in a short cycle
        if varied and margins(out.logits[0, prompt_length - 1:-1]).min() >= MIN_MARGIN:
            assert max(taps) + 2 < len(out.hidden_states)  # Transformers' last one is behind the final norm
            hidden = torch.cat([out.hidden_states[tap + 1][0] for tap in taps], -1)
            return ids[0], out.logits[0].clone(), hidden.clone()


def drafter_sizes(**changes):
    sizes = {"attention_bias": False, "head_dim": 32, "hidden_act": "silu", "hidden_size": 64,
             "intermediate_size": 96, "max_position_embeddings": 512, "num_attention_heads": 2,
             "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
             "vocab_size": 256}
    return sizes | changes


def z_lab_config(dflash_config, **changes):
    return {"architectures": ["DFlashDraftModel"], "model_type": "qwen3",
            **drafter_sizes(rope_theta=10000.0, rope_scaling=None), "num_target_layers": 4,
            "dflash_config": dflash_config, **changes}


def drafter_tensors(sizes, num_taps, generator, draft_vocab=0):
    hidden, inter = sizes["hidden_size"], sizes["intermediate_size"]
    q, kv = (sizes[n] * sizes["head_dim"] for n in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"fc.weight": (hidden, num_taps * hidden), "hidden_norm.weight": (hidden,), "norm.weight": (hidden,)}
    for i in range(sizes["num_hidden_layers"]):
        layer = f"layers.{i}."
        shapes |= {layer + "input_layernorm.weight": (hidden,), layer + "post_attention_layernorm.weight": (hidden,),
                   layer + "mlp.gate_proj.weight": (inter, hidden), layer + "mlp.up_proj.weight": (inter, hidden),
                   layer + "mlp.down_proj.weight": (hidden, inter)}
        for name, shape in {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden),
                            "o_proj": (hidden, q)}.items():
            shapes[f"{layer}self_attn.{name}.weight"] = shape
            if sizes["attention_bias"]:
                shapes[f"{layer}self_attn.{name}.bias"] = shape[:1]
        shapes |= {layer + "self_attn.q_norm.weight": (sizes["head_dim"],),
                   layer + "self_attn.k_norm.weight": (sizes["head_dim"],)}
    if draft_vocab:
        shapes |= {"embed_tokens.weight": (sizes["vocab_size"], hidden), "lm_head.weight": (draft_vocab, hidden)}
    holder = torch.nn.Module()
    for name, shape in shapes.items():
        holder.register_parameter(name.replace(".", "/"), torch.nn.Parameter(torch.empty(shape)))
    draw_weights(holder, generator)
    return {name.replace("/", "."): p.detach().to(torch.bfloat16) for name, p in holder.named_parameters()}


def draft_vocabulary(vocab_size, draft_vocab, generator):
    """d2t (distance from a draft id to its target id) and t2d (which target ids have one), as in EAGLE-3."""
    kept = torch.randperm(vocab_size, generator=generator)[:draft_vocab].sort().values
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[kept] = True
    return {"d2t": kept - torch.arange(draft_vocab), "t2d": t2d}


def make_drafter(folder, config, tensors, target, seed, num_blocks=120, num_logit_blocks=6):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    embed = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    drafter = dflash.Drafter(folder, embed, head)

    generator = torch.Generator().manual_seed(seed)
    golden, blocks = {}, []
    for idx in range(2):
        ids, _, hidden = sequence(target, 60, 30, drafter.taps, generator)
        golden[f"sequence{idx}.token_ids"] = ids.to(torch.int32)
        for anchor in range(1, len(ids)):  # the anchor's own state is not known yet: strictly before it
            tokens, logits = drafter.draft(hidden[:anchor], int(ids[anchor]))
            if margins(logits).min() >= MIN_MARGIN:
                blocks.append((idx, anchor, tokens, logits))
    assert len(blocks) >= num_blocks, len(blocks)
    keep = torch.linspace(0, len(blocks) - 1, num_blocks).long().tolist()
    blocks = [blocks[i] for i in keep]
    shown = torch.linspace(0, num_blocks - 1, num_logit_blocks).long()
    logits = torch.stack([block[3] for block in blocks])
    golden |= {"blocks.sequence": torch.tensor([b[0] for b in blocks], dtype=torch.int32),
               "blocks.anchor": torch.tensor([b[1] for b in blocks], dtype=torch.int32),
               "blocks.draft_tokens": torch.stack([b[2] for b in blocks]).to(torch.int32),
               "blocks.margins": margins(logits),
               "logits.block": shown.to(torch.int32), "logits.values": logits[shown].contiguous()}
    save_file(golden, folder / "golden.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    distinct = len(set(golden["blocks.draft_tokens"].flatten().tolist()))
    print(f"{folder.name}: {size / 1024:.0f} KiB, {num_blocks} draft blocks, logits std {logits.std():.2f}, "
          f"{distinct} distinct draft tokens, taps {drafter.taps}, attention {drafter.attention}")
    return drafter


def make_all(out):
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
             "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 0}
    target = make_target(
        out / "qwen3-tied-bf16-sharded",
        Qwen3Config(vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                    tie_word_embeddings=True, **sizes),
        torch.bfloat16, seed=1, edit=old_rope_spelling, shard="200KB", taps=(0, 2))
    make_target(
        out / "qwen3-untied-f32",
        Qwen3Config(vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                    **(sizes | {"num_attention_heads": 2, "num_key_value_heads": 2})),
        torch.float32, seed=2)
    make_target(
        out / "qwen3-fp8",
        Qwen3Config(vocab_size=256, hidden_size=160, intermediate_size=192, num_hidden_layers=2,
                    tie_word_embeddings=True, **sizes),
        "fp8", seed=3)
    make_target(
        out / "llama3-f16",
        LlamaConfig(vocab_size=256, hidden_size=96, intermediate_size=160, num_hidden_layers=2,
                    num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=512, rms_norm_eps=1e-5,
                    eos_token_id=[2, 3], rope_parameters={
                        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
        torch.float16, seed=4, edit=old_rope_spelling)
    make_target(
        out / "qwen2-window-bf16",
        Qwen2Config(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
                    tie_word_embeddings=True, use_sliding_window=True, sliding_window=24, max_window_layers=1),
        torch.bfloat16, seed=5, taps=(0, 1))

    generator = torch.Generator().manual_seed(6)
    config = z_lab_config({"mask_token_id": 3, "target_layer_ids": [0, 2]}, block_size=8,
                          layer_types=["full_attention"] * 2, sliding_window=None, use_sliding_window=False)
    make_drafter(out / "drafter-z-lab", config, drafter_tensors(config, 2, generator), target, seed=7)
    # Windows without a causality key: sliding layers are causal in the block, the full one is not.
    config = z_lab_config({"mask_token_id": 3, "target_layer_ids": [0, 1, 2], "block_size": 6},
                          num_hidden_layers=3, attention_bias=True, sliding_window=12, use_sliding_window=True,
                          layer_types=["sliding_attention", "sliding_attention", "full_attention"])
    make_drafter(out / "drafter-z-lab-window", config, drafter_tensors(config, 3, generator), target, seed=8)
    # A window shorter than the block, symmetric; own embedding and a head over 96 of the 256 tokens.
    layers = {"model_type": "qwen3", **drafter_sizes(
        layer_types=["sliding_attention", "full_attention"], sliding_window=5, use_sliding_window=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})}
    config = {"architectures": ["DFlashSpeculator"], "speculators_model_type": "dflash",
              "aux_hidden_state_layer_ids": [1, 3], "block_size": 8, "draft_vocab_size": 96, "mask_token_id": 3,
              "sample_from_anchor": False, "sliding_window_non_causal": True, "target_hidden_size": None,
              "speculators_config": {
                  "algorithm": "dflash", "default_proposal_method": "greedy",
                  "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 7}],
                  "verifier": {"architectures": ["Qwen3ForCausalLM"], "name_or_path": "qwen3-tied-bf16-sharded"}},
              "transformer_layer_config": layers}
    tensors = drafter_tensors(layers, 2, generator, draft_vocab=96) | draft_vocabulary(256, 96, generator)
    make_drafter(out / "drafter-speculators", config, tensors, target, seed=9)


@torch.inference_mode()
def check_z_lab(out, model_file):
    """The largest logit difference between z-lab's DFlashDraftModel and ours on the z-lab goldens."""
    spec = importlib.util.spec_from_file_location("z_lab_model", model_file)
    z_lab = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(z_lab)
    target = AutoModelForCausalLM.from_pretrained(out / "qwen3-tied-bf16-sharded", dtype=torch.float32,
                                                  attn_implementation="eager").eval()
    embed = target.get_input_embeddings().weight
    for name in ("drafter-z-lab", "drafter-z-lab-window"):
        ours = dflash.Drafter(out / name, embed, embed)
        config = Qwen3Config(**json.loads((out / name / "config.json").read_text()), attn_implementation="eager")
        config.block_size = ours.block_size
        theirs = z_lab.DFlashDraftModel(config).float().eval()
        missing, unexpected = theirs.load_state_dict(ours.weights, strict=False)
        assert not missing and not unexpected, (missing, unexpected)
        golden = load_file(out / name / "golden.safetensors")
        worst = num = 0
        for idx, anchor in zip(golden["blocks.sequence"].tolist(), golden["blocks.anchor"].tolist()):
            ids = golden[f"sequence{idx}.token_ids"][None].long()
            states = target(ids, output_hidden_states=True).hidden_states
            hidden = z_lab.extract_context_feature(states, theirs.target_layer_ids)[:, :anchor]
            block = torch.full((1, ours.block_size), ours.mask_token_id)
            block[0, 0] = ids[0, anchor]
            handles = []
            for layer_idx, layer in enumerate(theirs.layers):  # its forward takes one mask for all layers
                mask = torch.where(ours.mask(layer_idx, anchor), 0.0, float("-inf"))[None, None]
                handles.append(layer.register_forward_pre_hook(
                    lambda _, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}), with_kwargs=True))
            out_hidden = theirs(position_ids=torch.arange(anchor + ours.block_size)[None],
                                noise_embedding=target.get_input_embeddings()(block), target_hidden=hidden)
            for handle in handles:
                handle.remove()
            want = out_hidden[0, 1 - ours.block_size:] @ embed.T
            got = ours.logits(hidden[0], int(ids[0, anchor]))
            worst, num = max(worst, (want - got).abs().max().item()), num + 1
            assert torch.equal(want.argmax(-1), golden["blocks.draft_tokens"][num - 1].long())
        print(f"{name}: {num} blocks, largest logit difference {worst:.2e}, all draft tokens equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden")
    parser.add_argument("--check-z-lab", type=pathlib.Path, metavar="FILE", help="dflash/model.py of z-lab/dflash")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.check_z_lab:
        check_z_lab(args.out, args.check_z_lab)
    else:
        make_all(args.out)


if __name__ == "__main__":
    main()
