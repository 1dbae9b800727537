#!/usr/bin/env python3
"""llama.cpp in this process, no server: greedy answers one after the other, and their output token
rate, prompts included. What its kernels can do, whatever its server adds.

    bench/peers/llama_cpp_alone.py TARGET.gguf [--threads N] [--prompts FILE ...]"""

import argparse
import json
import pathlib
import time

import llama_cpp


def read_prompts(files, count):
    """`count` prompts spread over the files' lines."""
    prompts = []
    for file in files:
        for line in pathlib.Path(file).read_text().splitlines():
            item = json.loads(line)
            text = item.get("prompt") or item.get("question") or (item.get("turns") or [None])[0]
            if text:
                prompts.append(text)
    return prompts[:: max(1, len(prompts) // count)][:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", nargs="+", default=["models/prompts/eval-gsm8k.jsonl"])
    parser.add_argument("--num-prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=128)
    options = parser.parse_args()
    llm = llama_cpp.Llama(options.gguf, n_ctx=2048, n_threads=options.threads,
                          n_threads_batch=options.threads, verbose=False)

    def run(prompt):
        llm.reset()
        start = time.perf_counter()
        answer = llm.create_chat_completion([{"role": "user", "content": prompt}], temperature=0,
                                            repeat_penalty=1.0, max_tokens=options.max_tokens)
        return answer["usage"]["completion_tokens"], time.perf_counter() - start

    prompts = read_prompts(options.prompts, options.num_prompts)
    run(prompts[0])  # warm
    rows = [run(prompt) for prompt in prompts]
    tokens, seconds = (sum(column) for column in zip(*rows))
    print(json.dumps({"tokens": tokens, "seconds": round(seconds, 3), "tok_s": tokens / seconds}))


if __name__ == "__main__":
    main()
