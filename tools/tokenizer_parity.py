#!/usr/bin/env python3
"""Compares Volley's tokenizer with the `tokenizers` package, text by text: ids and decoded text.

Usage:
  python tools/tokenizer_parity.py --shared ../shared --tokenizer DIR [--tokenizer DIR ...] [--mb 20]

The texts: records of the training data under SHARED, cut into pieces of 1 to 60,000 characters, and
generated text (scripts, emoji, combining marks, white space, code, special tokens, random code
points). Prints one line per tokenizer and mode; exits with 1 when anything differs. With --bench it
also prints the encoding speed on one core.
"""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "1")
from tokenizers import Tokenizer  # noqa: E402

BLOCKS = [
    (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x590, 0x5FF),
    (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1EFF),
    (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2150, 0x218F), (0x2190, 0x2BFF), (0x3040, 0x30FF),
    (0x3400, 0x3FFF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE0FF), (0xF900, 0xFAFF),
    (0xFE00, 0xFE0F), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF), (0x20000, 0x2A6DF),
    (0x1F1E6, 0x1F1FF), (0x10400, 0x1044F), (0, 0x1F), (0xE0000, 0xE007F),
]  # fmt: skip
SPACES = " \t\n\r\v\f\x1c\x85\xa0\u1680\u2000\u2003\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
CODE = ["def f(x):\n    return x\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] += 1;\r\n}\r\n\r\n", "    ",
        "//", "/* */", "<div class=\"a\">", "{{ x }}", "0x1F", "1e-10", "->", "!=", "'''", "`", "\\n"]
WORDS = ["the", "The", "I'm", "you'll", "WE'VE", "don't", "o'clock", "it'S", "'ſ", "x'D", "naïve", "Straße", "İstanbul",
         "ﬁne", "e\u0301", "क्षि", "한국어", "각", "日本語", "👩\u200d👩\u200d👧\u200d👦", "🇩🇪", "1234567", "３４", "½", "Ⅷ", "٣", "3.14",
         "...", "!!!", "—", "�", "\ufeff", "a\u0300\u0316\u0301", "\u1100\u1161\u11a8", "ờ", "Å", "\u212b"]


def generated(rng, special):
    kind = rng.randrange(8)
    n = rng.choice([1, 2, 3, 10, 50, 300])
    if kind == 0:
        return "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
                       for _ in range(n))
    if kind == 1:
        lo, hi = rng.choice(BLOCKS)
        return "".join(chr(rng.randint(lo, hi)) if rng.random() < 0.85 else rng.choice(SPACES + ".,'1")
                       for _ in range(n))
    if kind == 2:
        return "".join(rng.choice(SPACES) if rng.random() < 0.8 else rng.choice("aZ1!.é中") for _ in range(n))
    if kind == 3:
        return "".join(rng.choice(CODE) + rng.choice(["", " ", "\n"]) for _ in range(n))
    if kind == 4:
        return "".join(rng.choice(WORDS) + rng.choice(["", " ", "  ", "\n", "\n\n "]) for _ in range(n))
    if kind == 5:
        lo, hi = rng.choice([(0x300, 0x36F), (0x590, 0x5C7), (0x1100, 0x11FF), (0x900, 0x94F)])
        return "".join(chr(rng.randint(lo, hi)) if rng.random() < 0.6 else chr(rng.choice([65, 0x1EA1, 0xE9, 0xAC00, 32]))
                       for _ in range(n))
    if kind == 6 and special:
        return "".join(rng.choice(special) + rng.choice(["", " ", "x", "\n", "<", "<|"]) + rng.choice(WORDS)
                       for _ in range(n))
    return rng.choice("a 1.\nñ中'😀\t") * (n * rng.randint(1, 20))


def training_text(shared, rng, num_bytes):
    """Pieces of the training files, spread over their first megabytes."""
    files = sorted(Path(shared, "data/train").glob("*.zst"))
    if not files:
        sys.exit(f"no training data under {shared}/data/train")
    out = []
    for path in files:
        taken = 0
        zstd = subprocess.Popen(["zstd", "-dcq", path], stdout=subprocess.PIPE)
        for line in zstd.stdout:
            if rng.random() < 0.6:
                continue
            record = json.loads(line)
            text = record.get("text") or "\n".join(m["content"] for m in record["messages"])
            while text:
                n = int(10 ** rng.uniform(0, 4.78))
                out.append(text[:n])
                taken += len(text[:n].encode())
                text = text[n:]
            if taken > num_bytes / len(files):
                break
        zstd.kill()
        zstd.wait()
    return out


def write_texts(path, texts):
    with open(path, "wb") as f:
        for text in texts:
            data = text.encode()
            f.write(struct.pack("<I", len(data)) + data)


def read_results(path):
    data = Path(path).read_bytes()
    pos = 0
    while pos < len(data):
        (n,) = struct.unpack_from("<I", data, pos)
        ids = list(struct.unpack_from(f"<{n}i", data, pos + 4))
        pos += 4 + 4 * n
        (n,) = struct.unpack_from("<I", data, pos)
        yield ids, data[pos + 4 : pos + 4 + n].decode()
        pos += 4 + n


def compare(binary, folder, texts, special, tmp):
    tok = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    tok.encode_special_tokens = not special
    write_texts(tmp / "texts", texts)
    mode = [] if special else ["plain"]
    subprocess.run([binary, folder, tmp / "texts", tmp / "results", *mode], check=True)
    differ = 0
    num_tokens = 0
    for i, (ids, decoded) in enumerate(read_results(tmp / "results")):
        want = tok.encode(texts[i], add_special_tokens=special).ids
        num_tokens += len(want)
        if ids != want or decoded != tok.decode(want, skip_special_tokens=not special):
            differ += 1
            if differ <= 5:
                print(f"  differs: {texts[i][:200]!r}\n    want {want[:40]}\n    got  {ids[:40]}")
    num_bytes = sum(len(t.encode()) for t in texts)
    name = "special tokens parsed" if special else "special tokens as text"
    print(f"{folder}: {name}: {len(texts)} texts, {num_bytes / 1e6:.1f} MB, {num_tokens} tokens: {differ} differ")
    return differ


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default="build/tokenizer_parity")
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--tokenizer", action="append", required=True, help="a folder with tokenizer.json")
    parser.add_argument("--mb", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bench", action="store_true")
    args = parser.parse_args()

    differ = 0
    for folder in args.tokenizer:
        rng = random.Random(args.seed)
        added = json.loads(Path(folder, "tokenizer.json").read_text())["added_tokens"]
        special = [t["content"] for t in added][:40]
        real = training_text(args.shared, rng, args.mb * 0.75e6)
        texts = list(real)
        size = 0
        while size < args.mb * 0.3e6:
            texts.append(generated(rng, special))
            size += len(texts[-1].encode())
        rng.shuffle(texts)
        with tempfile.TemporaryDirectory() as tmp:
            tmp = Path(tmp)
            differ += compare(args.binary, folder, texts, True, tmp)
            differ += compare(args.binary, folder, texts[: len(texts) // 4], False, tmp)
            if args.bench:
                write_texts(tmp / "real", ["".join(real[i : i + 8]) for i in range(0, len(real), 8)])
                subprocess.run([args.binary, folder, tmp / "real", "bench"], check=True)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
