"""Acceptance of a pair on the evaluation sets: tokens gained per target pass, the target's own token included.

  python evaluate.py --target models/demo-target --draft models/demo-draft --eval DIR --json out.json

Because verification only keeps what the target itself gives, the output never depends on the drafter. So the
target decodes each prompt once, then the drafter proposes a block from every position at once, and the cycles are
walked on the recorded hits. At T > 0 tokens are argmax(logits + T * noise of the position); drafts are either plain
argmax, or take the same noise ("coupled"), with the drafter's logits as they are or multiplied by --sharpness first.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import numpy as np
import torch
from tokenizers import Tokenizer

from checkpoint import read_pair
from corpus import render_chat
from decoder import Decoder
from generate import looping
from model import build_mask, causal_mask_mod, draft_mask_mod


def load_prompts(folder, limit):
    """-> {source: [(category, text)]}, first turns."""
    def lines(name):
        with open(folder / name, encoding="utf-8") as file:
            return [json.loads(line) for line in file][:limit]

    spec = folder / "spec_bench_question.jsonl"
    sets = {
        "gsm8k": [("gsm8k", r["question"]) for r in lines("gsm8k_test.jsonl")],
        "mt_bench": [(r["category"], r["turns"][0]) for r in lines("mt_bench_question.jsonl")],
        "humaneval": [("humaneval", r["prompt"]) for r in lines("humaneval.jsonl")],
        "spec_bench": [(r["category"], r["turns"][0]) for r in map(json.loads, open(spec, encoding="utf-8"))],
    }
    keep = max(1, len(sets["spec_bench"]) // limit) if limit else 1
    sets["spec_bench"] = sets["spec_bench"][::keep]
    return sets


def corpus_prompts(path, count, longest=1280):
    """-> {source: prompts as lists of tokens}, `count` of each source of prompts.npz."""
    file = np.load(path)
    data = {name: file[name] for name in file.files}
    starts = np.concatenate(([0], np.cumsum(data["lengths"])[:-1]))
    rng, result = np.random.default_rng(17), {}
    for idx, name in enumerate(data["names"]):
        members = np.flatnonzero((data["source"] == idx) & (data["lengths"] <= longest))
        picked = rng.permutation(members)[:count]
        result[str(name)] = [data["tokens"][starts[i]:starts[i] + data["lengths"][i]].tolist() for i in picked]
    return result


def walk(hits, length):
    """hits [n - 1][S - 1] bool for anchors 0..n-2 of an answer of n tokens -> accepted drafts of each cycle."""
    run = hits.long().cumprod(-1).sum(-1).tolist()
    accepted, gained, idx = [], 0, 0
    while idx < length - 1:
        accepted.append(run[idx])
        step = min(run[idx] + 1, length - 1 - idx)
        gained += step
        idx += step
    return accepted, gained


class Evaluator:
    def __init__(self, config, target, drafter, tokenizer, rows, columns, max_new, sharpness=(1.0,)):
        self.config, self.target, self.drafter, self.tokenizer = config, target, drafter, tokenizer
        self.device = target.embed_tokens.weight.device
        self.max_new, self.sharpness = max_new, sharpness
        self.decoder = Decoder(target, rows, columns)

    def draft_hits(self, prompts, answers, temperature, noise):
        """-> per answer {"argmax": hits, "coupled x1": hits, ...}; noise [max_new, rows, V] or None."""
        config, size = self.config, self.config.draft_block
        full = [p + a for p, a in zip(prompts, answers)]
        length = -(-max(map(len, full)) // 128) * 128
        tokens = torch.zeros(len(full), length, dtype=torch.long)
        doc = torch.ones_like(tokens)
        most = max(len(a) for a in answers) - 1
        anchors = torch.zeros(len(full), most, dtype=torch.long)
        for row, ids in enumerate(full):
            tokens[row, :len(ids)] = torch.tensor(ids)
            doc[row, :len(ids)] = 0
            anchors[row] = torch.arange(most).clamp_max(len(answers[row]) - 1) + len(prompts[row])
        tokens, doc, anchors = tokens.to(self.device), doc.to(self.device), anchors.to(self.device)
        causal = build_mask(causal_mask_mod(doc), len(full), length, length, self.device, sparse=False)
        _, taps = self.target(tokens, causal)
        queries = most * size
        mask = build_mask(draft_mask_mod(doc, anchors, length, size), len(full), queries, length + queries,
                          self.device, sparse=False)
        drafted = self.drafter(self.target, taps, tokens.gather(1, anchors), anchors, mask)[:, :, 1:]
        logits = self.target.head(drafted)
        results = []
        for row, answer in enumerate(answers):
            count = len(answer) - 1
            ids = torch.tensor(answer + [-1] * size, device=self.device)
            where = torch.arange(count, device=self.device).unsqueeze(1) + torch.arange(1, size, device=self.device)
            truth = ids[where]
            own = logits[row, :count]
            hits = {"argmax": own.argmax(-1) == truth}
            if noise is not None:
                shared = noise[where.clamp_max(self.max_new - 1), row]
                for factor in self.sharpness:
                    hits[f"coupled x{factor:g}"] = (factor * own + temperature * shared).argmax(-1) == truth
            results.append({k: v.cpu() for k, v in hits.items()})
        return results

    def encode(self, text):
        return self.tokenizer.encode(render_chat([{"role": "user", "content": text}], True)).ids

    @torch.no_grad()
    def run(self, prompts, temperature, seed):
        """prompts: lists of tokens -> list of {"tokens", "text", "argmax": (accepted, gained), ...} in their order."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        results = [None] * len(prompts)
        rows = self.decoder.rows
        generator = torch.Generator(self.device).manual_seed(seed)
        for start in range(0, len(order), rows):
            group = order[start:start + rows]
            noise = None
            if temperature > 0:
                noise = torch.empty(self.max_new, rows, self.config.vocab_size, device=self.device)
                noise.uniform_(1e-9, 1.0 - 1e-7, generator=generator).log_().neg_().log_().neg_()
            picked = [prompts[i] for i in group]
            output = self.decoder.generate(picked, [temperature] * len(group), self.max_new,
                                           noise=None if noise is None else lambda step: noise[step])
            answers = []
            for row in output.tolist():
                stops = [i for i, t in enumerate(row) if t in (self.config.im_end_id, self.config.eot_id)]
                answers.append(row[:stops[0] + 1] if stops else row)
            for at in range(0, len(group), 16):
                part = range(at, min(at + 16, len(group)))
                some_noise = None if noise is None else noise[:, list(part)]
                usable = [j for j in part]
                if max(len(answers[j]) for j in usable) < 2:
                    hits = [None] * len(usable)
                else:
                    hits = self.draft_hits([picked[j] for j in usable], [answers[j] for j in usable], temperature,
                                           some_noise)
                for j, found in zip(usable, hits):
                    entry = {"tokens": len(answers[j]), "text": self.tokenizer.decode(answers[j]),
                             "looped": is_loop(answers[j])}
                    for kind, value in (found or {}).items():
                        entry[kind] = walk(value, len(answers[j]))
                    results[group[j]] = entry
        return results


