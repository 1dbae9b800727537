"""Trains the target, and with it a drafter whose loss reaches into the target's tapped layers.

  torchrun --nproc-per-node N train_target.py --data DATA --out DIR --save base.pt --seconds 340
  torchrun --nproc-per-node N train_target.py --data DATA --out DIR --pair TARGET DRAFT --save taught.pt --mix teach \
      --answers --draft-loss 0.8 --gamma 4 --muon-lr 0.011 --adam-lr 0.002 --decay 0.85 --seconds 330
  torchrun --nproc-per-node N train_target.py --data DATA --out DIR --init taught.pt --save joint.pt --mix teach \
      --answers --own-share 0.6 ...

The target's loss is next-token cross-entropy, on all tokens or (--answers) on those it will have to write. A small
DFlash loss on the same rows (its gradient flows into the target through the taps) makes the tapped states say more
about the next few tokens; the drafter trained here is the starting point of train_drafter.py. Later runs go on from a
checkpoint or an exported pair, and may mix in the target's own answers (own.*.npz of generate.py --clean).
"""

import argparse
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F

import mix
import runtime
from checkpoint import read_pair
from model import (Config, Drafter, IGNORE, Linear, Target, block_labels, build_mask, causal_mask_mod, document_ids,
                   draft_mask_mod, head_logits, position_weights, prompt_tokens, settle)
from optim import Clock, Optimizer, trapezoid


def joint_loss(target, drafter, tokens, labels, anchors, draft_labels, weights, causal, draft_mask):
    """-> next-token loss, drafter loss."""
    config = target.config
    hidden, taps = target(tokens, causal)
    logits = target.head(hidden)
    main = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    anchor_tokens = tokens.gather(1, anchors)
    drafted = drafter(target, taps, anchor_tokens, anchors, draft_mask)[:, :, 1:]
    draft_logits = head_logits(drafted, target.embed_tokens.weight.detach())
    losses = F.cross_entropy(draft_logits.flatten(0, 2), draft_labels.flatten(), ignore_index=IGNORE, reduction="none")
    scale = (draft_labels != IGNORE) * weights
    return main, (losses.view_as(draft_labels) * scale).sum() / scale.sum().clamp_min(1)


def prepare_batch(rows, config, num_anchors, device, sparse, generator, answers=False):
    """answers: no target loss on prompts, and few draft blocks there."""
    rows = torch.from_numpy(rows).to(device, non_blocking=True).long()
    tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:]
    labels = torch.where(tokens == config.eot_id, IGNORE, labels)
    doc = document_ids(tokens, config.eot_id)
    length = tokens.shape[1]
    keys = torch.rand(len(tokens), length - 1, device=device, generator=generator)
    if answers:
        is_prompt = prompt_tokens(tokens, config)
        labels = torch.where(is_prompt, IGNORE, labels)
        keys = keys * torch.where(is_prompt[:, 1:], 0.3, 1.0)
    anchors = keys.topk(num_anchors).indices
    anchors = anchors.sort().values + 1
    draft_labels, _ = block_labels(tokens, doc, anchors, config.draft_block)
    causal = build_mask(causal_mask_mod(doc), len(tokens), length, length, device, sparse)
    queries = num_anchors * config.draft_block
    draft = build_mask(draft_mask_mod(doc, anchors, length, config.draft_block), len(tokens), queries,
                       length + queries, device, sparse)
    return tokens, labels, anchors, draft_labels, causal, draft


