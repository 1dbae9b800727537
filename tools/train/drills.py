"""Exercises and prompts recombined from the corpus and from frames, so that there is nothing to recite.

On its own training prompts (even with other numbers) a target recites, and a drafter learns to recite with it: it
accepts twice as much there as on questions never seen. Exercises (with answers) teach the target; prompts of the same
kinds, and of some that have no answer, are what it answers for its own data and the drafter's.
"""

import re

import frames
import synthetic
import tasks
from corpus import is_held_out, read_records

# kind: share of the exercises, share of the prompts.
SHARES = {"header": (16, 18), "python": (4, 3), "open": (22, 20), "extraction": (5, 3), "program": (5, 4),
          "german": (7, 7), "unknown": (6, 6), "quote": (15, 9), "lead": (12, 8), "summary": (6, 3),
          "word_problem": (0, 26), "instruction": (0, 8), "odd_header": (0, 5), "odd_passage": (0, 4)}

INSTRUCTIONS = """Compose a short poem about {x}.|Write a persuasive letter about {x} to a friend.|Draft an email that
explains {x} to your manager.|Write a story that begins with {x}.|Describe a day in the life of {x}.|Imagine you are
{x}. What would you say about {y}?|Pretend to be an expert in {x}. Why does {y} matter?|Compare {x} and {y}.|What is
the difference between {x} and {y}?|Explain {x} to a child of eight.|How does {x} affect {y}? Give examples.|What are
the main causes of {x}, and what are its effects?|Discuss the role of {x} in {y}.|Give me three ideas about {x}.|List
the advantages and drawbacks of {x}.|Suppose that {x} is taller than {y}. Who is the tallest?|If you pass {x} and then
{y}, where are you now?|Write a C++ program that reads {x} and prints {y}.|Write a function that finds the best {x} in
a list of {y}.|Implement a simple game about {x} in Python.|Extract the names and dates from this text: {x} met {y} in
1994.|Rate these reviews from 1 to 5: "{x} was wonderful." "{y} was dull."|Summarize what is known about {x}.|How can
I improve my {x} without {y}?|Edit this sentence: {x} and {y} is going to be late.|What happens when {x} meets {y}?|
Design an experiment about {x}.|Provide an outline of a talk on {x} and {y}.""".replace("\n", " ").split("|")
QUESTIONS = """who played {n} in {x}|when did {x} first come out|where is {x} located|what is the meaning of {x} in {y}|
who wrote the book {x}|how many {x} are there in {y}|who is the president of {y}|what year did {y} win the {x}|
who sings the song {x}|when was the first {x} built in {y}|what type of {x} is used for {y}|name the {x} of {y}|
who won the {x} in 2016|where did the word {x} come from""".replace("\n", "").split("|")
TYPES = ["int", "str", "float", "List[int]", "List[str]", "bool"]


def value(rng, kind):
    if kind == "int":
        return str(rng.choice([rng.randint(-9, 99), rng.randint(100, 5000)]))
    if kind == "float":
        return f"{rng.uniform(-5, 30):.{rng.randint(1, 3)}f}"
    if kind == "bool":
        return rng.choice(["True", "False"])
    if kind == "str":
        return repr("".join(rng.choice("abcdefghijklmno ABC123") for _ in range(rng.randint(1, 14))))
    inner = kind[5:-1]
    return "[" + ", ".join(value(rng, inner) for _ in range(rng.randint(0, 6))) + "]"


