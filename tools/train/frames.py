"""Open requests (writing, roles, explaining, comparing, lists, riddles, extraction) and answers in set frames.

The corpus shows a small model hardly any answers to requests like these, so it wanders off. The frames, written for
this project, teach it what a person sees first in an assistant: it takes up the request's own words, keeps to a form
and comes to an end. They teach no knowledge. A slot {x} or {y} is a topic that the request names.
"""

import json
import re

import tasks

PLACES = """Lisbon|Norway|the Alps|a small island|Kyoto|the desert|an old harbour town|Scotland|Peru|the north coast|
Vienna|a mountain village|Morocco|the lake district|Iceland|Prague|Kenya|the river valley|Chile|Athens""".replace(
    "\n", "").split("|")
THINGS = """renewable energy|school gardens|public libraries|city traffic|folk music|deep sea fish|online shopping|bees|
electric cars|old bridges|coffee|team meetings|board games|space probes|rain forests|home cooking|night trains|bicycles|
vaccines|housing prices|family letters|street markets|snow storms|solar panels|chess|ancient trade routes|robots|sleep|
water supply|volcanoes|painting|paper money|data privacy|long walks|tea|museums|lighthouses|fair wages|memory|friendship|
the printing press|video games|climate change|open source software|elections|stage fright|magnets|batteries|wild horses|
the stock market|a healthy diet|language learning|remote work|the human heart|dreams|glaciers|comedy|justice|taxes|steel|
handwriting|a garden fence|the night sky|ocean currents|gravity|jazz|exams|small farms|a lost dog|the postal service|
customer support|product design|machine translation|neural networks|search engines|genes|enzymes|sound waves|poetry|
the old mill|a broken clock|a paper boat|a silver key|an empty theatre|a talking cat|the last train|a hidden door""".replace(
    "\n", "").split("|")
MODIFIERS = """modern|early|local|simple|digital|global|hidden|rural|safe|shared|daily|ancient|new|cheap|quiet|natural|
popular|public|private|honest""".replace("\n", "").split("|")
PATTERNS = """{a}|{a}|{a}|{m} {a}|the history of {a}|the future of {a}|the role of {a} in {b}|a recent trip to {p}|
{a} and {b}|the effect of {a} on {b}|{a} in {p}|the use of {a}|the price of {a}|my first day with {a}|
the beauty of {a}|problems with {a}|a day in {p}|{a} for beginners|the science of {a}|a visit to {p}""".replace(
    "\n", "").split("|")
ROLES = """a doctor|a math teacher|a sea captain|a travel guide|a patient coach|an old tree|a famous inventor|a king|
a chef|a detective|a robot|a librarian|a football trainer|a lawyer|a gardener|a pilot|a historian|a shy ghost|a judge|
an engineer|a poet|a shopkeeper|a nurse|a mountain|a scientist|a news reporter""".replace("\n", "").split("|")
PEOPLE = """my manager|a friend|a customer|my teacher|the city council|a neighbour|my sister|the whole team|a supplier|
the school board|an old colleague|the landlord""".replace("\n", "").split("|")
ADJECTIVES = """short|engaging|persuasive|formal|friendly|vivid|clear|professional|captivating|detailed|simple|concise|
thoughtful|creative""".replace("\n", "").split("|")
EXTRAS = """Keep it short.|Use simple words.|Please be concise.|Give at least two examples.|Mention {y} as well.|
Use a friendly tone.|Answer in fewer than 200 words.|Write for a general reader.|Include details about {y}.|
Address possible objections.|Do not use more than three paragraphs.|Ask specifically about {y}.|Be specific.|
Explain your reasoning.|Start with the most important point.|Consider both {x} and {y}.""".replace("\n", "").split("|")

