"""An endless stream of packed training rows with a share per source."""

import queue
import threading

import numpy as np

# Share of tokens per source while the learning rate is flat, and while it decays. Templated sources stay small.
MAIN = {"openstax": 14, "books": 27, "cpp-docs": 10, "powershell-docs": 4, "rust-book": 0.6, "exercism-docs": 0.25,
        "factbook": 1.2, "tldr-pages": 1, "task_text": 14, "task_books": 9, "drill_python": 3, "drill_header": 1, "drill_german": 0.7,
        "gsm8k_train": 3.5, "math_4500": 2, "mbpp_train": 0.15, "openstax_qa": 1.5, "topical_chat": 3,
        "taskmaster": 0.5, "wordnet": 2, "math_synth": 2, "tldr": 0.8, "factbook_qa": 0.4, "chatterbot": 0.06,
        "self_instruct_seed": 0.1}
DECAY = {"openstax": 9, "books": 10, "cpp-docs": 6, "powershell-docs": 2, "rust-book": 0.5, "exercism-docs": 0.25,
         "factbook": 0.6, "tldr-pages": 0.6, "task_text": 19, "task_books": 9, "drill_python": 4, "drill_header": 1, "drill_german": 1,
         "gsm8k_train": 12, "math_4500": 4, "mbpp_train": 0.3, "openstax_qa": 4, "topical_chat": 5,
         "taskmaster": 0.8, "wordnet": 2, "math_synth": 1.5, "tldr": 1, "factbook_qa": 0.8, "chatterbot": 0.1,
         "self_instruct_seed": 0.2}

# From there on: most of the loss on answers, half of them exercises with nothing to recite.
TEACH = {"openstax": 5, "books": 6, "cpp-docs": 4, "powershell-docs": 1, "rust-book": 0.3, "factbook": 0.4,
         "task_text": 10, "task_books": 5, "gsm8k_train": 5, "gsm8k_renumbered": 14, "math_4500": 3, "mbpp_train": 0.4,
         "task_python": 0.3, "openstax_qa": 3, "topical_chat": 4, "taskmaster": 0.8, "wordnet": 1.5, "math_synth": 1.5,
         "tldr": 0.8, "factbook_qa": 0.8, "chatterbot": 0.2, "self_instruct_seed": 0.2, "drill_header": 12,
         "drill_python": 2, "drill_open": 11, "drill_extraction": 2, "drill_program": 2.5, "drill_german": 2.5,
         "drill_unknown": 1, "drill_quote": 9, "drill_lead": 9, "drill_summary": 3}
MIXES = {"main": MAIN, "decay": DECAY, "teach": TEACH}


class Source:
    """Documents of one source, reshuffled each time all were used."""

    def __init__(self, tokens, lengths, rng):
        self.tokens, self.lengths, self.rng = tokens, lengths, rng
        self.starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
        self.order, self.next = rng.permutation(len(lengths)), 0

    def take(self, quota):
        """Indices of the next documents, about `quota` tokens."""
        chosen, total = [], 0
        while total < quota:
            if self.next >= len(self.order):
                self.order, self.next = self.rng.permutation(len(self.lengths)), 0
            rest = self.order[self.next:]
            sums = np.cumsum(self.lengths[rest])
            count = min(len(rest), int(np.searchsorted(sums, quota - total)) + 1)
            chosen.append(rest[:count])
            total += int(sums[count - 1])
            self.next += count
        return np.concatenate(chosen)


def gather(tokens, starts, lengths):
    """Concatenates the given runs of `tokens`."""
    ends = np.cumsum(lengths)
    index = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
    return tokens[index]


class Mixture:
    """`own`: files of the target's own answers, mixed in as a source of that name with `own_share` of the tokens."""

    def __init__(self, path, seed, own=(), own_share=0.0):
        self.rng = np.random.default_rng(seed)
        data = np.load(path)
        names = sorted({k.rsplit(".", 1)[0] for k in data.files})
        self.sources = {n: Source(data[f"{n}.tokens"], data[f"{n}.lengths"].astype(np.int64), self.rng) for n in names}
        self.own_share = own_share
        if own_share > 0:
            tokens = np.concatenate([np.load(f)["tokens"] for f in own]) & 0x7FFF  # the top bit marks answers
            ends = np.flatnonzero(tokens == 0)
            self.sources["own"] = Source(tokens, np.diff(ends, prepend=-1), self.rng)

    def chunk(self, weights, num_tokens):
        """One shuffled stream of whole documents, about num_tokens long."""
        used = {n: w for n, w in weights.items() if n in self.sources}
        total = sum(used.values())
        if self.own_share > 0:
            used["own"] = total * self.own_share / (1 - self.own_share)
            total += used["own"]
        pieces, lengths = [], []
        for name, weight in used.items():
            source = self.sources[name]
            docs = source.take(num_tokens * weight / total)
            pieces.append(gather(source.tokens, source.starts[docs], source.lengths[docs]))
            lengths.append(source.lengths[docs])
        tokens, lengths = np.concatenate(pieces), np.concatenate(lengths)
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        order = self.rng.permutation(len(lengths))
        return gather(tokens, starts[order], lengths[order])


class Rows:
    """Batches [rows, length + 1] for this rank, made ahead of time by a thread. All ranks draw the same stream."""

    def __init__(self, mixture, rows, length, rank, world, weights, chunk_tokens=16_000_000):
        self.mixture, self.rows, self.length = mixture, rows, length
        self.rank, self.world, self.chunk_tokens = rank, world, chunk_tokens
        self.weights = weights
        self.batches = queue.Queue(maxsize=8)
        threading.Thread(target=self.fill, daemon=True).start()

    def fill(self):
        while True:
            stream = self.mixture.chunk(self.weights, self.chunk_tokens)
            count = (len(stream) - 1) // self.length
            rows = np.lib.stride_tricks.sliding_window_view(stream, self.length + 1)[::self.length][:count]
            step = self.rows * self.world
            for start in range(0, count - step + 1, step):
                mine = start + self.rank * self.rows
                self.batches.put(rows[mine:mine + self.rows].astype(np.int16))

    def next(self):
        return self.batches.get()
