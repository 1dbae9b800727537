#!/usr/bin/env python3
"""Many streams on one server: 1,000 open ones of which 16 decode, and 100 clients that stall, vanish or
send half a request beside 8 that read. Prints what it measured; exits 1 on an error or a leak.

    bench/server_streams.py [PROGRAM [ROUNDS]]      from the repository's root, demo pair"""

import asyncio
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "server"))
from serving import metric, server, wait_at_rest  # noqa: E402


def request(max_tokens, seed):
    body = json.dumps({"messages": [{"role": "user", "content": f"Tell story number {seed}."}],
                       "max_tokens": max_tokens, "ignore_eos": True, "stream": True,
                       "temperature": 1, "seed": seed}).encode()
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)) + body


async def stream(port, max_tokens, seed):
    """Reads one stream to its end; True when it was complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(max_tokens, seed))
    tail = b""
    while True:
        data = await reader.read(65536)
        if not data:
            break
        tail = (tail + data)[-64:]
    writer.close()
    return b"[DONE]" in tail


def rss_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


def pid_of(port):
    out = subprocess.run(["ss", "-ltnpH", f"sport = :{port}"], capture_output=True, text=True).stdout
    found = re.search(r"pid=(\d+)", out)
    return int(found.group(1)) if found else None


async def thousand(port, pid):
    before = rss_mib(pid) if pid else 0
    start = time.perf_counter()
    tasks = [asyncio.create_task(stream(port, 16, seed)) for seed in range(1000)]
    peak = before
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.2)
        if pid:
            peak = max(peak, rss_mib(pid))
    failed = sum(1 for task in tasks if task.exception() or not task.result())
    print(f"1,000 streams, 16 decoding: {failed} failed, {time.perf_counter() - start:.1f} s, "
          f"memory {before:.0f} -> {peak:.0f} MiB")
    return failed


async def crowd(port, kind):
    """100 clients of a kind, all at once; those that stall stay until they are dropped or cancelled."""

    async def reading(seed):
        return await stream(port, 64, seed)

    async def stalling(seed):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(request(160, seed))
        await reader.read(1)
        writer.transport.pause_reading()
        try:
            await asyncio.sleep(3600)
        finally:
            writer.transport.abort()

    async def half_sent(seed):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(64, seed)[:-10])
        try:
            await asyncio.sleep(3600)
        finally:
            writer.transport.abort()

    async def vanishing(seed):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(64, seed))
        await asyncio.sleep(0.02 * (seed % 25))
        writer.transport.abort()

    kinds = {"reading": [reading], "bad": [stalling, vanishing, half_sent, vanishing]}[kind]
    await asyncio.gather(*(kinds[i % len(kinds)](5000 + i) for i in range(100)))


def readers(program, port):
    """The report of 8 well-behaved clients, one request after another each."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        subprocess.run([program, "bench", "serve", "--port", str(port), "--prompts",
                        "models/prompts/eval-gsm8k.jsonl", "--num-prompts", "64", "--max-tokens",
                        "160", "--max-concurrency", "8", "--ignore-eos", "-q", "--json",
                        str(report)], check=True, stdout=subprocess.DEVNULL)
        return json.loads(report.read_text())


async def beside(program, port, kind):
    """p99 between the events of 8 readers while 100 others of a kind come."""
    running = asyncio.create_task(asyncio.to_thread(readers, program, port))
    await asyncio.sleep(0.3)
    others = asyncio.create_task(crowd(port, kind)) if kind != "nobody" else None
    report = await running
    if others is not None:
        others.cancel()
        await asyncio.gather(others, return_exceptions=True)
    print(f"8 readers beside {'' if kind == 'nobody' else '100 '}{kind:8}: between events p50 "
          f"{report['p50_itl_ms']:.1f}, p99 {report['p99_itl_ms']:.1f} ms; {report['failed']} failed; "
          f"{report['duration']:.1f} s")
    return report


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "build/volley"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    failed = 0
    with server(program, "--max-num-seqs", "16", "--max-queued", "2000",
                "--log-requests", "false") as url:
        port = int(url.rsplit(":", 1)[1])
        failed += asyncio.run(thousand(port, pid_of(port)))
        wait_at_rest(url)
        p99 = {kind: [] for kind in ("nobody", "reading", "bad")}
        for _ in range(rounds):
            for kind in p99:
                report = asyncio.run(beside(program, port, kind))
                failed += report["failed"]
                p99[kind].append(report["p99_itl_ms"])
                wait_at_rest(url)
        middle = {kind: statistics.median(values) for kind, values in p99.items()}
        print(f"p99 beside clients that stall or vanish: {middle['bad'] / middle['nobody']:.2f}x of "
              f"alone, {middle['bad'] / middle['reading']:.2f}x of beside as many that read")
        print(f"at rest: {metric(url, 'volley:kv_pages_in_use'):.0f} KV pages in use, "
              f"{metric(url, 'volley:clients_gone_total'):.0f} clients gone")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
