"""``reprobox gpus``: the GPUs of this machine, what they do, and who has them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import textwrap
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from reprobox.cli.console import say, silent, table_console
from reprobox.cli.failures import nobody_reads
from reprobox.errors import GpuError
from reprobox.project import settings_folder
from reprobox.settings import Origin, Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from reprobox.runs.gpu_overview import Overview

app = typer.Typer(rich_markup_mode=None, add_completion=False)

REFRESH_SECONDS = 2.0
_LOOK_FOR_SIGNALS_SECONDS = 0.05

# Of xterm, and of every terminal that people have: its second screen without a cursor; and back.
_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
def gpus(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --watch one on a line.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 seconds, until Ctrl-C.")] = False,
    topology: Annotated[bool, typer.Option("--topology", help="Show how the GPUs are linked as well.")] = False,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="E", help="Whose boxes are looked at: docker, podman or local.")
    ] = None,
) -> int:
    """Show the GPUs as nvidia-smi does, which of them are free, and which run has the others."""
    settings = Settings.load({"engine": engine}, settings_folder())
    from reprobox.engines import choose_engine
    from reprobox.runs.gpu_overview import look
    from reprobox.runs.gpu_users import BoxesSeen

    wanted = settings.resolve("engine")
    named = wanted.origin is not Origin.DEFAULT
    seen = BoxesSeen(lambda: choose_engine(wanted.value, chosen=named, say=silent))

    def overview() -> Overview:
        return look(seen, os.environ, engine_was_named=named)

    if watch:
        return _watch(overview, as_json=as_json, topology=topology)
    found = overview()
    _refuse_nothing(found, as_json=as_json)
    for note in found.notes:
        say(note)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        print(_drawn(table_console(), found, topology=topology), end="")
    return 0


def _watch(look: Callable[[], Overview], *, as_json: bool, topology: bool) -> int:
    """Show what ``look`` returns again and again; return the exit code of the signal that ends it."""
    from reprobox.runs.interrupts import SIGNAL_BASE, Interrupted, Interrupts

    found = look()
    _refuse_nothing(found, as_json=as_json)
    on_screen = not as_json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    screen = _Screen() if on_screen else None
    said: tuple[str, ...] = ()
    try:
        with Interrupts(silent) as interrupts, screen or contextlib.nullcontext():
            while True:
                if screen is not None:
                    screen.show(found, topology=topology)
                else:
                    for note in set(found.notes) - set(said):
                        say(note)
                    said = found.notes
                    _print_one_of_many(found, as_json=as_json, topology=topology)
                until = time.monotonic() + REFRESH_SECONDS
                while time.monotonic() < until:
                    interrupts.raise_if_pending()
                    time.sleep(_LOOK_FOR_SIGNALS_SECONDS)
                found = look()
    except Interrupted as error:
        return SIGNAL_BASE + error.number
    except BrokenPipeError:
        return nobody_reads()  # typer would end the program with 1


def _refuse_nothing(found: Overview, *, as_json: bool) -> None:
    """Say on standard error why there is no GPU; a program that reads JSON finds it there."""
    if not found.gpus and not as_json:
        raise GpuError(f"no GPUs: {found.inventory.missing}", remedy=found.inventory.remedy)


def _print_one_of_many(found: Overview, *, as_json: bool, topology: bool) -> None:
    if as_json:
        print(json.dumps(found.to_json()), flush=True)
    else:
        now = datetime.now().astimezone()
        print(f"{now:%Y-%m-%d %H:%M:%S}", _drawn(table_console(), found, topology=topology), sep="\n", flush=True)


def _drawn(console: Console, found: Overview, *, topology: bool) -> str:
    """Return the table as what is to be written: rich would end the program in its own way where nobody reads."""
    from reprobox.cli.gpus_table import rendered

    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    with console.capture() as drawn:
        console.print(rendered(found, width=console.width, topology=topology, unicode=unicode))
    return drawn.get()


class _Screen:
    """The terminal's second screen for the length of a ``with`` block, redrawn in place; Ctrl-Z gives the first back."""

    def __enter__(self) -> Self:
        self._previous: Any = signal.getsignal(signal.SIGTSTP)
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._previous)
        self._write(_LEAVE)

    def show(self, found: Overview, *, topology: bool) -> None:
        """Draw it, as far as there is room."""
        console = table_console()
        drawn = _drawn(console, found, topology=topology)
        now = f"{datetime.now().astimezone():%H:%M:%S}, every {REFRESH_SECONDS:g} s; Ctrl-C ends"
        notes = [line for note in found.notes for line in textwrap.wrap(note, console.width)]
        lines = [now, *drawn.rstrip("\n").split("\n"), *notes]
        if len(lines) > console.height:
            left_out = len(lines) - console.height + 1
            lines[-left_out:] = [f"({left_out} more lines)"]
        sys.stdout.write(_HOME + "\n".join(line + _END_OF_LINE for line in lines) + _REST_OF_SCREEN)
        sys.stdout.flush()

    def _enter(self) -> None:
        if self._previous is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._stop)
        self._write(_ENTER)

    def _stop(self, *_: object) -> None:
        """Stop as Ctrl-Z does, with the person's own screen before them meanwhile."""
        self._write(_LEAVE)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        self._enter()

    def _write(self, sequence: bytes) -> None:
        # Not through sys.stdout: a signal may come while that is being written to. And the terminal may be gone.
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), sequence)
