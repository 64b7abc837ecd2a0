"""Finding one's place again in an output that was read twice: once live, and once from the engine's log."""

from __future__ import annotations

__all__ = ["Delivered"]

KEPT_BYTES = 4096


class Delivered:
    """How much of one output stream was delivered, and its last bytes, by which the place is known again.

    ``late``: it was not delivered from its beginning, which is not wanted either.
    """

    def __init__(self, *, late: bool = False) -> None:
        self.late = late
        self.count = 0
        self.tail = b""

    def add(self, data: bytes) -> None:
        """Note that ``data`` was delivered."""
        self.count += len(data)
        self.tail = data[-KEPT_BYTES:] if len(data) >= KEPT_BYTES else (self.tail + data)[-KEPT_BYTES:]

    def rest_of(self, log: bytes) -> tuple[bytes, bool]:
        """Return what of ``log``, the output as the engine kept it, is yet to be delivered; and whether that is sure.

        Sure where the log holds, just before the rest, what was delivered last. An engine that was killed may have lost
        the end of its log before it went on with it: then the rest begins at the first line that differs. A log that
        shares nothing with what was delivered is given whole. Of an output that was come to late the last place that
        looks like it counts, and is known from then on; where nothing was delivered yet, nothing of the log is new.
        """
        if self.late:
            found = log.rfind(self.tail)
            sure = bool(self.tail) and found >= 0 and found == log.find(self.tail)
            self.count = found + len(self.tail) if found >= 0 else len(log)
            self.tail = log[: self.count][-KEPT_BYTES:]
            self.late = False
            return log[self.count :], sure
        begins = self.count - len(self.tail)
        there = log[begins : self.count]
        if there == self.tail:
            return log[self.count :], True
        found = log.rfind(self.tail)  # a log whose beginning was cut
        if found >= 0:
            return log[found + len(self.tail) :], True
        same = next((i for i, (a, b) in enumerate(zip(there, self.tail, strict=False)) if a != b), len(there))
        whole_lines = self.tail.rfind(b"\n", 0, same) + 1
        if whole_lines or not begins:
            return log[begins + whole_lines :], False
        return log, False
