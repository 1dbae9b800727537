#!/usr/bin/env python3
"""Many streams on one server: 1,000 open ones of which 16 decode, and clients that stall or vanish
beside clients that read. Prints what it measured; exits 1 on an error or a leak.

    bench/server_streams.py [PROGRAM]      from the repository's root, demo pair"""

import asyncio
import json
import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "server"))
from serving import metric, server, wait_at_rest  # noqa: E402


def request(max_tokens, seed):
    body = json.dumps({"messages": [{"role": "user", "content": f"Tell story number {seed}."}],
                       "max_tokens": max_tokens, "ignore_eos": True, "stream": True,
                       "temperature": 1, "seed": seed}).encode()
    return (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)) + body


async def stream(port, max_tokens, seed, gaps=None):
    """Reads one stream to its end; True when it was complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(max_tokens, seed))
    last, tail = None, b""
    while True:
        data = await reader.read(65536)
        if not data:
            break
        now = time.perf_counter()
        if last is not None and gaps is not None:
            gaps.append(now - last)
        last = now
        tail = (tail + data)[-64:]
    writer.close()
    return b"[DONE]" in tail


def p99(values):
    values = sorted(values)
    return 1e3 * values[int(0.99 * (len(values) - 1))] if values else 0.0


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


async def beside(port, num_beside, kind):
    """p99 between events of 8 readers while `num_beside` others of a kind are served as well."""
    others = []
    for seed in range(num_beside):
        if kind == "reading":
            others.append(asyncio.create_task(stream(port, 200, 5000 + seed)))
            continue
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(request(200, 5000 + seed))
        await writer.drain()
        if seed % 2 == 0:
            writer.transport.pause_reading()
            others.append(writer)  # stalls
        else:
            writer.transport.abort()  # vanishes
    gaps = []
    done = await asyncio.gather(*(stream(port, 200, seed, gaps) for seed in range(8)))
    for other in others:
        if isinstance(other, asyncio.Task):
            await other
        else:
            other.transport.abort()
    print(f"8 readers beside {num_beside:3} {kind:9}: p99 between events {p99(gaps):.1f} ms, "
          f"{len(gaps)} events")
    return sum(1 for complete in done if not complete)


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else "build/volley"
    failed = 0
    with server(program, "--max-num-seqs", "16", "--max-queued", "2000",
                "--log-requests", "false") as url:
        port = int(url.rsplit(":", 1)[1])
        failed += asyncio.run(thousand(port, pid_of(port)))
        wait_at_rest(url)
        for count, kind in ((0, "nobody"), (100, "reading"), (100, "stalled")):
            failed += asyncio.run(beside(port, count, kind))
            wait_at_rest(url)
        print(f"at rest: {metric(url, 'volley:kv_pages_in_use'):.0f} KV pages in use, "
              f"{metric(url, 'volley:clients_gone_total'):.0f} clients gone")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
