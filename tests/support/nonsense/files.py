"""What a project can hold: its files, the records of earlier runs, and what a command leaves behind."""

from __future__ import annotations

import json

from reprobox.runs.manifest import SCHEMA
from support.nonsense.values import LONG, NINES, OPEN

FOLDER = b"<folder>"
"""Stands for a folder where a file is looked for."""

GOOD_TOML = [
    *(b"", b"# nothing\n", b"\r\n", b'gpus = "none"'),
    b'seed = 7\nprofile = "fast"\nthreads = 2\nfill = false\nnetwork = "none"\nquiet = true',
]
BAD_TOML = list(map(str.encode, [
    "[tool.reprobox]\nseed = 'x'", "tool = 1", f"seed = '{NINES}'", "seed =", "seed = -1", "seed = 1.5",
    "seed = true", "seed = []", "seed = {}", "seed.x = 1", "[seed]", "[[seed]]", "seed = 2026-11-21", "seed = inf",
    "seed = " + "9" * 5000, "seed = 0x" + "f" * 5000, "seed = '''\n'''", "sede = 1", "rank_seeds = 'same'", "'' = 1",
    "quiet = 1", "quiet = 'yes'", "fill = []", "gpus = [0, 1]", "image = 3", "image = ''", "shm-size = -1",
    "network = false", "seed = 1\nseed = 2", "\0", "seed = 1\0", "x = " + "[" * 5000, "x = " + "[" * 500 + "]" * 500,
    "x" * 100_000, "seed = '\x1b'", "[tool.reprobox]\nseed = 1", "shm-size = '" + "9" * 5000 + "'", "\ufeffseed = 1",
    'seed = "\\ud800"', "a." * 3000 + "b = 1",
]))  # fmt: skip
PYPROJECT = list(map(str.encode, [
    "tool = 1", "tool = []", "tool = 'reprobox'", "tool = ['reprobox']", "[[tool]]", "tool.reprobox = 1",
    "tool.reprobox = 'x'", "tool.reprobox = []", "tool.reprobox = ['seed']", "tool.reprobox = true",
    "[[tool.reprobox]]", "[tool.reprobox]", "[tool]", "tool.reprobox = 1.5", "tool.reprobox = 2026-11-21",
    "[tool.reprobox]\nsede = 1", "[tool.reprobox]\nseed = 'x'", "[tool.reprobox]\nseed = 3", "[tool.other]\nx = 1",
    "x = " + "9" * 5000, "x = " + "[" * 5000, "\0", "[", "\ufeff",
]))  # fmt: skip
PYPROJECT += [b"[tool.reprobox]\n" + text for text in BAD_TOML[:8]]
UNREADABLE = [b"\xff\xfe", b"seed = '\xe9'", b"\xef\xbb\xbfseed = 1", b"\x80" * 1000, FOLDER]
"""What neither file may be."""


def manifest(run_id, **fields):
    document = {"schema": SCHEMA, "id": run_id, "command": ["train"], "project": "{root}", "recipe": {"seed": 1}}
    document |= {"engine": {"name": "docker"}, "outcome": "exited", "exit_code": 0, "start": "x", "end": "x"}
    return {**document, "outputs": {}, "options": {}, **fields}


def edited(**fields):
    return json.dumps(manifest(OPEN, **fields)).encode()


BAD_RECORDS = [
    *(b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"9" * 5000),
    *(b'{"schema": 1}', b'{"schema": "reprobox.manifest/1"}'),
    edited(engine="docker", end=None),
    edited(engine={"name": "moby"}, end=None),
    edited(engine=None, end=None),
    edited(recipe=[]),
    edited(recipe="x"),
    edited(command=5),
    edited(command=[1, None]),
    edited(command=["\udcff", "\x1b[31m", "[bold]"]),
    edited(id=5),
    edited(exit_code="x"),
    edited(exit_code=None),
    edited(outputs=[1], end=None),
    edited(outputs=5, end=None),
    edited(outputs={LONG: None}, end=None),
    edited(project=5, end=None),
    edited(options=5, end=None),
    edited(streams=5, end=None),
    edited(outcome={"a": 1}),
    edited(**{"\udcff": "\udcff"}),
]
"""A manifest somebody edited, or a disk damaged."""


def receipt(**fields):
    return json.dumps({"schema": "reprobox.receipt/1", "start_ns": 1, **fields}).encode()


_RESEED = {"kind": "reseed", "generator": "g", "value": 1, "file": "f", "line": 1}
_POOL = {"kind": "pool", "pool": 1, "workers": [], "file": 1, "line": 1}
_RECEIPTS = [
    *(b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"9" * 5000),
    receipt(),
    receipt(events=[_RESEED]),
    receipt(events=[{**_RESEED, "file": "\udcff\x1b", "value": {}}, {"kind": "pool-draw"}]),
    receipt(events=[_POOL, {"kind": "pool-draw"}]),
    receipt(events=[{"kind": "unseeded", "generator": [], "file": 1, "line": 1, "origin": "user"}]),
    receipt(events=5),
    receipt(events=None),
    receipt(start_method=[]),
    receipt(start_method={"a": 1}),
    receipt(complete=True),
    receipt(complete=True, generators=[]),
    receipt(children=[{"pid": 1, "program": 5}]),
]
REPORTS = [
    *(("receipt-1.json", data) for data in _RECEIPTS),
    ("ledger", b"hook 1\nmain 2 python x.py\n"),
    ("ledger", b"hook \xb2\nmain \xc2\xb2 x\nhook " + b"9" * 5000 + b"\n"),
    ("ledger", "main ² x\n".encode()),
    ("ledger", b"main 1 \xed\xb3\xbf\x1b[31m\n"),
    ("stage", b"\xff"),
    ("stage", b"nonsense"),
    ("selftest.json", b"{"),
]
"""What a command may leave where the box reports: it can write there."""
