"""Starts `volley serve` on a free port for a test, and stops it."""

import contextlib
import json
import re
import signal
import subprocess
import threading
import time
import urllib.request

TARGET = "models/demo-target"
DRAFT = "models/demo-draft"
SKIPPED = 77  # CTest's word for "did not run", see tests/CMakeLists.txt


class Url(str):
    """A server's base URL, and its process."""

    process = None


@contextlib.contextmanager
def server(program, *flags, draft=True):
    """Yields the base URL once the server is ready. Fails if it does not drain on SIGTERM."""
    command = [program, "serve", TARGET, "--port", "0", "--log-format", "json", *flags]
    if draft:
        command += ["--draft", DRAFT]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines = []
    ready = threading.Event()

    def read():
        for line in process.stderr:
            lines.append(line)
            if "ready: http" in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        ready.wait(120)
        found = re.search(r"ready: (http://\S+)", "".join(lines))
        if not found:
            raise RuntimeError("the server did not become ready:\n" + "".join(lines))
        url = Url(found.group(1))
        url.process = process
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    if code != 0:
        raise RuntimeError(f"the server ended with {code}:\n" + "".join(lines[-20:]))


def get(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def post(url, body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def metric(url, name, label=""):
    """The value of one row of /metrics whose labels contain `label`."""
    for line in get(url + "/metrics").splitlines():
        if line.startswith(name + "{") and label in line:
            return float(line.rsplit(" ", 1)[1])
    raise KeyError(name)


def wait_at_rest(url):
    """Waits until nothing runs; then every page must be free."""
    for _ in range(600):
        if (metric(url, "vllm:num_requests_running") == 0
                and metric(url, "vllm:num_requests_waiting") == 0):
            break
        time.sleep(0.05)
    assert metric(url, "volley:kv_pages_in_use") == 0
