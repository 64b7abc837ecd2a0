"""The suite's record of what it tested on which engine, of which ``docs/reference/engines.md`` is made."""

from __future__ import annotations

import json
import re
from collections import Counter

from support.cli import ROOT

RECORD = ROOT / "docs" / "reference" / "engines.json"
SCHEMA = "reprobox.engines-tested/1"
AREAS = {
    "build": r"/test_(bootstrap|build|build_podman|normalise|project_image|locked_run)\.py|what_is_built_there",
    "share": r"/test_(image_store|registry\w*|sharing|signatures)\.py|archive_of|to_a_registry|the_registry_has",
    "signals": r"signal|trap_decides",
    "secrets": r"secret|to_the_command_and_nothing_else",
    "closed": r"/test_security\.py|closed_(down|as)|cannot_touch_the_records",
    "gpus": r"/test_\w*gpu\w*\.py|_gpus_",
    "run": r"",
}
"""What is tested, and how a test's id says that it is about it; the first that fits."""


def area_of(nodeid):
    return next(area for area, words in AREAS.items() if re.search(words, nodeid))


def write_record(passed, told):
    """Write :data:`RECORD` from the ids of the tests that passed, each with what its engine told of itself.

    :param passed: pairs of a test's id and the engine: a dict of name, version and store.
    :param told: more of each engine, by its name, version and store: who builds on it.
    """
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    for nodeid, engine in passed:
        key = (engine["engine"], engine["version"], engine["store"])
        counts.setdefault(key, Counter())[area_of(nodeid)] += 1
    rows = [
        {"engine": name, "version": version, "store": store, "cases": {a: found[a] for a in AREAS if found[a]}}
        for (name, version, store), found in sorted(counts.items(), key=lambda pair: _order(pair[0]))
    ]
    RECORD.write_text(json.dumps({"schema": SCHEMA, "engines": rows}, indent=2) + "\n")


def _order(key):
    name, version, store = key
    return name, [int(part) for part in re.findall(r"\d+", version)], store
