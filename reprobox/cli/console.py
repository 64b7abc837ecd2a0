"""What a person is told: lines on stderr that begin with ``reprobox:``, and progress as a bar on a terminal."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.text import Text

__all__ = [
    "BuildConsole",
    "cell",
    "print_rows",
    "printable",
    "raw_say",
    "say",
    "silent",
    "table_console",
    "write_block",
]


def printable(text: str) -> str:
    """Return ``text`` with every character escaped that a terminal would obey, or that would begin another line.

    Names, commands, labels, receipts and an engine's words are other people's, and may hold anything.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cell(text: str, style: str = "") -> Text:
    """Return ``text`` for a table: escaped, and no markup."""
    from rich.text import Text

    return Text(printable(text), style=style)


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print a table, escaped, its last column as wide as it is: rich takes seconds for some thousand rows."""
    shown = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)][:-1]
    for *texts, last in shown:
        padded = [text.ljust(width) for text, width in zip(texts, widths, strict=True)]
        print("  ".join([*padded, last]).rstrip())


def say(line: str) -> None:
    """Tell a person ``line``, on stderr: stdout belongs to the command's own output."""
    _write(f"reprobox: {printable(line)}\n")


def raw_say(line: str) -> None:
    """Tell a person at a raw terminal, which goes down a line and not back to its beginning."""
    _write(f"reprobox: {printable(line)}\r\n")


def write_block(text: str, indent: str = "") -> None:
    """Write several lines as they are, but for what a terminal would obey: a traceback, a builder's output."""
    _write("".join(f"{indent}{printable(line)}\n" for line in text.rstrip().expandtabs().split("\n")))


def _write(text: str) -> None:
    # A closed stderr, or one that nobody reads any more, is no reason to fail.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def silent(line: str) -> None:
    """Tell nobody (``-q``)."""
    del line


def table_console() -> Console:
    """Return where tables are printed, on stdout; a word of a command in them may hold bytes that are no UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return _rich_console()


def _rich_console(*, stderr: bool = False) -> Console:
    import shutil

    from rich.console import Console

    columns, lines = shutil.get_terminal_size()  # rich itself fails on some texts of COLUMNS, and on great numbers
    return Console(stderr=stderr, width=min(columns, 1000), height=lines)


class BuildConsole:
    """The reporter of a build: bars where stderr is a terminal, otherwise a plain line now and then."""

    PLAIN_EVERY_SECONDS = 10.0

    def __init__(self, *, verbose: bool = False, quiet: bool = False) -> None:
        self.verbose = verbose
        self.quiet = quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def say(self, line: str) -> None:
        """Tell a step and its reason."""
        if not self.quiet:
            say(line)

    def log(self, line: str) -> None:
        """Show a line of the builder's own output, where it was asked for."""
        if self.verbose and not self.quiet:
            write_block(line, "  ")

    def progress(self, label: str, done: int, total: int | None) -> None:
        """Show that ``done`` of ``total`` bytes or steps of ``label`` are through."""
        if self.quiet:
            return
        if self._progress is not None:
            if label not in self._tasks:
                from rich.markup import escape

                self._tasks[label] = self._progress.add_task(escape(printable(label)), total=total)
            self._progress.update(self._tasks[label], completed=done, total=total)
            return
        finished = total is not None and done >= total
        if finished or time.monotonic() - self._said.get(label, 0.0) >= self.PLAIN_EVERY_SECONDS:
            self._said[label] = time.monotonic()
            say(f"{label}: {done}/{total}" if total is not None else f"{label}: {done}")

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self.quiet:
            from rich.progress import Progress

            self._progress = Progress(console=_rich_console(stderr=True), transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
