# ruff: noqa: INP001  (a script of the documentation, imported by its test alone)
"""The tables of the reference that follow from the code: knobs, errors, refused flags, keys of the project file.

One follows from what the tests wrote down: the engines (``pytest --record-engines`` writes ``reference/engines.json``).

::

    python docs/generate_reference.py           print the tables
    python docs/generate_reference.py --write   put them into the pages
    python docs/generate_reference.py --check   exit 1 when a page differs from the code

A page holds its table between two comments, ``<!-- generated: NAME -->`` and ``<!-- end of NAME -->``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

from reprobox import errors
from reprobox.knobs import KNOBS, Knob
from reprobox.project_file import PROJECT_KEYS
from reprobox.recipe import Profile
from reprobox.runs.refused_flags import REFUSED

REFERENCE = Path(__file__).resolve().parent / "reference"
PLACEHOLDERS = {
    "{seed}": "*the seed*",
    "{rank_seed}": "*the seed of the rank*",
    "{threads}": "*the threads*",
    "{fill}": "*on, or off with `--no-fill`*",
}


def knobs_table() -> str:
    """Return the knobs: what each is set to under which profile, and then why."""
    headings = ["knob", *(str(profile) for profile in Profile), "your own value under strict"]
    parts = []
    for acts, title in (
        ("environment", "Set in the environment, before the command starts"),
        ("process", "Done in the process, right after the import"),
    ):
        knobs = [knob for knob in KNOBS if knob.acts == acts]
        rows = [[f"`{knob.name}`", *(_value(knob, profile) for profile in Profile), _own(knob)] for knob in knobs]
        reasons = [[f"`{knob.name}`", knob.why, _source(knob.source)] for knob in knobs]
        parts += [f"### {title}", _table(headings, rows), _table(["knob", "why", "source"], reasons)]
    return "\n\n".join(parts)


def errors_table() -> str:
    """Return every error class with its exit code, the base it derives from and its meaning."""
    rows = []
    for name in errors.__all__:
        kind = getattr(errors, name)
        if inspect.isclass(kind):
            base = "-" if kind is errors.ReproboxError else f"`{kind.__base__.__name__}`"
            meaning = "every error below" if base == "-" else inspect.getdoc(kind).splitlines()[0]
            rows.append([f"`{name}`", base, str(kind.exit_code), meaning])
    rows.sort(key=lambda row: (row[1] != "-", row[0]))
    return _table(["class", "kind of", "exit code", "meaning"], rows)


def refused_table() -> str:
    """Return the flags of ``docker run`` that are refused, those with one reason in one row."""
    flags: dict[str, list[str]] = {}
    for flag, reason in REFUSED.items():
        flags.setdefault(reason, []).append(f"`{flag}`")
    rows = [[", ".join(names), *reason.split("; ", 1)] for reason, names in flags.items()]
    return _table(["flag", "why", "instead"], rows)


def project_table() -> str:
    """Return the keys of the project file that are no settings: what each means, and an example."""
    rows = [[f"`{key.name}`", key.help.replace("|", "\\|"), f"`{key.example}`"] for key in PROJECT_KEYS]
    return _table(["key", "meaning", "example"], rows)


ENGINES = {"docker": "Docker", "podman": "Podman"}
BUILDERS = {"classic": "classic", "buildkit": "BuildKit", "podman": "its own"}
AREAS = ("build", "share", "run", "signals", "secrets", "closed")


def engines_table() -> str:
    """Return the engines that the tests ran on, each with who builds there and the number of cases that passed."""
    record = json.loads((REFERENCE / "engines.json").read_text(encoding="utf-8"))
    rows = [
        [
            f"{ENGINES[row['engine']]} {row['version']}",
            row["store"],
            ", ".join(BUILDERS[name] for name in row["builders"]) or "-",
            *(str(row["cases"].get(area, "-")) for area in AREAS),
        ]
        for row in record["engines"]
    ]
    return _table(["engine", "image store", "builders", *AREAS], rows)


TABLES = {
    "knobs": (REFERENCE / "knobs.md", knobs_table),
    "errors": (REFERENCE / "exit-codes.md", errors_table),
    "refused": (REFERENCE / "cli.md", refused_table),
    "project": (REFERENCE / "environment.md", project_table),
    "engines": (REFERENCE / "engines.md", engines_table),
}
"""Name of each table: the page that holds it and the function that makes it."""


def page_with(name: str) -> tuple[str, str]:
    """Return the page of table ``name`` as it is, and as it should be. :raises ValueError: when it lacks the marks."""
    path, table = TABLES[name]
    text = path.read_text(encoding="utf-8")
    opening, closing = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    before, found, rest = text.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"{path} has no table between {opening} and {closing}")
    return text, f"{before}{opening}\n\n{table()}\n\n{closing}{after}"


def main() -> int:
    """Print, write or check the tables; return the exit code."""
    parser = argparse.ArgumentParser(description="The tables of the reference that follow from the code.")
    parser.add_argument("--check", action="store_true", help="exit 1 when a page differs from the code")
    parser.add_argument("--write", action="store_true", help="put the tables into the pages")
    arguments = parser.parse_args()
    if not (arguments.check or arguments.write):
        print("\n\n".join(table() for _, table in TABLES.values()))
        return 0
    stale = 0
    for name, (path, _) in TABLES.items():
        present, wanted = page_with(name)
        if present == wanted:
            continue
        if arguments.write:
            path.write_text(wanted, encoding="utf-8")
        else:
            stale += 1
            print(f"{path.name} differs from the code; run python docs/generate_reference.py --write", file=sys.stderr)
    return min(stale, 1)


def _value(knob: Knob, profile: Profile) -> str:
    template = knob.values[profile]
    if template is None:
        return "-"
    shown = PLACEHOLDERS.get(template, f"`{template}`")
    return f"{shown}, with `--{knob.needs}`" if knob.needs else shown


def _own(knob: Knob) -> str:
    if knob.acts == "process":
        return "the program may change it"
    return knob.allowed_text or "any"


def _source(text: str) -> str:
    return re.sub(r"https://[^\s;]+", r"<\g<0>>", text)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
