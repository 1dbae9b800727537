"""Generates training data with the trained, quantised target.

  torchrun --nproc-per-node N generate.py --checkpoint base.pt --name own --clean ...       for the target itself
  torchrun --nproc-per-node N generate.py --checkpoint joint.pt --name generated ...        for the drafter

Prompts come from prompts.npz, plus prompts that the target itself writes. Most answers are greedy (so is most use),
the rest are sampled at temperature 0.7 and 1. Each process writes DIR/NAME.RANK.npz: `tokens` (uint16, the top bit
marks generated tokens, documents end with <|endoftext|>). --clean drops answers that loop or do not end, and
temperature 1: what is left is fit to teach the target.
"""

import argparse
import pathlib
import time

import numpy as np
import torch

import runtime
from decoder import Decoder
from prepare import SHORT_ANSWERS

GENERATED_BIT = 1 << 15
# How often a source's prompts are used: greedy once, and at T = 0.7 and T = 1 with these chances.
SAMPLED = {"gsm8k_train": (0.35, 0.35), "math_4500": (0.35, 0.35), "mbpp_train": (2, 2), "self_instruct_seed": (3, 3),
           "topical_chat": (0.7, 0.7), "taskmaster": (0.7, 0.7), "chatterbot": (1, 1), "factbook_qa": (1, 1),
           "openstax_qa": (0.7, 0.7), "task_text": (0.3, 0.3), "task_books": (0.3, 0.3), "raw_text": (0.3, 0.3),
           "math_synth": (0.0, 0.2), "wordnet": (0.15, 0.15), "tldr": (0.2, 0.2), "magpie": (0.2, 0.2)}
GREEDY = {"math_synth": 0.6}
LONG_PROMPT = 224
MAX_PROMPT = 1280


def work_list(prompts, names, rng, hottest):
    """-> [(source, prompt index, 10 * temperature)]"""
    items = []
    for source_idx, name in enumerate(names):
        members = np.flatnonzero(prompts["source"] == source_idx)
        for temperature, chance in zip((0.0, 0.7, 1.0), (GREEDY.get(name, 1.0), *SAMPLED.get(name, (0.2, 0.2)))):
            chance = chance if temperature <= hottest else 0.0
            copies = rng.poisson(chance, len(members)) if chance > 1 else (rng.random(len(members)) < chance)
            picked = np.repeat(members, copies.astype(np.int64))
            items.append(np.stack([np.full(len(picked), source_idx), picked, np.full(len(picked), temperature * 10)], 1))
    return np.concatenate(items).astype(np.int64)


def batches(items, prompts, names, rng, sizes):
    """Groups work of alike answer length and prompt length into full batches, in random order."""
    lengths = prompts["lengths"][items[:, 1]]
    items, lengths = items[lengths <= MAX_PROMPT], lengths[lengths <= MAX_PROMPT]
    short = np.array([n in SHORT_ANSWERS for n in names])[items[:, 0]]
    groups = []
    for is_short in (True, False):
        for is_long_prompt in (False, True):
            mask = (short == is_short) & ((lengths > LONG_PROMPT) == is_long_prompt)
            group, size = items[mask], sizes[int(is_long_prompt)]
            group = group[rng.permutation(len(group))]
            # Sort by length inside runs of 16 batches: little padding, and every run is a fair sample.
            for start in range(0, len(group), 16 * size):
                run = group[start:start + 16 * size]
                run = run[np.argsort(prompts["lengths"][run[:, 1]], kind="stable")]
                groups += [(is_long_prompt, 96 if is_short else 208, run[i:i + size]) for i in range(0, len(run), size)]
    order = rng.permutation(len(groups))
    return [groups[i] for i in order]


def looping(rows):
    """rows [n, T] of tokens -> for each, whether under 60% of its 6-grams are distinct (finished rows are padded
    with 0, which does not count)."""
    grams = rows.unfold(1, 6, 1)
    used = (grams != 0).all(-1)
    primes = torch.tensor([1, 8209, 67_387_681, 4_294_967_311, 1_000_003, 7_368_787], device=rows.device)
    keys = torch.where(used, (grams * primes).sum(-1), -1).sort(dim=1).values
    fresh = torch.ones_like(keys, dtype=torch.bool)
    fresh[:, 1:] = keys[:, 1:] != keys[:, :-1]
    distinct = (fresh & (keys != -1)).sum(1)
    total = used.sum(1)
    return (total >= 24) & (distinct < 0.6 * total)


class Sink:
    def __init__(self, config, clean):
        self.config, self.clean, self.pieces, self.generated, self.answers = config, clean, [], 0, 0
        self.looped, self.unfinished, self.seen = 0, 0, 0

    def add(self, prompts, outputs, device):
        eot = np.array([self.config.eot_id], dtype=np.uint16)
        loops = looping(outputs.to(device)).cpu().numpy()
        for ids, row, loop in zip(prompts, outputs.numpy().astype(np.uint16), loops):
            ends = np.flatnonzero((row == self.config.im_end_id) | (row == self.config.eot_id))
            self.seen += 1
            self.looped += int(loop)
            self.unfinished += int(not len(ends))
            if self.clean and (loop or not len(ends)):
                continue
            answer = row[:ends[0] + 1] if len(ends) else row
            marked = answer | GENERATED_BIT
            self.pieces += [ids.astype(np.uint16), marked] + ([] if answer[-1] == self.config.eot_id else [eot])
            self.generated += len(answer)
            self.answers += 1


