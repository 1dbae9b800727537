"""Small synthetic exercises written for this project: simple Python functions, and a toy German-English grammar.

They teach a small model two answer formats its corpus hardly shows. They are not meant to teach the skills.
"""

import re

NOUNS = ["numbers", "values", "items", "data", "scores", "prices", "xs", "lst", "arr", "words", "names", "lines"]
LIMITS = ["limit", "threshold", "bound", "k", "n", "minimum", "cutoff"]

# (name, arguments, docstring, example call arguments, body). {a} is a list name, {k} a number name.
LIST_FUNCTIONS = [
    ("sum_{a}", "{a}: List[int]", "int", "Add up all of the {a} and give back the total.", "return sum({a})", "sum"),
    ("largest_in_{a}", "{a}: List[int]", "int", "Find the greatest of the {a}.", "best = {a}[0]\nfor x in {a}:\n    if x > best:\n        best = x\nreturn best", "max"),
    ("smallest_in_{a}", "{a}: List[int]", "int", "Find the least of the {a}.", "best = {a}[0]\nfor x in {a}:\n    if x < best:\n        best = x\nreturn best", "min"),
    ("count_above", "{a}: List[int], {k}: int", "int", "Count how many of the {a} are greater than {k}.", "count = 0\nfor x in {a}:\n    if x > {k}:\n        count += 1\nreturn count", "above"),
    ("count_below", "{a}: List[int], {k}: int", "int", "Count how many of the {a} are less than {k}.", "count = 0\nfor x in {a}:\n    if x < {k}:\n        count += 1\nreturn count", "below"),
    ("keep_even", "{a}: List[int]", "List[int]", "Keep only those {a} that two divides.", "return [x for x in {a} if x % 2 == 0]", "even"),
    ("keep_odd", "{a}: List[int]", "List[int]", "Keep only those {a} that two does not divide.", "return [x for x in {a} if x % 2 == 1]", "odd"),
    ("double_all", "{a}: List[int]", "List[int]", "Multiply every one of the {a} by two.", "result = []\nfor x in {a}:\n    result.append(x * 2)\nreturn result", "double"),
    ("square_all", "{a}: List[int]", "List[int]", "Square every one of the {a}.", "return [x * x for x in {a}]", "square"),
    ("backwards", "{a}: List[int]", "List[int]", "Give the {a} in the opposite order.", "return {a}[::-1]", "reverse"),
    ("without_repeats", "{a}: List[int]", "List[int]", "Drop every value that was already seen, and keep the order.", "seen = set()\nresult = []\nfor x in {a}:\n    if x not in seen:\n        seen.add(x)\n        result.append(x)\nreturn result", "unique"),
    ("running_totals", "{a}: List[int]", "List[int]", "Give the totals of the {a} so far, one for each place.", "total = 0\nresult = []\nfor x in {a}:\n    total += x\n    result.append(total)\nreturn result", "cumsum"),
    ("average_of", "{a}: List[int]", "float", "Work out the mean of the {a}.", "return sum({a}) / len({a})", "mean"),
    ("spread_of", "{a}: List[int]", "int", "Subtract the least of the {a} from the greatest.", "return max({a}) - min({a})", "spread"),
    ("in_rising_order", "{a}: List[int]", "bool", "Tell whether each of the {a} is at least as great as the one before.", "for i in range(1, len({a})):\n    if {a}[i] < {a}[i - 1]:\n        return False\nreturn True", "sorted"),
    ("take_first", "{a}: List[int], {k}: int", "List[int]", "Give the first {k} of the {a}.", "return {a}[:{k}]", "head"),
    ("pairs_with_sum", "{a}: List[int], {k}: int", "int", "Count the pairs of {a} that add up to {k}.", "count = 0\nfor i in range(len({a})):\n    for j in range(i + 1, len({a})):\n        if {a}[i] + {a}[j] == {k}:\n            count += 1\nreturn count", "pairs"),
    ("every_second", "{a}: List[int]", "List[int]", "Give every second one of the {a}, the first included.", "return {a}[::2]", "second"),
    ("position_of", "{a}: List[int], {k}: int", "int", "Find the index of {k} among the {a}, or -1.", "for i, x in enumerate({a}):\n    if x == {k}:\n        return i\nreturn -1", "index"),
    ("tally", "{a}: List[int]", "Dict[int, int]", "Count how often each value occurs in the {a}.", "counts = {{}}\nfor x in {a}:\n    counts[x] = counts.get(x, 0) + 1\nreturn counts", "tally"),
]
TEXT_FUNCTIONS = [
    ("count_vowels_in", "{t}: str", "int", "Count the vowels of {t}.", "count = 0\nfor ch in {t}.lower():\n    if ch in 'aeiou':\n        count += 1\nreturn count", "vowels"),
    ("shout", "{t}: str", "str", "Turn every letter of {t} into a capital.", "return {t}.upper()", "upper"),
    ("mirror", "{t}: str", "str", "Write {t} from its end to its start.", "return {t}[::-1]", "reverse"),
    ("word_count", "{t}: str", "int", "Count the words of {t}.", "return len({t}.split())", "words"),
    ("longest_word_of", "{t}: str", "str", "Find the longest word of {t}.", "best = ''\nfor word in {t}.split():\n    if len(word) > len(best):\n        best = word\nreturn best", "longest"),
    ("reads_both_ways", "{t}: str", "bool", "Tell whether {t} stays the same when reversed.", "return {t} == {t}[::-1]", "palindrome"),
    ("strip_spaces", "{t}: str", "str", "Take all spaces out of {t}.", "return {t}.replace(' ', '')", "nospace"),
    ("first_letters", "{t}: str", "str", "Join the first letters of the words of {t}.", "return ''.join(word[0] for word in {t}.split())", "initials"),
    ("letter_counts", "{t}: str", "Dict[str, int]", "Count how often each letter occurs in {t}.", "counts = {{}}\nfor ch in {t}:\n    if ch in counts:\n        counts[ch] += 1\n    else:\n        counts[ch] = 1\nreturn counts", "letters"),
    ("swap_words", "{t}: str", "str", "Put the words of {t} in the opposite order.", "return ' '.join({t}.split()[::-1])", "swapwords"),
]
NUMBER_FUNCTIONS = [
    ("factorial_of", "{k}: int", "int", "Multiply all whole numbers from 1 to {k}.", "result = 1\nfor i in range(1, {k} + 1):\n    result *= i\nreturn result", "factorial"),
    ("has_no_divisor", "{k}: int", "bool", "Tell whether {k} is a prime.", "if {k} < 2:\n    return False\nfor i in range(2, int({k} ** 0.5) + 1):\n    if {k} % i == 0:\n        return False\nreturn True", "prime"),
    ("digit_total", "{k}: int", "int", "Add up the digits of {k}.", "total = 0\nwhile {k} > 0:\n    total += {k} % 10\n    {k} //= 10\nreturn total", "digits"),
    ("divisors_of", "{k}: int", "List[int]", "List all divisors of {k}, from small to great.", "return [i for i in range(1, {k} + 1) if {k} % i == 0]", "divisors"),
    ("fib_at", "{k}: int", "int", "Work out the Fibonacci number with index {k}.", "a, b = 0, 1\nfor _ in range({k}):\n    a, b = b, a + b\nreturn a", "fib"),
    ("halvings", "{k}: int", "int", "Count how often {k} can be halved before it is 1.", "count = 0\nwhile {k} > 1:\n    {k} //= 2\n    count += 1\nreturn count", "log2"),
    ("as_binary", "{k}: int", "str", "Write {k} in base two.", "return bin({k})[2:]", "binary"),
    ("triangle_number", "{k}: int", "int", "Add up the whole numbers from 1 to {k}.", "return {k} * ({k} + 1) // 2", "triangle"),
]
FUNCTIONS = LIST_FUNCTIONS + TEXT_FUNCTIONS + NUMBER_FUNCTIONS
TEXT_NAMES = ["text", "s", "string", "sentence", "phrase", "word", "line", "message"]
WORDS = ["apple", "river", "stone", "level", "cloud", "green", "table", "radar", "summer", "noon", "paper", "wind"]


