#!/usr/bin/env python3
"""Compares Volley's Jinja engine with jinja2 3.1.2 on random templates.

    ./dev build    # or: ninja -C build jinja_render
    .venv/bin/python tools/jinja_differential.py --count 20000 --seed 1

Prints the templates whose text differs, or that fail in one engine only; exits with 1 if there is
any. Known differences are skipped: integers past 64 bits, memory addresses, and what the engine
refuses by design (its message says "not supported" or names a limit).
"""

import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import warnings

import make_jinja_goldens

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONTEXT = json.loads((ROOT / "tests/data/jinja/context.json").read_text())

NAMES = list(CONTEXT) + ["missing", "x", "y", "loop", "ns"]
INTEGERS = ["0", "1", "2", "-1", "3", "7", "10", "100", "true", "false", "none"]
FLOATS = ["0.5", "1.0", "-2.5", "1e3", "3.14159", "1e-7", "1e22"]
STRINGS = ['""', '"a"', '"abc"', '"Hello World"', '" x y "', '"a,b,c"', '"12"', '"-3.5"', '"ß日本😀"',
           '"%s"', '"%d-%s"', '"{} {}"', '"{0!r:>5}"', r'"a\nb\n\nc"', '"<b>&"', '"name"', '"age"', '"upper"',
           '"a-b c"', '"ǅ ﬁ ΑΣ"', '"0x1f"', '"1_0"', '"É"']
FILTERS = [
    "abs", "attr('name')", "batch(2)", "batch(2, 'x')", "capitalize", "center(9)", "default('d')",
    "default('d', true)", "dictsort", "dictsort(true)", "dictsort(by='value')", "escape", "filesizeformat",
    "first", "float", "forceescape", "format(1)", "groupby('age', default=0)", "groupby(0)", "indent", "indent(2, true)",
    "int", "int(5)", "items", "join", "join(',')", "join('-', attribute='name')", "last", "length", "list", "lower",
    "map('upper')", "map('string')", "map(attribute='name')", "map('int')", "max", "min", "reject('odd')", "rejectattr('age')",
    "replace('a', 'XY')", "replace('', '.', 2)", "reverse", "round", "round(1)", "round(1, 'ceil')", "safe", "select",
    "select('string')", "selectattr('age', 'gt', 26)", "selectattr('name')", "slice(2)", "slice(3, 0)", "sort",
    "sort(reverse=true)", "sort(attribute='name')", "string", "sum", "sum(start=2)", "title", "tojson", "tojson(indent=2)",
    "trim", "trim('a')", "truncate(5)", "truncate(5, true, '')", "unique", "upper", "urlencode", "wordcount", "d(1)",
    "e", "count", "tojson(sort_keys=true)", "map('length')", "map('first')", "sum(attribute='age')",
]
TESTS = ["defined", "undefined", "none", "string", "number", "mapping", "iterable", "sequence", "odd", "even",
         "boolean", "integer", "float", "true", "false", "lower", "upper", "callable", "divisibleby(2)", "eq(1)", "gt(2)",
         "in([1, 'a'])", "sameas(none)", "escaped", "not none", "not string", "ne 'a'", "lt 5"]
METHODS = [
    "upper()", "lower()", "title()", "strip()", "lstrip()", "rstrip('abc ')", "split()", "split(',')", "split(' ', 1)",
    "split(none, 1)", "rsplit(none, 1)", "rsplit('a', 1)", "rsplit()", "splitlines()", "splitlines(true)", "replace('a', 'b')", "startswith('a')", "endswith(('c', 'd'))",
    "find('b')", "rfind('l')", "index('a')", "count('l')", "join(['x', 'y'])", "join('pq')", "partition(' ')", "rpartition('l')",
    "capitalize()", "swapcase()", "isdigit()", "isalpha()", "isalnum()", "isspace()", "istitle()", "isupper()", "islower()", "isnumeric()", "isdecimal()",
    "isidentifier()", "isprintable()", "isascii()", "zfill(5)", "center(7, '*')", "ljust(6)", "rjust(6, '.')", "expandtabs(3)", "casefold()",
    "removeprefix('a')", "removesuffix('c')", "format(1, 2)", "format('q', a=1)", "get('name')", "get('zz', 3)", "items()", "keys()", "values()", "copy()",
    "index(1)", "count(2)", "pop()", "pop(0)", "append(1)", "update({})", "name", "age", "missing", "items", "real", "bit_length()", "is_integer()",
]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
SPECS = ["%s", "%r", "%d", "%5d", "%-6s|", "%05.1f", "%x", "%+d", "%e", "%g", "%%", "%c", "%.2s", "%#x", "% d", "%o", "%08.3f", "%i", "%G", "%5%"]
BRACES = ["{}", "{:>5}", "{:^7}", "{:05d}", "{:.2f}", "{:,}", "{:x}", "{!r}", "{:e}", "{:g}", "{:%}", "{:+}", "{:<4}|", "{:_}", "{:#x}", "{:.3}", "{:08.2f}", "{:*^9}", "{:b}", "{:c}", "{:s}", "{:d}", "{:n}", "{:G}", "{: }", "{:=5}"]


