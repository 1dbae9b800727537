"""Reading the training corpus: JSON lines, plain or zstd-compressed."""

import hashlib
import io
import json
import subprocess


def open_text(path):
    if not str(path).endswith(".zst"):
        return open(path, encoding="utf-8")
    try:
        import pyarrow

        return io.TextIOWrapper(pyarrow.input_stream(str(path), compression="zstd"), encoding="utf-8")
    except ImportError:
        pipe = subprocess.Popen(["zstd", "-dcq", str(path)], stdout=subprocess.PIPE)
        return io.TextIOWrapper(pipe.stdout, encoding="utf-8")


def read_records(path):
    with open_text(path) as lines:
        for line in lines:
            yield json.loads(line)


def record_hash(record):
    """A stable number for one record; decides the held-out split and every 'random' choice about it."""
    content = record.get("text") or "\n".join(m["content"] for m in record["messages"])
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "little")


def is_held_out(record):
    return record_hash(record) % 200 == 0


def render_chat(messages, generation_prompt=False):
    """ChatML, exactly what the chat template in tokenizer_config.json gives."""
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + "<|im_start|>assistant\n" if generation_prompt else text