# kind: requests | openings | middles (some of them are taken, in order) | endings. Alternatives within a part: "/".
EXPLAIN = dict(
    ask="""Explain {x}.|What is {x}?|Discuss {x}.|Provide insights into {x}.|Describe {x} in your own words.|
How does {x} work?|Please explain the main ideas behind {x}.|What should a student know about {x}?|Analyze {x}.|
What are the main causes of {x}, and what follows from them?|How does {x} affect {y}?|Discuss {x} and its impact on {y}.|
What is {x}, and how does it relate to {y}?|In the study of {y}, what is {x}?|How have {x} and {y} influenced each other?|
Explain what is meant by {x} and give an example.|Outline the stages of {x}.|Which methods are used in {x}?|
Could you describe the concept of {x}?|Why is {x} important for {y}?""",
    open="""{X} can be understood in a few steps.|To understand {x}, it helps to begin with the basic idea.|
The main idea behind {x} is simple.|There are three main points about {x}.""",
    body="""First, {x} depends on the conditions in which it takes place.|First, {x} is made up of several parts that
work together.|Second, {x} changes over time, and each change has a cause.|Second, {x} has a direct effect on the people
who live with it.|For example, a small change at the beginning can lead to a large change at the end.|For example,
the same thing can be seen in everyday life.|This is related to {y}, because one of them often leads to the other.|
This also affects {y}, because the two share the same causes.|Third, the results can be measured and compared.|Third,
there are limits to what {x} can do.""",
    end="""In short, {x} is best understood by looking at its causes and its effects.|In summary, {x} is important
because it affects many other things.|""")
POST = dict(
    ask="""Write a {d} blog post about {x}.|Compose a {d} blog post about {x}, including {y}.|Write a {d} article about
{x}.|Write a {d} essay on {x}.|Write a {d} paragraph about {x}.|Describe {x} in a {d} way, with details such as {y}.|
Could you write a {d} text about {x}?|Craft a {d} opening paragraph about {x}.|Write a review of {x}.""",
    open="""There is something special about {x}.|I still remember the first time I came across {x}.|
When people think of {x}, they often think of the past.""",
    body="""The first thing that I noticed was the light, and then the sound of voices in the distance.|The air was cool
and clear, and the smell of fresh bread came from a small shop on the corner.|People came from all sides, and everyone
had a story to tell.|I also learned a great deal about {y}, which was new to me.|What surprised me most was how quiet it
was in the early morning.|There was so much to see that one day was not enough.""",
    end="""If you have the chance, take your time with {x}. You will not regret it.|In the end, {x} is worth the time
that it takes.""")
STORY = dict(
    ask="""Write a {d} short story about {x}.|Tell me a story about {x} and {y}.|Write a story in which {x} plays a part.|
Could you write a {d} story that begins with {x}?|Write a fable about {x}.|Write a scene with {x}.|
Invent a {d} character who knows all about {x}.""",
    open="""Once upon a time, there was a young woman who knew all about {x}.|Nobody in the village spoke about {x}.|
It began on a cold morning in the winter, with {x}.""",
    body="""Every morning she walked down to the river and looked at the water for a long time.|One day an old man came to
the door and asked for help.|"Do not be afraid," said the old man. "It is only the wind."|She opened the letter with great
care, and then she began to read.|The night was dark, and there was no sound but the rain.|He had never seen anything like
it before in his life.|At last they came to the end of the road, and there it was.""",
    end="""And from that day on, nobody forgot {x}.|When the sun came up, everything was quiet again.|
She smiled, closed the door, and went home.""")
EMAIL = dict(
    ask="""Draft a {d} email to {w} about {x}.|Write an email to {w} that explains {x}.|Write a letter to {w} about {x}.|
Write a {d} email to convince {w} to think about {x}.|Compose a {d} message to {w} asking for feedback on {x}.|
Help me write a {d} reply to {w} about {x}.""",
    open="""Subject: {X}¶¶Dear {W},¶¶I hope this message finds you well. I am writing to you about {x}.|
Subject: {X}¶¶Dear {W},¶¶Thank you for your time. I would like to ask for your opinion on {x}.""",
    body="""I have given this matter a great deal of thought, and I believe that we should talk about it soon.|I would be
grateful if you could look at the main points and tell me what you think.|In particular, I would like to know what you
think about {y}.|I know that you are busy, so I will keep this short.|Please let me know if there is anything that is not
clear.""",
    end="""I look forward to hearing from you.¶¶Best regards,¶Anna|
Thank you in advance for your help.¶¶Kind regards,¶Anna""")
ROLE = dict(
    ask="""Pretend to be {r}. What do you think about {x}?|Imagine you are {r}. How would you explain {x}?|Act as {r}. I
will ask you questions about {x}. My first question is: why does it matter?|Take on the role of {r} and tell me about {x}.|
Suppose you are {r}. What would you say about {x}?|Now you are {r}. Your task is to talk about {x} so that everyone can
understand it.|Embody {r} in this conversation. What is your favorite thing about {x}?|Speak like {r}. Tell me about {x}.""",
    open="""As {r}, I have thought about {x} for many years.|Well, I am {r}, so I see {x} in my own way.|
My dear friend, you ask {r} about {x}.""",
    body="""The most important thing is to stay calm and to look at what is in front of you.|I have seen many people make
the same mistake, and I have made it myself.|You must begin with small steps and be patient.|People often ask me about {y},
too, and I tell them the same thing.|If you want my advice, take your time and ask for help when you need it.""",
    end="""That is how I see it. What would you like to know next?|That is all that I can tell you about {x} for today.""")