def write_prompts(decoder, tokenizer, config, batches_wanted, rng):
    """Lets the target write user turns at temperature 1 (as in Magpie): prompts in its own words."""
    lead = np.array(tokenizer.encode("<|im_start|>user\n").ids)
    tail = np.array(tokenizer.encode("\n<|im_start|>assistant\n").ids)
    openers = ["", "", "", "What", "How", "Write", "Explain", "Can you", "A", "The", "If", "Find", "Describe", "Why",
               "Give", "I", "Who", "When", "Imagine", "Compose", "Write a Python", "Develop", "Suppose", "Which"]
    leads = [np.concatenate([lead, np.array(tokenizer.encode(o).ids, dtype=np.int64)]) for o in openers]
    found = []
    for _ in range(batches_wanted):
        starts = [leads[i] for i in rng.integers(0, len(leads), decoder.rows)]
        rows = decoder.generate(starts, [1.0] * decoder.rows, 96, stop_early=0.05).numpy()
        for ids, row in zip(starts, rows):
            ends = np.flatnonzero(row == config.im_end_id)
            if len(ends) and not (row[:ends[0]] < 4).any():
                found.append(np.concatenate([ids, row[:ends[0] + 1], tail]))
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--folder", dest="run", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--long-rows", type=int, default=512)
    parser.add_argument("--prompt-batches", type=int, default=12)
    parser.add_argument("--checkpoint", default="joint.pt")
    parser.add_argument("--name", default="generated")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()
    started = time.time()

    rank, world, device = runtime.start()
    torch.manual_seed(args.seed * 100 + rank)
    rng = np.random.default_rng(args.seed)
    config, target, _ = runtime.load(args.run / args.checkpoint, device)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(args.tokenizer)
    log = runtime.Log(args.run, "generate", rank)
    decoder = Decoder(target, args.rows, LONG_PROMPT + 32 + 224)
    own = np.random.default_rng(args.seed * 1000 + rank)
    written = write_prompts(decoder, tokenizer, config, args.prompt_batches, own)
    log(f"{len(written)} prompts written by the target; {time.time() - started:.1f} s")
    log("for example " + repr([tokenizer.decode(w) for w in written[:3]]))

    data = np.load(args.data / "prompts.npz")
    names = [str(n) for n in data["names"]] + ["magpie"]
    stored = {k: data[k] for k in ("tokens", "lengths", "source")}
    items = work_list(stored, names[:-1], rng, 0.7 if args.clean else 1.0)
    items = items[rng.permutation(len(items))][rank::world]
    prompts = {"tokens": np.concatenate([stored["tokens"]] + written),
               "lengths": np.concatenate([stored["lengths"], [len(w) for w in written]]).astype(np.int64),
               "source": np.concatenate([stored["source"], np.full(len(written), len(names) - 1)])}
    mine = np.arange(len(stored["lengths"]), len(prompts["lengths"]))
    hot = mine[own.random(len(mine)) < (0.0 if args.clean else 0.3)]
    rows = [np.stack([np.full(len(m), len(names) - 1), m, np.full(len(m), t)], 1) for m, t in ((mine, 0), (hot, 10))]
    items = np.concatenate([items] + rows)
    starts = np.concatenate(([0], np.cumsum(prompts["lengths"])[:-1]))

    long_decoder = Decoder(target, args.long_rows, MAX_PROMPT + 32 + 224)
    plan = batches(items, prompts, names, own, (args.rows, args.long_rows))
    log(f"{len(items)} answers planned on this process in {len(plan)} batches")
    sink, done = Sink(config, args.clean), 0
    for is_long_prompt, max_new, batch in plan:
        if time.time() - started > args.seconds:
            break
        ids = [prompts["tokens"][starts[p]:starts[p] + prompts["lengths"][p]] for p in batch[:, 1]]
        outputs = (long_decoder if is_long_prompt else decoder).generate(
            ids, (batch[:, 2] / 10).tolist(), max_new, stop_early=0.03)
        sink.add(ids, outputs, device)
        done += 1
        if done % 20 == 0 or done == 3:
            log(f"{done}/{len(plan)} batches, {sink.answers} answers, {sink.generated / 1e6:.2f} M generated tokens, "
                f"{time.time() - started:.1f} s")
    tokens = np.concatenate(sink.pieces)
    np.savez(args.run / f"{args.name}.{rank}.npz", tokens=tokens)
    log(f"{done}/{len(plan)} batches, {sink.answers} answers, {sink.generated / 1e6:.2f} M generated tokens of "
        f"{len(tokens) / 1e6:.2f} M on this process; of {sink.seen} answers {sink.looped} looped and "
        f"{sink.unfinished} did not end; {time.time() - started:.1f} s")
    runtime.stop()


if __name__ == "__main__":
    main()