def python_exercise(rng):
    """-> (messages) asking for one small function, in one of several forms."""
    name, args, result, doc, body, kind = rng.choice(FUNCTIONS)
    fields = {"a": rng.choice(NOUNS), "k": rng.choice(LIMITS), "t": rng.choice(TEXT_NAMES)}
    name, args, doc, body = (part.format(**fields) for part in (name, args, doc, body))
    if rng.random() < 0.3:
        name = rng.choice(["compute_", "find_", "get_", "make_", "my_"]) + name
    code = f"def {name}({args}) -> {result}:\n" + "\n".join("    " + line for line in body.split("\n"))
    inputs = []
    if "List[int]" in args:
        inputs.append(str([rng.randint(-9, 20) for _ in range(rng.randint(3, 6))]))
    if args.startswith(fields["t"] + ": str"):
        inputs.append(repr(" ".join(rng.sample(WORDS, rng.randint(1, 3)))))
    if re.search(rf"\b{fields['k']}: int", args):
        inputs.append(str(rng.randint(1, 9)))
    scope = {}
    exec("from typing import *\n" + code, scope)  # our own templates above, nothing else
    answer = scope[name](*(eval(i) for i in inputs))
    imports = "from typing import " + ("Dict" if "Dict" in code else "List") + "\n\n\n" if "[" in code.split(":\n")[0] else ""
    example = f"    >>> {name}({', '.join(inputs)})\n    {answer!r}\n"
    header = f"{imports}def {name}({args}) -> {result}:\n    \"\"\" {doc}\n{example}    \"\"\"\n"
    whole = header + code.split("\n", 1)[1]
    form = rng.randrange(5)
    if form <= 1:
        question, reply = header, f"```python\n{whole}\n```"
    elif form == 2:
        question = "Complete the following Python function.\n\n" + header
        reply = f"```python\n{whole}\n```"
    elif form == 3:
        question = f"Write a Python function `{name}` for this task. {doc}"
        reply = f"```python\n{imports}{code}\n```"
    else:
        question = f"{rng.choice(['Write', 'Implement', 'Develop', 'Give me'])} a Python function. {doc}"
        reply = (f"Here is a Python function:\n\n```python\n{imports}{code}\n```\n\nFor example, "
                 f"`{name}({', '.join(inputs)})` returns `{answer!r}`.")
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