def validate(forward, config, path, rows, length, num_anchors, device, sparse):
    """Mean losses over held-out rows. Gradient mode stays as in training: another mode would compile again."""
    data = np.load(path)
    names = sorted({k.rsplit(".", 1)[0] for k in data.files})
    groups = {"text": [], "chat": [], "drills": []}
    for name in names:
        is_text = name in ("openstax", "books", "cpp-docs", "powershell-docs", "rust-book", "factbook", "tldr-pages")
        group = "text" if is_text else "drills" if name.startswith("drill_") else "chat"
        groups[group].append(data[f"{name}.tokens"])
    weights = position_weights(config.draft_block, 7.0, device)
    result = {}
    generator = torch.Generator(device).manual_seed(1)
    for group, pieces in groups.items():
        stream = np.concatenate(pieces or [np.zeros(1, np.uint16)])
        count = min((len(stream) - 1) // length, 4 * rows)
        losses = []
        for start in range(0, count - rows + 1, rows):
            batch = np.stack([stream[(start + r) * length:(start + r + 1) * length + 1] for r in range(rows)])
            batch = prepare_batch(batch.astype(np.int16), config, num_anchors, device, sparse, generator)
            losses.append([float(x.detach()) for x in forward(*batch[:4], weights, *batch[4:])])
        if losses:
            result[group] = [round(float(x), 4) for x in np.mean(losses, axis=0)]
    return result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=float, default=340)
    parser.add_argument("--init", help="a checkpoint in --out to start from")
    parser.add_argument("--pair", nargs=2, metavar=("TARGET", "DRAFT"), help="an exported pair to start from")
    parser.add_argument("--mix", choices=mix.MIXES, default="main", help="shares of the sources")
    parser.add_argument("--answers", action="store_true", help="learn answers, not prompts")
    parser.add_argument("--save", default="joint.pt")
    parser.add_argument("--own-share", type=float, default=0.0, help="share of tokens from the target's own answers")
    parser.add_argument("--rows", type=int, default=64, help="rows per GPU and step")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--anchors", type=int, default=64, help="draft blocks per row")
    parser.add_argument("--draft-loss", type=float, default=0.3)
    parser.add_argument("--gamma", type=float, default=7.0)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--decay", type=float, default=0.45)
    parser.add_argument("--floor", type=float, default=0.02)
    parser.add_argument("--warmup", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a very small model, to try the code on a CPU")
    args = parser.parse_args()

    rank, world, device = runtime.start()
    torch.manual_seed(args.seed)
    config = runtime.tiny_config() if args.tiny else Config()
    target, drafter = Target(config).to(device), Drafter(config).to(device)
    if args.init:
        config, target, drafter = runtime.load(args.out / args.init, device)
    if args.pair:
        config, target, drafter = read_pair(*args.pair, device)
        for part in [*target.modules(), *drafter.modules()]:
            if isinstance(part, Linear):
                part.rounded = True
    optimizer = Optimizer([target, drafter], args.muon_lr, args.adam_lr)
    mixture = mix.Mixture(args.data / "train.npz", args.seed, sorted(args.out.glob("own.*.npz")), args.own_share)
    rows = mix.Rows(mixture, args.rows, args.length, rank, world, mix.MIXES[args.mix])
    sparse = device.type == "cuda"
    weights = position_weights(config.draft_block, args.gamma, device)
    generator = torch.Generator(device).manual_seed(args.seed * 1000 + rank)

    def forward(*batch):
        return joint_loss(target, drafter, *batch)

    if sparse:
        forward = torch.compile(forward, dynamic=False)

    log = runtime.Log(args.out, "target", rank)
    started = time.time()
    clock, progress, step, scale = None, 0.0, 0, 0.0
    sums = torch.zeros(2, device=device)
    while progress < 1:
        batch = prepare_batch(rows.next(), config, args.anchors, device, sparse, generator, args.answers)
        main_loss, draft_loss = forward(*batch[:4], weights, *batch[4:])
        (main_loss + args.draft_loss * draft_loss).backward()
        if clock is None:  # compiled: training time starts here
            runtime.synchronize(device)
            log(f"first step after {time.time() - started:.1f} s")
            clock = Clock(args.seconds - (time.time() - started), device)
        if step % 4 == 0:
            progress = clock.progress()
            scale = trapezoid(progress, args.warmup, args.decay, args.floor)
            if args.mix == "main" and progress > 1 - args.decay - 0.03:
                rows.weights = mix.DECAY
        optimizer.step(scale)
        sums += torch.stack((main_loss.detach(), draft_loss.detach()))
        step += 1
        if step % 100 == 0 or step == 10:
            count = 100 if step % 100 == 0 else 10
            tokens = step * args.rows * args.length * world
            rate = tokens / (time.time() - clock.start)
            log(f"step {step} progress {progress:.3f} loss {sums[0] / count:.4f} draft {sums[1] / count:.4f} "
                f"tokens {tokens / 1e6:.1f} M rate {rate / 1e6:.3f} M/s")
            sums.zero_()
        if step == 1:
            sums.zero_()
    settle(target)
    settle(drafter)
    result = validate(forward, config, args.data / "val.npz", args.rows, args.length, args.anchors, device, sparse)
    log(f"steps {step} tokens {step * args.rows * args.length * world / 1e6:.1f} M validation {json.dumps(result)}")
    if rank == 0:
        assert all(math.isfinite(x) for pair in result.values() for x in pair)
        runtime.save(args.out / args.save, target, drafter)
    runtime.stop()


if __name__ == "__main__":
    main()
