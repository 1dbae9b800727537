"""Turns plain text records into instruction exercises, and chat records into new prompts.

Every choice is drawn from a generator seeded by the record, so the data set is the same on every run.
"""

import random
import re

from corpus import record_hash

STOP_WORDS = frozenset("the a an of and to in is are was were that this it for on as with by at from or be".split())
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are a helpful assistant. Answer briefly.",
                  "You are Volley, a small and fast assistant.", "Answer as clearly as you can.",
                  "You are a patient teacher.", "A chat between a curious user and an assistant."]
SKIP_HEADS = ("Learning Objectives", "See also", "Chapter Objectives", "Requirements")
NAMES = ("Anna Ben Carla David Elena Frank Grace Hugo Irene Jack Karen Leo Maria Nina Oscar Paula Quinn Rosa Sam "
         "Tina Uma Victor Wendy Xavier Yara Zoe Tom Mike Sara John Mary James Linda Peter Lucy Eric").split()
COMMON_NAMES = re.compile(r"\b(" + "|".join("""John Mary James Tom Sam Sarah Mike Jack Emily Lisa Anna Bob Jane Tim Mark
    Peter Alice Kate David Jenny Amy Ben Josh Jim Joe Carol Tina Karen Kevin Brian Susan Maria Paul Laura Emma Matt
    Steve Chris Alex Sally Ryan Rachel Jessica Frank George Henry Julia Kim Lily Lucy Max Nick Olivia Rose Ted""".split())
    + r")\b")


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def sentences(text):
    flat = re.sub(r"\s+", " ", text).strip()
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z\"“])", flat) if len(s) > 20]


def clip_words(text, count):
    words = text.split(" ")
    return " ".join(words[:count])


def sections(text):
    """-> [(title, body)]: markdown headings and what stands under them."""
    parts = re.split(r"(?m)^#{1,4} +(.+)$", text)
    title = ""
    for idx in range(1, len(parts) - 1, 2):
        head = parts[idx].replace("`", "").strip().strip("#* ")
        body = parts[idx + 1].strip()
        title = head if idx == 1 else title
        if len(body) > 80 and head not in SKIP_HEADS:
            yield (title, head, body)


def paragraphs(text):
    return [p.strip() for p in text.split("\n\n") if len(p.strip()) > 60]


def prose(text):
    return [p for p in paragraphs(text) if not p.startswith(("#", "```", "|", "-", ">", "*", "<"))]


def extract_summary(passage, count):
    """Lead sentence and the sentences whose words are most frequent, in their own order."""
    lines = sentences(passage)
    if len(lines) < 4:
        return None
    frequency = {}
    for word in re.findall(r"[a-z]+", passage.lower()):
        if word not in STOP_WORDS:
            frequency[word] = frequency.get(word, 0) + 1

    def score(line):
        words = [w for w in re.findall(r"[a-z]+", line.lower()) if w not in STOP_WORDS]
        return sum(frequency[w] for w in words) / (len(words) + 4)

    best = sorted(range(1, len(lines)), key=lambda i: -score(lines[i]))[:count - 1]
    return " ".join(lines[i] for i in [0] + sorted(best))


def passages(rng, paras, max_words):
    """Runs of whole paragraphs, each up to a random number of words."""
    idx = 0
    while idx < len(paras):
        limit, taken, words = rng.choice([60, 120, 250, max_words]), [], 0
        while idx < len(paras) and (not taken or words + len(paras[idx].split()) <= limit):
            taken.append(paras[idx])
            words += len(paras[idx].split())
            idx += 1
        yield clip_words("\n\n".join(taken), max_words)


def summary_task(rng, passage):
    count = rng.choice([1, 2, 3, 3])
    summary = extract_summary(passage, count)
    if summary is None:
        return None
    ask = {1: ["Summarize in one sentence: ", "What is the main point of this text?\n\n", "Give a one-sentence summary:\n\n"],
           2: ["Summarize briefly: ", "Summarize the passage below in two sentences.\n\n"],
           3: ["Summarize: ", "Summarize: ", "Please summarize the following text.\n\n", "TL;DR of this article:\n\n"]}[count]
    return [user(rng.choice(ask) + passage), assistant(summary)]


def lookup_task(rng, passage):
    """Answer from a passage: quote the sentence that holds a chosen word."""
    lines = sentences(passage)
    if len(lines) < 4:
        return None
    line = rng.choice(lines[1:])
    words = [w for w in re.findall(r"[A-Za-z]{6,}", line) if passage.count(w) == 1]
    if not words:
        return None
    word = rng.choice(words)
    ask = rng.choice([f"What does the text say about {word}?", f"According to the passage, what about {word}?",
                      f"Find the sentence about {word}."])
    if rng.random() < 0.5:
        return [user(f"{passage}\n\n{ask}"), assistant(line)]
    return [user(f"Answer the question with the passage.\n\nPassage: {passage}\n\nQuestion: {ask}"), assistant(line)]


