#!/usr/bin/env python3
"""Times DeepGEMM's products for gemm_bench, which asks for one round at a time.

    gemm_bench --deepgemm "PYTHON bench/peers/deepgemm.py"

PYTHON is one that has PyTorch for CUDA and deep_gemm. gemm_bench starts this program and writes a
request in JSON on each line of its input; each is answered with a line, {"error": text} where it
failed:

    (at the start)                                  {"version": text}
    {"compile": [shape, ...]}                       {"seconds": s}, all their kernels in the cache
    {"prepare": shape, "num_sets": n, "repeats": r} {}, operands made, one product checked
    {"round": i}                                    {"rot_us": t, "cold_us": [t, t]}

A round is what gemm_bench (bench_tools.h) does with each of its own contenders: one graph of r
launches of each of n operand sets, time per launch (rot), then two launches with the L2 cache flushed
before (cold).
So the contenders of a shape share the GPU's clocks and heat, and only their kernels differ. A shape
is {"mma": "fp8" or "bf16", "grouping": "dense", "row index", "prefix sum" or "masked", "m", "n", "k",
"num_groups", "group_rows", "expected_m"}, as GemmShape has them; group_rows of each group count.
"""

import gc
import json
import os
import subprocess
import sys
import time

BLOCK = 128  # K elements, and rows of B, that share a scale
MAX_JOBS = 16


class Missing(Exception):
    """Something that a user can install or give is not there."""


def load_libraries():
    """Imports torch and deep_gemm into this module, or raises Missing with one line."""
    global torch, deep_gemm
    try:
        import torch
    except ImportError as error:
        raise Missing(f"{sys.executable} has no PyTorch ({error})") from error
    if not torch.cuda.is_available():
        raise Missing(f"PyTorch {torch.__version__} sees no CUDA GPU")
    try:
        import deep_gemm
    except Exception as error:  # also an assertion, where it finds no CUDA toolkit for its compiler
        reason = str(error) or "no CUDA toolkit: set CUDA_HOME"
        raise Missing(f"{sys.executable} cannot import deep_gemm ({reason})") from error


def random_values(mma, *dims):
    """As gemm_bench fills its own: the time that a tensor core takes depends on its data."""
    values = torch.randn(dims, device="cuda", dtype=torch.bfloat16)
    if mma == "bf16":
        return values
    return values.mul_(127).clamp_(-440, 440).to(torch.float8_e4m3fn)


def random_scales(*dims):
    return torch.randn(dims, device="cuda").abs_().mul_(0.001).add_(0.002)


