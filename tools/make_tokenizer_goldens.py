#!/usr/bin/env python3
"""Writes tests/data/tokenizer/: small tokenizers that between them use every supported component,
and the ids that the `tokenizers` package gives for awkward texts, for them and for the demo target.

Usage: python tools/make_tokenizer_goldens.py   (from the source root; needs: pip install tokenizers)
The vocabularies are trained on LICENSE and the texts below, so the output depends on nothing else.
"""

import json
import random
from pathlib import Path

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)  # fmt: skip

OUT = Path("tests/data/tokenizer")
DEMO = Path("models/demo-target/tokenizer.json")
QWEN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
LLAMA3 = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
# The pattern of OpenAI's o200k vocabulary: one that no hand-coded splitter knows.
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip

TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", " \n \n x", "a\r\n\r\nb", "\x0b\x0c\x85\xa0\u2003x",
    "Hello world", " Hello  World!", "Hello,   world \n", "I'm you're WE'VE he'll it'S 'twas 'ſ x'ſy '", "''s'S' 's",
    "don't can't o'clock rock 'n' roll", "3", "33", "333", "3333 33333", "12.5e-3, 1/2 ½ ² Ⅷ ٣٤٥ ３４", "0x1F+0b11",
    "naïve façade Straße İstanbul ŉ ﬁne", "e\u0301 a\u0300\u0316\u0301 \u0301x ờ \u212b \u1100\u1161\u11a8 가\u11a8",
    "क्षि नमस्ते ภาษาไทย עִבְרִית العَرَبِيَّة", "日本語のテキスト。中文，没有空格！한국어 조선말", "нещо на Български",
    "👩\u200d👩\u200d👧\u200d👦 🇩🇪🇫🇷 👍🏽 ✅ 🦙.cpp 🚀", "\ufeffbom \u200b zero \u2060 width \u202f\u2009thin\u3000ideographic",
    "def f(x):\n    return x  # comment\n\n\nclass A:\n\t\tpass\n", "<div class=\"a\">{{ x }}</div>\r\n<!-- -->",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += 1;\n}", "https://example.com/a?b=c&d=%20#e", "...!!!???---===***___",
    "<|im_start|>user\nHi<|im_end|>\n", "<|im_end|><|im_end|> <|im_end|>x<|im_end", "<|endoftext|>a<|endoftext|>",
    "a <left>b", "a \t <left> b", "a<right>  \n b", "a <both> <both> b", "word xwordx word, (word)", "wordword word",
    "caf\u00e9 cafe\u0301!", " <right> <left>", "\U0001d400\U0001d7d9 \U00020000 \ue000 \ufffd \U0010ffff \x00\x01\x7f",
    "\u0e33 \u0345\u0334 \u1e9b\u0323 \u0958 \ufb1d \u2126 \uf900 \U0002f800", "a" * 100, " " * 100, "ab" * 60, "\n" * 40,
    "x" * 7 + " " * 7 + "9" * 7 + "!" * 7, "The quick brown fox jumps over the lazy dog. " * 4, "ÀÉÎõü ÀÉÎõü", "中" * 30,
    "\u1c89\ua7cb\U00010d40\u0899a\u0301\u1df6b\u0334 \U0001fa77\U0001fae8!", "a\u0315\u0300\u05ae\u0062", "\u05d0\u05bc\u05b7\u05bf",
    "MixedCase HTTPServer parseJSONFile x86_64 utf8", "tab\tseparated\tvalues\n1\t2\t3\n", "    indented\n        more\n",
]  # fmt: skip


def random_texts():
    rng = random.Random(5)
    pools = ["aZé中 \n'1", " \t\n\r\xa0\u3000ab", "e\u0301\u0323\u0316 ạê", "<|im_end|> x", "word left 12½²Ⅷ",
             "😀🇩\u200d\ufe0f ,.", "한ᄀ\u1161\u11a8각"]  # fmt: skip
    for _ in range(70):
        pool = rng.choice(pools)
        yield "".join(rng.choice(pool) for _ in range(rng.randint(1, 40)))
    for _ in range(15):
        points = [rng.choice([rng.randrange(0x3000), rng.randrange(0xE000, 0x110000)]) for _ in range(12)]
        yield "".join(map(chr, points))


def train(pre_tokenizer, normalizer=None, vocab_size=420, alphabet=True, **bpe):
    tok = Tokenizer(models.BPE(**bpe))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre_tokenizer
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, special_tokens=["<unk>"] if "unk_token" in bpe else [],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [])  # fmt: skip
    tok.train_from_iterator([Path("LICENSE").read_text()] + TEXTS, trainer)
    return tok


