#!/usr/bin/env python3
"""Acceptance after a prefix hit is acceptance after a cold prefill: the pages of a hit carry the
drafter's keys as well as the target's. Questions under one long system message, and second turns of
conversations, on the demo pair; cold, with a cache salt of their own, and after a hit. The draft length
is fixed, so that nothing depends on timing. Standard library alone.
Run from the repository's root: prefix_acceptance_test.py PROGRAM"""

import json
import pathlib
import sys

from serving import post, server, wait_at_rest

SYSTEM = ("You are a careful assistant for a small school by a river. " * 6 +
          "Answer in plain sentences, show the steps of every sum, and say so when you do not know. " * 8)
DRAFTS = 7
MAX_TOKENS = 96


def questions(name, count):
    lines = pathlib.Path(f"models/prompts/eval-{name}.jsonl").read_text().splitlines()
    found = []
    for line in lines[:count]:
        item = json.loads(line)
        found.append(item.get("prompt") or item.get("question") or item["turns"][0])
    return found


class Sum:
    """Of many answers: what their drafts gained."""

    def __init__(self):
        self.accepted = self.steps = self.cached = 0
        self.texts = []

    def add(self, answer):
        spec = answer["metrics"]["speculative_decoding"]
        self.accepted += spec["num_accepted_tokens"]
        self.steps += spec["num_spec_steps"]
        self.cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.texts.append(answer["choices"][0]["message"]["content"])

    def acceptance(self):
        return 1 + self.accepted / self.steps


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "build/volley"
    with server(program, "--max-num-seqs", "4", "--threads", "1",
                "--log-requests", "false") as url:
        def ask(messages, salt=None):
            body = {"messages": messages, "max_tokens": MAX_TOKENS, "temperature": 0,
                    "num_speculative_tokens": DRAFTS, "spec_decode_metrics": "summary"}
            if salt is not None:
                body["cache_salt"] = salt
            return post(url + "/v1/chat/completions", body)

        cold, hit = Sum(), Sum()
        for number, question in enumerate(questions("gsm8k", 8) + questions("mt_bench", 8)):
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            cold.add(ask(messages, f"cold {number}"))
            first = ask(messages)  # its prefix is the system message, from the second question on
            turn = messages + [first["choices"][0]["message"] | {"refusal": None},
                               {"role": "user", "content": "Say that again in other words."}]
            cold.add(ask(turn, f"cold turn {number}"))
            hit.add(ask(messages))
            hit.add(ask(turn))
        wait_at_rest(url)
    difference = hit.acceptance() / cold.acceptance() - 1
    print(f"acceptance_length, {len(cold.texts)} answers, {DRAFTS} drafts a step: cold "
          f"{cold.acceptance():.4f} ({cold.cached} prompt tokens cached), after a prefix hit "
          f"{hit.acceptance():.4f} ({hit.cached} cached): {100 * difference:+.2f}%")
    assert cold.cached == 0
    assert hit.cached > 100 * len(hit.texts)
    assert cold.acceptance() > 1.2, "nothing was drafted"
    # Not 0: a hit that leaves one prompt token lets the first pass draft already.
    assert abs(difference) < 0.01
    assert hit.texts == cold.texts


if __name__ == "__main__":
    main()