EXPLAIN = ["Explain {x}.", "What is {x}?", "Tell me about {x}.", "Write a short text about {x}.",
           "Can you describe {x}?", "Give an introduction to {x}.", "What should I know about {x}?",
           "Write a blog post about {x}.", "Provide insights into {x}.", "How would you explain {x} to a beginner?"]
CONTINUE = ["Continue this story:\n\n", "Continue the text:\n\n", "Write the next paragraph.\n\n", "What happens next?\n\n"]
WRITE = ["Write a short story in which {x} plays a part.", "Write a scene with {x}.", "Describe {x} vividly.",
         "Imagine you are {x}. Speak as you would.", "Pretend to be {x} in this conversation. Introduce yourself."]
FOLLOW_UPS = ["Summarize your answer in one sentence.", "Can you say that in one sentence?", "Make it shorter.",
              "Rewrite your previous response in one sentence.", "Now explain it again, briefly."]


def explain_task(rng, title, head, body):
    text = "\n\n".join(paragraphs(body)[:4])
    if len(text) > 1600:
        text = text[:1600].rsplit("\n\n", 1)[0] if "\n\n" in text[:1600] else " ".join(sentences(text[:1600])[:-1])
    if len(text) < 100:
        return None
    subject = head if head == title or rng.random() < 0.3 else f"{head} ({title})"
    messages = [user(rng.choice(EXPLAIN).format(x=subject)), assistant(text)]
    first = sentences(text)
    if len(first) > 2 and rng.random() < 0.3:
        messages += [user(rng.choice(FOLLOW_UPS)), assistant(first[0])]
    return messages


def code_task(rng, title, body):
    """A fenced example of a documentation page: ask for it, or ask what it does."""
    match = re.search(r"```(\w+)\n(.{40,1400}?)```", body, re.S)
    if not match:
        return None
    language, code = match.group(1), match.group(0)
    after = prose(body[match.end():])
    before = prose(body[:match.start()])
    if after and rng.random() < 0.3:
        return [user(f"What does this {language} code do?\n\n{code}"), assistant(after[0])]
    lead = before[-1] + "\n\n" if before and rng.random() < 0.6 else ""
    ask = rng.choice(["Show an example of {t} in {l}.", "Write {l} code for {t}.", "How do I use {t} in {l}?",
                      "Develop a {l} program that shows {t}."])
    return [user(ask.format(t=title, l=language)), assistant(lead + code)]


def tasks_from_text(record):
    """Plain text record -> exercises (lists of messages)."""
    rng = random.Random(record_hash(record))
    text, source = record["text"], record["src"]
    if source == "books":
        paras = paragraphs(text)
        for idx in range(0, len(paras) - 1, rng.randint(5, 9)):
            passage = paras[idx]
            following = clip_words("\n\n".join(paras[idx + 1:idx + 4]), 220)
            if rng.random() < 0.5:
                yield [user(rng.choice(CONTINUE) + clip_words(passage, 160)), assistant(following)]
            else:
                people = re.findall(r"(?:Mr|Mrs|Miss|Captain|Dr|Sir|Lady)\.? [A-Z][a-z]+", passage + following)
                if people:
                    yield [user(rng.choice(WRITE).format(x=rng.choice(people))), assistant(following)]
        for passage in list(passages(rng, paras, 700))[::6]:
            task = summary_task(rng, passage) if rng.random() < 0.6 else lookup_task(rng, passage)
            if task:
                yield task
        return
    for title, head, body in sections(text):
        if rng.random() < 0.5:
            task = explain_task(rng, title, head, body)
            if task:
                yield task
        if "```" in body and rng.random() < 0.4:
            task = code_task(rng, head if head == title else f"{head} of {title}", body)
            if task:
                yield task
    for passage in list(passages(rng, prose(text), 700))[::2]:
        task = summary_task(rng, passage) if rng.random() < 0.5 else lookup_task(rng, passage)
        if task:
            yield task