COMPARE = dict(
    ask="""Compare {x} and {y}.|What is the difference between {x} and {y}?|Please explain the differences between {x} and
{y}, and give an example of each.|Which is better, {x} or {y}?|Compare and contrast {x} with {y}.|
Write an outline for a post that compares {x} and {y}.""",
    open="""{X} and {y} are alike in some ways and different in others.|
Here is a short comparison of {x} and {y}.""",
    body="""**{X}:** {x} is easier to begin with and is more widely known.|**{Y}:** {y} takes more time, but it gives more
freedom.|**Cost:** {x} costs less at the beginning, while {y} costs less over time.|**Use:** {x} is used more often at
home, while {y} is used more often at work.""",
    end="""In short, {x} is the better choice for beginners, and {y} is the better choice for those who have more time.|
In the end, the choice between {x} and {y} depends on what you need.""", lines=True)
LIST = dict(
    ask="""Give me five ideas about {x}.|List three examples of {x}.|Suggest four ways to improve {x}.|Describe five key
principles of {x}.|List the advantages of {x}.|What are some tips for {x}?|Share ideas for {x} with children.|
How can I improve {x} without {y}?|Help me with a headline about {x}. Propose 4 options.|Create a plan for {x}.|
Create a lesson plan about {x} for two class periods.|What are the key components of {x}?|
You have been asked to design {x}. What would you consider?|How would you deal with {x}? List three steps.""",
    open="""Here are some ideas about {x}:|Here are the main points about {x}:|""",
    body="""**Start small.** Begin with one part of {x} and see what happens.|**Set a clear goal.** Decide what {x} should
lead to before you begin.|**Ask for help.** Talk to people who know {x} well.|**Keep a record.** Write down what works and
what does not.|**Think about {y}.** It often has an effect on {x}.|**Take your time.** Good results need patience.|
**Look back.** At the end, compare the result with the goal.""",
    end="""Choose the one that suits you best.||""", numbered=True)
RIDDLE = dict(
    ask="""Suppose that {x} is taller than {y}. Who is the tallest?|If you pass {x} and then {y}, where are you now?|
{X} costs more than {y}. {Y} costs more than a loaf of bread. Is it true that {x} costs more than a loaf of bread?|
Why does {r} think about {x} every day? What could be the reasons?|Which word does not belong with the others? {x}, {y}|
What happens to {x} when {y} is taken away?|Is it possible to have {x} without {y}? Explain.""",
    open="""Let us look at what is given: {x} and {y}.|Let us go through this step by step.""",
    body="""The question speaks of {x} and of {y}.|From the first statement, we know something about {x}.|From the second
statement, we know something about {y}.|Putting the two together, one follows from the other.|Nothing else is said, so
nothing else can be assumed.""",
    end="""Therefore, the answer is {x}.|So the answer depends on {y}.|Therefore, the answer is yes.""")
KINDS = {"explain": (EXPLAIN, 30), "post": (POST, 12), "story": (STORY, 11), "email": (EMAIL, 10), "role": (ROLE, 13),
         "compare": (COMPARE, 8), "list": (LIST, 18), "riddle": (RIDDLE, 7)}


def split(text):
    return [part.strip().replace("¶", "\n") for part in text.replace("\n", " ").split("|")]


for _kind, _ in KINDS.values():
    _kind.update({part: split(_kind[part]) for part in ("ask", "open", "body", "end")})


def upper_first(text):
    return text[:1].upper() + text[1:]


