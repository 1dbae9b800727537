"""Small exercises written for this project: simple Python functions, and German read with a pocket dictionary.

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


VALUES = {"int": lambda rng: rng.randint(0, 20), "float": lambda rng: round(rng.uniform(0, 9), 1)}


def header_exercise(rng, tasks_known):
    """-> messages: a function header with names, task and examples of any kind, to be restated and completed.

    The docstring says more than the body does: copying it word for word is what this teaches."""
    name, args, result, doc, body, _ = rng.choice(FUNCTIONS)
    words = re.findall(r"[a-z]{3,}", rng.choice(tasks_known).lower()) or ["value"]
    fields = {"a": rng.choice(NOUNS + words + ["l", "x", "numbers", "array"]), "k": rng.choice(LIMITS + ["x", "num", "m"]),
              "t": rng.choice(TEXT_NAMES + words + ["s1", "txt"])}
    if len(set(fields.values()) | {"ch", "i", "j", "word", "best", "total", "count", "result", "seen"}) < 12:
        fields = {"a": "lst", "k": "num", "t": "text"}
    name, args, doc, body = (part.format(**fields) for part in (name, args, doc, body))
    if rng.random() < 0.7:
        name = "_".join(rng.sample(words, min(len(words), rng.randint(1, 3))))
    typed = rng.random() < 0.55
    signature = f"def {name}({args}) -> {result}:" if typed else f"def {name}({re.sub(r': [A-Za-z]+(.[A-Za-z, ]+.)?(?=,|$)', '', args)}):"
    lines = [rng.choice(tasks_known) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    lines = [line[:1].upper() + line[1:].rstrip(".") + "." for line in lines]
    lines.insert(rng.randint(0, len(lines)), doc)
    style = rng.randrange(4)
    examples = []
    for _ in range(rng.randint(1, 3)):
        inputs = []
        if "List[int]" in args:
            kind = VALUES[rng.choice(["int", "int", "int", "float"])]
            inputs.append(str([kind(rng) for _ in range(rng.randint(0, 6))]))
        if fields["t"] + ": str" in args:
            inputs.append(repr(" ".join(rng.sample(WORDS, rng.randint(1, 3)))))
        if fields["k"] + ": int" in args:
            inputs.append(str(rng.choice([rng.randint(0, 9), rng.randint(10, 2000)])))
        call = f"{name}({', '.join(inputs)})"
        out = {"int": str(rng.randint(0, 30)), "bool": rng.choice(["True", "False"]), "float": f"{rng.uniform(0, 9):.1f}",
               "str": repr(rng.choice(WORDS))}.get(result, str([rng.randint(0, 9) for _ in range(rng.randint(0, 5))]))
        examples.append([f"    >>> {call}\n    {out}", f"    {call} => {out}", f"    {call} == {out}",
                         f"    {call} ➞ {out}"][style])
    quote = rng.choice(['""" ', '"""', '"""', '"""\n    ', "'''"])
    lead = rng.choice(["", "", "    For example:\n", "    Examples:\n", "    Example:\n", "\n"])
    imports = "from typing import List, Dict\n\n\n" if typed and "[" in signature else rng.choice(["", "", "\n"])
    joint = rng.choice([" ", "\n    "])
    header = (f"{imports}{signature}\n    {quote}{joint.join(lines)}\n{lead}" + "\n".join(examples)
              + f"\n    {quote.strip()}\n")
    code = header.lstrip("\n") + "\n".join("    " + line for line in body.split("\n"))
    ask = rng.choice(["", "", "", "", "Complete the following Python function.\n\n", "Complete this function:\n"]) + header
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": f"```python\n{code}\n```"}]


# Word for word, as a child with a pocket dictionary would: what is not in it stays as it is.
DICTIONARY = dict(pair.split("=") for pair in """der=the die=the das=the den=the dem=the des=of_the ein=a eine=a einen=a
einem=a einer=a eines=of_a und=and oder=or aber=but nicht=not kein=no keine=no auch=also noch=still nur=only schon=already
sehr=very mehr=more viel=much viele=many alle=all andere=other ist=is sind=are war=was waren=were wird=will werden=become
wurde=was wurden=were hat=has haben=have hatte=had hatten=had kann=can können=can muss=must müssen=must soll=should
sollen=should will=wants wollen=want darf=may es=it er=he sie=she wir=we ich=I ihr=her sein=his seine=his ihre=their
unser=our uns=us sich=itself man=one wer=who was=what wo=where wie=how wenn=if als=when dass=that weil=because ob=whether
damit=so_that da=there hier=here dort=there jetzt=now heute=today gestern=yesterday morgen=tomorrow immer=always nie=never
oft=often wieder=again seit=since in=in im=in_the an=at am=at_the auf=on aus=from bei=at beim=at_the mit=with nach=after
von=from vom=from_the vor=before zu=to zum=to_the zur=to_the für=for über=over unter=under um=around durch=through
gegen=against ohne=without zwischen=between während=during bis=until Jahr=year Jahre=years Jahren=years Tag=day Tage=days
Woche=week Monat=month Stunde=hour Zeit=time Mann=man Frau=woman Kind=child Kinder=children Menschen=people Leute=people
Stadt=city Land=country Welt=world Haus=house Häuser=houses Wasser=water Straße=street Weg=way Arbeit=work Geld=money
Regierung=government Präsident=president Minister=minister Polizei=police Unternehmen=company Bank=bank Markt=market
Krise=crisis Wahl=election Wahlen=elections Gesetz=law Recht=right Gericht=court Krieg=war Frieden=peace Schule=school
Universität=university Lehrer=teacher Arzt=doctor Krankenhaus=hospital Buch=book Zeitung=newspaper Film=film Musik=music
Spiel=game Spieler=player Mannschaft=team Verein=club Sieg=victory Ende=end Anfang=beginning Teil=part Seite=side
Problem=problem Frage=question Antwort=answer Grund=reason Beispiel=example Ergebnis=result Zahl=number Prozent=percent
Millionen=million Euro=euros Dollar=dollars Deutschland=Germany Deutschen=Germans Europa=Europe USA=USA Berlin=Berlin
neue=new neuen=new neuer=new neues=new alte=old alten=old große=big großen=big großer=big kleine=small kleinen=small
gute=good guten=good gut=good lange=long langen=long erste=first ersten=first zweite=second letzten=last nächsten=next
sagte=said sagt=says sagten=said kommt=comes kam=came geht=goes ging=went macht=makes machen=make gibt=gives geben=give
gab=gave steht=stands stehen=stand liegt=lies sieht=sees sehen=see findet=finds bleibt=remains zeigt=shows weiß=knows
glaubt=believes braucht=needs arbeitet=works lebt=lives leben=live spielt=plays schreibt=writes beginnt=begins
verloren=lost gewonnen=won gemacht=made gesehen=seen getan=done zwei=two drei=three vier=four fünf=five zehn=ten
Montag=Monday Dienstag=Tuesday Mittwoch=Wednesday Donnerstag=Thursday Freitag=Friday Samstag=Saturday Sonntag=Sunday
Januar=January März=March Mai=May Juni=June Juli=July Oktober=October Dezember=December Herr=Mr Sprecher=spokesman
Weise=way Art=kind Leben=life Familie=family Vater=father Mutter=mother Sohn=son Tochter=daughter Freund=friend
Auto=car Zug=train Flugzeug=plane Flughafen=airport Hotel=hotel Zimmer=room Tür=door Nacht=night Licht=light Luft=air
Fall=case Punkt=point Million=million Entscheidung=decision Möglichkeit=possibility Sicherheit=security Zukunft=future
Wirtschaft=economy Gesellschaft=society Gespräch=talk Grenze=border Bürger=citizens Partei=party Bericht=report
einfach=simple möglich=possible wichtig=important klar=clear richtig=right schwer=hard bereits=already etwa=about
jedoch=however dann=then also=so doch=but mal=times ja=yes nein=no bitte=please danke=thanks""".split())
SYLLABLES = """ber gen tal stein haus wald feld mann brück hof kamp schul fahr werk zeug bau heim rat ster lin kar mar tor
hal win ost nord süd wach bund land markt rech spiel kraft""".split()


def german_word(rng):
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.6 else word + rng.choice(["en", "t", "te", "lich", "er"])


def gloss(text):
    """German text, words separated by blanks -> the known ones in English, the rest as they are."""
    out = []
    for word in text.split(" "):
        core = word.strip(".,;:!?\"()")
        known = DICTIONARY.get(core) or DICTIONARY.get(core[:1].lower() + core[1:])
        out.append(word.replace(core, known.replace("_", " ")) if known and core else word)
    text = " ".join(out)
    return text[:1].upper() + text[1:]


def gloss_exercise(rng, english_words):
    known = list(DICTIONARY)
    words = [rng.choice(known) if rng.random() < 0.68 else german_word(rng) if rng.random() < 0.75
             else rng.choice([str(rng.randint(1, 2020)), rng.choice(english_words).capitalize()])
             for _ in range(rng.randint(4, 22))]
    if rng.random() < 0.5:
        words[rng.randrange(len(words))] += ","
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] += " ,"
    text = " ".join(words)
    text = text[:1].upper() + text[1:] + rng.choice([" .", ".", ".", "", " ?"])
    lead = rng.choice(["Translate German to English: "] * 3 + ["Translate into English: ", "What does this mean in English?\n"])
    return [{"role": "user", "content": lead + text}, {"role": "assistant", "content": gloss(text)}]
