"""The receipts of a run's processes, merged into what a person wants to know after it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reprobox.runs.receipt_reader import Ledger, Receipt, read_ledger, read_receipt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["MOST_RECEIPTS", "Receipts", "read_receipts"]

MOST_RECEIPTS = 10_000
MOST_BYTES = 64 << 20
"""Of a run's receipts no more are read: one is some kilobytes."""

MOST_EVENTS = 1000
MOST_ESCAPED = 1000
"""More different ones than these are counted, and not listed."""

_RECEIPT = re.compile(r"receipt-[A-Za-z0-9_.-]+\.json")


@dataclass(frozen=True, kw_only=True)
class Receipts:
    """Every receipt of a run, merged, and the ledger in which each Python process that was reached signed.

    ``merged`` are the different events by kind, each with its fields, ``count`` and the number of ``processes`` that saw
    it; ``more_events`` counts those that are not listed. ``signed`` are the process ids in the ledger; ``started`` maps
    each process that looked like Python to its command line. ``unreadable`` counts the files that were passed over.
    """

    processes: int = 0
    seeded: int = 0
    merged: Mapping[str, list[dict[str, Any]]]
    more_events: int = 0
    start_methods: tuple[str, ...] = ()
    generators: Mapping[str, str]
    signed: frozenset[int]
    started: Mapping[int, str]
    unreadable: int = 0

    @property
    def escaped(self) -> dict[int, str]:
        """The Python processes that were started and never reached, by process id."""
        return {pid: program for pid, program in self.started.items() if pid not in self.signed}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the different events of ``kind`` over all processes; ``processes`` counts where each was seen."""
        return self.merged.get(kind, [])

    def to_json(self) -> dict[str, Any]:
        """Return the merged receipt as the manifest holds it: the word of the box, where the command can write it too."""
        escaped = sorted(self.escaped.items())
        return {
            "told_by": "box",
            "processes": self.processes,
            "events": {kind: self.merged[kind] for kind in sorted(self.merged)},
            "more_events": self.more_events,
            "escaped": [{"pid": pid, "program": program} for pid, program in escaped[:MOST_ESCAPED]],
            "more_escaped": max(0, len(escaped) - MOST_ESCAPED),
            "start_methods": sorted(self.start_methods),
            "generators": dict(self.generators),
            "unreadable": self.unreadable,
        }

    def summary(self) -> str:
        """Return the one line that ends a run."""
        if not self.processes and not self.signed and not self.started and not self.unreadable:
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
            seeded = self.seeded
            parts = [f"{_count(seeded, 'process')} seeded, nothing changed" if seeded else "no generator was imported"]
        if self.unreadable:
            parts.append(f"{_count(self.unreadable, 'receipt')} could not be read")
        if self.escaped:
            parts.append(f"{_count(len(self.escaped), 'process')} escaped ({next(iter(self.escaped.values()))})")
        elif not self.unreadable and not any(self.events(kind) for kind in ("hash-seed", "knob", "failure")):
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
    """Read the receipts and the ledger in a run's folder, each once.

    What is torn, of a newer schema, too large or something else is passed over and counted: the program could write to
    the folder as well, and what it wrote must cost no more than a moment, and never the run its end.
    """
    receipts, unreadable = _read_all(folder)
    try:
        ledger = read_ledger(folder / "ledger")
    except FileNotFoundError:
        ledger = Ledger(signed=frozenset(), started={})
    except (OSError, ValueError):
        return _merged(receipts, None, unreadable + 1)
    return _merged(receipts, ledger, unreadable)


def _read_all(folder: Path) -> tuple[list[Receipt], int]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if _RECEIPT.fullmatch(entry.name))
    except OSError:
        return [], 0
    receipts, left, unreadable = [], MOST_BYTES, max(0, len(names) - MOST_RECEIPTS)
    for name in names[:MOST_RECEIPTS]:
        path = folder / name
        try:
            left -= path.lstat().st_size
            receipt = read_receipt(path) if left >= 0 else None
        except (OSError, ValueError):
            receipt = None
        if receipt is None:
            unreadable += 1
        else:
            receipts.append(receipt)
    return receipts, unreadable


def _merged(receipts: list[Receipt], ledger: Ledger | None, unreadable: int) -> Receipts:
    merged: dict[str, list[dict[str, Any]]] = {}
    known: dict[str, dict[str, Any]] = {}
    more = 0
    for receipt in receipts:
        for event in receipt.events:
            key = event.key
            if key not in known and len(known) >= MOST_EVENTS:
                more += 1
                continue
            if key not in known:
                known[key] = {"kind": event.kind, **event.fields, "count": 0, "processes": 0}
                merged.setdefault(event.kind, []).append(known[key])
            known[key]["count"] += event.count
            known[key]["processes"] += 1
    # Without the ledger nobody knows which of them signed.
    children = {pid: program for receipt in receipts for pid, program in receipt.children.items()} if ledger else {}
    return Receipts(
        processes=len(receipts),
        seeded=sum(receipt.seeded for receipt in receipts),
        merged=merged,
        more_events=more,
        start_methods=tuple({receipt.start_method for receipt in receipts if receipt.start_method}),
        generators=_main_generators(receipts),
        signed=ledger.signed if ledger else frozenset(),
        started={**ledger.started, **children} if ledger else {},
        unreadable=unreadable,
    )


def _main_generators(receipts: Iterable[Receipt]) -> Mapping[str, str]:
    """Return the digests of the generators' states at the end of the first process that ended in order."""
    done = [receipt for receipt in receipts if receipt.complete and not receipt.lineage]
    return min(done, key=lambda receipt: receipt.start_ns).generators if done else {}


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
