"""Trains the demo pair's tokenizer: byte-level BPE, 8,192 tokens, NFC, digits one by one.

  python train_tokenizer.py --corpus DIR --out models/demo-target
"""

import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from corpus import is_held_out, read_records, record_hash

VOCAB_SIZE = 8192
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]

# The split of the Qwen tokenizers: contractions, words with one leading mark, single digits, marks, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# Characters taken from each source: templated sources are capped, or their few templates become tokens.
CHAR_CAP = {"math_synth": 1_500_000, "wordnet": 3_000_000, "tldr": 1_500_000, "cpp-docs": 11_000_000,
            "tldr-pages": 1_500_000, "powershell-docs": 4_000_000, "factbook": 2_000_000,
            "openstax": 16_000_000, "books": 16_000_000}


def sample(corpus):
    used = {}
    for name in ("core_text", "chat", "books"):
        path = next(p for p in (corpus / f"{name}.jsonl", corpus / f"{name}.jsonl.zst") if p.exists())
        records = [r for r in read_records(path) if not is_held_out(r)]
        records.sort(key=record_hash)
        for record in records:
            for text in [record["text"]] if "text" in record else [m["content"] for m in record["messages"]]:
                if used.get(record["src"], 0) < CHAR_CAP.get(record["src"], 1 << 40):
                    used[record["src"]] = used.get(record["src"], 0) + len(text)
                    yield text


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(args.corpus), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE

    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
