"""The receipts of a run's processes, merged into what a person wants to know after it."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Receipts", "read_receipts"]

SCHEMA = "reprobox.receipt/1"

LARGEST_BYTES = 16 << 20
"""A receipt of a day's training is some kilobytes."""

_PID = re.compile(r"[0-9]{1,10}")

PLACE = ("file", "line")
EVENT_FIELDS = {
    "reseed": ("generator", "value", *PLACE),
    "flag": ("flag", "after", *PLACE),
    "knob": ("knob", "value", "wanted"),
    "unseeded": ("generator", *PLACE),
    "nondeterministic": ("op", *PLACE),
    "split": ("what", *PLACE),
    "pool": ("pool", "workers", *PLACE),
    "entropy": ("source", *PLACE),
}
"""What the line shows of each kind of event."""


@dataclass(frozen=True, kw_only=True)
class Receipts:
    """Every receipt of a run, and the ledger in which each Python process that was reached signed.

    ``signed`` are the process ids in the ledger; ``started`` maps each process that looked like Python to its command
    line.
    """

    processes: tuple[dict[str, Any], ...]
    signed: frozenset[int]
    started: dict[int, str]

    @property
    def escaped(self) -> dict[int, str]:
        """The Python processes that were started and never reached, by process id."""
        return {pid: program for pid, program in self.started.items() if pid not in self.signed}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the different events of ``kind`` over all processes; ``processes`` counts where each was seen."""
        merged: dict[str, dict[str, Any]] = {}
        for process in self.processes:
            for event in process.get("events", ()):
                if event.get("kind") != kind:
                    continue
                key = json.dumps({k: v for k, v in event.items() if k != "count"}, sort_keys=True)
                known = merged.setdefault(key, {**event, "count": 0, "processes": 0})
                known["count"] += event.get("count", 1)
                known["processes"] += 1
        return list(merged.values())

    def to_json(self) -> dict[str, Any]:
        """Return the merged receipt as the manifest holds it: the word of the box, where the command can write it too."""
        kinds = sorted({e.get("kind", "?") for p in self.processes for e in p.get("events", ())})
        return {
            "told_by": "box",
            "processes": len(self.processes),
            "events": {kind: self.events(kind) for kind in kinds},
            "escaped": [{"pid": pid, "program": program} for pid, program in sorted(self.escaped.items())],
            "start_methods": sorted({p["start_method"] for p in self.processes if p.get("start_method")}),
            "generators": _main_generators(self.processes),
        }

    def summary(self) -> str:
        """Return the one line that ends a run."""
        if not self.processes and not self.signed and not self.started:
            return "receipt: no Python process was seen"
        parts = [
            *(_reseeds(self.events("reseed"))),
            *_places("flag", self.events("flag"), lambda e: f"{e['flag']} set to {e['after']}"),
            *_places("unseeded generator", _by_users(self.events("unseeded")), lambda e: e["generator"]),
            *_places("op without a deterministic kernel", self.events("nondeterministic"), lambda e: e["op"]),
            *_places("split that ranks would disagree on", self.events("split"), lambda e: e["what"]),
            *self._pools(),
            *_places("draw of real entropy", self.events("entropy"), lambda e: e["source"]),
            *_knobs(self.events("knob")),
            *(f"{_count(n, 'process')} without the hash seed" for n in [_total(self.events("hash-seed"))] if n),
            *(f"{_count(n, 'failure')} inside the hook" for n in [_total(self.events("failure"))] if n),
        ]
        if not parts:
            seeded = sum(1 for p in self.processes if p.get("seeds"))
            parts = [f"{_count(seeded, 'process')} seeded, nothing changed" if seeded else "no generator was imported"]
        if self.escaped:
            parts.append(f"{_count(len(self.escaped), 'process')} escaped ({next(iter(self.escaped.values()))})")
        elif not any(self.events(kind) for kind in ("hash-seed", "knob", "failure")):
            parts.append("nothing escaped")
        return f"receipt: {'; '.join(parts)}"

    def _pools(self) -> list[str]:
        draws = self.events("pool-draw")
        pools = self.events("pool")
        if not draws or not pools:
            return []
        place = f"{pools[0]['file']}:{pools[0]['line']}"
        return [
            f"draws inside tasks of the {pools[0]['pool']} of {pools[0]['workers']} at {place} may move between workers"
        ]


def read_receipts(folder: Path) -> Receipts:
    """Read the receipts and the ledger in a run's folder; one that is torn or of a newer schema is passed over."""
    processes = []
    for path in sorted(folder.glob("receipt-*.json")):
        try:
            document = json.loads(_read(path))
        except (OSError, ValueError, RecursionError):
            continue
        if _is_receipt(document):
            processes.append(document)
    signed, started = _read_ledger(folder / "ledger")
    for process in processes:
        for child in process.get("children", ()):
            started[child["pid"]] = child["program"]
    return Receipts(processes=tuple(processes), signed=frozenset(signed), started=started)