SUBJECTS = [("Die Regierung", "The government"), ("Der Präsident", "The president"), ("Die Polizei", "The police"),
            ("Der Minister", "The minister"), ("Das Unternehmen", "The company"), ("Die Stadt", "The city"),
            ("Ein Sprecher", "A spokesman"), ("Die Mannschaft", "The team"), ("Der Lehrer", "The teacher"),
            ("Die Frau", "The woman"), ("Der Mann", "The man"), ("Das Kind", "The child"), ("Die Bank", "The bank"),
            ("Der Vater", "The father"), ("Die Kommission", "The commission"), ("Das Gericht", "The court"),
            ("Die Universität", "The university"), ("Der Verein", "The club"), ("Die Zeitung", "The newspaper")]
VERBS = [("sieht", "sees"), ("kauft", "buys"), ("braucht", "needs"), ("findet", "finds"), ("plant", "plans"),
         ("verliert", "loses"), ("gewinnt", "wins"), ("kennt", "knows"), ("sucht", "is looking for"),
         ("unterstützt", "supports"), ("fordert", "demands"), ("erwartet", "expects"), ("prüft", "checks"),
         ("beginnt", "begins"), ("verlässt", "leaves"), ("liest", "reads"), ("öffnet", "opens")]
OBJECTS = [("ein neues Haus", "a new house"), ("das alte Buch", "the old book"), ("mehr Geld", "more money"),
           ("die erste Reform", "the first reform"), ("eine bessere Lösung", "a better solution"),
           ("das Spiel", "the game"), ("die Ergebnisse", "the results"), ("ein großes Problem", "a big problem"),
           ("die Arbeit", "the work"), ("das kleine Dorf", "the small village"), ("den Vertrag", "the contract"),
           ("die Wahl", "the election"), ("den neuen Bericht", "the new report"), ("die Krise", "the crisis"),
           ("den Markt", "the market"), ("neue Maßnahmen", "new measures"), ("die Menschen", "the people")]
TIMES = [("", ""), (" heute", " today"), (" jetzt", " now"), (" in diesem Jahr", " this year"),
         (" am Montag", " on Monday"), (" nach dem Krieg", " after the war"), (" in Berlin", " in Berlin"),
         (" mit großer Freude", " with great joy"), (" seit zwei Jahren", " for two years"),
         (" in der Schule", " at school"), (" ohne Hilfe", " without help"), (" wieder", " again")]
ENDS = [("", ""), (", aber niemand hört zu", ", but nobody listens"), (" und die Kosten steigen", " and the costs rise"),
        (", weil es wichtig ist", ", because it is important"), (" und das ist gut", " and that is good"),
        (", sagte ein Sprecher", ", a spokesman said"), (" und die Zahl wächst", " and the number grows")]


def german_exercise(rng):
    parts = [rng.choice(SUBJECTS), rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(TIMES), rng.choice(ENDS)]
    german = f"{parts[0][0]} {parts[1][0]} {parts[2][0]}{parts[3][0]}{parts[4][0]}."
    english = f"{parts[0][1]} {parts[1][1]} {parts[2][1]}{parts[3][1]}{parts[4][1]}."
    lead = rng.choice(["Translate German to English: ", "Translate German to English: ",
                       "Translate the sentence into English.\n\n", "What does this mean in English? "])
    return [{"role": "user", "content": lead + german}, {"role": "assistant", "content": english}]