def is_loop(answer):
    """The rule by which generate.py --clean drops answers: under 60% of the 6-grams are distinct."""
    return len(answer) > 5 and bool(looping(torch.tensor([answer]))[0])


def rate(entries, kind):
    cycles = sum(len(e[kind][0]) for e in entries if kind in e)
    return round(sum(e[kind][1] for e in entries if kind in e) / max(1, cycles), 3)


def summarize(entries, kind, size):
    cycles = [a for e in entries for a in e.get(kind, ([], 0))[0]]
    survival = [round(sum(a >= k for a in cycles) / max(1, len(cycles)), 3) for k in range(1, size)]
    return {"prompts": len(entries), "tokens": sum(e["tokens"] for e in entries),
            "acceptance_length": rate(entries, kind), "survival": survival,
            "loops": sum(e["looped"] for e in entries),
            "acceptance_length_without_loops": rate([e for e in entries if not e["looped"]], kind)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--eval", type=pathlib.Path, required=True)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--prompts", type=pathlib.Path, help="prompts.npz: also 24 prompts of each source in it")
    parser.add_argument("--limit", type=int, default=320, help="prompts of each set")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=2304)
    parser.add_argument("--max-new", type=int, default=128)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 1.0])
    parser.add_argument("--sharpness", type=float, nargs="*", default=[1.0, 3.0])
    parser.add_argument("--block", type=int, default=0, help="rows of a block, instead of the drafter's own")
    parser.add_argument("--samples", type=int, default=2, help="answers to print for each set")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, target, drafter = read_pair(args.target, args.draft, device)
    if args.block:
        drafter.config = config = dataclasses.replace(config, draft_block=args.block)
    tokenizer = Tokenizer.from_file(str(pathlib.Path(args.target) / "tokenizer.json"))
    evaluator = Evaluator(config, target, drafter, tokenizer, args.rows, args.columns, args.max_new,
                          args.sharpness)

    report = {}
    for name, prompts in load_prompts(args.eval, args.limit).items():
        for temperature in args.temperatures:
            started = time.time()
            entries = evaluator.run([evaluator.encode(text) for _, text in prompts], temperature, seed=7)
            coupled = [f"coupled x{factor:g}" for factor in args.sharpness] if temperature > 0 else []
            for kind in ["argmax"] + coupled:
                label = f"T={temperature:g} {kind}"
                result = summarize(entries, kind, config.draft_block)
                categories = sorted({c for c, _ in prompts})
                if len(categories) > 1:
                    result["categories"] = {
                        c: summarize([e for e, (k, _) in zip(entries, prompts) if k == c], kind,
                                     config.draft_block)["acceptance_length"] for c in categories}
                report.setdefault(name, {})[label] = result
                print(f"{name} {label}: {result['acceptance_length']:.3f} tokens {result['tokens']} "
                      f"loops {result['loops']}/{result['prompts']}, {result['acceptance_length_without_loops']:.3f} "
                      f"without; survival {result['survival'][:8]} {time.time() - started:.1f} s", flush=True)
            if temperature == 0:
                report[name]["answers"] = [{"prompt": prompts[i][1][-600:], "answer": entries[i]["text"]}
                                           for i in range(0, len(entries), max(1, len(entries) // 12))]
                for sample in report[name]["answers"][:args.samples]:
                    print("   ", json.dumps(sample)[:900])
    means = list(report)
    if args.prompts:
        for name, prompts in corpus_prompts(args.prompts, 24).items():
            result = summarize(evaluator.run(prompts, 0.0, seed=7), "argmax", config.draft_block)
            report[f"source {name}"] = {"T=0 argmax": result}
            print(f"source {name}: {result['acceptance_length']:.3f} tokens {result['tokens']}", flush=True)
    for label in report[means[0]]:
        if label != "answers":
            mean = sum(report[n][label]["acceptance_length"] for n in means) / len(means)
            print(f"mean of {len(means)} sets, {label}: {mean:.3f}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