def row_scales(batch, rows, blocks):
    """[*batch, rows, blocks] float with rows contiguous, padded to 16 bytes: what the kernel reads,
    so that no call transposes them first."""
    stored = random_scales(*batch, blocks, (rows + 3) // 4 * 4)
    return stored[..., :rows].transpose(-1, -2)


class Product:
    """Operands and the call that multiplies a set of them: D[m, n] = A[m, k] B[n, k]^T."""

    def __init__(self, shape, num_sets):
        self.shape = shape
        self.fp8 = shape["mma"] == "fp8"
        self.masked = shape["grouping"] == "masked"
        self.dense = shape["grouping"] == "dense"
        self.sets = [self.make_set() for _ in range(num_sets)]
        self.groups = self.group_layout()
        self.call = self.find_call()

    def make_set(self):
        s = self.shape
        m, n, k, weights = s["m"], s["n"], s["k"], [] if self.dense else [s["num_groups"]]
        slabs = weights if self.masked else []
        a = random_values(s["mma"], *slabs, m, k)
        b = random_values(s["mma"], *weights, n, k)
        d = torch.empty((*slabs, m, n), device="cuda", dtype=torch.bfloat16)
        if not self.fp8:
            return a, b, d
        blocks = k // BLOCK
        b_scales = random_scales(*weights, (n + BLOCK - 1) // BLOCK, blocks)
        return (a, row_scales(slabs, m, blocks)), (b, b_scales), d

    def group_layout(self):
        s = self.shape
        if self.dense:
            return None
        groups = torch.arange(s["num_groups"], device="cuda", dtype=torch.int32)
        if s["grouping"] == "row index":
            return groups.repeat_interleave(s["group_rows"])
        if s["grouping"] == "prefix sum":
            return (groups + 1) * s["group_rows"]
        return torch.full_like(groups, s["group_rows"])

    def find_call(self):
        mma = "fp8" if self.fp8 else "bf16"
        if self.dense:
            return getattr(deep_gemm, f"{mma}_gemm_nt")
        if self.masked:
            function = getattr(deep_gemm, f"m_grouped_{mma}_gemm_nt_masked")
            return lambda a, b, d: function(a, b, d, self.groups, self.shape["expected_m"])
        function = getattr(deep_gemm, f"m_grouped_{mma}_gemm_nt_contiguous")
        options = {"use_psum_layout": True} if self.shape["grouping"] == "prefix sum" else {}
        return lambda a, b, d: function(a, b, d, self.groups, **options)

    def launch(self, index):
        self.call(*self.sets[index])

    def check(self):
        """A few rows of the first set against float: a wrong kernel has no speed."""
        s = self.shape
        self.launch(0)
        a, b, d = self.sets[0]
        a, a_scales = a if self.fp8 else (a, None)
        b, b_scales = b if self.fp8 else (b, None)
        num_columns = min(s["n"], 2 * BLOCK)
        for i in range(4):
            group = i * 7 % s["num_groups"]
            row = i * 7919 % s["group_rows"]
            at = (group, row) if self.masked else (group * s["group_rows"] + row,)
            first = i * 104729 % (s["n"] - num_columns + 1) // BLOCK * BLOCK
            columns = slice(first, first + num_columns)
            weight = (columns,) if self.dense else (group, columns)
            x, w = a[at].float(), b[weight].float()
            if self.fp8:
                x = x * a_scales[at].repeat_interleave(BLOCK)
                blocks = slice(first // BLOCK, (first + num_columns + BLOCK - 1) // BLOCK)
                scales = b_scales[(blocks,) if self.dense else (group, blocks)]
                scales = scales.repeat_interleave(BLOCK, 0)[:num_columns]
                w = w * scales.repeat_interleave(BLOCK, 1)
            want = (w.double() @ x.double())
            error = ((d[at][columns].double() - want).norm() / want.norm()).item()
            if not error < 0.01:
                raise RuntimeError(f"wrong in row {at}, columns from {first}: relative error {error}")


class Timer:
    """The product that is being timed, captured in a graph."""

    def __init__(self, shape, num_sets, repeats):
        self.num_sets = num_sets
        self.launches = num_sets * repeats
        self.product = Product(shape, num_sets)
        self.product.check()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for _ in range(repeats):
                for index in range(num_sets):
                    self.product.launch(index)
        self.begin = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)

    def time_us(self, flush, launch):
        # The fill also gives the host time: a call takes DeepGEMM tens of microseconds there.
        flush.zero_()
        self.begin.record()
        launch()
        self.end.record()
        self.end.synchronize()
        return self.begin.elapsed_time(self.end) * 1e3

    def round(self, index, flush):
        rot_us = self.time_us(flush, self.graph.replay) / self.launches
        cold_us = []
        for j in range(2):
            operands = (2 * index + j) % self.num_sets
            cold_us.append(self.time_us(flush, lambda: self.product.launch(operands)))
        return {"rot_us": rot_us, "cold_us": cold_us}


def free_memory():
    gc.collect()
    torch.cuda.empty_cache()


def compile_here(shapes):
    """Calls each shape once; DeepGEMM keeps what it compiles in its cache on disk."""
    for shape in shapes:
        Product(shape, 1).launch(0)
        torch.cuda.synchronize()
        free_memory()


def compile_in_parallel(shapes):
    """A kernel takes seconds and DeepGEMM compiles one at a time, so processes share the shapes."""
    start = time.monotonic()
    jobs = max(1, min(os.cpu_count() or 1, MAX_JOBS, len(shapes)))
    workers = []
    for i in range(jobs):
        worker = subprocess.Popen([sys.executable, __file__, "--compile"], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        workers.append(worker)
        worker.stdin.write(json.dumps(shapes[i::jobs]))
        worker.stdin.close()
    if any([worker.wait() != 0 for worker in workers]):  # a list: wait for each
        raise RuntimeError("a process that compiles kernels failed; its output stands above")
    return {"seconds": time.monotonic() - start}


class Server:
    def __init__(self):
        self.timer = None
        # Twice the 256 MiB that gemm_bench writes, which take less time than a call from Python.
        self.flush = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")

    def answer(self, request):
        if "compile" in request:
            return compile_in_parallel(request["compile"])
        if "prepare" in request:
            self.timer = None
            free_memory()
            self.timer = Timer(request["prepare"], request["num_sets"], request["repeats"])
            return {}
        return self.timer.round(request["round"], self.flush)


def main():
    # What the libraries print goes to the error output, so that only answers stand in the other.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        load_libraries()
    except Missing as missing:
        print(f"deepgemm.py: {missing}", file=sys.stderr)
        say({"error": str(missing)})
        return 1
    if sys.argv[1:] == ["--compile"]:
        compile_here(json.load(sys.stdin))
        return 0
    server = Server()
    say({"version": f"{deep_gemm.__version__} (PyTorch {torch.__version__})"})
    for line in sys.stdin:
        try:
            say(server.answer(json.loads(line)))
        except Exception as error:
            say({"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
