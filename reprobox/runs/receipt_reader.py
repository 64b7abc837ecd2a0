"""One process's receipt, and the ledger, read from files that the command could have written itself.

What a file may hold, and how much of it, is fixed here; a file that holds something else is refused whole.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from reprobox.files import parse_json, read_untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["EVENT_FIELDS", "Event", "Ledger", "Receipt", "read_ledger", "read_receipt"]

SCHEMA = "reprobox.receipt/1"

LARGEST_BYTES = 4 << 20
"""A receipt of a day's training is some kilobytes, and the ledger has a line a process."""

LONGEST_TEXT = 1000
"""What is longer is cut: it is for reading."""

MOST_FIELDS = 32
MOST_GENERATORS = 100
LARGEST_NUMBER = 1 << 63
LARGEST_PID = 1 << 32

_PID = re.compile(r"[0-9]{1,9}")

Scalar: TypeAlias = "str | int | float | None"

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


class _NotAReceiptError(ValueError):
    """A file holds something else than a receipt of this schema."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One kind of thing that happened to the recipe; ``count`` is how often. ``fields`` are what tells it from others."""

    kind: str
    fields: Mapping[str, Scalar]
    count: int

    @property
    def key(self) -> str:
        """What two events have in common that are one."""
        return json.dumps([self.kind, self.fields], sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What the host reads of one process's receipt. ``children`` maps what it started and looks like Python, by pid."""

    start_ns: int
    complete: bool
    lineage: str
    seeded: bool
    start_method: str | None
    generators: Mapping[str, str]
    events: tuple[Event, ...]
    children: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The pids that the hook signed with, and the program of each Python that the entrypoint started, by pid."""

    signed: frozenset[int]
    started: Mapping[int, str]


def read_receipt(path: Path) -> Receipt:
    """Read a receipt. :raises OSError, ValueError: when it cannot be read, is too large, or is none of this schema."""
    document = parse_json(read_untrusted(path, LARGEST_BYTES))
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise _NotAReceiptError("its schema is another")
    generators = _a(dict, document.get("generators", {}))
    if len(generators) > MOST_GENERATORS:
        raise _NotAReceiptError("it has too many generators")
    method = document.get("start_method")
    return Receipt(
        start_ns=_number(document.get("start_ns")),
        complete=_a(bool, document.get("complete", False)),
        lineage=_text(document.get("lineage", "")),
        seeded=bool(_a(list, document.get("seeds", []))),
        start_method=None if method is None else _text(method),
        generators={_text(name): _text(digest) for name, digest in generators.items()},
        events=tuple(map(_event, _a(list, document.get("events", [])))),
        children=dict(map(_child, _a(list, document.get("children", [])))),
    )


def read_ledger(path: Path) -> Ledger:
    """Read the ledger; lines that make no sense are passed over, for the last may be torn.

    :raises OSError, ValueError: when it cannot be read, or is too large.
    """
    signed: set[int] = set()
    started: dict[int, str] = {}
    for line in read_untrusted(path, LARGEST_BYTES).decode(errors="replace").splitlines():
        words = line.split(" ", 2)
        if len(words) < 2 or not _PID.fullmatch(words[1]):
            continue
        if words[0] == "hook":
            signed.add(int(words[1]))
        elif words[0] == "main":
            started[int(words[1])] = _text(words[2] if len(words) > 2 else "?")
    return Ledger(signed=frozenset(signed), started=started)


def _event(value: Any) -> Event:
    entry = _a(dict, value)
    kind = _text(entry.get("kind"))
    fields = {_text(name): _scalar(field) for name, field in entry.items() if name not in ("kind", "count")}
    if len(fields) > MOST_FIELDS or not all(name in fields for name in EVENT_FIELDS.get(kind, ())):
        raise _NotAReceiptError(f"one of its events is no {kind}")
    return Event(kind=kind, fields=fields, count=_number(entry.get("count", 1), least=1))


def _child(value: Any) -> tuple[int, str]:
    entry = _a(dict, value)
    return _number(entry.get("pid"), most=LARGEST_PID), _text(entry.get("program"))


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise _NotAReceiptError(f"it holds {type(value).__name__} where {kind.__name__} belongs")
    return value


def _text(value: Any) -> str:
    text: str = _a(str, value)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def _number(value: Any, *, least: int = 0, most: int = LARGEST_NUMBER) -> int:
    number: int = _a(int, value)
    if not least <= number <= most:
        raise _NotAReceiptError("one of its numbers is out of range")
    return number


def _scalar(value: Any) -> Scalar:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return _text(str(value))  # a seed may be as long as one likes
    if value is None or isinstance(value, int | float):
        return value
    raise _NotAReceiptError(f"one of its events holds {type(value).__name__}")