def topic(rng, corpus_topics):
    if rng.random() < 0.3:
        return rng.choice(corpus_topics)
    fields = {"a": rng.choice(THINGS), "b": rng.choice(THINGS), "m": rng.choice(MODIFIERS), "p": rng.choice(PLACES)}
    return rng.choice(PATTERNS).format(**fields)


def request(rng, corpus_topics, noise):
    """-> [messages] of one open request. noise: sentences that may stand around it."""
    kind, _ = rng.choices(list(KINDS.values()), [share for _, share in KINDS.values()])[0]
    fields = {"x": topic(rng, corpus_topics), "y": topic(rng, corpus_topics), "d": rng.choice(ADJECTIVES),
              "w": rng.choice(PEOPLE), "r": rng.choice(ROLES)}
    fields |= {"X": upper_first(fields["x"]), "Y": upper_first(fields["y"]), "W": upper_first(fields["w"])}
    ask = upper_first(rng.choice(kind["ask"]).format(**fields))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        ask += " " + rng.choice(EXTRAS).format(**fields)
    if rng.random() < 0.1:
        ask = f"{ask}\n\n{rng.choice(noise)}" if rng.random() < 0.5 else f"{rng.choice(noise)}\n\n{ask}"
    count = min(rng.choice([2, 3, 3, 4]), len(kind["body"]))
    picked = sorted(rng.sample(range(len(kind["body"])), count))
    body = [kind["body"][i].format(**fields) for i in picked]
    if kind.get("numbered"):
        body = [f"{idx + 1}. {line}" for idx, line in enumerate(body)]
    is_list = kind.get("numbered") or kind.get("lines")
    parts = [rng.choice(kind["open"]).format(**fields), ("\n" if is_list else " ").join(body),
             rng.choice(kind["end"]).format(**fields)]
    return [tasks.user(ask), tasks.assistant("\n\n".join(p for p in parts if p))]


CITIES = "Lisbon Oslo Vienna Kyoto Lima Cairo Dublin Athens Quito Riga Hanoi Boston Geneva Madrid Accra Porto".split()
JOBS = "teacher baker pilot nurse painter farmer lawyer singer cook doctor writer driver".split()
GOOD = """I loved every minute of it.|The best that I have seen for years.|Works as it should, and the price is fair.|
A joy from beginning to end.|Friendly staff and good food."""
BAD = """A waste of time and money.|It broke after two days.|I would not go there again.|Dull, slow and far too long.|
Nobody answered my calls."""
MIDDLING = "It was all right.|Some parts were good and others were not.|Nothing special, but it does the job."
REVIEWS = [(text, score) for texts, score in ((BAD, 1), (MIDDLING, 3), (GOOD, 5)) for text in split(texts)]
ERRORS = [("he go to", "he goes to"), ("she don't like", "she doesn't like"), ("they was talking about", "they were talking about"),
          ("I has seen", "I have seen"), ("we was at", "we were at"), ("it are about", "it is about"),
          ("he didn't knew about", "he didn't know about"), ("them people wants", "those people want")]


