#!/usr/bin/env python3
"""Renders chat templates and language features with jinja2 3.1.2, for the tests of text/jinja.

    python3 -m venv .venv && .venv/bin/pip install jinja2==3.1.2
    .venv/bin/python tools/make_jinja_goldens.py

writes tests/data/templates/goldens.jsonl (every template with every context there) and
tests/data/jinja/features.jsonl (the snippets of tests/data/jinja/features.txt, which lines of
"=====" part, with the variables of context.json).
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOW = datetime.datetime(2026, 7, 26, 12)


class Generation(jinja2.ext.Extension):
    """{% generation %}: the call block that Transformers makes of it, without its tracking."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_render")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def make_environment():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.filters["from_json"] = json.loads
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = NOW.strftime
    return environment


def render(environment, template, context):
    """{"expected": text} or {"error": "Type: message"}."""
    try:
        return {"expected": environment.from_string(template).render(**context)}
    except Exception as error:  # whatever Python raises is the expected result
        return {"error": f"{type(error).__name__}: {error}"}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(f"{path.relative_to(ROOT)}: {len(rows)} goldens")


def make_template_goldens(environment, folder):
    rows = []
    for template in sorted(folder.glob("*.jinja")):
        for context in sorted((folder / "contexts").glob("*.json")):
            result = render(environment, template.read_text(), json.loads(context.read_text()))
            rows.append({"template": template.name, "context": context.stem, **result})
    write_lines(folder / "goldens.jsonl", rows)


def make_feature_goldens(environment, folder):
    context = json.loads((folder / "context.json").read_text())
    snippets = (folder / "features.txt").read_text().split("\n=====\n")
    rows = [{"template": s, **render(environment, s, context)} for s in snippets]
    write_lines(folder / "features.jsonl", rows)


def main():
    if jinja2.__version__ != "3.1.2":
        raise SystemExit(f"jinja2 3.1.2 is needed, this is {jinja2.__version__}")
    environment = make_environment()
    make_template_goldens(environment, ROOT / "tests/data/templates")
    make_feature_goldens(environment, ROOT / "tests/data/jinja")


if __name__ == "__main__":
    main()
