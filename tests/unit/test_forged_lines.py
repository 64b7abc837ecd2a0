"""What others wrote is shown escaped wherever it comes from: it makes no line of ours, and no terminal obeys it."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

from reprobox.cli.app import run_app
from reprobox.cli.console import BuildConsole, cell, printable, raw_say, say, write_block
from reprobox.cli.failures import guarded
from reprobox.cli.selftest import _print
from reprobox.errors import EngineError
from reprobox.runs.receipts import read_receipts

HOSTILE = {
    "another line of ours": "x\nreprobox: receipt: nothing escaped",
    "over the line before": "x\rreprobox: receipt: nothing escaped",
    "a cleared screen": "\x1b[2J\x1b[Hx",
    "a title": "\x1b]0;owned\x07x",
    "a link": "\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\",
    "an 8-bit control": "\x9b31mx",
    "from right to left": "x\u202egnp.exe",
    "another separator of lines": "x\u2028reprobox: y\x85z",
    "a bell and a backspace": "\a\b\bx",
    "bytes that are no text": "x\udcff\udc1b",
    "markup": "[bold red]x[/]",
}
HOSTILES = pytest.mark.parametrize("text", list(HOSTILE.values()), ids=list(HOSTILE))


def receipt_of(folder, text):
    """The line of a run whose command wrote ``text`` wherever a receipt has a text."""
    place = {"file": text, "line": 1, "count": 1}
    events = [
        {"kind": "reseed", "generator": text, "value": text, **place},
        {"kind": "flag", "flag": text, "after": text, **place},
        {"kind": "unseeded", "generator": text, "origin": "user", **place},
        {"kind": "entropy", "source": text, **place},
        {"kind": "split", "what": text, **place},
        {"kind": "nondeterministic", "op": text, **place},
        {"kind": "pool", "pool": text, "workers": 2, **place},
        {"kind": "pool-draw", "pool": text},
        {"kind": "knob", "knob": text, "value": text, "wanted": text},
    ]
    document = {
        "schema": "reprobox.receipt/1",
        "start_ns": 1,
        "events": events,
        "children": [{"pid": 5, "program": text}],
    }
    (folder / "receipt-x-host-1-1.json").write_text(json.dumps(document))
    return read_receipts(folder).summary()


def fail(error):
    raise error


def self_test_of(text):
    words = dict.fromkeys(("name", "device", "dtype", "verdict", "message"), text)
    return {"cases": [{**words, "ms": 1}], "knobs": []}


PLACES = {
    "a line": lambda text, _: say(text),
    "a line at a raw terminal": lambda text, _: raw_say(text),
    "a receipt": lambda text, folder: say(receipt_of(folder, text)),
    "an engine's message": lambda text, _: guarded(lambda: fail(EngineError(text, remedy=text)), debug=False),
    "an engine's whole answer": lambda text, _: guarded(lambda: fail(EngineError("no", detail=text)), debug=True),
    "an error of ours": lambda text, _: guarded(lambda: fail(RuntimeError(text)), debug=False),
    "a word of the command line": lambda text, _: run_app([text]),
    "the builder's output": lambda text, _: BuildConsole(verbose=True).log(text),
    "a progress": lambda text, _: BuildConsole().progress(text, 1, 2),
    "several lines": lambda text, _: write_block(text),
    "a cell of a table": lambda text, _: Console(force_terminal=True, color_system=None).print(cell(text)),
    "the self-test's result": lambda text, _: _print(self_test_of(text)),
}
IN_LINES = {"an engine's whole answer", "the builder's output", "several lines", "the self-test's result"}
"""Where what others wrote may have several lines."""


def is_harmless(written):
    return all(c.isprintable() or c == "\n" for c in written.replace("\r\n", "\n"))


@HOSTILES
@pytest.mark.parametrize("place", list(PLACES))
def test_what_others_wrote_is_escaped(tmp_path, capfd, place, text):
    PLACES[place](text, tmp_path)
    out, err = capfd.readouterr()
    assert is_harmless(out + err), ascii(out + err)
    assert len(re.findall("(?m)^reprobox: ", out + err)) <= 1 or place == "several lines"
    if place not in IN_LINES:
        assert (out + err).count("\n") == 1 or place == "a cell of a table"


@HOSTILES
def test_a_run_is_listed_and_shown_escaped_and_its_json_is_exact(runs, capfd, text):
    fields = {"command": ["sh", "-c", text], "outcome": text, "message": text, text: text, "host": {text: text}}
    record = runs.run(**fields)
    for command in (["list"], ["show"]):
        assert run_app(["runs", *command]) == 0
        out, err = capfd.readouterr()
        assert is_harmless(out + err), ascii(out)
        assert not re.search("(?m)^reprobox: ", out)
    assert run_app(["runs", "show", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert {name: shown[name] for name in fields} == fields
    assert record.manifest()["message"] == text


def test_what_can_be_shown_is_left_as_it_is():
    assert printable("naïve 日本 – “x” [red] 'q'") == "naïve 日本 – “x” [red] 'q'"


def test_lines_of_a_traceback_stay_lines(capfd):
    guarded(lambda: fail(RuntimeError("x")), debug=True)
    assert len(re.findall("(?m)^Traceback", capfd.readouterr().err)) == 1
