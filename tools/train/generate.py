"""Generates training data with the trained, quantised target.

  torchrun --nproc-per-node N generate.py --checkpoint base.pt --name own --clean ...       for the target itself
  torchrun --nproc-per-node N generate.py --checkpoint joint.pt --name generated ...        for the drafter

Prompts come from prompts.npz, plus prompts that the target itself writes. Most answers are greedy (so is most use),
the rest are sampled at temperature 0.7 and 1. The plan is in random order and ends with the time. Each process writes DIR/NAME.RANK.npz: `tokens` (uint16, the top bit
marks generated tokens, documents end with <|endoftext|>). --clean drops answers that loop or do not end, and
temperature 1: what is left is fit to teach the target.
"""

import argparse
import pathlib
import time

import numpy as np
import torch

import runtime
from decoder import UNFINISHED, Decoder

GENERATED_BIT = 1 << 15
# Share of the answers for each kind of prompt. Sources of fresh prompts first: two thirds have nothing to recite.
SHARES = {"fresh_word_problem": 24, "fresh_header": 17, "fresh_odd_header": 5, "fresh_python": 2, "fresh_open": 17,
          "fresh_instruction": 8, "fresh_extraction": 3, "fresh_program": 4, "fresh_german": 7, "fresh_unknown": 6,
          "fresh_quote": 9, "fresh_odd_passage": 4, "fresh_lead": 8, "fresh_summary": 2,
          "gsm8k_train": 8, "math_4500": 4, "mbpp_train": 1, "self_instruct_seed": 1.5, "topical_chat": 2.5,
          "taskmaster": 1, "chatterbot": 0.4, "factbook_qa": 1, "openstax_qa": 4, "task_text": 4, "task_books": 3,
          "task_python": 0.5, "raw_text": 2, "math_synth": 2, "wordnet": 1, "tldr": 1, "magpie": 6}
HOT = 0.12  # share of the answers sampled at T = 0.7, and again at T = 1; the others are greedy
# Tokens after which an answer is cut.
LONGEST = {"fresh_german": 80, "fresh_unknown": 80, "fresh_quote": 144, "fresh_odd_passage": 144, "fresh_lead": 176,
           "fresh_summary": 176, "fresh_extraction": 144, "math_synth": 64, "wordnet": 64, "tldr": 96, "topical_chat": 96,
           "taskmaster": 96, "chatterbot": 96, "factbook_qa": 96, "openstax_qa": 144, "magpie": 144}
USUAL_LONGEST = 208
LONG_PROMPT = 224
MAX_PROMPT = 1280


def work_list(prompts, names, rng, hottest, total):
    """-> [(source, prompt index, 10 * temperature)], about `total` of them, a prompt only used again when all were.

    A quarter of a large source's prompts is for the target's own training, the rest for the drafter's data: on what
    the target has been trained on it recites."""
    items = []
    split = np.random.default_rng(5)
    whole = sum(SHARES.get(name, 0.5) for name in names)
    for source_idx, name in enumerate(names):
        members = split.permutation(np.flatnonzero(prompts["source"] == source_idx))
        if len(members) > 2000:
            members = members[:len(members) // 4] if hottest < 1 else members[len(members) // 4:]
        members = rng.permutation(members)
        wanted = int(total * SHARES.get(name, 0.5) / whole)
        picked = np.resize(members, wanted) if len(members) else members
        draw = rng.random(len(picked))
        heat = np.where(draw < HOT, 7, np.where((draw < 2 * HOT) & (hottest >= 1), 10, 0))
        items.append(np.stack([np.full(len(picked), source_idx), picked, heat], 1))
    return np.concatenate(items).astype(np.int64)


def batches(items, prompts, names, rng, sizes):
    """Groups work of one source and of alike prompt length into full batches, in random order. Small sources share."""
    lengths = prompts["lengths"][items[:, 1]]
    items, lengths = items[lengths <= MAX_PROMPT], lengths[lengths <= MAX_PROMPT]
    is_long = lengths > LONG_PROMPT
    longest = np.array([LONGEST.get(n, USUAL_LONGEST) for n in names])[items[:, 0]]
    counts = np.zeros((len(names), 2), dtype=np.int64)
    np.add.at(counts, (items[:, 0], is_long.astype(np.int64)), 1)
    small = counts[items[:, 0], is_long.astype(np.int64)] < 4 * np.where(is_long, sizes[1], sizes[0])
    keys = np.where(small, longest + 1000, items[:, 0]) * 2 + is_long
    groups = []
    for key in np.unique(keys):
        group, size = items[keys == key], sizes[int(key % 2)]
        most = int(longest[keys == key].max())
        group = group[rng.permutation(len(group))]
        # Sort by length inside runs of 8 batches: little padding, and every run is a fair sample.
        for start in range(0, len(group), 8 * size):
            run = group[start:start + 8 * size]
            run = run[np.argsort(prompts["lengths"][run[:, 1]], kind="stable")]
            groups += [(bool(key % 2), most, run[i:i + size]) for i in range(0, len(run), size)]
    order = rng.permutation(len(groups))
    return [groups[i] for i in order]


def looping(rows):
    """rows [n, T] of tokens -> for each, whether under 60% of its 6-grams are distinct (finished rows are padded
    with 0, which does not count)."""
    grams = rows.unfold(1, 6, 1)
    used = ((grams != 0) & (grams != UNFINISHED)).all(-1)
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
            cut = np.flatnonzero(row == UNFINISHED)
            row = row[:cut[0]] if len(cut) else row
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
    parser.add_argument("--answers", type=int, default=900_000, help="answers to plan, on all processes together")
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
    prompts = {"tokens": np.concatenate([stored["tokens"]] + written),
               "lengths": np.concatenate([stored["lengths"], [len(w) for w in written]]).astype(np.int64),
               "source": np.concatenate([stored["source"], np.full(len(written), len(names) - 1)])}
    items = work_list(stored, names[:-1], rng, 0.7 if args.clean else 1.0, args.answers)
    items = items[rng.permutation(len(items))][rank::world]
    mine = np.arange(len(stored["lengths"]), len(prompts["lengths"]))
    heat = np.where(own.random(len(mine)) < (0.0 if args.clean else 0.3), 10, 0)
    items = np.concatenate([items, np.stack([np.full(len(mine), len(names) - 1), mine, heat], 1)])
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