def _is_receipt(document: Any) -> bool:
    """Say whether ``document`` holds what is read of it here: the program could write to the folder as well."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return False
    events, children = document.get("events", []), document.get("children", [])
    return (
        isinstance(document.get("start_ns"), int)
        and isinstance(document.get("generators", {}), dict)
        and isinstance(events, list)
        and all(map(_is_event, events))
        and isinstance(children, list)
        and all(isinstance(c, dict) and isinstance(c.get("pid"), int) and _is_plain(c.get("program")) for c in children)
        and _is_plain(document.get("start_method", ""))
    )


def _is_event(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and isinstance(event.get("kind"), str)
        and isinstance(event.get("count", 1), int)
        and all(field in event for field in EVENT_FIELDS.get(event["kind"], ()))
        and all(map(_is_plain, event.values()))
    )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _read(path: Path) -> bytes:
    """Read a file that the command could have put there: a regular one of a bounded size, or nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise ValueError(path)
        return file.read(LARGEST_BYTES)


def _read_ledger(path: Path) -> tuple[set[int], dict[int, str]]:
    signed: set[int] = set()
    started: dict[int, str] = {}
    try:
        lines = _read(path).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return signed, started
    for line in lines:
        words = line.split(" ", 2)
        if len(words) < 2 or not _PID.fullmatch(words[1]):
            continue
        if words[0] == "hook":
            signed.add(int(words[1]))
        elif words[0] == "main":
            started[int(words[1])] = words[2] if len(words) > 2 else "?"
    return signed, started


def _main_generators(processes: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return the digests of the generators' states at the end of the first process that ended in order."""
    done = sorted((p for p in processes if p.get("complete") and not p.get("lineage")), key=lambda p: p["start_ns"])
    return dict(done[0].get("generators", {})) if done else {}


def _by_users(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what libraries did for themselves: it is in the receipt, and the line is for the user's own code."""
    return [event for event in events if event.get("origin") == "user"]


def _reseeds(events: list[dict[str, Any]]) -> list[str]:
    if not events:
        return []
    first = events[0]
    processes = max(event["processes"] for event in events)
    folded = f" folded into {first['folded']}" if "folded" in first else ""
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    place = f"{first['file']}:{first['line']} ({first['generator']}, {first['value']}{folded})"
    return [f"{_count(processes, 'process')} reseeded by {place}{more}"]


def _knobs(events: list[dict[str, Any]]) -> list[str]:
    if not events:
        return []
    first = events[0]
    now = "not set" if first["value"] is None else first["value"]
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    return [f"{first['knob']} is {now} where the recipe has {first['wanted']}{more}"]


def _places(what: str, events: list[dict[str, Any]], name: Any) -> list[str]:
    if not events:
        return []
    first = events[0]
    more = f" and {len(events) - 1} more" if len(events) > 1 else ""
    return [f"{_count(len(events), what)}: {name(first)} at {first['file']}:{first['line']}{more}"]


def _total(events: list[dict[str, Any]]) -> int:
    return sum(event["processes"] for event in events)


def _count(number: int, what: str) -> str:
    head, _, tail = what.partition(" ")
    if number == 1:
        return f"1 {what}"
    plural = head + ("es" if head.endswith("s") else "s")
    if head == "unseeded":
        return f"{number} unseeded generators"
    return f"{number} {plural}{' ' + tail if tail else ''}"