def perturb(rng, question):
    """A word problem with other numbers and names: a prompt the corpus does not hold."""
    def number(match):
        value = int(match.group(0))
        low = max(2, value // 2)
        return str(rng.randint(low, max(low + 3, value * 2)))

    mapping = {}
    text = re.sub(r"(?<![\d.,])\d{1,4}(?![\d.,]\d|\d|%)", number, question)
    return COMMON_NAMES.sub(lambda m: mapping.setdefault(m.group(0), rng.choice(NAMES)), text)


def rename(rng, messages):
    """The same conversation about people of other names."""
    mapping = {}
    swap = lambda m: mapping.setdefault(m.group(0), rng.choice(NAMES))
    return [{"role": m["role"], "content": COMMON_NAMES.sub(swap, m["content"])} for m in messages]


def mbpp_header_task(messages):
    """An MBPP exercise as a function header with its docstring, to be completed."""
    task, code = messages[0]["content"], messages[1]["content"]
    match = re.search(r"```python\n(.*?)```", code, re.S)
    test = re.search(r"`assert (\w+)(\(.*\)) ?==? ?(.+?) *`", task, re.S)
    if not match or not test:
        return None
    source = match.group(1).rstrip().replace("\r", "")
    head = re.search(r"(?m)^def .*:[ ]*$", source)
    if not head or f"def {test.group(1)}" not in head.group(0):
        return None
    sentence = task.split(". Your code")[0].removeprefix("Write a function to ").removeprefix("Write a python function to ")
    doc = f'    """ {sentence[:1].upper()}{sentence[1:]}.\n    >>> {test.group(1)}{test.group(2)}\n    {test.group(3)}\n    """\n'
    whole = source[:head.end()] + "\n" + doc + source[head.end() + 1:]
    return [user(source[:head.end()] + "\n" + doc), assistant(f"```python\n{whole}\n```")]


EQUATION = re.compile(r"([^=\n]*?)= *(\$?)(\d+)(?![\d,/]|\.\d)")
EXPRESSION = re.compile(r"\(*\d+\)*(?: *[-+*/] *\(*\d+\)*)+$")


def arithmetic(left):
    """The expression that ends `left`, words and units taken out, or None."""
    text = re.sub(r"/ ?[A-Za-z]+", "", left.replace("×", "*"))
    text = re.sub(r"(?<=\d) ?x ?(?=[\d$(])", "*", text)
    text = re.sub(r"[A-Za-z$’'\u2019]+", "", text)
    match = EXPRESSION.search(re.sub(r" +", " ", text).strip())
    if not match or re.search(r"(?<!\d)0\d", match.group(0)):
        return None
    try:
        return eval(match.group(0))  # digits, brackets and four signs: the pattern holds nothing else
    except (SyntaxError, ZeroDivisionError):
        return None


def renumber(rng, messages):
    """A word problem with other numbers and names, its solution worked out anew, or None if that cannot be done.

    Numbers of the question are replaced in both texts; every equation of the solution is computed again, and its
    result replaces the old one from there on. An equation that does not hold before the change is not understood."""
    question, solution = (m["content"] for m in messages)
    if re.search(r"\d[.,]\d|\d/\d|%", question) or re.search(r"\d[.,]\d|%", solution):
        return None
    mapping = {}
    for number in dict.fromkeys(re.findall(r"\d+", question)):
        value = int(number)
        mapping[number] = str(value if value < 2 else rng.randint(max(2, value // 2), max(4, value * 2)))
    swap = lambda text: re.sub(r"\d+", lambda m: mapping.get(m.group(0), m.group(0)), text)
    lines = []
    for line in solution.split("\n"):
        out, at = "", 0
        matches = list(EQUATION.finditer(line))
        if len(matches) != line.count("="):
            return None
        for match in matches:
            old = arithmetic(match.group(1))
            left = swap(match.group(1))
            value = arithmetic(left)
            if old is None or value is None or old != int(match.group(3)):
                return None
            if value != int(value) or not 0 < value < 1_000_000:
                return None
            out += left + match.group(0)[len(match.group(1)):-len(match.group(3))] + str(int(value))
            mapping[match.group(3)] = str(int(value))
            at = match.end()
        lines.append(out + swap(line[at:]))
    return rename(rng, [user(swap(question)), assistant("\n".join(lines))])


WH = ["who", "what", "when", "where", "which", "how", "why"]


def quote_task(rng, passage):
    """A question in keywords about a passage, answered by the sentence that holds them."""
    lines = sentences(passage)
    if len(lines) < 3:
        return None
    line = rng.choice(lines)
    words = [w for w in re.findall(r"[A-Za-z0-9]{4,}", line) if w.lower() not in STOP_WORDS]
    if len(words) < 4:
        return None
    start = rng.randrange(len(words) - 2)
    keys = " ".join(words[start:start + rng.randint(2, 5)])
    question = rng.choice([f"{rng.choice(WH)} {rng.choice(['is', 'was', 'did', 'are'])} {keys}?", f"{rng.choice(WH)} {keys}",
                           f"What does the text say about {keys}?", f"Describe {keys}."])
    question = question[:1].upper() + question[1:] if rng.random() < 0.8 else question.lower()
    content = f"{passage}\n{question}" if rng.random() < 0.7 else f"{question}\n\n{passage}"
    return [user(content), assistant(line)]


def lead_task(rng, passage):
    """The first sentences as the summary: the usual baseline for news, and exact copying."""
    lines = sentences(passage)
    if len(lines) < 5:
        return None
    ask = rng.choice(["Summarize: ", "Summarize: ", "Summarize this text: ", "Please summarize the following article.\n\n", "TL;DR of this:\n\n"])
    return [user(ask + passage), assistant(" ".join(lines[:rng.choice([2, 3, 3])]))]
