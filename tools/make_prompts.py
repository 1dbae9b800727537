#!/usr/bin/env python3
"""Makes models/prompts/*.jsonl: small excerpts of evaluation sets, and prompts of our own.

Usage: tools/make_prompts.py EVAL_DIR, with the original files of the datasets in EVAL_DIR
(gsm8k_test.jsonl, humaneval.jsonl, mbpp_sanitized_test.jsonl, mt_bench_question.jsonl,
spec_bench_question.jsonl). Nothing here is random: the same originals give the same files.
"""

import base64
import hashlib
import json
import pathlib
import sys

OUT = pathlib.Path(__file__).resolve().parent.parent / "models" / "prompts"
PER_SOURCE = 40

# Written for this repository. None of it is in any training set of ours.
DIALOGUE = [
    ["Hi! I just moved to a small town and I don't know anybody yet.",
     "That sounds exciting and a little lonely. What do you like to do?",
     "I like hiking and board games. How could I meet people?"],
    ["My sourdough came out flat again.", "Oh no. How long did you let it rise?",
     "About two hours in a cold kitchen. What went wrong?"],
    ["Can you recommend a good book for a long train ride?",
     "Of course. Do you prefer stories or facts?",
     "Stories, please, something with the sea in it."],
    ["I have a job interview tomorrow and I'm nervous.",
     "That is normal. What is the job?",
     "It's at a library. What questions might they ask me?"],
    ["Do you watch any sports?", "I know a bit about many of them. Which one do you follow?",
     "Mostly basketball. Why do teams press late in the game?"],
    ["My cat wakes me up at five every morning.", "Does it want food or company?",
     "Food, I think. How can I teach it to wait?"],
    ["What is the weather like in Norway in May?",
     "It is mild and often rainy on the coast. Are you planning a trip?",
     "Yes, a week by train. What should I pack?"],
    ["I want to learn the guitar but my fingers hurt.",
     "That passes after some weeks. How often do you play?",
     "Every day for ten minutes. Is that enough?"],
]

OTHER_LANGUAGES = [
    "Erkläre mir bitte in drei Sätzen, warum der Himmel blau ist.",
    "Quelle est la différence entre un fleuve et une rivière ?",
    "¿Cómo se prepara una tortilla de patatas para cuatro personas?",
    "Объясни, пожалуйста, почему зимой дни короче, чем летом.",
    "请用三句话介绍一下长城的历史。",
    "日本の四季について短く説明してください。",
    "اشرح لي كيف تعمل الطاحونة الهوائية.",
    "Kerro minulle, miten revontulet syntyvät.",
]


def bytes_of(label: str, size: int) -> bytes:
    """Bytes without pattern that are the same everywhere."""
    out = b""
    counter = 0
    while len(out) < size:
        out += hashlib.sha256(f"{label} {counter}".encode()).digest()
        counter += 1
    return out[:size]


def read(folder: pathlib.Path, name: str) -> list:
    with open(folder / f"{name}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def spread(rows: list, count: int) -> list:
    """`count` rows, evenly over the whole set."""
    return [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]


def write(name: str, rows: list) -> None:
    with open(OUT / f"{name}.jsonl", "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{name}.jsonl: {len(rows)} prompts")


def dialogue_rows() -> list:
    roles = ("user", "assistant")
    return [
        {"source": "dialogue",
         "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}
        for turns in DIALOGUE
    ]


def adversarial_rows() -> list:
    rows = []
    for i in range(8):
        rows.append({"source": "base64",
                     "prompt": base64.b64encode(bytes_of(f"base64 {i}", 120)).decode()})
    for i in range(8):
        # Letters in random groups: words that no tokenizer knows.
        letters = [chr(ord("a") + b % 26) for b in bytes_of(f"words {i}", 200)]
        sizes = [2 + b % 7 for b in bytes_of(f"sizes {i}", 30)]
        words, at = [], 0
        for size in sizes:
            words.append("".join(letters[at:at + size]))
            at += size
        rows.append({"source": "random_words", "prompt": " ".join(words)})
    rows += [{"source": "other_language", "prompt": text} for text in OTHER_LANGUAGES]
    return rows


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    OUT.mkdir(parents=True, exist_ok=True)

    gsm8k = [{"source": "gsm8k", "prompt": row["question"]} for row in read(folder, "gsm8k_test")]
    humaneval = [{"source": "humaneval", "prompt": row["prompt"]}
                 for row in read(folder, "humaneval")]
    mbpp = [{"source": "mbpp", "prompt": row["prompt"]}
            for row in read(folder, "mbpp_sanitized_test")]
    mt_bench = [{"source": "mt_bench", "turns": row["turns"]}
                for row in read(folder, "mt_bench_question")]
    # Questions and arithmetic: the rest of Spec-Bench repeats MT-Bench, or carries articles that
    # are not ours to pass on. `volley bench` takes the original file as it is.
    spec = read(folder, "spec_bench_question")
    spec_bench = []
    for category in ("qa", "math_reasoning"):
        of_category = [row for row in spec if row["category"] == category]
        spec_bench += [{"source": "spec_bench", "turns": row["turns"]}
                       for row in spread(of_category, PER_SOURCE // 2)]
    dialogue = dialogue_rows()

    write("eval-gsm8k", spread(gsm8k, PER_SOURCE))
    write("eval-humaneval", spread(humaneval, PER_SOURCE))
    write("eval-mbpp", spread(mbpp, PER_SOURCE))
    write("eval-mt_bench", spread(mt_bench, PER_SOURCE))
    write("eval-spec_bench", spec_bench)
    write("eval-dialogue", dialogue)
    write("adversarial", adversarial_rows())

    def short(rows: list, count: int, limit: int) -> list:
        fitting = [row for row in rows
                   if len(row.get("prompt") or row.get("turns", [""])[0]) <= limit]
        return spread(fitting, count)

    def first_turn(rows: list) -> list:
        return [{"source": row["source"], "prompt": row["turns"][0]} for row in rows]

    write("demo", short(gsm8k, 3, 220) + short(humaneval, 2, 320) +
          first_turn(short(mt_bench, 2, 160)) + first_turn(short(spec_bench, 2, 160)) +
          short(mbpp, 1, 120) + dialogue[:2])
    # Short ones, so that a thousand runs take a minute; the first of each source is the shortest.
    def shortest(rows: list, count: int) -> list:
        return sorted(rows, key=lambda row: len(json.dumps(row)))[:count]

    write("same-answer", shortest(gsm8k, 3) + shortest(humaneval, 3) +
          shortest(first_turn(mt_bench), 3) + shortest(dialogue, 3))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
