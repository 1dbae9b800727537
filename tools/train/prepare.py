"""Builds token files for training and prompts for generation, on all cores.

  python prepare.py --corpus DIR --tokenizer models/demo-target/tokenizer.json --out DATA

Writes DATA/train.npz and DATA/val.npz ({source}.tokens uint16, {source}.lengths) and DATA/prompts.npz.
"""

import argparse
import gc
import json
import multiprocessing
import os
import pathlib
import random
import time

import numpy as np

import drills
import tasks
from corpus import is_held_out, open_text, record_hash, render_chat

EOT = "<|endoftext|>"
LINES_PER_JOB = 1000
DRILL_JOBS = 500
FRESH_JOBS = 700
PER_JOB = 1000

# Share of a source's records that are used at all.
KEEP = {"math_synth": 0.3, "tldr": 0.8}
# New prompts made from one record by changing its numbers and names.
VARIANTS = {"gsm8k_train": 6, "math_4500": 6, "mbpp_train": 6, "self_instruct_seed": 12}
RENUMBERED = 16  # word problems with other numbers, worked out anew, from each one that allows it


def with_system(rng, messages):
    if rng.random() < 0.12 and messages[0]["role"] != "system":
        return [{"role": "system", "content": rng.choice(tasks.SYSTEM_PROMPTS)}] + messages
    return messages


class Builder:
    """Collects documents and prompts of one job, then tokenizes them in one batch."""

    def __init__(self):
        self.documents, self.prompts = [], []

    def document(self, source, text, held_out):
        self.documents.append(("val" if held_out else "train", source, text + EOT))

    def prompt(self, source, text):
        self.prompts.append((source, text))

    def chat(self, source, record, messages, held_out, rng):
        self.document(source, render_chat(with_system(rng, messages)), held_out)
        if held_out:
            return
        for idx, message in enumerate(messages):
            if message["role"] == "assistant" and rng.random() < (0.6 if source == "wordnet" else 1.0):
                self.prompt(source, render_chat(with_system(rng, messages[:idx]), generation_prompt=True))

    def variants(self, source, messages, rng):
        if messages[0]["role"] != "user":
            return
        for _ in range(VARIANTS.get(source, 0)):
            question = tasks.perturb(rng, messages[0]["content"])
            prompt = with_system(rng, [tasks.user(question)])
            self.prompt(source, render_chat(prompt, generation_prompt=True))

    def record(self, record):
        source = record["src"] + ("_qa" if record["src"] == "factbook" and "messages" in record else "")
        rng, held_out = random.Random(record_hash(record) + 1), is_held_out(record)
        if rng.random() > KEEP.get(source, 1.0):
            return
        if "messages" in record:
            messages = record["messages"]
            self.chat(source, record, messages, held_out, rng)
            if not held_out:
                self.variants(source, messages, rng)
                if source == "gsm8k_train":
                    for _ in range(3):
                        self.document(source, render_chat(tasks.rename(rng, messages)), False)
                    for _ in range(RENUMBERED):
                        changed = tasks.renumber(rng, messages[:2]) or tasks.renumber(rng, messages[:2])
                        if changed:
                            self.document("gsm8k_renumbered", render_chat(with_system(rng, changed)), False)
            header = tasks.mbpp_header_task(messages) if source == "mbpp_train" else None
            if header:
                self.chat("task_python", record, header, held_out, rng)
            return
        self.document(source, record["text"], held_out)
        if source in ("tldr-pages", "factbook"):
            return
        name = "task_books" if source == "books" else "task_text"
        for messages in tasks.tasks_from_text(record):
            self.chat(name, record, messages, held_out, rng)
        if not held_out:
            for start in range(0, len(record["text"]) - 400, 4000):
                start += rng.randint(0, 3000)
                piece = record["text"][start:start + rng.randint(100, 600)]
                if len(piece) > 80:
                    self.prompt("raw_text", piece[piece.find(" ") + 1:].rstrip())

    def tokenize(self, tokenizer):
        encode = lambda texts: [np.array(e.ids, dtype=np.uint16) for e in tokenizer.encode_batch_fast(texts)]
        files = {}
        for (split, source, _), ids in zip(self.documents, encode([d[2] for d in self.documents])):
            files.setdefault((split, source), []).append(ids)
        packed = {key: (np.concatenate(v), np.array([len(i) for i in v], dtype=np.int32)) for key, v in files.items()}
        prompts = [(source, ids) for (source, _), ids in zip(self.prompts, encode([p[1] for p in self.prompts]))]
        return packed, prompts


_tokenizer, _material = None, None


def start_worker(path):
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    _tokenizer = Tokenizer.from_file(path)


def run_job(job):
    """A job is a list of record lines, or ("drill" or "fresh", seed): exercises, or prompts of the same kinds."""
    builder = Builder()
    if isinstance(job, tuple):
        purpose, seed = job
        rng = random.Random(f"{purpose} {seed}")
        for idx in range(PER_JOB):
            if purpose == "drill":
                kind, messages = drills.exercise(_material, rng)
                builder.document(f"drill_{kind}", render_chat(with_system(rng, messages)), idx == 0)
            else:
                kind, content = drills.prompt(_material, rng)
                builder.prompt(f"fresh_{kind}", render_chat(with_system(rng, [tasks.user(content)]), True))
    else:
        for line in job:
            builder.record(json.loads(line))
    return builder.tokenize(_tokenizer)


def jobs(corpus, limit):
    yield from (("drill", idx) for idx in range(DRILL_JOBS if not limit else 2))
    yield from (("fresh", idx) for idx in range(FRESH_JOBS if not limit else 2))
    for name in ("core_text", "books", "chat"):
        path = next(p for p in (corpus / f"{name}.jsonl.zst", corpus / f"{name}.jsonl") if p.exists())
        lines, size, seen = [], 0, 0
        with open_text(path) as source:
            for line in source:
                lines.append(line)
                size += len(line)
                seen += 1
                if len(lines) >= LINES_PER_JOB or size > 500_000:
                    yield lines
                    lines, size = [], 0
                    if limit and seen > limit:
                        break
        yield lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--limit", type=int, default=0, help="records of each file, for a quick try")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()

    splits, prompts = {"train": {}, "val": {}}, []
    global _material
    _material = drills.Material(args.corpus)  # before the workers fork: they share it
    gc.freeze()
    with multiprocessing.get_context("fork").Pool(args.workers, start_worker, (args.tokenizer,)) as pool:
        for packed, some_prompts in pool.imap(run_job, jobs(args.corpus, args.limit)):
            for (split, source), pair in packed.items():
                splits[split].setdefault(source, []).append(pair)
            prompts += some_prompts
    for split, sources in splits.items():
        arrays = {}
        for source, pairs in sources.items():
            arrays[f"{source}.tokens"] = np.concatenate([p[0] for p in pairs])
            arrays[f"{source}.lengths"] = np.concatenate([p[1] for p in pairs])
            print(f"{split} {source}: {len(arrays[f'{source}.lengths'])} documents, "
                  f"{len(arrays[f'{source}.tokens']) / 1e6:.2f} M tokens")
        np.savez(args.out / f"{split}.npz", **arrays)
    names = sorted({source for source, _ in prompts})
    np.savez(args.out / "prompts.npz", tokens=np.concatenate([ids for _, ids in prompts]),
             lengths=np.array([len(ids) for _, ids in prompts], dtype=np.int32),
             source=np.array([names.index(s) for s, _ in prompts], dtype=np.int32), names=np.array(names))
    print(f"{len(prompts)} prompts; {time.time() - start:.1f} s")


if __name__ == "__main__":
    main()