def byte_level(prefix=False, regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(pattern, behavior, invert)


def sequence(*stages):
    return pre_tokenizers.Sequence(list(stages))


def make_tokenizers():
    special = lambda s, **k: AddedToken(s, special=True, normalized=False, **k)  # noqa: E731
    gpt2 = train(byte_level(regex=True))
    gpt2.add_special_tokens([special("<|endoftext|>")])
    yield "gpt2", gpt2, {}

    prefix = train(sequence(split("-", "removed"), byte_level(prefix=True, regex=True)))
    yield "prefix_space", prefix, {}

    llama3 = train(sequence(split(Regex(LLAMA3)), byte_level()), vocab_size=700)
    llama3.add_special_tokens([special("<|begin|>"), special("<|im_end|>")])
    bos = llama3.token_to_id("<|begin|>")
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B",
                                      special_tokens=[("<|begin|>", bos)])])  # fmt: skip
    yield "llama3", llama3, {"ignore_merges": True, "drop_merges": 40, "legacy": True}

    qwen = train(sequence(split(Regex(QWEN)), byte_level()), normalizers.NFC())
    qwen.add_special_tokens([special("<|im_start|>"), special("<|im_end|>"), special("<|im_end|>x")])
    qwen.add_tokens([
        AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True, normalized=True),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("word", single_word=True, normalized=True), AddedToken("cafe\u0301", normalized=True),
        AddedToken("<|im", normalized=False)])  # fmt: skip
    qwen.post_processor = processors.ByteLevel(trim_offsets=False)
    yield "qwen", qwen, {}

    stages = sequence(pre_tokenizers.Digits(individual_digits=False), split(" ", "merged_with_next"),
                      split(Regex(r"\w+"), "contiguous", True), split("e", "merged_with_previous"), byte_level())  # fmt: skip
    yield "stages", train(stages, normalizers.Sequence([normalizers.NFC()])), {}

    removed = sequence(split(Regex(r"[\p{L}\p{M}]+|\p{N}"), "removed", True), pre_tokenizers.Digits(True), byte_level())
    yield "unk", train(removed, alphabet=False, unk_token="<unk>"), {"remove_bytes": 60}
    yield "unk_fused", train(removed, alphabet=False, unk_token="<unk>", fuse_unk=True), {"remove_bytes": 60}
    yield "o200k", train(sequence(split(Regex(O200K)), byte_level())), {}


def edited(tok, ignore_merges=False, drop_merges=0, legacy=False, remove_bytes=0):
    """The tokenizer.json of `tok` with changes that the package's own training cannot make."""
    data = json.loads(tok.to_str())
    model = data["model"]
    model["ignore_merges"] = ignore_merges
    if drop_merges:  # tokens that merges cannot build any more: only ignore_merges finds them
        model["merges"] = model["merges"][:-drop_merges]
    if remove_bytes:  # bytes without a token
        gone = {t for t in sorted(model["vocab"]) if len(t) == 1}
        gone = set(random.Random(3).sample(sorted(gone), remove_bytes))
        keep = {t: i for t, i in model["vocab"].items() if t == "<unk>" or not gone & set(t)}
        model["vocab"] = {t: i for i, t in enumerate(sorted(keep, key=keep.get))}
        model["merges"] = [m for m in model["merges"] if "".join(m) in model["vocab"]]
    if legacy:
        model["merges"] = [" ".join(m) for m in model["merges"]]
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def golden(name, tok, special, texts):
    tok.encode_special_tokens = not special
    ids = [tok.encode(text, add_special_tokens=special).ids for text in texts]
    decoded = [tok.decode(i, skip_special_tokens=not special) for i in ids]
    # null where decoding gives the text back.
    decoded = [None if d == text else d for d, text in zip(decoded, texts)]
    return {"tokenizer": name, "special": special, "ids": ids, "decoded": decoded}


def main():
    texts = TEXTS + list(random_texts())
    OUT.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, tok, edits in make_tokenizers():
        path = OUT / f"{name}.json"
        path.write_text(edited(tok, **edits) + "\n")
        files[str(path)] = path
    files[str(DEMO)] = DEMO
    # Line 1: the texts. Every other line: what one tokenizer makes of them.
    with (OUT / "goldens.jsonl").open("w") as out:
        rows = [{"texts": texts}]
        for name, path in files.items():
            for special in (True, False):
                rows.append(golden(name, Tokenizer.from_str(path.read_text()), special, texts))
        for row in rows:
            out.write(json.dumps(row, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
