#!/usr/bin/env python3
"""Volley's server beside llama.cpp's, as the PyPI package llama-cpp-python ships it: the same target,
the same prompts, the same number of threads, one load client (`volley bench serve`). Rounds
alternate, and the server that is not measured is halted meanwhile. First it checks that both give the
same greedy text for most prompts, then it times.

    bench/peers/llama_cpp_server.py [--llama-python VENV/bin/python] [--json FILE] ...

from the repository's root. README.md beside this says how to install the peer."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request


# llama-cpp-python's server punishes repetition unless told not to.
PEER_FIELDS = {"repeat_penalty": 1.0}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(command, log, env=None):
    """Yields (process, port) once /v1/models answers."""
    port = free_port()
    with open(log, "w") as out:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out,
                                   env={**os.environ, **(env or {})})
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended:\n" + pathlib.Path(log).read_text()[-2000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{command[0]} did not become ready")
        yield process, port
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def halted(process):
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def answer(port, prompt, max_tokens, fields):
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens,
            "temperature": 0, **fields}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions",
                                     json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.loads(reply.read())["choices"][0]["message"]["content"].strip()


def load(program, port, concurrency, options, out, fields):
    """One run of the load client; its report."""
    command = [program, "bench", "serve", "--port", str(port), "--max-concurrency",
               str(concurrency), "--num-prompts", str(options.num_prompts), "--max-tokens",
               str(options.max_tokens), "--temperature", "0", "--extra-body", json.dumps(fields),
               "--json", str(out), "-q"]
    for file in options.prompts:
        command += ["--prompts", file]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(pathlib.Path(out).read_text())


def first_prompts(files, count):
    """`count` prompts spread over the files' lines."""
    prompts = []
    for file in files:
        for line in pathlib.Path(file).read_text().splitlines():
            item = json.loads(line)
            text = item.get("prompt") or item.get("question") or (item.get("turns") or [None])[0]
            if text:
                prompts.append(text)
    return prompts[:: max(1, len(prompts) // count)][:count]


def alone(weights, options):
    """The peer's rate without its server."""
    script = str(pathlib.Path(__file__).parent / "llama_cpp_alone.py")
    done = subprocess.run([options.llama_python, script, str(weights), "--threads",
                           str(options.threads), "--max-tokens", str(options.max_tokens),
                           "--prompts", *options.prompts], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])["tok_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/volley")
    parser.add_argument("--target", default="models/demo-target")
    parser.add_argument("--draft", default="models/demo-draft")
    parser.add_argument("--llama-python", default=sys.executable,
                        help="a Python with llama-cpp-python[server] and gguf [this one]")
    parser.add_argument("--type", default="bf16", help="of the peer's weights [bf16]")
    parser.add_argument("--prompts", action="append",
                        help="may be repeated [models/prompts/eval-gsm8k.jsonl, eval-mt_bench.jsonl]")
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", dest="result")
    options = parser.parse_args()
    options.prompts = options.prompts or ["models/prompts/eval-gsm8k.jsonl",
                                          "models/prompts/eval-mt_bench.jsonl"]
    make_gguf = str(pathlib.Path(__file__).parent / "make_gguf.py")
    threads = str(options.threads)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = folder / "target.gguf"
        subprocess.run([options.llama_python, make_gguf, options.target, str(weights), "--type",
                        options.type], check=True)
        # Its own defaults cost it: logits of every prompt token, and interrupting the answer in
        # progress when the next request comes.
        peer, peer_port = stack.enter_context(server(
            [options.llama_python, "-m", "llama_cpp.server", "--model", str(weights), "--n_ctx",
             "2048", "--n_threads", threads, "--n_threads_batch", threads, "--logits_all", "False",
             "--interrupt_requests", "False"], folder / "peer.log"))
        ours, our_port = stack.enter_context(server(
            [options.program, "serve", options.target, "--draft", options.draft, "--threads",
             threads, "--log-requests", "false"], folder / "volley.log"))

        checks = first_prompts(options.prompts, 8)
        same = sum(answer(our_port, p, 32, {}) == answer(peer_port, p, 32, PEER_FIELDS)
                   for p in checks)
        print(f"same greedy text (32 tokens): {same} of {len(checks)} prompts")
        if 2 * same < len(checks):
            raise SystemExit("the two do not run the same model")

        with halted(peer), halted(ours):
            library = alone(weights, options)
        print(f"llama.cpp in one process, no server, one request at a time: {library:.0f} tok/s")
        result = {"type": options.type, "threads": options.threads, "max_tokens": options.max_tokens,
                  "num_prompts": options.num_prompts, "same_text": same, "checked": len(checks),
                  "llama_cpp_alone_tok_s": library, "concurrency": {}}
        print(f"{'requests at a time':>18} {'Volley tok/s':>13} {'llama.cpp tok/s':>16} {'ratio':>6}"
              f" {'TTFT ms':>13} {'acceptance':>11}")
        for concurrency in options.concurrency:
            rows = {"volley": [], "llama.cpp": []}
            for _ in range(options.rounds):
                with halted(peer):
                    rows["volley"].append(load(options.program, our_port, concurrency, options,
                                               folder / "report.json", {}))
                with halted(ours):
                    rows["llama.cpp"].append(load(options.program, peer_port, concurrency, options,
                                                  folder / "report.json", PEER_FIELDS))

            def median(who, field):
                return statistics.median(row[field] for row in rows[who])

            mine, theirs = (median(who, "output_throughput") for who in ("volley", "llama.cpp"))
            row = {"volley_tok_s": mine, "llama_cpp_tok_s": theirs, "ratio": mine / theirs,
                   "volley_ttft_ms": median("volley", "median_ttft_ms"),
                   "llama_cpp_ttft_ms": median("llama.cpp", "median_ttft_ms"),
                   "acceptance_length": median("volley", "spec_decode_acceptance_length")}
            result["concurrency"][str(concurrency)] = row
            ttft = f"{row['volley_ttft_ms']:.0f}/{row['llama_cpp_ttft_ms']:.0f}"
            print(f"{concurrency:>18} {mine:>13.0f} {theirs:>16.0f} {row['ratio']:>5.2f}x"
                  f" {ttft:>13} {row['acceptance_length']:>11.2f}", flush=True)
    if options.result:
        pathlib.Path(options.result).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
