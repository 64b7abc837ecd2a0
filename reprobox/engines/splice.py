"""Finding one's place again in an output that was read twice: once live, and once from the engine's log."""

from __future__ import annotations

__all__ = ["Delivered"]

KEPT_BYTES = 4096


class Delivered:
    """How much of one output stream was delivered, and its last bytes, by which the place is known again."""

    def __init__(self) -> None:
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
        shares nothing with what was delivered is given whole.
        """
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
