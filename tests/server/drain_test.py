#!/usr/bin/env python3
"""SIGTERM in the middle of work: what was asked before is answered whole, what comes later gets 503,
and the server ends with exit code 0. Standard library alone.
Run from the repository's root: drain_test.py PROGRAM"""

import concurrent.futures
import json
import signal
import sys
import time
import urllib.error
import urllib.request

from serving import metric, server

REQUESTS = 24
TOKENS = 60


def ask(url, number):
    body = {"messages": [{"role": "user", "content": f"Story {number}. " + "Long ago, far away. " * 60}],
            "max_tokens": TOKENS, "ignore_eos": True, "stream": number % 2 == 0}
    request = urllib.request.Request(url + "/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=150) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code
    if body["stream"]:
        return 200 if text.endswith("data: [DONE]\n\n") else "cut"
    return 200 if json.loads(text)["usage"]["completion_tokens"] == TOKENS else "cut"


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "build/volley"
    with server(program, "--max-num-seqs", "8", "--threads", "1", "--drain-timeout", "120") as url:
        with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
            early = [pool.submit(ask, url, number) for number in range(REQUESTS)]
            while metric(url, "volley:connections") < REQUESTS:
                time.sleep(0.005)
            time.sleep(0.1)
            url.process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            late = ask(url, 1000)
            results = [each.result() for each in early]
        code = url.process.wait(150)
    print(f"{results.count(200)} of {REQUESTS} answered whole after SIGTERM, a late one got {late}, "
          f"exit code {code}")
    assert results == [200] * REQUESTS, results
    assert late == 503
    assert code == 0


if __name__ == "__main__":
    main()