def extraction(rng, corpus_topics):
    """-> messages: facts out of sentences into JSON or lines, the greatest of some figures, ratings, corrections."""
    form = rng.randrange(4)
    if form == 0:
        rows = [(rng.choice(tasks.NAMES), rng.choice(JOBS), rng.choice(CITIES), rng.randint(1900, 2023))
                for _ in range(rng.randint(2, 4))]
        shapes = ["{0}, a {1}, moved to {2} in {3}.", "In {3}, the {1} {0} came to {2}.", "{0} has worked as a {1} in {2} since {3}."]
        text = "\n".join(f"{mark}) " + rng.choice(shapes).format(*row) for mark, row in zip("abcd", rows))
        ask = rng.choice(["Extract the name, the job, the city and the year from these sentences.",
                          "Identify the people, their jobs and their cities in the following text.",
                          "Find the name, job, city and year in each sentence below."])
        values = [dict(zip(("name", "job", "city", "year"), row)) for row in rows]
        return [tasks.user(f"{ask} {rng.choice(['Output in JSON format.', 'Return the results as a JSON string.'])}\n{text}"),
                tasks.assistant("```json\n[\n" + ",\n".join("  " + json.dumps(v) for v in values) + "\n]\n```")]
    if form == 1:
        names = rng.sample(tasks.NAMES, rng.randint(3, 5))
        figures = rng.sample(range(2, 99), len(names))
        lines = "\n".join(f"{mark}) Company {n}, with {rng.choice(CITIES)} as its seat, earned ${f} million."
                          for mark, n, f in zip("abcde", names, figures))
        best = max(range(len(names)), key=lambda i: figures[i])
        return [tasks.user(rng.choice(["Which company earned the most?", "Identify the company with the highest figure."])
                           + "\n" + lines),
                tasks.assistant(f"Company {names[best]} earned the most, with ${figures[best]} million.")]
    if form == 2:
        rows = [rng.choice(REVIEWS) for _ in range(rng.randint(2, 4))]
        text = "\n".join(f"{i + 1}. {upper_first(topic(rng, corpus_topics))}: {t}" for i, (t, _) in enumerate(rows))
        ask = rng.choice(["Rate these reviews from 1 to 5.", "Evaluate the following reviews on a scale of 1 to 5."])
        return [tasks.user(f"{ask}\n{text}"), tasks.assistant("[" + ", ".join(str(s) for _, s in rows) + "]")]
    rest = topic(rng, corpus_topics)
    picks = rng.sample(ERRORS, rng.randint(1, 2))
    wrong, right = (". ".join(upper_first(f"{p[i]} {rest}") for p in picks) + "." for i in (0, 1))
    ask = rng.choice(["Correct the grammar of this text:", "Edit the following sentence:", "Fix any errors in this text."])
    return [tasks.user(f"{ask}\n{wrong}"), tasks.assistant(right)]


def unknown(question):
    """What an honest small model says to a question of fact it cannot know; it takes up the question's words."""
    core = question.strip().rstrip("?").strip()
    core = core[:1].lower() + core[1:]
    return f"You ask {core}. I do not know: I am a small model, and I hold few facts."


SKELETONS = [
    ("Python", "python", "def {f}({a}):\n    \"\"\"{T}.\"\"\"\n    result = []\n    for item in {a}:\n        if item not in result:\n"
     "            result.append(item)\n    return result"),
    ("Python", "python", "def {f}({a}):\n    \"\"\"{T}.\"\"\"\n    count = 0\n    for item in {a}:\n        count += 1\n    return count"),
    ("C++", "cpp", "#include <iostream>\n\n// {T}.\nint {f}(int {a}) {{\n    int result = 0;\n    for (int i = 0; i < {a}; ++i) {{\n"
     "        result += i;\n    }}\n    return result;\n}}\n\nint main() {{\n    std::cout << {f}(10) << std::endl;\n    return 0;\n}}"),
    ("JavaScript", "javascript", "// {T}.\nfunction {f}({a}) {{\n  let result = 0;\n  for (const item of {a}) {{\n    result += item;\n"
     "  }}\n  return result;\n}}"),
    ("HTML", "html", "<!DOCTYPE html>\n<html>\n<body>\n  <h1>{T}</h1>\n  <button onclick=\"show()\">Show</button>\n  <p id=\"out\"></p>\n"
     "  <script>\n    function show() {{\n      document.getElementById(\"out\").textContent = \"{f}\";\n    }}\n  </script>\n"
     "</body>\n</html>"),
]


def program(rng, tasks_known):
    """-> messages: a program asked for in words, answered by the outline of one that names the task."""
    task = rng.choice(tasks_known).strip().rstrip(".")
    language, fence, code = rng.choice(SKELETONS)
    words = re.findall(r"[a-z]{3,}", task.lower())[:3] or ["value"]
    fields = {"T": upper_first(task), "f": "_".join(words), "a": rng.choice(["items", "values", "n", "data", "numbers"])}
    ask = rng.choice(["Write a {l} program to {t}.", "Implement a {l} function to {t}.", "Develop a {l} program that can {t}.",
                      "Write a function in {l} to {t}.", "Write {l} code for this: {t}.", "How can I {t} in {l}?"])
    return [tasks.user(ask.format(l=language, t=task[:1].lower() + task[1:])),
            tasks.assistant(f"Here is an outline in {language}:\n\n```{fence}\n{code.format(**fields)}\n```")]