class Generator:
    def __init__(self, rng):
        self.rng = rng

    def pick(self, options):
        return self.rng.choice(options)

    def atom(self):
        kind = self.rng.random()
        if kind < 0.45:
            return self.pick(NAMES)
        if kind < 0.65:
            return self.pick(STRINGS)
        return self.pick(INTEGERS) if kind < 0.9 else self.pick(FLOATS)

    def expression(self, depth):
        if depth <= 0:
            return self.atom()
        e = lambda: self.expression(depth - 1)
        kind = self.rng.randrange(17)
        if kind == 0 and self.rng.random() < 0.1:  # a random exponent could keep Python busy for ever
            return f"{self.atom()} ** {self.pick(['2', '0', '-1', '0.5', '3'])}"
        if kind <= 1:
            return f"{e()} {self.pick(BINARY)} {e()}"
        if kind <= 4:
            return f"{self.operand(depth)}|{self.pick(FILTERS)}"
        if kind <= 6:
            return f"{self.operand(depth)}.{self.pick(METHODS)}"
        if kind == 7:
            return f"{self.operand(depth)} is {self.pick(TESTS)}"
        if kind == 8:
            return f"{self.operand(depth)}[{e()}]"
        if kind == 9:
            bound = lambda: self.pick(["", "1", "-1", "0", "2", "-3", "100", e()])
            step = self.pick(["", "", ":2", ":-1", ":-2", ":"])
            return f"{self.operand(depth)}[{bound()}:{bound()}{step}]"
        if kind == 10:
            return f"[{e()}, {e()}]" if self.rng.random() < 0.5 else f"({e()}, {e()})"
        if kind == 11:
            return "{" + f"{self.atom()}: {e()}, {self.pick(STRINGS)}: {e()}" + "}"
        if kind == 12:
            return f"({e()} if {e()} else {e()})"
        if kind == 13:
            return f"not {e()}" if self.rng.random() < 0.5 else f"-{self.operand(depth)}"
        if kind == 14:
            arguments = ", ".join(self.atom() for _ in range(self.rng.randrange(1, 4)))
            return f"range({arguments})" if self.rng.random() < 0.5 else f"dict(a={e()}, b={self.atom()})"
        if kind == 15:
            return f'"{self.pick(SPECS)}{self.pick(SPECS)}" % ({e()}, {e()})'
        return f'"{self.pick(BRACES)} {self.pick(BRACES)}".format({e()}, {e()})'

    def operand(self, depth):
        inner = self.expression(depth - 1)
        return inner if re.fullmatch(r"\w+", inner) else f"({inner})"

    def blank(self):
        return self.pick(["", "", " ", "\n", "  \n", "\n  ", "\t", "text", "\n\n", " a\n"])

    def tag(self, body):
        begin, end = self.pick(["{%", "{%", "{%-", "{%+"]), self.pick(["%}", "%}", "-%}", "+%}"])
        return f"{begin} {body} {end}{self.blank()}"

    def statement(self, depth):
        e = lambda: self.expression(self.pick([0, 0, 0, 1, 1, 2]))
        body = lambda: self.body(depth - 1)
        kind = self.rng.randrange(13) if depth > 0 else 0
        if kind <= 2:
            return "{{" + self.pick(["", "-"]) + " " + e() + " " + self.pick(["", "-"]) + "}}" + self.blank()
        if kind == 3:
            return self.tag(f"set {self.pick(['x', 'y'])} = {e()}")
        if kind == 4:
            middle = self.tag(f"elif {e()}") + body() if self.rng.random() < 0.3 else ""
            other = self.tag("else") + body() if self.rng.random() < 0.5 else ""
            return self.tag(f"if {e()}") + body() + middle + other + self.tag("endif")
        if kind <= 6:
            condition = f" if {e()}" if self.rng.random() < 0.3 else ""
            items = self.pick(["numbers", "words", "people", "range(4)", "user", "'abc'", "user.items()", self.expression(2)])
            inner = body()
            if self.rng.random() < 0.4:
                inner += "{{ loop." + self.pick(["index", "index0", "first", "last", "length", "revindex", "previtem", "nextitem", "cycle(1, 2)", "changed(x)", "depth"]) + " }}"
            if self.rng.random() < 0.2:
                inner += self.tag(f"if {e()}") + self.tag(self.pick(["break", "continue"])) + self.tag("endif") + "z"
            other = self.tag("else") + body() if self.rng.random() < 0.3 else ""
            return self.tag(f"for {self.pick(['x', 'y', 'x, y'])} in {items}{condition}") + inner + other + self.tag("endfor")
        if kind == 7:
            call = "{{ m(" + ", ".join(self.atom() for _ in range(self.rng.randrange(3))) + self.pick(["", ""]) + ") }}"
            signature = self.pick(["", "x", "x, y=2", "x=1, y=x"])
            extra = self.pick(["", "", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller }}"])
            return self.tag(f"macro m({signature})") + body() + extra + self.tag("endmacro") + call
        if kind == 8:
            return self.tag(f"set x{self.pick(['', '', ' | upper'])}") + body() + self.tag("endset")
        if kind == 9:
            return self.tag(f"set ns = namespace(x={e()})") + body() + self.tag("set ns.x = " + e()) + "{{ ns.x }}"
        if kind == 10:
            return self.tag(f"filter {self.pick(['upper', 'trim', 'replace(1, 2)', 'indent'])}") + body() + self.tag("endfilter")
        if kind == 11:
            return self.tag(f"with x = {e()}, y = x") + body() + self.tag("endwith")
        return self.pick(["{# c #}\n", "{#- c -#}\n", "{% raw %}\n{{ x }}\n{% endraw %}\n", "  {# c #}  \n",
                          self.tag("macro w()") + "<{{ caller() }}>" + self.tag("endmacro") + self.tag("call w()") + body() + self.tag("endcall"),
                          self.tag("generation") + body() + self.tag("endgeneration")])

    def body(self, depth):
        return self.blank() + "".join(self.statement(depth) for _ in range(self.rng.randrange(1, 4)))

    def template(self):
        if self.rng.random() < 0.7:
            return "{{ " + self.expression(self.rng.randrange(1, 4)) + " }}"
        return self.body(self.rng.randrange(1, 3))