class Material:
    def __init__(self, corpus):
        self.problems, self.tasks, self.topics, self.passages, self.sentences = [], [], [], [], []
        for record in read_records(next(p for p in corpus.glob("chat.jsonl*"))):
            if is_held_out(record):
                continue
            content = record["messages"][0]["content"]
            if record["src"] == "gsm8k_train":
                self.problems.append(tasks.sentences(content) or [content])
            elif record["src"] == "mbpp_train":
                self.tasks.append(re.sub(r"^Write a (python )?function to ", "", content.split(". Your code")[0]))
            elif record["src"] == "tldr":
                match = re.match(r"How do I (.{12,90}?)(?: with `| using `|\?)", content)
                if match:
                    self.tasks.append(match.group(1))
            elif record["src"] == "wordnet":
                match = re.search(r"(?:word|Define|define|mean by) \"?([a-z][a-z -]{3,20})\"?", content)
                if match:
                    self.topics.append(match.group(1))
        for record in read_records(next(p for p in corpus.glob("core_text.jsonl*"))):
            if record["src"] == "openstax" and not is_held_out(record):
                self.topics += [head.lower() for _, head, _ in tasks.sections(record["text"]) if len(head) < 40]
                self.passages.append(record["text"])
        for record in read_records(next(p for p in corpus.glob("books.jsonl*"))):
            if not is_held_out(record):
                self.passages.append(record["text"])
        for text in self.passages[::7]:
            self.sentences += [s for s in tasks.sentences(text[:3000]) if len(s) < 200][:8]

    def odd_header(self, rng):
        words = re.findall(r"[a-z]{3,}", rng.choice(self.tasks).lower()) or ["value"]
        name = "_".join(rng.sample(words, min(len(words), rng.randint(1, 3))))
        args = [(rng.choice(words + list("abcklmnxyz") + ["lst", "arr", "text", "num"]), rng.choice(TYPES))
                for _ in range(rng.randint(1, 3))]
        typed = rng.random() < 0.5
        listed = ", ".join(f"{a}: {t}" if typed else a for a, t in args)
        result = rng.choice(TYPES)
        lines = [rng.choice(self.tasks)]
        lines += [rng.choice(self.tasks) for _ in range(rng.randint(0, 2))]
        doc = "\n    ".join(line[:1].upper() + line[1:] + "." for line in lines)
        style = rng.randrange(3)
        examples = []
        for _ in range(rng.randint(1, 3)):
            call = f"{name}({', '.join(value(rng, t) for _, t in args)})"
            out = value(rng, result)
            examples.append([f"    >>> {call}\n    {out}", f"    {call} => {out}", f"    {call} == {out}"][style])
        lead = ["", "    For example:\n", "    Examples:\n"][style]
        arrow = f" -> {result}" if typed else ""
        imports = "from typing import List\n\n\n" if typed and "List" in listed + result else ""
        return (f"{imports}def {name}({listed}){arrow}:\n    \"\"\"{rng.choice(['', ' '])}{doc}\n{lead}"
                + "\n".join(examples) + '\n    """\n')

    def word_problem(self, rng):
        first, second = rng.choice(self.problems), rng.choice(self.problems)
        text = " ".join(first[:max(1, len(first) // 2)] + second[-max(1, (len(second) + 1) // 2):])
        people = list(dict.fromkeys(tasks.COMMON_NAMES.findall(text)))
        kept = rng.sample(tasks.NAMES, 2)
        for idx, person in enumerate(people):
            text = re.sub(rf"\b{person}\b", kept[idx % 2], text)
        return tasks.perturb(rng, text)

    def instruction(self, rng):
        return rng.choice(INSTRUCTIONS).strip().format(x=rng.choice(self.topics), y=rng.choice(self.topics))

    def question(self, rng):
        text = rng.choice(QUESTIONS).strip().format(x=rng.choice(self.topics), y=rng.choice(self.topics),
                                                    n=rng.choice(tasks.NAMES).lower())
        return text[:1].upper() + text[1:] + "?" if rng.random() < 0.7 else text

    def passage_text(self, rng, most):
        """Running paragraphs of a chapter, cut to a random number of words."""
        paras = tasks.prose(rng.choice(self.passages))
        at = rng.randrange(max(1, len(paras) - 3)) if paras else 0
        text = " ".join(paras[at:at + 12]) or rng.choice(self.sentences)
        return re.sub(r"\s+", " ", tasks.clip_words(text, int(40 * (most / 40) ** rng.random())))

    def odd_passage(self, rng):
        """Halves of two chapters, with a question about neither."""
        text = self.passage_text(rng, 200) + " " + self.passage_text(rng, 200)
        return f"{text}\n\n{self.question(rng)}" if rng.random() < 0.6 else f"{self.question(rng)}\n{text}"


def try_exercise(material, kind, rng):
    if kind == "header":
        return synthetic.header_exercise(rng, material.tasks)
    if kind == "python":
        return synthetic.python_exercise(rng)
    if kind == "open":
        return frames.request(rng, material.topics, material.sentences)
    if kind == "extraction":
        return frames.extraction(rng, material.topics)
    if kind == "program":
        return frames.program(rng, material.tasks)
    if kind == "german":
        return synthetic.gloss_exercise(rng, material.topics)
    if kind == "unknown":
        question = material.question(rng)
        return [tasks.user(question), tasks.assistant(frames.unknown(question))]
    if kind == "quote":
        return tasks.quote_task(rng, material.passage_text(rng, 650))
    if kind == "lead":
        return tasks.lead_task(rng, material.passage_text(rng, 650))
    return tasks.summary_task(rng, material.passage_text(rng, 400))


def draw_kind(rng, column):
    return rng.choices(list(SHARES), [shares[column] for shares in SHARES.values()])[0]


def exercise(material, rng):
    """-> kind, messages with an answer."""
    while True:
        kind = draw_kind(rng, 0)
        messages = try_exercise(material, kind, rng)
        if messages:
            return kind, messages


def prompt(material, rng):
    """-> kind, one user turn."""
    while True:
        kind = draw_kind(rng, 1)
        if SHARES[kind][0] == 0:
            return kind, getattr(material, kind)(rng)
        messages = try_exercise(material, kind, rng)
        if messages:
            return kind, messages[0]["content"]
