"""The suite's record of what it tested on which engine, of which ``docs/reference/engines.md`` is made."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter, defaultdict

from support.cli import ROOT
from support.engine import connected_client, told

RECORD = ROOT / "docs" / "reference" / "engines.json"
SCHEMA = "reprobox.engines-tested/1"
AREAS = {
    "build": r"/test_(bootstrap|build|build_podman|normalise|project_image|locked_run|no_classic_builder|whole_lock)\.py|what_is_built_there",
    "share": r"/test_(image_store|registry\w*|sharing|signatures)\.py|archive_of|to_a_registry|the_registry_has",
    "signals": r"signal|trap_decides",
    "secrets": r"secret",
    "closed": r"/test_security\.py|closed_(down|as)|cannot_touch_the_records",
    "run": r"",
}
"""What is tested, and how a test's id says that it is about it; the first that fits."""


def area_of(nodeid):
    return next(area for area, words in AREAS.items() if re.search(words, nodeid))


def write_record(reports, path=RECORD):
    """Write down how many cases passed on each engine; a report's properties say on which kind, or on which engine."""
    kinds, cases, builders = {}, defaultdict(Counter), defaultdict(set)
    for report in reports:
        properties = dict(report.user_properties)
        engine = properties.get("engine") or _of_debian_12(properties.get("kind"), kinds)
        if engine is None:
            continue
        key = (engine["engine"], engine["version"], engine["store"])
        area = area_of(report.nodeid)
        cases[key][area] += 1
        if area == "build":
            builders[key] |= {"podman"} if key[0] == "podman" else set(re.findall("classic|buildkit", report.nodeid))
    rows = [
        {
            **dict(zip(("engine", "version", "store"), key, strict=True)),
            "builders": sorted(builders[key], reverse=True),
            "cases": {area: cases[key][area] for area in AREAS if cases[key][area]},
        }
        for key in sorted(cases, key=_order)
    ]
    path.write_text(json.dumps({"schema": SCHEMA, "engines": rows}, indent=2) + "\n")


def _of_debian_12(kind, known):
    """Return what this machine's own engine of a kind tells of itself; None for a kind that is no engine."""
    if kind not in known:
        known[kind] = None
        if kind == "docker":
            known[kind] = told(connected_client())
        elif kind == "podman":
            said = subprocess.run(["podman", "--version"], check=True, capture_output=True, text=True).stdout
            known[kind] = {"engine": "podman", "version": said.split()[-1], "store": "overlay"}
    return known[kind]


def _order(key):
    name, version, store = key
    return name, [int(part) for part in re.findall(r"\d+", version)], store != "overlay2"
