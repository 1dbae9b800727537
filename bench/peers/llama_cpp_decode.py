#!/usr/bin/env python3
"""Volley beside llama.cpp without servers, tokenizers or sampling: milliseconds of decoding one token
and of reading a prompt of 512, on models of the same shape with random weights, in each precision; and
the demo pair from end to end. Rounds alternate, both have as many threads, and the one that is not
measured is halted.

    bench/peers/llama_cpp_decode.py [--shapes qwen3-0.6b,qwen3-1.7b] [--formats bf16,int8,int4]
        [--llama-python VENV/bin/python] [--json FILE] [--no-end-to-end] ...

from the repository's root. README.md beside this says how to install the peer. With --json, a FILE
that holds an object already keeps its other keys, and the rows of other shapes and formats: a long
comparison can be run in pieces. With --weights DIR the peer's checkpoints are kept from piece to
piece; --rounds 0 only makes them."""

import argparse
import contextlib
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

# llama.cpp's nearest type, and by how much Volley is to be faster.
PEER_TYPE = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
DECODE_BAR, PREFILL_BAR, END_TO_END_BAR = 1.15, 1.5, 3.0


def serve(gguf_file, threads, context, prefill):
    """The peer's side: a line of input is a kind of pass and a number of samples, a line of output
    their milliseconds."""
    import llama_cpp as llama

    llama.llama_backend_init()
    silence = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silence, None)
    model = llama.llama_model_load_from_file(gguf_file.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = max(prefill, context) + 256
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    ctx = llama.llama_init_from_model(model, params)
    memory = llama.llama_get_memory(ctx)

    def run(tokens, position):
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i + 1 == len(tokens)
        start = time.perf_counter()
        if llama.llama_decode(ctx, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(ctx)
        ms = 1e3 * (time.perf_counter() - start)
        llama.llama_batch_free(batch)
        return ms

    def prompt(count):
        llama.llama_memory_clear(memory, True)
        return sum(run([(i * 7919) % 1000 for i in range(first, min(first + 512, count))], first)
                   for first in range(0, count, 512))

    def decode(samples):
        prompt(context)
        rows = []
        for i in range(samples + 2):
            llama.llama_memory_seq_rm(memory, 0, context, -1)
            rows.append(run([i % 1000], context))
        return rows[2:]

    passes = {"decode": decode, "prefill": lambda samples: [prompt(prefill) for _ in range(samples)]}
    prompt(prefill)
    print("ready", flush=True)
    for line in sys.stdin:
        kind, samples = line.split()
        print(json.dumps(passes[kind](int(samples))), flush=True)


@contextlib.contextmanager
def peer(weights, options):
    """Yields ask(kind, samples) -> milliseconds. Halted between questions."""
    process = subprocess.Popen(
        [options.llama_python, __file__, "--serve", str(weights), "--threads",
         str(options.threads), "--context", str(options.context), "--prefill",
         str(options.prefill)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(kind, samples):
        process.send_signal(signal.SIGCONT)
        process.stdin.write(f"{kind} {samples}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        return answer

    try:
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{weights}: llama.cpp did not load it")
        process.send_signal(signal.SIGSTOP)
        yield ask
    finally:
        process.send_signal(signal.SIGCONT)
        process.stdin.close()
        process.wait(30)


def volley_passes(shape, form, options, folder):
    """(report, milliseconds of a step, of a prompt) of one run."""
    out = folder / "volley.json"
    subprocess.run([options.program, "bench", "--shape", shape, "--weight-format", form, "--passes",
                    "step,prefill", "--contexts", str(options.context), "--prefills",
                    str(options.prefill), "--budget-s", str(options.budget_s), "--threads",
                    str(options.threads), "--json", str(out), "-q"], check=True,
                   stdout=subprocess.DEVNULL)
    report = json.loads(out.read_text())["runs"][0]
    ms = {figure["pass"]: figure["ms"] for figure in report["figures"]}
    return report, ms["step"], ms["prefill"]


def make_gguf(source, kind, options, folder):
    """The peer's checkpoint of a shape or a model folder."""
    name = pathlib.Path(source).name
    weights = pathlib.Path(options.weights or folder) / f"{name}-{kind}.gguf"
    if not weights.exists():
        unfinished = weights.with_suffix(".part")
        script = str(pathlib.Path(__file__).parent / "make_gguf.py")
        subprocess.run([options.llama_python, script, str(source), str(unfinished), "--type", kind],
                       check=True, stdout=subprocess.DEVNULL)
        unfinished.rename(weights)
    return weights


def compare(shape, form, options, folder):
    weights = make_gguf(shape, PEER_TYPE[form], options, folder)
    if options.rounds == 0:
        return None
    ours, theirs = {"decode": [], "prefill": []}, {"decode": [], "prefill": []}
    with peer(weights, options) as ask:
        for _ in range(options.rounds):
            report, step, prompt = volley_passes(shape, form, options, folder)
            ours["decode"].append(step)
            ours["prefill"].append(prompt)
            theirs["decode"].append(statistics.median(ask("decode", options.samples)))
            theirs["prefill"].append(statistics.median(ask("prefill", options.prefill_samples)))
    row = {"shape": shape, "format": form, "llama_cpp_type": PEER_TYPE[form],
           "threads": options.threads, "context": options.context, "prefill": options.prefill,
           "volley_mb": report["weight_bytes"] * 1e-6,
           "llama_cpp_mb": weights.stat().st_size * 1e-6, "read_gb_s": report["read_gb_s"]}
    if not options.weights:
        weights.unlink()
    for kind, bar in (("decode", DECODE_BAR), ("prefill", PREFILL_BAR)):
        mine, other = (statistics.median(who[kind]) for who in (ours, theirs))
        row[kind] = {"volley_ms": mine, "llama_cpp_ms": other, "ratio": other / mine, "bar": bar,
                     "rounds": [t / o for o, t in zip(ours[kind], theirs[kind])]}
        print(f"{shape:>12} {form:>5} {kind:>8} {mine:>10.2f} {other:>13.2f} {other / mine:>6.2f}x"
              f" {bar:>5.2f}x  {'yes' if other / mine >= bar else 'no'}", flush=True)
    return row


def end_to_end(options, folder):
    """The demo pair, drafting, beside plain decoding of its target by llama.cpp: whole greedy answers
    to the same prompts, prompts included."""
    scripts = pathlib.Path(__file__).parent
    lines = pathlib.Path(options.prompts).read_text().splitlines()
    chosen = lines[::max(1, len(lines) // options.num_prompts)][:options.num_prompts]
    prompts = folder / "prompts.jsonl"
    prompts.write_text("\n".join(chosen) + "\n")
    files = {kind: make_gguf(options.target, kind, options, folder) for kind in ("bf16", "q8_0")}
    rates = {"volley": [], "volley plain": [], "bf16": [], "q8_0": []}
    for _ in range(options.rounds):
        out = folder / "bench.json"
        subprocess.run([options.program, "bench", "-m", options.target, "-md", options.draft,
                        "--prompts", str(prompts), "-n", str(options.max_tokens), "--threads",
                        str(options.threads), "--json", str(out), "-q"], check=True,
                       stdout=subprocess.DEVNULL)
        overall = json.loads(out.read_text())["overall"]
        rates["volley"].append(overall["draft_total_tok_s"])
        rates["volley plain"].append(overall["plain_total_tok_s"])
        for kind, weights in files.items():
            done = subprocess.run(
                [options.llama_python, str(scripts / "llama_cpp_alone.py"), str(weights),
                 "--threads", str(options.threads), "--prompts", str(prompts), "--num-prompts",
                 str(len(chosen)), "--max-tokens", str(options.max_tokens)], check=True,
                capture_output=True, text=True)
            rates[kind].append(json.loads(done.stdout.splitlines()[-1])["tok_s"])
    median = {name: statistics.median(values) for name, values in rates.items()}
    best = max(median["bf16"], median["q8_0"])
    print(f"\ndemo pair, {len(chosen)} prompts, up to {options.max_tokens} tokens, prompts included:"
          f" Volley {median['volley']:.0f} tok/s (plain {median['volley plain']:.0f}), llama.cpp"
          f" plain {median['bf16']:.0f} in bf16 and {median['q8_0']:.0f} in q8_0:"
          f" {median['volley'] / best:.2f}x the faster, bar {END_TO_END_BAR:.2f}x")
    return {"volley_tok_s": median["volley"], "volley_plain_tok_s": median["volley plain"],
            "llama_cpp_bf16_tok_s": median["bf16"], "llama_cpp_q8_0_tok_s": median["q8_0"],
            "ratio": median["volley"] / best, "bar": END_TO_END_BAR, "num_prompts": len(chosen),
            "max_tokens": options.max_tokens}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--program", default="build/volley")
    parser.add_argument("--llama-python", default=sys.executable,
                        help="a Python with llama-cpp-python and gguf [this one]")
    parser.add_argument("--shapes", default="qwen3-0.6b,qwen3-1.7b")
    parser.add_argument("--formats", default="bf16,int8,int4")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=128, help="keys before a decoded token")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=15, help="decoded tokens a round")
    parser.add_argument("--prefill-samples", type=int, default=3, help="of the peer, a round")
    parser.add_argument("--budget-s", type=float, default=6, help="of Volley's measuring, a round")
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--draft", default="models/demo-draft")
    parser.add_argument("--prompts", default="models/prompts/eval-gsm8k.jsonl")
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--no-end-to-end", action="store_true")
    parser.add_argument("--weights", help="a folder for the peer's checkpoints, which stay there")
    parser.add_argument("--json", dest="result")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.threads, options.context, options.prefill)
        return
    result = {"passes": []}
    print(f"{'shape':>12} {'':>5} {'pass':>8} {'Volley ms':>10} {'llama.cpp ms':>13} {'ratio':>7}"
          f" {'bar':>6}  met")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for shape in filter(None, options.shapes.split(",")):
            for form in options.formats.split(","):
                result["passes"].append(compare(shape, form, options, folder))
        if not options.no_end_to_end and options.rounds > 0:
            result["end_to_end"] = end_to_end(options, folder)
    if options.result and options.rounds > 0:
        path = pathlib.Path(options.result)
        whole = json.loads(path.read_text()) if path.exists() else {}
        before = whole.get("llama_cpp", {})
        measured = {(row["shape"], row["format"]) for row in result["passes"]}
        result["passes"] = [row for row in before.get("passes", [])
                            if (row["shape"], row["format"]) not in measured] + result["passes"]
        whole["llama_cpp"] = {**before, **result}
        path.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