def is_known_difference(expected, got):
    """Differences by design."""
    text = expected.get("expected", "") + expected.get("error", "")
    error = got.get("error", "")
    if " at 0x" in text.lower() or "/?>" in got.get("text", ""):
        return True
    if "LimitError" in error or "NotSupported" in error:
        return True
    if re.search("not subscriptable|type: 'slice'|slice indices", error):
        return "expected" in expected  # jinja2 folds slices of constants by rules of their own
    if "64 bits" in error or re.search(r"\d{19}", text):
        return True
    return text.startswith("RecursionError") or "MemoryError" in text


def compare(template, expected, got):
    """Nothing when both engines agree, else what is wrong."""
    if is_known_difference(expected, got):
        return None
    if "expected" in expected and "text" in got:
        return None if expected["expected"] == got["text"] else "texts differ"
    if "error" in expected and "error" in got:
        return None  # which of several errors comes first may differ
    return "one engine fails"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", default=str(ROOT / "build/jinja_render"))
    parser.add_argument("--show", type=int, default=20, help="differences to print")
    args = parser.parse_args()
    generator = Generator(random.Random(args.seed))
    templates = [generator.template() for _ in range(args.count)]
    environment = make_jinja_goldens.make_environment()
    lines = "".join(json.dumps({"template": t, "context": CONTEXT}) + "\n" for t in templates)
    output = subprocess.run([args.binary], input=lines, capture_output=True, text=True, check=True)
    warnings.simplefilter("ignore", SyntaxWarning)
    differences = []
    num_texts = 0
    for template, line in zip(templates, output.stdout.splitlines(), strict=True):
        expected = make_jinja_goldens.render(environment, template, json.loads(json.dumps(CONTEXT)))
        got = json.loads(line)
        num_texts += "expected" in expected
        wrong = compare(template, expected, got)
        if wrong is None:
            continue
        differences.append(f"--- {wrong}\n{template}\njinja2: {expected}\nours:   {got}")
    for difference in sorted(differences, key=len)[: args.show]:
        print(difference)
    print(f"{args.count} templates, {num_texts} of them without error in jinja2, "
          f"{len(differences)} differences")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
